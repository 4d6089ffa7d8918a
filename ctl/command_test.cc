// SPDX-License-Identifier: Apache-2.0
//
// Command lines against a real admin server over a real socket.
#include "ctl/command.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "agent/observe/admin_server.h"
#include "agent/observe/fake_node_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace shunt::ctl {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class CommandTest : public ::testing::Test {
 protected:
  CommandTest() {
    std::string path = fs::temp_directory_path() / "shunt-ctl-XXXXXX";
    directory_ = mkdtemp(path.data());
    socket_ = directory_ / "agent.sock";
  }
  ~CommandTest() override {
    server_.reset();
    fs::remove_all(directory_);
  }

  void Serve() {
    auto server = AdminServer::Create({socket_}, &view_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
  }

  // The exit code; what was written is in out_ and err_.
  int RunWords(std::vector<std::string> words) {
    std::vector<const char*> argv = {"shuntctl"};
    for (const std::string& word : words) {
      argv.push_back(word.c_str());
    }
    std::ostringstream out;
    std::ostringstream err;
    const int code = ctl::Run(static_cast<int>(argv.size()), argv.data(), out, err);
    out_ = out.str();
    err_ = err.str();
    return code;
  }

  int Ctl(std::vector<std::string> words) {
    words.insert(words.begin(), {"--socket", socket_});
    return RunWords(std::move(words));
  }

  nlohmann::json Json() const { return nlohmann::json::parse(out_); }

  fs::path directory_;
  std::string socket_;
  FakeNodeView view_;
  std::unique_ptr<AdminServer> server_;
  std::string out_;
  std::string err_;
};

TEST_F(CommandTest, WrongUsageIsTwo) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{},
                                             {"dance"},
                                             {"status", "extra"},
                                             {"--output", "xml", "status"},
                                             {"pairs", "--limit", "0"},
                                             {"pairs", "--limit", "10001"},
                                             {"pairs", "--limit", "many"},
                                             {"drain", "--timeout", "-1"},
                                             {"status", "--pod", "x"}}) {
    EXPECT_EQ(RunWords(words), 2) << ::testing::PrintToString(words);
    EXPECT_NE(err_, "");
    EXPECT_EQ(out_, "");
  }
}

TEST_F(CommandTest, WrongUsageNamesWhatIsAllowed) {
  RunWords({});
  EXPECT_EQ(err_, "shuntctl: no verb: give one of status, pods, pairs, doctor, drain\n");
  RunWords({"dance"});
  EXPECT_EQ(err_,
            "shuntctl: no such verb: dance: give one of status, pods, pairs, doctor, drain\n");
  RunWords({"--output", "xml", "status"});
  EXPECT_THAT(err_, HasSubstr("xml not in {table,json}"));
}

TEST_F(CommandTest, HelpIsZero) {
  EXPECT_EQ(RunWords({"--help"}), 0);
  for (const char* word : {"status", "pods", "pairs", "doctor", "drain", "--socket", "--output",
                           "/run/shunt/agent.sock"}) {
    EXPECT_THAT(out_, HasSubstr(word));
  }
}

TEST_F(CommandTest, NoAgentIsTwoAndNamesTheSocket) {
  EXPECT_EQ(Ctl({"status"}), 2);
  EXPECT_EQ(err_, absl::StrCat("shuntctl: no agent on ", socket_,
                               ": it does not exist: start shunt-agent on this node, or name its "
                               "admin.socket with --socket\n"));
  std::ofstream(socket_) << "no socket";
  EXPECT_EQ(Ctl({"status"}), 2);
  EXPECT_THAT(err_, StartsWith(absl::StrCat("shuntctl: no agent on ", socket_, ": ")));

  EXPECT_EQ(RunWords({"--socket", std::string(200, 'x'), "status"}), 2);
  EXPECT_THAT(err_, HasSubstr("200 bytes long, the kernel allows 107: choose a shorter one\n"));
}

TEST_F(CommandTest, StatusInBothForms) {
  view_.status->engine = "sockhash";
  view_.status->pods = 3;
  Serve();
  EXPECT_EQ(Ctl({"--output", "json", "status"}), 0);
  EXPECT_EQ(Json()["pods"], 3);
  EXPECT_EQ(Ctl({"status", "--output", "json"}), 0) << "options may follow the verb";
  EXPECT_EQ(Json()["engine"], "sockhash");
  EXPECT_EQ(Ctl({"status"}), 0);
  EXPECT_THAT(out_, StartsWith("engine      sockhash\n"));
  EXPECT_EQ(err_, "");
}

TEST_F(CommandTest, AgentsFailureIsOne) {
  view_.status = absl::UnavailableError("map is gone");
  Serve();
  EXPECT_EQ(Ctl({"status"}), 1);
  EXPECT_EQ(err_, "shuntctl: reading the node's status: map is gone\n");
  EXPECT_EQ(out_, "");
}

TEST_F(CommandTest, PodsAndPairsOfOnePod) {
  PodView pod;
  pod.spec.uid = "a";
  view_.pods = std::vector<PodView>{pod};
  PairView pair;
  pair.pod_uid = "a";
  std::vector<PairView> pairs(5, pair);
  pairs[4].pod_uid = "b";
  view_.pairs = pairs;
  Serve();
  EXPECT_EQ(Ctl({"--output", "json", "pods", "--pod", "a"}), 0);
  EXPECT_EQ(Json()["pods"].size(), 1u);
  EXPECT_EQ(Ctl({"--output", "json", "pairs", "--pod", "a", "--limit", "3"}), 0);
  EXPECT_EQ(Json()["pairs"].size(), 3u);
  EXPECT_EQ(Json()["total"], 4);
  for (const char* verb : {"pods", "pairs"}) {
    EXPECT_EQ(Ctl({verb, "--pod", "c"}), 1);
    EXPECT_EQ(err_,
              "shuntctl: pod \"c\" is not among the pods of this node: `shuntctl pods` lists "
              "them\n");
  }
}

TEST_F(CommandTest, DoctorIsOneWhenSomethingIsFatal) {
  view_.probes = {{"redirect", "degraded", "", "", "", ""}};
  Serve();
  EXPECT_EQ(Ctl({"doctor"}), 0);
  view_.probes[0].verdict = "fatal";
  EXPECT_EQ(Ctl({"--output", "json", "doctor"}), 1);
  EXPECT_EQ(Json()["ok"], false);
}

// As root this is the real thing; without, everything is fatal or skipped.
TEST_F(CommandTest, DoctorLooksByItselfWhereNoAgentRuns) {
  EXPECT_LT(Ctl({"--output", "json", "doctor"}), 2);
  EXPECT_THAT(err_, HasSubstr("it does not exist"));
  EXPECT_THAT(err_, HasSubstr("looking from here"));
  EXPECT_EQ(Json()["probes"][0]["name"], "programs_load");
  EXPECT_GT(Json()["probes"].size(), 60u);
  for (const nlohmann::json& probe : Json()["probes"]) {
    for (const char* key : {"name", "verdict", "tried", "happened", "means", "toDo", "family"}) {
      EXPECT_NE(probe[key], "") << probe;
    }
  }
  const bool ok = Json()["ok"];
  EXPECT_EQ(Ctl({"doctor", "--all"}), ok ? 0 : 1);
  EXPECT_THAT(out_, HasSubstr("\nprograms_load\n  tried  "));
}

DrainProgress Holding() {
  DrainProgress progress;
  progress.pods = 1;
  progress.waiting = {3, 5000, {}};
  progress.waiting_pods = {{"demo", progress.waiting}};
  return progress;
}

TEST_F(CommandTest, DrainTellsWhatItWaitsFor) {
  view_.drain_steps = {Holding(), DrainProgress{true, 0, {}, {}}};
  Serve();
  EXPECT_EQ(Ctl({"drain"}), 0);
  EXPECT_EQ(err_, "waiting for 3 connection ends of pod demo: 5000 bytes unread\n");
  EXPECT_EQ(out_, "Drained: every connection is plain TCP and nothing is pinned.\n");
  EXPECT_EQ(Ctl({"--output", "json", "drain"}), 0);
  EXPECT_EQ(Json()["drained"], true);
}

TEST_F(CommandTest, DrainThatTakesTooLongIsOne) {
  view_.drain_steps = {Holding()};
  Serve();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Ctl({"--output", "json", "drain", "--timeout", "1"}), 1);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(2500));
  EXPECT_THAT(err_, HasSubstr("shuntctl: not drained within 1 s:\n"
                              "waiting for 3 connection ends of pod demo: 5000 bytes unread\n"
                              "shuntctl: let those programs read or close, then drain again\n"));
  EXPECT_LE(std::count(err_.begin(), err_.end(), '\n'), 5) << "progress is for people:\n" << err_;
  EXPECT_EQ(Json()["drained"], false);
  EXPECT_EQ(Json()["unreadBytes"], 5000);
}

TEST_F(CommandTest, DrainThatFailsIsOne) {
  view_.drain_result = absl::InternalError("cannot unpin");
  Serve();
  EXPECT_EQ(Ctl({"drain"}), 1);
  EXPECT_EQ(err_,
            "shuntctl: drain stopped: draining the node: cannot unpin: see that the agent runs, "
            "then drain again\n");
  EXPECT_EQ(out_, "");
}

}  // namespace
}  // namespace shunt::ctl

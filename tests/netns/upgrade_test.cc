// SPDX-License-Identifier: Apache-2.0
//
// Agents whose kernel programs differ follow each other: connections keep the
// programs that they joined with, new ones get the new, and both let go.
#include <bpf/bpf.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/pod_fixture.h"
#include "tests/support/traffic.h"

namespace shunt::test {
namespace {

using testing::HasSubstr;
using Generation = AgentProcess::Generation;

// While one lives the kernel counts how often each program runs.
class RunStatistics {
 public:
  RunStatistics() : fd_(bpf_enable_stats(BPF_STATS_RUN_TIME)) {
    if (!fd_.valid()) {
      StopErrno(Where::Here(), "counting runs of programs", errno);
    }
  }

 private:
  UniqueFd fd_;
};

class UpgradeTest : public PodTest {
 protected:
  // The program that sockets join with now.
  uint32_t PinnedProgram(const std::string& name) const {
    const std::string path = bpffs().path() + "/v1/progs/" + name;
    const UniqueFd fd(bpf_obj_get(path.c_str()));
    return fd.valid() ? InfoOf(fd.get()).id : 0;
  }

  static bool IsLoaded(uint32_t id) { return UniqueFd(bpf_prog_get_fd_by_id(id)).valid(); }

  // Of a program that is loaded.
  static uint64_t RunsOf(uint32_t id) {
    const UniqueFd fd(bpf_prog_get_fd_by_id(id));
    return fd.valid() ? InfoOf(fd.get()).run_cnt : 0;
  }

  // The programs of these ids that run for a byte each way on `connection`.
  std::vector<uint32_t> ProgramsOf(const Connection& connection,
                                   const std::vector<uint32_t>& candidates) {
    const RunStatistics on;
    std::map<uint32_t, uint64_t> before;
    for (const uint32_t id : candidates) {
      before[id] = RunsOf(id);
    }
    ExpectRedirects(connection);
    std::vector<uint32_t> ran;
    for (const uint32_t id : candidates) {
      if (RunsOf(id) != before[id]) {
        ran.push_back(id);
      }
    }
    return ran;
  }

  void ExpectAcceleratedProgress(Traffic& traffic, const Where& where = Where::Here()) {
    const uint64_t before = kernel().RedirectedBytes();
    traffic.WaitForProgress(where);
    EXPECT_GT(kernel().RedirectedBytes(), before) << kernel().CountsText();
  }

  enum class End { kKill, kTerminate };

  void Follow(Generation generation, End end) {
    if (end == End::kKill) {
      agent().KillHard();
    } else {
      EXPECT_EQ(agent().Terminate(), 0);
    }
    agent().SetGeneration(generation);
    agent().StartReady(1);
  }

  std::vector<Connection> MakeFastPairs(int count) {
    std::vector<Connection> connections;
    for (int i = 0; i < count; i++) {
      connections.push_back(MakeFastPair(kIpModes[i % std::size(kIpModes)]));
    }
    return connections;
  }

  bool HasPins() const { return access((bpffs().path() + "/v1").c_str(), F_OK) == 0; }

 private:
  static struct bpf_prog_info InfoOf(int fd) {
    struct bpf_prog_info info = {};
    __u32 size = sizeof(info);
    if (bpf_obj_get_info_by_fd(fd, &info, &size) != 0) {
      StopErrno(Where::Here(), "reading program info", errno);
    }
    return info;
  }
};

class UpgradeUnderLoad : public UpgradeTest, public testing::WithParamInterface<bool> {};

TEST_P(UpgradeUnderLoad, KeepsOldPairsGivesNewProgramsToNewPairsAndGoesBack) {
  const End end = GetParam() ? End::kKill : End::kTerminate;
  StartAgent();
  std::vector<Connection> loaded = MakeFastPairs(4);
  Connection old_pair = MakeFastPair();
  Traffic traffic(loaded);
  ExpectAcceleratedProgress(traffic);
  const uint32_t old_msg = PinnedProgram("sk_msg");
  const uint32_t old_ops = PinnedProgram("sock_ops");

  Follow(Generation::kNext, end);
  ExpectAcceleratedProgress(traffic);
  const uint32_t new_msg = PinnedProgram("sk_msg");
  EXPECT_NE(new_msg, old_msg);
  EXPECT_NE(PinnedProgram("sock_ops"), old_ops);
  EXPECT_FALSE(agent().LogLines("reason", "program_changed").empty());
  traffic.Stop();
  Connection new_pair = MakeFastPair();
  EXPECT_EQ(ProgramsOf(old_pair, {old_msg, new_msg}), std::vector<uint32_t>{old_msg});
  EXPECT_EQ(ProgramsOf(new_pair, {old_msg, new_msg}), std::vector<uint32_t>{new_msg});
  EXPECT_EQ(agent().Status().at("pairs").at("accelerated"), 6);

  // Down again, with pairs of both generations under load.
  std::vector<Connection> both = MakeFastPairs(4);
  for (Connection& connection : loaded) {
    both.push_back(std::move(connection));
  }
  Traffic more(both);
  ExpectAcceleratedProgress(more);
  Follow(Generation::kUsual, end);
  ExpectAcceleratedProgress(more);
  more.Stop();
  const uint32_t again_msg = PinnedProgram("sk_msg");
  EXPECT_NE(again_msg, new_msg);
  Connection last_pair = MakeFastPair();
  const std::vector<uint32_t> all = {old_msg, new_msg, again_msg};
  EXPECT_EQ(ProgramsOf(old_pair, all), std::vector<uint32_t>{old_msg});
  EXPECT_EQ(ProgramsOf(new_pair, all), std::vector<uint32_t>{new_msg});
  EXPECT_EQ(ProgramsOf(last_pair, all), std::vector<uint32_t>{again_msg});

  // A generation's programs go with its last pair.
  both.clear();
  old_pair = Connection();
  new_pair = Connection();
  WaitUntil("the programs of former agents are gone",
            [&] { return !IsLoaded(old_msg) && !IsLoaded(new_msg) && !IsLoaded(old_ops); });
  ExpectRedirects(last_pair);
}

INSTANTIATE_TEST_SUITE_P(, UpgradeUnderLoad, testing::Bool(), [](const auto& kills) {
  return kills.param ? "AfterSigkill" : "AfterSigterm";
});

TEST_F(UpgradeTest, BothGenerationsDrainUnderLoad) {
  StartAgent();
  std::vector<Connection> connections = MakeFastPairs(4);
  Follow(Generation::kNext, End::kTerminate);
  for (Connection& connection : MakeFastPairs(4)) {
    connections.push_back(std::move(connection));
  }
  Traffic traffic(connections);
  ExpectAcceleratedProgress(traffic);
  // Where every socket has a blocked reader and timers, and the CPUs are taken, quiet
  // looks in a row (bpf/gate.h) are rare.
  const CommandResult drain = agent().Ctl({"drain", "--timeout", "60"}, milliseconds(70000));
  EXPECT_EQ(drain.exit_code, 0) << drain.out << drain.err;
  EXPECT_FALSE(HasPins());
  traffic.WaitForProgress();
  traffic.Stop();
}

// A pair of the former generation that streams is let go by the next agent.
TEST_F(UpgradeTest, AnOldPairLeavesUnderTheNextAgent) {
  StartAgent();
  const Connection connection = MakeFastPair();
  Follow(Generation::kNext, End::kKill);
  const std::string message(64, 'x');
  constexpr int kMessages = 20000;
  {
    Worker reader([&] { ReadExactly(connection.server.get(), message.size() * kMessages); });
    for (int i = 0; i < kMessages; i++) {
      SendAll(connection.client.get(), message);
    }
  }
  WaitUntil("the pair has left",
            [&] { return kernel().Entries("sockets") == 0 && kernel().Entries("ends") == 0; });
  PingPong(connection);
}

TEST_F(UpgradeTest, AnotherAbiIsRefusedAndChangesNothingUntilTheOldAgentDrains) {
  StartAgent();
  const Connection connection = MakeFastPair();
  const uint32_t msg = PinnedProgram("sk_msg");
  const uint32_t ops = PinnedProgram("sock_ops");
  EXPECT_EQ(agent().Terminate(), 0);

  kernel().SetAbiVersion(SHUNT_ABI_VERSION + 1);
  agent().SetGeneration(Generation::kNext);
  EXPECT_EQ(agent().RunToExit(), 2);
  EXPECT_THAT(agent().Output(),
              HasSubstr("pins have ABI version " + std::to_string(SHUNT_ABI_VERSION + 1)));
  EXPECT_THAT(agent().Output(), HasSubstr("drain with the agent version that made them"));
  EXPECT_EQ(PinnedProgram("sk_msg"), msg);
  EXPECT_EQ(PinnedProgram("sock_ops"), ops);
  EXPECT_EQ(kernel().Entries("sockets"), 2u);
  ExpectRedirects(connection);
  ExpectRedirects(MakeFastPair());  // new ones too join what is pinned
  kernel().SetAbiVersion(SHUNT_ABI_VERSION);

  agent().SetGeneration(Generation::kUsual);
  agent().StartReady(1);
  const CommandResult drain = agent().Ctl({"drain", "--timeout", "15"});
  EXPECT_EQ(drain.exit_code, 0) << drain.out << drain.err;
  EXPECT_EQ(agent().Terminate(), 0);
  EXPECT_FALSE(HasPins());
  PingPong(connection);

  agent().SetGeneration(Generation::kNext);
  agent().StartReady(1);
  EXPECT_NE(PinnedProgram("sk_msg"), msg);
  const Connection young = MakeFastPair();
  EXPECT_EQ(kernel().Entries("ends"), 2u) << "something of the former agent is left";
  ExpectPlain(connection);
}

}  // namespace
}  // namespace shunt::test

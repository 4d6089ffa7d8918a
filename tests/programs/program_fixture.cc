// SPDX-License-Identifier: Apache-2.0
#include "tests/programs/program_fixture.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>
#include <utility>

namespace shunt::test {
namespace {

constexpr size_t kLastWords = 2000;
// Debian's own, whatever else is first in PATH.
constexpr char kPython[] = "/usr/bin/python3";

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string Tail(const std::string& text) {
  return text.size() > kLastWords ? "…" + text.substr(text.size() - kLastWords) : text;
}

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    text += (text.empty() ? "" : " ") + word;
  }
  return text;
}

std::string InPath(const std::string& name) {
  std::istringstream path(getenv("PATH") != nullptr ? getenv("PATH") : "");
  for (std::string directory; std::getline(path, directory, ':');) {
    const std::string candidate = directory + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) {
      return candidate;
    }
  }
  return "";
}

int FromEnvironment(const char* name, int otherwise) {
  const char* value = getenv(name);
  return value != nullptr ? atoi(value) : otherwise;
}

}  // namespace

uint64_t UploadBytes() { return uint64_t{1000000} * FromEnvironment("SHUNT_UPLOAD_MB", 20); }
int UploadRuns() { return FromEnvironment("SHUNT_UPLOAD_RUNS", 2); }

std::string MissingPrograms(const std::vector<std::string>& names) {
  std::string missing;
  for (const std::string& name : names) {
    if (name[0] == '/' ? access(name.c_str(), X_OK) != 0 : InPath(name).empty()) {
      missing += (missing.empty() ? "" : ", ") + name;
    }
  }
  if (!missing.empty()) {
    missing =
        "NOT TESTED: no " + missing + " on this machine; scripts/lib/packages.sh has the packages";
  }
  return missing;
}

void ProgramTest::SetUp() {
  PodTest::SetUp();
  if (IsSkipped()) {
    return;
  }
  const char* where = getenv("SHUNT_PROGRAMS_POD");
  plain_only_ = where != nullptr && std::string(where) == "plain";
  directory_ = MakeTempDir("programs");
}

void ProgramTest::TearDown() {
  if (!servers_.empty()) {
    const uint64_t pairs = kernel().Count(SHUNT_EXIT_PAIR_MADE);
    printf("kernel side: %s, %llu bytes redirected\n", kernel().CountsText().c_str(),
           static_cast<unsigned long long>(kernel().RedirectedBytes()));
    if (plain_only_) {
      EXPECT_EQ(pairs, 0U);
    } else {
      EXPECT_GT(pairs, 0U) << "nothing was accelerated: the test says nothing";
    }
  }
  servers_.clear();
  PodTest::TearDown();
}

void ProgramTest::StartListed(const std::vector<uint16_t>& ports) {
  agent().LearnWorkloads();
  std::vector<std::string> texts;
  for (const uint16_t port : ports) {
    texts.push_back(std::to_string(port));
  }
  StartAgent(texts);
}

std::vector<std::string> ProgramTest::InPod(const std::vector<std::string>& arguments,
                                            int uid) const {
  std::vector<std::string> all = {
      "sh", "-c", "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"", "sh", pod().cgroup()};
  if (uid != 0) {
    all.insert(all.end(), {"setpriv", "--reuid=" + std::to_string(uid),
                           "--regid=" + std::to_string(uid), "--clear-groups", "--"});
  }
  all.insert(all.end(), arguments.begin(), arguments.end());
  return all;
}

void ProgramTest::StartServer(const std::string& name, const std::vector<std::string>& arguments,
                              uint16_t port, int uid, const Where& where) {
  const std::string output = directory_ + "/" + name + ".log";
  servers_.push_back(
      {name, output, Child::Spawn(InPod(arguments, uid), pod().netns().get(), output, output)});
  Server& server = servers_.back();
  const std::string filter = "sport = :" + std::to_string(port);
  bool listens = false;
  WaitUntil(
      name + " listens on port " + std::to_string(port),
      [&] {
        listens = !MustRun({"ss", "-Hltn", filter}, pod().netns().get()).empty();
        return listens || server.process.Poll().has_value();
      },
      kProgramPatience, where);
  if (!listens) {
    Stop(where, name + " ended: " + Tail(ReadText(output)));
  }
}

std::string ProgramTest::RunInPod(const std::vector<std::string>& arguments, int uid,
                                  milliseconds patience, const Where& where) {
  static int number = 0;
  const std::string out = directory_ + "/run-" + std::to_string(++number);
  const std::string err = out + ".err";
  Child child = Child::Spawn(InPod(arguments, uid), pod().netns().get(), out, err);
  const Clock::time_point end = Clock::now() + patience;
  while (!child.Poll().has_value() && Clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  if (!child.Poll().has_value()) {
    PrintStuck();
    Stop(where, "STUCK after " + std::to_string(patience.count()) + " ms: " + Joined(arguments) +
                    "\n" + Tail(ReadText(out)) + Tail(ReadText(err)));
  }
  std::string text = ReadText(out);
  if (*child.Poll() != 0) {
    PrintStuck();
    Stop(where, Joined(arguments) + " exited with " + std::to_string(*child.Poll()) + "\n" +
                    Tail(text) + Tail(ReadText(err)));
  }
  if (!text.empty() && text.back() == '\n') {
    text.pop_back();
  }
  return text;
}

std::string ProgramTest::Peer(std::vector<std::string> arguments, const Where& where) {
  arguments.insert(arguments.begin(), {kPython, Source("peer.py")});
  return RunInPod(arguments, 0, kProgramPatience, where);
}

void ProgramTest::StartPeer(std::vector<std::string> arguments, uint16_t port, const Where& where) {
  const std::string name = arguments.front();
  arguments.insert(arguments.begin(), {kPython, Source("peer.py")});
  StartServer(name, arguments, port, 0, where);
}

void ProgramTest::PrintStuck() {
  const CommandResult pairs = agent().Ctl({"pairs"});
  printf("---- shuntctl pairs ----\n%s%s---- ss -tmi ----\n%s", pairs.out.c_str(),
         pairs.err.c_str(), RunCommand({"ss", "-tmin"}, pod().netns().get()).out.c_str());
  for (const Server& server : servers_) {
    printf("---- last words of %s ----\n%s", server.name.c_str(),
           Tail(ReadText(server.output)).c_str());
  }
  printf("----\n");
  fflush(stdout);
}

std::string ProgramTest::MakeInput(uint64_t bytes) {
  const std::string path = directory_ + "/input-" + std::to_string(bytes);
  std::mt19937_64 random(bytes);
  std::string data;
  data.reserve(bytes + sizeof(uint64_t));
  while (data.size() < bytes) {
    const uint64_t word = random();
    data.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
  data.resize(bytes);
  return WriteText(path, data);
}

std::string ProgramTest::MakeDirectory(const std::string& name, int uid) {
  const std::string path = directory_ + "/" + name;
  if (mkdir(path.c_str(), 0755) != 0 || chown(path.c_str(), uid, uid) != 0) {
    StopErrno(Where::Here(), "making " + path, errno);
  }
  return path;
}

std::string ProgramTest::WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) {
    StopErrno(Where::Here(), "writing " + path, errno);
  }
  return path;
}

std::string ProgramTest::Sha256(const std::string& path) {
  const std::string output = MustRun({"sha256sum", path});
  return output.substr(0, output.find(' '));
}

std::string ProgramTest::Source(const std::string& name) {
  return std::string(SHUNT_PROGRAMS_SOURCE) + "/" + name;
}

}  // namespace shunt::test

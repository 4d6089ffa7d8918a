// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/arena.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <optional>

#include "tests/conformance/end.h"
#include "tests/support/command.h"

namespace shunt::conformance {
namespace {

using test::Child;
using test::Clock;
using test::Json;
using test::Where;

// The same in both pods: what cases with other routes need.
void MakeRoutes(const test::NetnsToken& netns) {
  test::MustRun({"nft", "-f", "-"}, &netns, R"(
    table inet nat_to_server {
      chain output {
        type nat hook output priority -100;
        tcp dport 9090 redirect to :8080
      }
    }
    table ip sidecar {
      chain output {
        type route hook output priority -150;
        ip daddr 192.0.2.10 tcp dport 9091 meta mark set 1
      }
      chain prerouting {
        type filter hook prerouting priority -150;
        ip daddr 192.0.2.10 tcp dport 9091 meta mark set 1 tproxy to :8080 accept
      }
    })");
  test::MustRun({"ip", "rule", "add", "fwmark", "1", "lookup", "100"}, &netns);
  test::MustRun({"ip", "route", "add", "local", "default", "dev", "lo", "table", "100"}, &netns);
  test::MustRun({"ip", "route", "add", "default", "dev", "lo", "src", "127.0.0.1"}, &netns);
  netns.SetSysctl("net.ipv4.conf.lo.route_localnet", "1");
  netns.SetSysctl("net.ipv4.tcp_fastopen", "3");
}

// A cgroup below the pod's, for the processes of one run and all that they start.
class RunCgroup {
 public:
  RunCgroup(const test::Pod& pod, int number)
      : path_(pod.cgroup() + "/run" + std::to_string(number)) {
    if (mkdir(path_.c_str(), 0755) != 0) {
      test::StopErrno(Where::Here(), "making cgroup " + path_, errno);
    }
  }
  RunCgroup(const RunCgroup&) = delete;
  RunCgroup& operator=(const RunCgroup&) = delete;
  ~RunCgroup() {
    Write("cgroup.kill", "1");
    // A killed process leaves its cgroup a little after it is gone.
    for (int tries = 0; tries < 2000 && rmdir(path_.c_str()) != 0 && errno == EBUSY; tries++) {
      usleep(1000);
    }
  }

  bool Enter() const { return Write("cgroup.procs", "0"); }

 private:
  bool Write(const char* file, const char* value) const {
    UniqueFd fd(open((path_ + "/" + file).c_str(), O_WRONLY | O_CLOEXEC));
    return fd.valid() && write(fd.get(), value, strlen(value)) > 0;
  }

  std::string path_;
};

class SharedRunMemory {
 public:
  SharedRunMemory()
      : memory_(mmap(nullptr, sizeof(RunMemory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                     -1, 0)) {
    if (memory_ == MAP_FAILED) {
      test::StopErrno(Where::Here(), "mapping memory", errno);
    }
    new (memory_) RunMemory{};
  }
  SharedRunMemory(const SharedRunMemory&) = delete;
  SharedRunMemory& operator=(const SharedRunMemory&) = delete;
  ~SharedRunMemory() { munmap(memory_, sizeof(RunMemory)); }
  RunMemory* get() const { return static_cast<RunMemory*>(memory_); }

 private:
  void* memory_;
};

struct SocketPair {
  UniqueFd a, b;
  SocketPair() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
      test::StopErrno(Where::Here(), "making a socketpair", errno);
    }
    a.Reset(ends[0]);
    b.Reset(ends[1]);
  }
};

// One end as the suite sees it.
struct Side {
  UniqueFd control;
  Child process;
  std::vector<std::string> lines;
  std::optional<int> port;       // it has connected
  std::optional<int> tcp_state;  // its program is over
  bool gone = false;

  void Go() const { (void)!send(control.get(), "g", 1, MSG_NOSIGNAL); }
};

// Reads what the ends say until `done`, or the time is over: then false.
bool Listen(std::array<Side, 2>& sides, Clock::time_point deadline,
            const std::function<bool()>& done) {
  std::vector<char> buffer(8192);
  while (!done()) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count();
    struct pollfd polls[2];
    for (int i = 0; i < 2; i++) {
      polls[i] = {sides[i].gone ? -1 : sides[i].control.get(), POLLIN, 0};
    }
    if (left <= 0 || poll(polls, 2, static_cast<int>(left)) == 0) {
      return false;
    }
    for (int i = 0; i < 2; i++) {
      if (polls[i].fd < 0 || polls[i].revents == 0) {
        continue;
      }
      const ssize_t got = recv(polls[i].fd, buffer.data(), buffer.size(), 0);
      if (got <= 0) {
        sides[i].gone = true;
        continue;
      }
      const std::string text(buffer.data() + 1, got - 1);
      switch (buffer[0]) {
        case 'N':
          sides[i].lines.push_back(text);
          break;
        case 'C':
          sides[i].port = atoi(text.c_str());
          break;
        case 'D':
          sides[i].tcp_state = atoi(text.c_str());
          break;
      }
    }
  }
  return true;
}

// Ways out of the map by which the engine, not the program, ended it.
bool IsTakenBack(const std::string& exit) {
  return exit.rfind("left_", 0) == 0 && exit != "left_closed" && exit != "left_disconnected" &&
         exit != "left_reused";
}

bool IsOpen(int tcp_state) {
  constexpr int kEstablished = 1, kCloseWait = 8, kFinWait1 = 4, kFinWait2 = 5;
  return tcp_state == kEstablished || tcp_state == kCloseWait || tcp_state == kFinWait1 ||
         tcp_state == kFinWait2;
}

}  // namespace

std::string ToString(Engine engine) {
  switch (engine) {
    case Engine::kNone:
      return "none";
    case Engine::kSockhash:
      return "sockhash";
    case Engine::kKmod:
      return "kmod";
  }
  return "?";
}

// What the agent has counted so far.
struct Arena::Counts {
  uint64_t handed_over = 0;
  std::map<std::string, uint64_t> exits;
};

Arena::Arena(Engine engine) : engine_(engine) {
  signal(SIGPIPE, SIG_IGN);
  MakeRoutes(*plain_.netns());
  fast_ = std::make_unique<test::Pod>();
  MakeRoutes(*fast_->netns());
  if (engine_ != Engine::kNone) {
    StartAgent();
  } else {
    engine_says_ = "none: both sides are plain TCP";
  }
}

Arena::~Arena() = default;

void Arena::StartAgent() {
  agent_ = std::make_unique<test::AgentProcess>(bpffs_.path());
  agent_->WritePods({{"fast0", fast_->cgroup(), {"8000-8999", "9091"}, std::nullopt}});
  agent_->Start({"--engine=" + ToString(engine_)});
  // Until it enrols the pod, or has settled on another engine, or has ended.
  const Clock::time_point deadline = Clock::now() + test::kPatience;
  while (agent_->running() && Clock::now() < deadline) {
    const test::CommandResult answer = agent_->Ctl({"--output", "json", "status"});
    const Json status = Json::parse(answer.out, nullptr, /*allow_exceptions=*/false);
    if (answer.exit_code == 0 && status.is_object() &&
        status.value("engineReason", "") != "starting") {
      engine_says_ = status.value("engine", "") + ": " + status.value("engineReason", "");
      if (status.value("engine", "") != ToString(engine_)) {
        declined_ = "the agent runs engine " + engine_says_;
        return;
      }
      if (status.value("podsEnrolling", 0) == 1) {
        return;
      }
    }
    usleep(20000);
  }
  declined_ = "the agent does not enrol the pod:\n" + agent_->Output();
}

void Arena::RenewFastPod() {
  auto fresh = std::make_unique<test::Pod>();
  MakeRoutes(*fresh->netns());
  const std::string uid = "fast" + std::to_string(++fast_pods_);
  agent_->WritePods({{uid, fresh->cgroup(), {"8000-8999", "9091"}, std::nullopt}});
  test::WaitUntil("the agent enrols pod " + uid, [&] {
    const Json pod = agent_->PodEntry(uid);
    return pod.is_object() && pod.at("state") == "enrolling";
  });
  fast_ = std::move(fresh);
}

Arena::Counts Arena::Look() const {
  const Json status = agent_->Status();
  Counts counts;
  counts.handed_over = status.value("redirectedBytes", uint64_t{0});
  counts.exits = status.at("exits").get<std::map<std::string, uint64_t>>();
  return counts;
}

bool Arena::IsListed(int client_port) const {
  const Json answer = agent_->Ask({"pairs"});
  const Json& pairs = answer.at("pairs");
  return std::any_of(pairs.begin(), pairs.end(),
                     [&](const Json& pair) { return pair.at("clientPort") == client_port; });
}

Outcome Arena::RunPlain(const Case& test, IpMode mode, uint64_t seed) {
  return Run(plain_, false, test, mode, seed);
}

Outcome Arena::RunOnEngine(const Case& test, IpMode mode, uint64_t seed) {
  const bool on_engine = engine_ != Engine::kNone;
  Outcome outcome = Run(*fast_, on_engine, test, mode, seed);
  const bool learned = std::any_of(outcome.why.begin(), outcome.why.end(), [](const auto& exit) {
    return exit.rfind("hazard_known=", 0) == 0;
  });
  if (!outcome.enrolled && learned) {
    RenewFastPod();
    outcome = Run(*fast_, on_engine, test, mode, seed);
  }
  return outcome;
}

Outcome Arena::Run(test::Pod& pod, bool on_engine, const Case& test, IpMode mode, uint64_t seed) {
  Outcome outcome;
  const SharedRunMemory memory;
  const Counts before = on_engine ? Look() : Counts{};
  const RunCgroup cgroup(pod, ++runs_);
  std::array<Side, 2> sides;
  {
    SocketPair partners;
    std::array<SocketPair, 2> controls;
    for (int i = 0; i < 2; i++) {
      sides[i].control = std::move(controls[i].a);
    }
    for (int i = 0; i < 2; i++) {
      const int partner = (i == 0 ? partners.a : partners.b).get();
      sides[i].process = Child::Fork([&] {
        // What is left open is what an end may use, so that it sees the others end.
        const int control = controls[i].b.get();
        if (!pod.netns()->Enter() || !cgroup.Enter()) {
          return 1;
        }
        const int mine[] = {dup(control), dup(partner)};
        dup2(mine[0], 3);
        dup2(mine[1], 4);
        close_range(5, ~0U, 0);
        fcntl(3, F_SETFD, FD_CLOEXEC);
        fcntl(4, F_SETFD, FD_CLOEXEC);
        dup2(2, 1);  // stdout is the suite's
        End end({static_cast<Role>(i), mode, seed, 3, 4, memory.get(), &test});
        end.Live();
        return 0;
      });
    }
  }
  const Clock::time_point deadline = Clock::now() + test.patience;
  const auto both = [&](const std::function<bool(const Side&)>& condition) {
    return std::all_of(sides.begin(), sides.end(),
                       [&](const Side& side) { return side.gone || condition(side); });
  };
  if (test.route != Route::kOwn) {
    Listen(sides, deadline,
           [&] { return both([](const Side& side) { return side.port.has_value(); }); });
    if (on_engine && sides[0].port) {
      outcome.enrolled = IsListed(*sides[0].port);
    }
    for (const Side& side : sides) {
      side.Go();
    }
  }
  const bool in_time = Listen(sides, deadline, [&] {
    return both([](const Side& side) { return side.tcp_state.has_value(); });
  });
  if (!in_time) {
    for (int i = 0; i < 2; i++) {
      const RunMemory::Side& side = memory.get()->sides[i];
      if (!sides[i].tcp_state && !sides[i].gone) {
        sides[i].lines.push_back(side.calling ? std::string("TIMED OUT in ") + side.call
                                              : "TIMED OUT waiting for the other end");
      }
    }
  }
  if (on_engine) {
    const bool both_open =
        both([](const Side& side) { return side.tcp_state && IsOpen(*side.tcp_state); });
    if (outcome.enrolled && both_open && !IsListed(*sides[0].port)) {
      outcome.left = true;
    }
    const Counts after = Look();
    outcome.handed_over = after.handed_over - before.handed_over;
    for (const auto& [exit, count] : after.exits) {
      const auto it = before.exits.find(exit);
      const uint64_t more = count - (it == before.exits.end() ? 0 : it->second);
      if (more == 0) {
        continue;
      }
      outcome.why.push_back(exit + "=" + std::to_string(more));
      outcome.enrolled |= test.route == Route::kOwn && exit == "pair_made";
      outcome.left |= IsTakenBack(exit);
    }
  }
  for (int i = 0; i < 2; i++) {
    sides[i].Go();
    if (in_time) {
      // Its exit closes its sockets before the next run listens on the port.
      const Clock::time_point end = Clock::now() + milliseconds(2000);
      while (!sides[i].process.Poll() && Clock::now() < end) {
        usleep(500);
      }
      const int code = sides[i].process.Poll().value_or(-1);
      if (code != 0) {
        sides[i].lines.push_back("the process of this end exits with " + std::to_string(code));
      }
    }
    sides[i].process.Kill();
    for (const std::string& line : sides[i].lines) {
      outcome.lines.push_back((i == 0 ? "client: " : "server: ") + line);
    }
  }
  return outcome;
}

}  // namespace shunt::conformance

// SPDX-License-Identifier: Apache-2.0
//
// The probes against the running kernel, whichever it is. What a row says is
// checked against a second, cruder measurement that shares no code with it.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/capability.h"
#include "agent/probe/engine_choice.h"
#include "agent/probe/mounts.h"
#include "agent/probe/probe.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// ---- the second measurement ------------------------------------------------

// A sockhash whose program leaves every message to TCP, written by hand.
class BareSockhash {
 public:
  BareSockhash()
      : map_(bpf_map_create(BPF_MAP_TYPE_SOCKHASH, nullptr, sizeof(__u64), sizeof(__u64), 8,
                            nullptr)) {
    const std::array<struct bpf_insn, 2> pass = {{
        {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, SK_PASS},
        {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
    }};
    program_.Reset(
        bpf_prog_load(BPF_PROG_TYPE_SK_MSG, "bare_pass", "GPL", pass.data(), pass.size(), nullptr));
    EXPECT_EQ(bpf_prog_attach(program_.get(), map_.get(), BPF_SK_MSG_VERDICT, 0), 0);
  }

  // 0 or a positive errno. The key is the descriptor.
  int Enter(int socket) {
    const __u64 key = static_cast<__u64>(socket);
    return bpf_map_update_elem(map_.get(), &key, &key, BPF_ANY) == 0 ? 0 : errno;
  }
  bool Has(int socket) {
    const __u64 key = static_cast<__u64>(socket);
    __u64 value;
    return bpf_map_lookup_elem(map_.get(), &key, &value) == 0;
  }

 private:
  UniqueFd map_;
  UniqueFd program_;
};

struct BarePair {
  UniqueFd listener{socket(AF_INET, SOCK_STREAM, 0)};
  UniqueFd client{socket(AF_INET, SOCK_STREAM, 0)};
  UniqueFd server;

  BarePair() {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(listener.get(), generic, size), 0);
    EXPECT_EQ(listen(listener.get(), 1), 0);
    EXPECT_EQ(getsockname(listener.get(), generic, &size), 0);
    EXPECT_EQ(connect(client.get(), generic, size), 0);
    server.Reset(accept(listener.get(), nullptr, nullptr));
    EXPECT_TRUE(server.valid());
  }
};

bool FionreadCountsTcpBytes() {
  BareSockhash sockhash;
  BarePair pair;
  EXPECT_EQ(sockhash.Enter(pair.client.get()), 0);
  EXPECT_EQ(sockhash.Enter(pair.server.get()), 0);
  EXPECT_EQ(send(pair.client.get(), "0123456789", 10, 0), 10);
  char peeked[10];
  EXPECT_EQ(recv(pair.server.get(), peeked, sizeof(peeked), MSG_PEEK | MSG_WAITALL), 10);
  int waiting = -1;
  EXPECT_EQ(ioctl(pair.server.get(), FIONREAD, &waiting), 0);
  return waiting == 10;
}

bool ListenersAreRefused() {
  BareSockhash sockhash;
  BarePair pair;
  return sockhash.Enter(pair.listener.get()) != 0;
}

bool UnconnectedAreRefused() {
  BareSockhash sockhash;
  const UniqueFd idle(socket(AF_INET, SOCK_STREAM, 0));
  return sockhash.Enter(idle.get()) != 0;
}

bool DisconnectLeaves() {
  BareSockhash sockhash;
  BarePair pair;
  EXPECT_EQ(sockhash.Enter(pair.client.get()), 0);
  EXPECT_TRUE(sockhash.Has(pair.client.get()));
  sockaddr unspecified = {};
  unspecified.sa_family = AF_UNSPEC;
  EXPECT_EQ(connect(pair.client.get(), &unspecified, sizeof(unspecified)), 0);
  return !sockhash.Has(pair.client.get());
}

// The rows of `report` that the second measurement contradicts.
std::vector<std::string> Contradicted(const ProbeReport& report) {
  const std::pair<const char*, std::function<bool()>> measured[] = {
      {"fionread_counts_tcp_bytes", FionreadCountsTcpBytes},
      {"listen_refused", ListenersAreRefused},
      {"only_connected_join", UnconnectedAreRefused},
      {"disconnect_leaves_map", DisconnectLeaves},
  };
  std::vector<std::string> contradicted;
  for (const auto& [name, holds] : measured) {
    const ProbeView* row = report.Find(name);
    if (row == nullptr || (row->verdict == kProbeOk) != holds()) {
      contradicted.push_back(name);
    }
  }
  return contradicted;
}

// ---- what a run could leave behind -----------------------------------------

std::set<std::string> LinksIn(const std::string& directory) {
  std::set<std::string> links;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    // The listing's own descriptor is gone by now.
    if (!error) {
      links.insert(entry.path().filename().string() + " " + target);
    }
  }
  return links;
}

std::set<std::string> NetworkNamespaces() {
  std::set<std::string> namespaces;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    namespaces.insert(std::filesystem::read_symlink(task.path() / "ns/net").string());
  }
  return namespaces;
}

std::set<__u32> Ids(int (*next)(__u32, __u32*)) {
  std::set<__u32> ids;
  for (__u32 id = 0; next(id, &id) == 0;) {
    ids.insert(id);
  }
  return ids;
}

// Objects made meanwhile that do not go by themselves. Other programs on this
// machine come and go too, so each is given time.
std::set<__u32> Lasting(int (*next)(__u32, __u32*), const std::set<__u32>& before) {
  std::set<__u32> made;
  for (const __u32 id : Ids(next)) {
    if (before.count(id) == 0) {
      made.insert(id);
    }
  }
  for (int i = 0; i < 100 && !made.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const std::set<__u32> now = Ids(next);
    std::set<__u32> still;
    std::set_intersection(made.begin(), made.end(), now.begin(), now.end(),
                          std::inserter(still, still.end()));
    made = std::move(still);
  }
  return made;
}

// Only what carries one of the instrument's names is ours to answer for.
bool IsOurMap(__u32 id) {
  const UniqueFd fd(bpf_map_get_fd_by_id(id));
  struct bpf_map_info info = {};
  __u32 size = sizeof(info);
  if (!fd.valid() || bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0) {
    return false;
  }
  const std::set<std::string> names = {"members", "probe_sockets", "policies", "records"};
  return names.count(info.name) != 0;
}

bool IsOurProgram(__u32 id) {
  const UniqueFd fd(bpf_prog_get_fd_by_id(id));
  struct bpf_prog_info info = {};
  __u32 size = sizeof(info);
  return fd.valid() && bpf_obj_get_info_by_fd(fd.get(), &info, &size) == 0 &&
         std::string(info.name).rfind("probe_", 0) == 0;
}

// Runs the probes on a thread without these capabilities.
ProbeReport ProbeWithout(const std::vector<int>& capabilities) {
  ProbeReport report;
  EXPECT_TRUE(RunWithout(capabilities, [&] { report = RunProbes(ProbeScope::kAll).value(); }));
  return report;
}

// What differs between two runs on one kernel: races, the clock, other
// programs on this machine.
bool IsSteady(const ProbeView& row) {
  const std::set<std::string> volatile_rows = {
      "sends_during_shutdown",  "send_as_peer_closes",
      "reconnects_during_send", "concurrent_writes_stay_whole",
      "small_message_stream",   "window_reopens",
      "sock_ops_owners",        "sockmap_owners"};
  return volatile_rows.count(row.name) == 0;
}

// A machine too busy to find something out is no contradiction.
bool Agree(const ProbeView& a, const ProbeView& b) {
  return a.verdict == b.verdict || !IsSteady(a) || a.verdict == kProbeUnknown ||
         b.verdict == kProbeUnknown;
}

class ProbesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) {
      GTEST_SKIP() << "needs root: loads BPF programs";
    }
  }
};

TEST_F(ProbesTest, EveryRowSaysWhatWasTriedAndWhatToDo) {
  const ProbeReport report = RunProbes(ProbeScope::kAll).value();
  std::set<std::string> names;
  for (const ProbeView& row : report.rows) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name << " is there twice";
    EXPECT_THAT(row.verdict,
                AnyOf(kProbeOk, kProbeDegraded, kProbeFatal, kProbeSkipped, kProbeUnknown))
        << row.name;
    EXPECT_THAT(row.family, AnyOf("engine", "hazard", "fix", "feature", "environment"));
    for (const std::string* text : {&row.tried, &row.happened, &row.means, &row.to_do}) {
      EXPECT_FALSE(text->empty()) << row.name;
      EXPECT_EQ(text->find('\n'), std::string::npos) << row.name << ": " << *text;
    }
  }
}

// The kernels that Shunt is tested on carry the portable engine.
TEST_F(ProbesTest, NothingIsFatalHere) {
  const ProbeReport report = RunProbes(ProbeScope::kAll).value();
  EXPECT_TRUE(report.scratch_netns);
  for (const ProbeView& row : report.rows) {
    EXPECT_NE(row.verdict, kProbeFatal) << row.name << ": " << row.happened;
  }
  EXPECT_EQ(Choose(EngineChoice::kAuto, report, false)->engine, "sockhash");
}

// Whatever the kernel: sockmap's own recvmsg knows nothing of these.
TEST_F(ProbesTest, SeesWhatNoKernelDoes) {
  const ProbeReport report = RunProbes(ProbeScope::kAll).value();
  for (const char* name : {"waitall", "rcvlowat", "zerocopy", "oob", "shutdown_then_send",
                           "tcp_info_counts", "tcp_then_redirect_keeps_order",
                           "delete_keeps_unread", "unread_is_bounded", "close_with_unread"}) {
    ASSERT_NE(report.Find(name), nullptr) << name;
    EXPECT_EQ(report.Find(name)->verdict, kProbeDegraded)
        << name << ": " << report.Find(name)->happened;
  }
}

TEST_F(ProbesTest, AgreesWithASecondMeasurement) {
  EXPECT_THAT(Contradicted(RunProbes(ProbeScope::kAll).value()), IsEmpty());
}

// The check above can fail: it does so for every row that says the contrary.
TEST_F(ProbesTest, ASecondMeasurementContradictsAFalseReport) {
  ProbeReport report = RunProbes(ProbeScope::kAll).value();
  for (const char* name : {"fionread_counts_tcp_bytes", "listen_refused", "only_connected_join",
                           "disconnect_leaves_map"}) {
    for (ProbeView& row : report.rows) {
      if (row.name == name) {
        row.verdict = row.verdict == kProbeOk ? kProbeDegraded : kProbeOk;
      }
    }
  }
  EXPECT_EQ(Contradicted(report).size(), 4u);
}

// Every row of docs/hazards.md and every fix of 2018 has its probe.
TEST_F(ProbesTest, EveryHazardAndEveryFixIsTried) {
  const ProbeReport report = RunProbes(ProbeScope::kAll).value();
  const auto is_about = [&](const std::string& subject) {
    return std::any_of(report.rows.begin(), report.rows.end(), [&](const ProbeView& row) {
      const std::vector<std::string> subjects = absl::StrSplit(row.about, ", ");
      return std::find(subjects.begin(), subjects.end(), subject) != subjects.end();
    });
  };
  for (int hazard = 1; hazard <= 18; ++hazard) {
    EXPECT_TRUE(is_about(absl::StrCat("hazard ", hazard))) << hazard;
  }
  for (int fix = 1; fix <= 6; ++fix) {
    EXPECT_TRUE(is_about(absl::StrCat("fix ", fix))) << fix;
  }
  EXPECT_TRUE(is_about("kTLS note"));
}

// The lock cannot be seen from here, and the row must not pretend.
TEST_F(ProbesTest, TheBucketLockIsNotClaimed) {
  const ProbeReport report = RunProbes(ProbeScope::kAll).value();
  const ProbeView* row = report.Find("close_takes_bucket_lock");
  EXPECT_EQ(row->verdict, kProbeUnknown);
  EXPECT_THAT(row->happened, HasSubstr("not measurable from user space"));
  EXPECT_THAT(row->means, HasSubstr("source: "));
}

// What was measured by hand on the one kernel that everybody here has. On any
// other the tests above speak.
TEST_F(ProbesTest, KnowsTheKernelAtHand) {
  utsname kernel = {};
  ASSERT_EQ(uname(&kernel), 0);
  if (std::string(kernel.release).rfind("6.18.44", 0) != 0) {
    GTEST_SKIP() << "known of 6.18.44 only, this is " << kernel.release;
  }
  const ProbeReport report = RunProbes(ProbeScope::kAll).value();
  const auto degraded = [&](const char* name, const char* word) {
    const ProbeView* row = report.Find(name);
    ASSERT_NE(row, nullptr) << name;
    EXPECT_EQ(row->verdict, kProbeDegraded) << name << ": " << row->happened;
    EXPECT_THAT(row->means, HasSubstr(word)) << name;
  };
  degraded("fionread_counts_tcp_bytes", "FIONREAD regression (commit 929e30f93125)");
  degraded("fionread_counts_both", "one of two queues");
  degraded("disconnect_leaves_map", "the missing unhash");
  degraded("disconnect_drops_unread", "the missing unhash");
  degraded("listen_refused", "reversed in 5.7");
  degraded("blocked_recv_sees_reset", "EAGAIN");
  degraded("blocked_recv_sees_shutdown", "EAGAIN");
  degraded("send_then_recv_after_reset", "twice");
  for (const char* name :
       {"fionread_counts_redirected", "ipv6_protos", "only_connected_join",
        "release_drops_programs", "netns_cookie_in_sk_msg", "rdonly_cast_in_sk_msg", "sk_msg_link",
        "tp_btf_sock_recv_length", "tp_btf_sys_enter", "iter_tcp_enters_sockhash"}) {
    EXPECT_EQ(report.Find(name)->verdict, kProbeOk) << name << ": " << report.Find(name)->happened;
  }
  const EngineDecision decision = Choose(EngineChoice::kAuto, report, false).value();
  EXPECT_FALSE(decision.fionread_counts_tcp_bytes);
  EXPECT_THAT(decision.detail, HasSubstr("929e30f93125"));
}

// A sock_ops program of somebody else, on a cgroup of ours.
class Stranger {
 public:
  Stranger()
      : cgroup_(absl::StrCat(MountOf("cgroup2"), "/shunt-probes-test-", getpid())),
        made_(mkdir(cgroup_.c_str(), 0700) == 0),
        directory_(open(cgroup_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    const std::array<struct bpf_insn, 2> pass = {{
        {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 1},
        {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
    }};
    program_.Reset(bpf_prog_load(BPF_PROG_TYPE_SOCK_OPS, "stranger", "GPL", pass.data(),
                                 pass.size(), nullptr));
    link_.Reset(bpf_link_create(program_.get(), directory_.get(), BPF_CGROUP_SOCK_OPS, nullptr));
  }
  ~Stranger() {
    link_.Reset();
    directory_.Reset();
    if (made_) {
      rmdir(cgroup_.c_str());
    }
  }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;

  bool attached() const { return link_.valid(); }
  const std::string& cgroup() const { return cgroup_; }

 private:
  const std::string cgroup_;
  const bool made_;
  UniqueFd directory_;
  UniqueFd program_;
  UniqueFd link_;
};

TEST_F(ProbesTest, NamesOtherOwners) {
  if (MountOf("cgroup2").empty()) {
    GTEST_SKIP() << "needs a cgroup v2 mount";
  }
  const Stranger stranger;
  ASSERT_TRUE(stranger.attached());
  ProbeOptions options;
  options.cgroups = {stranger.cgroup()};
  const ProbeReport report = RunProbes(options).value();
  for (const char* name : {"sock_ops_owners", "sockmap_owners"}) {
    EXPECT_EQ(report.Find(name)->verdict, kProbeDegraded) << name;
    EXPECT_THAT(report.Find(name)->happened, HasSubstr("stranger (id ")) << name;
  }
  EXPECT_THAT(report.Find("sock_ops_owners")->happened, HasSubstr(stranger.cgroup()));
}

// A pod's cgroup that has gone is no reason to say nothing of the others.
TEST_F(ProbesTest, ACgroupThatIsNotThereIsSaid) {
  if (MountOf("cgroup2").empty()) {
    GTEST_SKIP() << "needs a cgroup v2 mount";
  }
  ProbeOptions options;
  options.cgroups = {"/nowhere"};
  EXPECT_THAT(RunProbes(options).value().Find("sock_ops_owners")->happened,
              AnyOf(HasSubstr("some could not be asked"), HasSubstr("(id ")));
}

TEST_F(ProbesTest, EssentialRowsAreASubsetInTheSameOrder) {
  const ProbeReport few = RunProbes(ProbeScope::kEssential).value();
  const ProbeReport all = RunProbes(ProbeScope::kAll).value();
  ASSERT_LT(few.rows.size(), all.rows.size());
  auto after = all.rows.begin();
  for (const ProbeView& row : few.rows) {
    const auto same = std::find_if(after, all.rows.end(),
                                   [&](const ProbeView& other) { return other.name == row.name; });
    ASSERT_NE(same, all.rows.end()) << row.name;
    EXPECT_EQ(row.verdict, same->verdict) << row.name;
    after = same + 1;
  }
  EXPECT_EQ(few.rmem_is_charged, all.rmem_is_charged);
}

TEST_F(ProbesTest, TwentyRunsAgreeAndLeaveNothingBehind) {
  const ProbeReport first = RunProbes(ProbeScope::kAll).value();
  const std::set<std::string> descriptors = LinksIn("/proc/self/fd");
  const std::set<std::string> namespaces = NetworkNamespaces();
  const std::set<__u32> maps = Ids(bpf_map_get_next_id);
  const std::set<__u32> programs = Ids(bpf_prog_get_next_id);

  for (int round = 0; round < 20; ++round) {
    const ProbeReport report = RunProbes(ProbeScope::kAll).value();
    ASSERT_EQ(report.rows.size(), first.rows.size());
    for (size_t i = 0; i < report.rows.size(); ++i) {
      EXPECT_TRUE(Agree(report.rows[i], first.rows[i]))
          << "round " << round << ", " << report.rows[i].name << ": " << report.rows[i].happened;
    }
  }

  EXPECT_EQ(LinksIn("/proc/self/fd"), descriptors);
  if (const std::string cgroups = MountOf("cgroup2"); !cgroups.empty()) {
    const std::string own = absl::StrCat("shunt-doctor-", getpid(), "-");
    for (const auto& entry : std::filesystem::directory_iterator(cgroups)) {
      EXPECT_NE(entry.path().filename().string().rfind(own, 0), 0u) << entry.path();
    }
  }
  EXPECT_EQ(NetworkNamespaces(), namespaces);
  for (const __u32 id : Lasting(bpf_map_get_next_id, maps)) {
    EXPECT_FALSE(IsOurMap(id)) << "map " << id;
  }
  for (const __u32 id : Lasting(bpf_prog_get_next_id, programs)) {
    EXPECT_FALSE(IsOurProgram(id)) << "program " << id;
  }
}

// The best of a few: other tests share these CPUs.
TEST_F(ProbesTest, StartIsNotHeldUp) {
  const auto best_of_five = [](ProbeScope scope) {
    auto best = std::chrono::steady_clock::duration::max();
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      RunProbes(scope).value();
      best = std::min(best, std::chrono::steady_clock::now() - start);
    }
    return best;
  };
  EXPECT_LT(best_of_five(ProbeScope::kEssential), std::chrono::milliseconds(300));
  EXPECT_LT(best_of_five(ProbeScope::kAll), std::chrono::seconds(5));
}

TEST_F(ProbesTest, TwoRunsAtOnceDoNotDisturbEachOther) {
  ProbeReport one;
  ProbeReport other;
  std::thread thread([&] { one = RunProbes(ProbeScope::kAll).value(); });
  other = RunProbes(ProbeScope::kAll).value();
  thread.join();
  ASSERT_EQ(one.rows.size(), other.rows.size());
  for (size_t i = 0; i < one.rows.size(); ++i) {
    EXPECT_TRUE(Agree(one.rows[i], other.rows[i]))
        << one.rows[i].name << ": " << one.rows[i].happened << "; " << other.rows[i].happened;
  }
}

// An agent in a pod.
TEST_F(ProbesTest, WithoutSysAdminTheOwnLoopbackServes) {
  const ProbeReport full = RunProbes(ProbeScope::kAll).value();
  const ProbeReport report = ProbeWithout({CAP_SYS_ADMIN});
  EXPECT_FALSE(report.scratch_netns);
  EXPECT_THAT(report.Find("programs_load")->happened, HasSubstr("own network namespace"));
  for (const ProbeView& row : report.rows) {
    if (IsSteady(row) && row.name != "release_drops_programs" &&
        row.name.find("ipv6") == std::string::npos &&
        row.name.find("mapped") == std::string::npos) {
      EXPECT_EQ(row.verdict, full.Find(row.name)->verdict) << row.name << ": " << row.happened;
    }
  }
}

TEST_F(ProbesTest, NamesTheMissingCapability) {
  const std::pair<int, const char*> needed[] = {
      {CAP_BPF, "CAP_BPF"}, {CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {CAP_PERFMON, "CAP_PERFMON"}};
  for (const auto& [capability, name] : needed) {
    const ProbeReport report = ProbeWithout({CAP_SYS_ADMIN, capability});
    const ProbeView* row = report.Find("programs_load");
    EXPECT_EQ(row->verdict, kProbeFatal) << name;
    EXPECT_THAT(row->to_do, HasSubstr(name));
    const ProbeView* own = report.Find(absl::AsciiStrToLower(name));
    ASSERT_NE(own, nullptr) << name;
    EXPECT_EQ(own->verdict, kProbeFatal) << name << ": " << own->happened;
    EXPECT_THAT(own->happened, HasSubstr("not held"));
    EXPECT_THAT(own->to_do, HasSubstr(name));
    for (const auto& [held, other] : needed) {
      if (held != capability) {
        EXPECT_THAT(row->to_do, Not(HasSubstr(other)));
      }
    }
    EXPECT_EQ(Choose(EngineChoice::kAuto, report, false)->engine, "none");
  }
}

}  // namespace
}  // namespace shunt

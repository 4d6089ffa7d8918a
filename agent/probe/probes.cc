// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/errqueue.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "agent/base/status.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/lab.h"
#include "agent/probe/probe.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif
#ifndef BPF_PSEUDO_MAP_FD
#define BPF_PSEUDO_MAP_FD 1
#endif

namespace shunt {
namespace {

using std::chrono::milliseconds;

// Enough that no row waits for another's bound, few enough for two CPUs.
constexpr size_t kWorkers = 4;
// How long something is given to happen that should not.
constexpr int kQuietMs = 20;

// ---- findings -----------------------------------------------------------

enum class Found {
  kAsWanted,
  kOtherwise,
  kNotHere,  // the machine lacks what the row is about: nothing to be wrong
  kFailed,   // the trial itself broke
};

struct Finding {
  Found found;
  std::string happened;
};

Finding Failed(const absl::Status& status) {
  return {Found::kFailed, std::string(status.message())};
}

std::string Errno(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : absl::StrCat("errno ", error);
}

// "10" bytes, or the errno's name.
std::string Outcome(ssize_t result) {
  return result < 0 ? Errno(static_cast<int>(-result)) : absl::StrCat(result, " bytes");
}

// What `scenario` makes of one connection.
using Scenario = std::string (*)(Trial& trial);

struct Run {
  std::string outcome;
  uint32_t redirected = 0;  // messages
};

absl::StatusOr<Run> RunOnce(Lab* lab, Family family, Way way, Scenario scenario) {
  SHUNT_ASSIGN_OR_RETURN(Trial trial, Trial::Make(lab, family, way), "");
  Run run;
  run.outcome = scenario(trial);
  run.redirected = trial.Redirected();
  return run;
}

// The same scenario on plain TCP and on members of the sockhash: nothing is
// expected but that no difference shows. Had every message gone by TCP, being
// equal to TCP would say nothing: at least `redirected` must not have.
Finding Compare(Lab* lab, Family family, Way way, Scenario scenario, uint32_t redirected) {
  if (family != Family::kIpv4 && !HasLoopback(family)) {
    return {Found::kNotHere, "there is no such loopback here"};
  }
  const absl::StatusOr<Run> plain = RunOnce(lab, family, Way::kPlain, scenario);
  if (!plain.ok()) {
    return Failed(plain.status());
  }
  const absl::StatusOr<Run> member = RunOnce(lab, family, way, scenario);
  if (!member.ok()) {
    return Failed(member.status());
  }
  if (plain->outcome != member->outcome) {
    return {Found::kOtherwise, absl::StrCat(member->outcome, "; plain TCP: ", plain->outcome)};
  }
  if (member->redirected < redirected) {
    return {Found::kOtherwise,
            absl::StrCat("nothing was redirected: the program does not run, or finds no peer; "
                         "by TCP: ",
                         member->outcome)};
  }
  return {Found::kAsWanted, absl::StrCat(plain->outcome, ", as on plain TCP")};
}

// ---- scenarios: played on plain TCP and on members alike ------------------

std::string Pattern(size_t size) {
  std::string data(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    data[i] = static_cast<char>((i * 131) ^ (i >> 8));
  }
  return data;
}

std::string DeliverExactly(Trial& trial) {
  size_t total = 0;
  for (const size_t size : {1, 100, 5000, 70000}) {
    const std::string data = Pattern(size);
    const ssize_t sent = trial.Send(data);
    if (sent != static_cast<ssize_t>(size)) {
      return absl::StrCat("sending ", size, " bytes: ", Outcome(sent));
    }
    std::string end;
    const std::string got = trial.ReceiveAll(size, &end);
    if (got.size() != size) {
      return absl::StrCat(got.size(), " of ", size, " bytes arrived, then ", end);
    }
    if (got != data) {
      const auto differs = std::mismatch(got.begin(), got.end(), data.begin()).first;
      return absl::StrCat("byte ", differs - got.begin(), " of ", size, " is another one");
    }
    total += size;
  }
  return absl::StrCat(total, " bytes arrived exactly");
}

std::string RedirectThenTcp(Trial& trial) {
  trial.Send("AAAA");
  trial.ByTcp();
  trial.Send("BBBB");
  trial.Wait(trial.rx(), POLLIN);
  return trial.ReceiveAll(8);
}

std::string TcpThenRedirect(Trial& trial) {
  trial.ByTcp();
  trial.Send("AAAA");
  trial.ByRedirect();
  trial.Send("BBBB");
  return trial.ReceiveAll(8);
}

std::string AskFionread(Trial& trial) {
  trial.Send("0123456789");
  trial.Wait(trial.rx(), POLLIN);
  int waiting = -1;
  if (ioctl(trial.rx(), FIONREAD, &waiting) != 0) {
    return Errno(errno);
  }
  return absl::StrCat("FIONREAD says ", waiting, " of 10 bytes");
}

std::string PollAndEpoll(Trial& trial) {
  UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  epoll_event edge = {};
  edge.events = EPOLLIN | EPOLLET;
  epoll_ctl(epoll.get(), EPOLL_CTL_ADD, trial.rx(), &edge);
  const auto edge_seen = [&](int most_ms) {
    epoll_event event;
    return epoll_wait(epoll.get(), &event, 1, trial.bound().Left(most_ms)) == 1;
  };
  const auto level = [&](int most_ms) {
    return (trial.Wait(trial.rx(), POLLIN, most_ms) & POLLIN) != 0;
  };
  std::vector<std::string> wrong;
  if (level(0) || edge_seen(0)) {
    wrong.push_back("readable while empty");
  }
  trial.Send("0123456789");
  if (!edge_seen(100)) {
    wrong.push_back("no edge");
  }
  if (!level(100)) {
    wrong.push_back("not readable with 10 bytes unread");
  }
  trial.Send("0123456789");
  if (!edge_seen(100)) {
    wrong.push_back("no second edge");
  }
  trial.ReceiveAll(20);
  if (level(0)) {
    wrong.push_back("still readable when read empty");
  }
  return wrong.empty() ? "poll() and an edge-triggered epoll wake" : absl::StrJoin(wrong, ", ");
}

std::string Peek(Trial& trial) {
  trial.Send("0123456789");
  std::array<char, 16> buffer = {};
  const ssize_t peeked = trial.Receive(buffer.data(), buffer.size(), MSG_PEEK);
  const std::string seen(buffer.data(), peeked > 0 ? static_cast<size_t>(peeked) : 0);
  const std::string read = trial.ReceiveAll(10);
  return absl::StrCat("peeked ", peeked < 0 ? Outcome(peeked) : seen, ", then read ", read);
}

std::string EofAfterData(Trial& trial) {
  trial.Send(Pattern(1000));
  shutdown(trial.tx(), SHUT_WR);
  std::string end;
  const std::string got = trial.ReceiveAll(1001, &end);
  return absl::StrCat(got.size(), " bytes, then ", end);
}

std::string CloseWithUnread(Trial& trial) {
  trial.Send("0123456789");
  trial.Wait(trial.rx(), POLLIN);
  trial.CloseRx();
  trial.Wait(trial.tx(), POLLIN);
  char byte;
  const ssize_t n = recv(trial.tx(), &byte, 1, MSG_DONTWAIT);
  return absl::StrCat("the sender reads ", n == 0 ? "EOF" : Outcome(n < 0 ? -errno : n));
}

std::string SendAfterShutdown(Trial& trial) {
  shutdown(trial.tx(), SHUT_WR);
  return absl::StrCat("send: ", Outcome(trial.Send("0123456789")));
}

std::string ResetWithUnread(Trial& trial) {
  trial.Send("0123456789");
  trial.Wait(trial.rx(), POLLIN);
  const linger reset = {1, 0};
  setsockopt(trial.tx(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  trial.CloseTx();
  trial.Wait(trial.rx(), POLLHUP);
  std::string end;
  const std::string got = trial.ReceiveAll(11, &end);
  return absl::StrCat(got.size(), " bytes, then ", end);
}

// An IPv6 socket that got IPv4's functions cannot connect to an IPv6 address.
std::string ReconnectByIpv6(Trial& trial) {
  trial.ByTcp();
  sockaddr unspecified = {};
  unspecified.sa_family = AF_UNSPEC;
  if (connect(trial.tx(), &unspecified, sizeof(unspecified)) != 0) {
    return absl::StrCat("connect(AF_UNSPEC): ", Errno(errno));
  }
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv6);
  if (!listener.ok()) {
    return std::string(listener.status().message());
  }
  sockaddr_in6 address = {};
  socklen_t size = sizeof(address);
  getsockname(listener->get(), reinterpret_cast<sockaddr*>(&address), &size);
  const int result = connect(trial.tx(), reinterpret_cast<sockaddr*>(&address), size);
  return absl::StrCat("connecting anew: ", result == 0 ? "connected" : Errno(errno));
}

std::string Splice(Trial& trial) {
  trial.Send(Pattern(5000));
  trial.Wait(trial.rx(), POLLIN);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
    return Errno(errno);
  }
  const UniqueFd out(ends[0]);
  const UniqueFd in(ends[1]);
  fcntl(trial.rx(), F_SETFL, O_NONBLOCK);
  const ssize_t n = splice(trial.rx(), nullptr, in.get(), nullptr, 8192, SPLICE_F_NONBLOCK);
  return absl::StrCat("splice: ", Outcome(n < 0 ? -errno : n));
}

std::string WaitAll(Trial& trial) {
  trial.Send(Pattern(100));
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(kQuietMs));
    trial.Send(Pattern(900));
  });
  std::array<char, 1000> buffer;
  // Blocks, bounded by the socket's SO_RCVTIMEO.
  const ssize_t n = recv(trial.rx(), buffer.data(), buffer.size(), MSG_WAITALL);
  const int error = errno;
  later.join();
  return absl::StrCat("recv(MSG_WAITALL): ", Outcome(n < 0 ? -error : n), " of 1000");
}

std::string ReceiveLowWater(Trial& trial) {
  const int wanted = 1000;
  setsockopt(trial.rx(), SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof(wanted));
  trial.Send(Pattern(100));
  return trial.Wait(trial.rx(), POLLIN, kQuietMs) != 0 ? "readable at 100 of 1000 bytes"
                                                       : "not readable at 100 of 1000 bytes";
}

std::string ZeroCopy(Trial& trial) {
  const int on = 1;
  if (setsockopt(trial.tx(), SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) != 0) {
    return absl::StrCat("SO_ZEROCOPY: ", Errno(errno));
  }
  const std::string data = Pattern(10000);
  const ssize_t sent = trial.Send(data, MSG_ZEROCOPY);
  if (sent != static_cast<ssize_t>(data.size())) {
    return absl::StrCat("send(MSG_ZEROCOPY): ", Outcome(sent));
  }
  trial.ReceiveAll(data.size());
  const bool completed = (trial.Wait(trial.tx(), POLLERR, 100) & POLLERR) != 0;
  return completed ? "completion arrives" : "no completion";
}

std::string OutOfBand(Trial& trial) {
  trial.Send("AAAA");
  trial.Send("!", MSG_OOB);
  trial.Wait(trial.rx(), POLLPRI, kQuietMs);
  std::array<char, 16> buffer = {};
  const ssize_t n = trial.Receive(buffer.data(), buffer.size());
  const std::string in_line(buffer.data(), n > 0 ? static_cast<size_t>(n) : 0);
  return absl::StrCat("in line ", in_line);
}

std::string CountByTcpInfo(Trial& trial) {
  trial.Send(Pattern(1000));
  trial.ReceiveAll(1000);
  tcp_info info = {};
  socklen_t size = sizeof(info);
  getsockopt(trial.rx(), IPPROTO_TCP, TCP_INFO, &info, &size);
  return absl::StrCat("tcpi_bytes_received ", info.tcpi_bytes_received);
}

std::string DeleteWithUnread(Trial& trial) {
  trial.Send("0123456789");
  trial.Wait(trial.rx(), POLLIN);
  trial.ExpelRx();
  std::array<char, 16> buffer;
  return absl::StrCat("reading: ",
                      Outcome(trial.Receive(buffer.data(), buffer.size(), 0, kQuietMs)));
}

// ---- trials of their own kind --------------------------------------------

Finding KernelTypes(Lab*) {
  constexpr char kPath[] = "/sys/kernel/btf/vmlinux";
  const UniqueFd fd(open(kPath, O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return {Found::kOtherwise, absl::StrCat("opening ", kPath, ": ", Errno(errno))};
  }
  return {Found::kAsWanted, absl::StrCat(kPath, " is readable")};
}

Finding ReadIdentity(Lab* lab) {
  const absl::StatusOr<Trial> trial = Trial::Make(lab, Family::kIpv4, Way::kMember);
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  probe_socket first = {};
  probe_socket second = {};
  trial->Send("0123456789");
  lab->ReadSocket(trial->tx(), &first);
  trial->Send("0123456789");
  lab->ReadSocket(trial->tx(), &second);
  uint64_t netns_cookie = 0;
  socklen_t size = sizeof(netns_cookie);
  const bool knows_netns =
      getsockopt(trial->tx(), SOL_SOCKET, SO_NETNS_COOKIE, &netns_cookie, &size) == 0;

  std::vector<std::string> wrong;
  if (second.messages != 2) {
    wrong.push_back(absl::StrCat("the program ran ", second.messages, " times for 2 messages"));
  }
  if (first.own_key != trial->tx_key()) {
    wrong.push_back(absl::StrCat("socket cookie ", first.own_key, ", is ", trial->tx_key()));
  }
  if (first.netns_cookie == 0 || (knows_netns && first.netns_cookie != netns_cookie)) {
    wrong.push_back(absl::StrCat("netns cookie ", first.netns_cookie, ", is ", netns_cookie));
  }
  if (second.write_seq - first.write_seq != 10) {
    wrong.push_back(
        absl::StrCat("write_seq moved by ", second.write_seq - first.write_seq, " for 10 bytes"));
  }
  if (!wrong.empty()) {
    return {Found::kOtherwise, absl::StrJoin(wrong, "; ")};
  }
  return {Found::kAsWanted, "cookie, netns cookie and write_seq read true"};
}

int64_t ReceiveMemoryOf(int socket) {
  std::array<uint32_t, SK_MEMINFO_VARS> info = {};
  socklen_t size = sizeof(info);
  return getsockopt(socket, SOL_SOCKET, SO_MEMINFO, info.data(), &size) == 0
             ? static_cast<int64_t>(info[SK_MEMINFO_RMEM_ALLOC])
             : -1;
}

Finding ChargeReceiveMemory(Lab* lab) {
  const absl::StatusOr<Trial> trial = Trial::Make(lab, Family::kIpv4, Way::kRedirect);
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  constexpr int64_t kBytes = 8192;
  trial->Send(Pattern(kBytes));
  const uint32_t redirected = trial->Redirected();
  const int64_t unread = ReceiveMemoryOf(trial->rx());
  trial->ReceiveAll(kBytes);
  const int64_t after = ReceiveMemoryOf(trial->rx());
  const bool charged = redirected > 0 && unread >= kBytes && after == 0;
  return {charged ? Found::kAsWanted : Found::kOtherwise,
          absl::StrCat("sk_rmem_alloc ", unread, " with ", kBytes, " bytes unread, ", after,
                       " once they were read")};
}

Finding MissingPeer(Lab* lab) {
  absl::StatusOr<Trial> trial = Trial::Make(lab, Family::kIpv4, Way::kRedirect);
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  trial->ExpelRx();
  const ssize_t sent = trial->Send("0123456789");
  if (sent < 0) {
    return {Found::kAsWanted, absl::StrCat("send fails with ", Outcome(sent))};
  }
  const std::string got = trial->ReceiveAll(static_cast<size_t>(sent));
  if (got != std::string_view("0123456789").substr(0, static_cast<size_t>(sent))) {
    return {Found::kOtherwise,
            absl::StrCat("send accepts ", sent, " bytes, ", got.size(), " arrive")};
  }
  return {Found::kAsWanted, absl::StrCat("all ", sent, " bytes arrive by TCP")};
}

Finding StayAfterDisconnect(Lab* lab) {
  const absl::StatusOr<Trial> trial = Trial::Make(lab, Family::kIpv4, Way::kMember);
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  if (!lab->IsMember(trial->tx_key())) {
    return {Found::kFailed, "a member cannot be looked up"};
  }
  sockaddr unspecified = {};
  unspecified.sa_family = AF_UNSPEC;
  if (connect(trial->tx(), &unspecified, sizeof(unspecified)) != 0) {
    return {Found::kFailed, absl::StrCat("connect(AF_UNSPEC): ", Errno(errno))};
  }
  return lab->IsMember(trial->tx_key())
             ? Finding{Found::kOtherwise, "the socket is still in the sockhash"}
             : Finding{Found::kAsWanted, "the socket has left the sockhash"};
}

Finding EnrolIdleSocket(Lab* lab) {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int error = lab->Enrol(fd.get());
  return error != 0 ? Finding{Found::kAsWanted, absl::StrCat("refused: ", Errno(error))}
                    : Finding{Found::kOtherwise, "a socket in state CLOSE was accepted"};
}

Finding EnrolListener(Lab* lab) {
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv4);
  if (!listener.ok()) {
    return Failed(listener.status());
  }
  const int error = lab->Enrol(listener->get());
  return error != 0 ? Finding{Found::kAsWanted, absl::StrCat("refused: ", Errno(error))}
                    : Finding{Found::kOtherwise, "a socket in state LISTEN was accepted"};
}

std::vector<std::string> WordsOf(const char* path) {
  std::ifstream file(path);
  return {std::istream_iterator<std::string>(file), std::istream_iterator<std::string>()};
}

Finding EnrolUlp(Lab* lab) {
  // Asking for a ULP that is not there yet would make the kernel load it.
  const std::vector<std::string> ulps = WordsOf("/proc/sys/net/ipv4/tcp_available_ulp");
  if (std::find(ulps.begin(), ulps.end(), "tls") == ulps.end()) {
    return {Found::kNotHere, "kernel TLS is not loaded here"};
  }
  const absl::StatusOr<Trial> plain = Trial::Make(lab, Family::kIpv4, Way::kPlain);
  const absl::StatusOr<Trial> member = Trial::Make(lab, Family::kIpv4, Way::kMember);
  if (!plain.ok() || !member.ok()) {
    return Failed(plain.ok() ? member.status() : plain.status());
  }
  if (setsockopt(plain->tx(), IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) != 0) {
    return {Found::kNotHere, absl::StrCat("TCP_ULP: ", Errno(errno))};
  }
  const int error = lab->Enrol(plain->tx());
  const bool late = setsockopt(member->tx(), IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) == 0;
  const std::string also = absl::StrCat("; kTLS on a member: ", late ? "accepted" : "refused");
  return error != 0 ? Finding{Found::kAsWanted, absl::StrCat("refused: ", Errno(error), also)}
                    : Finding{Found::kOtherwise, absl::StrCat("a kTLS socket was accepted", also)};
}

// Bytes that a sender can place with nobody reading, at most `stop`.
size_t AcceptedUnread(const Trial& trial, size_t stop) {
  const int buffer = 32 * 1024;
  setsockopt(trial.tx(), SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
  setsockopt(trial.rx(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
  const std::string chunk = Pattern(16384);
  size_t total = 0;
  while (total < stop) {
    const ssize_t n = send(trial.tx(), chunk.data(), chunk.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      total += static_cast<size_t>(n);
    } else if (errno != EAGAIN || trial.bound().Left() == 0 ||
               trial.Wait(trial.tx(), POLLOUT, kQuietMs) == 0) {
      break;
    }
  }
  return total;
}

Finding BoundUnread(Lab* lab) {
  constexpr size_t kStop = 4 << 20;
  const absl::StatusOr<Trial> plain = Trial::Make(lab, Family::kIpv4, Way::kPlain);
  const absl::StatusOr<Trial> redirected = Trial::Make(lab, Family::kIpv4, Way::kRedirect);
  if (!plain.ok() || !redirected.ok()) {
    return Failed(plain.ok() ? redirected.status() : plain.status());
  }
  const size_t by_tcp = AcceptedUnread(*plain, kStop);
  const size_t stop = std::min(kStop, 2 * by_tcp);
  const size_t by_redirect = AcceptedUnread(*redirected, stop);
  const std::string happened = absl::StrCat(by_redirect >= stop ? "at least " : "", by_redirect,
                                            " unread bytes accepted; plain TCP: ", by_tcp);
  return {by_redirect >= stop ? Found::kOtherwise : Found::kAsWanted, happened};
}

Finding Walk(Lab* lab, const struct bpf_program* program, bool reads_storage) {
  if (program == nullptr) {
    return {Found::kOtherwise, "the kernel refuses to load the iterator"};
  }
  const absl::StatusOr<Trial> trial = Trial::Make(lab, Family::kIpv4, Way::kRedirect);
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  const auto record_of = [&](uint64_t key) -> std::optional<probe_member> {
    const absl::StatusOr<std::vector<probe_member>> members = lab->Walk(program);
    if (members.ok()) {
      for (const probe_member& member : *members) {
        if (member.key == key) {
          return member;
        }
      }
    }
    return std::nullopt;
  };
  trial->Send("0123456789");
  std::optional<probe_member> seen = record_of(trial->tx_key());
  if (!seen) {
    const absl::Status status = lab->Walk(program).status();
    return {Found::kOtherwise,
            status.ok() ? "a member was not listed" : std::string(status.message())};
  }
  if (!reads_storage) {
    return {Found::kAsWanted, "members are listed"};
  }
  if (seen->redirected != 1) {
    return {Found::kOtherwise, absl::StrCat("the member's storage says ", seen->redirected,
                                            " redirected messages, is 1")};
  }
  probe_socket state = {};
  lab->ReadSocket(trial->tx(), &state);
  state.let_go = 1;
  lab->WriteSocket(trial->tx(), state);
  seen = record_of(trial->tx_key());
  if (!seen || seen->deleted != 1 || lab->IsMember(trial->tx_key())) {
    return {Found::kOtherwise, "the iterator could not delete a member's key"};
  }
  return {Found::kAsWanted, "storage is readable, and a member's key can be deleted"};
}

Finding ListMembers(Lab* lab) { return Walk(lab, lab->list_program(), false); }
Finding LetMemberGo(Lab* lab) { return Walk(lab, lab->let_go_program(), true); }

// A sockhash holds its program and the program the sockhash: unless the last
// descriptor's close breaks the ring, both stay for ever.
Finding ReleasePrograms(Lab*) {
  __u32 program_id = 0;
  {
    const UniqueFd map(
        bpf_map_create(BPF_MAP_TYPE_SOCKHASH, nullptr, sizeof(__u64), sizeof(__u64), 1, nullptr));
    if (!map.valid()) {
      return {Found::kFailed, absl::StrCat("making a sockhash: ", Errno(errno))};
    }
    const std::array<struct bpf_insn, 4> code = {{
        {BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, map.get()},
        {0, 0, 0, 0, 0},
        {BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, SK_PASS},
        {BPF_JMP | BPF_EXIT, 0, 0, 0, 0},
    }};
    const UniqueFd program(bpf_prog_load(BPF_PROG_TYPE_SK_MSG, "probe_ring", "GPL", code.data(),
                                         code.size(), nullptr));
    struct bpf_prog_info info = {};
    __u32 size = sizeof(info);
    if (!program.valid() || bpf_obj_get_info_by_fd(program.get(), &info, &size) != 0 ||
        bpf_prog_attach(program.get(), map.get(), BPF_SK_MSG_VERDICT, 0) != 0) {
      return {Found::kFailed, absl::StrCat("attaching a program: ", Errno(errno))};
    }
    program_id = info.id;
  }
  const Bound bound(milliseconds(200));
  for (;;) {
    const UniqueFd again(bpf_prog_get_fd_by_id(program_id));
    if (!again.valid()) {
      const int error = errno;
      return error == EPERM ? Finding{Found::kNotHere, "needs CAP_SYS_ADMIN"}
                            : Finding{Found::kAsWanted, "program and map are gone"};
    }
    if (bound.Left() == 0) {
      return {Found::kOtherwise, "the program is still there"};
    }
    std::this_thread::sleep_for(milliseconds(2));
  }
}

// ---- the rows --------------------------------------------------------------

struct Row {
  const char* name;
  ProbeScope scope;
  const char* otherwise;  // the verdict when it is otherwise
  const char* tried;
  const char* means_as_wanted;
  const char* means_otherwise;
  const char* to_do;
  std::function<Finding(Lab*)> find;
  bool needs_lab = true;
};

std::function<Finding(Lab*)> Redirected(Scenario scenario, Family family = Family::kIpv4) {
  return [=](Lab* lab) { return Compare(lab, family, Way::kRedirect, scenario, 1); };
}

// For a kernel may refuse the message before any program sees it.
std::function<Finding(Lab*)> RedirectedIfSent(Scenario scenario) {
  return [=](Lab* lab) { return Compare(lab, Family::kIpv4, Way::kRedirect, scenario, 0); };
}

std::function<Finding(Lab*)> Member(Scenario scenario, Family family = Family::kIpv4) {
  return [=](Lab* lab) { return Compare(lab, family, Way::kMember, scenario, 0); };
}

constexpr char kUseAnotherKernel[] =
    "use the kernel module, or a kernel without this fault; until then this node stays on plain "
    "TCP";
constexpr char kGateCovers[] =
    "nothing: the engine asks before each message, and sends by TCP what this concerns";
constexpr char kKeepOff[] =
    "keep the ports of programs that do this out of the policy, or use the kernel module";

const std::vector<Row>& Rows() {
  static const auto* rows = new std::vector<Row>{
      {"btf", ProbeScope::kEssential, kProbeFatal, "reading the kernel's own type information",
       "programs adapt to this kernel's layout",
       "programs cannot be adapted to this kernel's layout",
       "use a kernel built with CONFIG_DEBUG_INFO_BTF, and let /sys be visible in the container",
       KernelTypes, false},
      {"identity_reads", ProbeScope::kEssential, kProbeFatal,
       "reading a socket's identity and sequence number from an sk_msg program",
       "the engine can tell one connection from another",
       "the engine would mistake one connection for another", kUseAnotherKernel, ReadIdentity},
      {"redirect_delivers_ipv4", ProbeScope::kEssential, kProbeFatal,
       "messages of 1 to 70000 bytes handed to the peer's socket, IPv4",
       "redirected bytes arrive as sent", "redirected bytes are lost or changed", kUseAnotherKernel,
       Redirected(DeliverExactly)},
      {"redirect_delivers_ipv6", ProbeScope::kEssential, kProbeFatal,
       "messages of 1 to 70000 bytes handed to the peer's socket, IPv6",
       "redirected bytes arrive as sent", "redirected bytes are lost or changed", kUseAnotherKernel,
       Redirected(DeliverExactly, Family::kIpv6)},
      {"redirect_delivers_v4_mapped", ProbeScope::kEssential, kProbeFatal,
       "messages of 1 to 70000 bytes handed to the peer's socket, IPv4 on IPv6 sockets",
       "redirected bytes arrive as sent", "redirected bytes are lost or changed", kUseAnotherKernel,
       Redirected(DeliverExactly, Family::kV4Mapped)},
      {"ipv6_protos", ProbeScope::kEssential, kProbeFatal,
       "disconnecting an enrolled IPv6 socket and connecting it anew",
       "an enrolled IPv6 socket keeps IPv6's functions (fix 1 of 2018 holds)",
       "an enrolled IPv6 socket is given IPv4's functions (fix 1 of 2018 is missing)",
       kUseAnotherKernel, Member(ReconnectByIpv6, Family::kIpv6)},
      {"psock_queue_read_first", ProbeScope::kEssential, kProbeFatal,
       "one message redirected, the next by TCP, then read",
       "falling back to TCP keeps the order of bytes",
       "falling back to TCP reorders bytes (kernel commit e7a5f1f1cd00 is missing)",
       kUseAnotherKernel, Redirected(RedirectThenTcp)},
      {"rmem_is_charged", ProbeScope::kEssential, kProbeDegraded,
       "SO_MEMINFO of a socket with redirected bytes unread",
       "a reader's unread bytes can be counted, and its sender held back as on TCP",
       "a reader's unread bytes cannot be counted (kernel commit d888b7af7c14 is missing)",
       "nothing: the engine redirects one message at a time here, which is slower",
       ChargeReceiveMemory},
      {"missing_peer_is_not_silent", ProbeScope::kEssential, kProbeFatal,
       "redirecting to a key that has left the sockhash", "nothing is lost when the peer leaves",
       "bytes are lost when the peer leaves (needs the fixes of kernel 5.18)", kUseAnotherKernel,
       MissingPeer},
      {"poll_epoll_wake", ProbeScope::kEssential, kProbeFatal,
       "poll() and edge-triggered epoll on redirected bytes", "readers wake as on TCP",
       "readers sleep on, or wake for nothing", kUseAnotherKernel, Redirected(PollAndEpoll)},
      {"peek", ProbeScope::kEssential, kProbeFatal, "recv(MSG_PEEK) of redirected bytes",
       "peeking works as on TCP", "proxies that peek (Envoy's listener filters) stall",
       kUseAnotherKernel, Redirected(Peek)},
      {"eof_after_data", ProbeScope::kEssential, kProbeFatal,
       "1000 redirected bytes, then shutdown(SHUT_WR)", "the end of a stream comes after its data",
       "the end of a stream overtakes or loses data", kUseAnotherKernel, Redirected(EofAfterData)},
      {"unread_survives_reset", ProbeScope::kEssential, kProbeFatal,
       "10 redirected bytes unread when the sender resets the connection",
       "bytes sent before a reset stay readable, as on TCP",
       "bytes sent before a reset are lost, unlike on TCP", kUseAnotherKernel,
       Redirected(ResetWithUnread)},
      {"iter_sockmap_available", ProbeScope::kEssential, kProbeFatal,
       "listing the sockhash by an iterator program", "the agent can see what is enrolled",
       "the agent cannot see what is enrolled, so it could never let it go", kUseAnotherKernel,
       ListMembers},
      {"sk_storage_in_iter", ProbeScope::kEssential, kProbeFatal,
       "reading socket storage and deleting a key from the iterator",
       "the agent can let a connection go once it is drained",
       "the agent could never let a connection go", kUseAnotherKernel, LetMemberGo},
      {"fionread_counts_redirected", ProbeScope::kEssential, kProbeDegraded,
       "FIONREAD with 10 redirected bytes unread",
       "FIONREAD tells the truth about redirected bytes",
       "programs that ask FIONREAD (nginx, Java, .NET) may leave redirected bytes unread", kKeepOff,
       Redirected(AskFionread)},
      {"fionread_counts_tcp_bytes", ProbeScope::kEssential, kProbeDegraded,
       "FIONREAD of an enrolled socket with 10 bytes unread that came by TCP",
       "FIONREAD tells the truth about messages that fell back to TCP",
       "programs that ask FIONREAD (nginx, Java, .NET) may stall on messages that fell back to "
       "TCP (kernel commit 929e30f93125)",
       "use a kernel with commit 04af4efde58a, or the kernel module, or keep the ports of such "
       "programs out of the policy",
       Member(AskFionread)},

      // Known differences, each measured against plain TCP.
      {"tcp_then_redirect_keeps_order", ProbeScope::kAll, kProbeDegraded,
       "one message by TCP, the next redirected, then read", "redirecting keeps the order of bytes",
       "a redirected message overtakes unread bytes that went by TCP", kGateCovers,
       Redirected(TcpThenRedirect)},
      {"unread_is_bounded", ProbeScope::kAll, kProbeDegraded,
       "sending with small buffers and nobody reading", "a sender is held back as on TCP",
       "nothing but the engine holds a sender back", kGateCovers, BoundUnread},
      {"splice_reads_redirected", ProbeScope::kAll, kProbeDegraded,
       "splice() of 5000 redirected bytes into a pipe", "splice() works as on TCP",
       "programs that splice (HAProxy, Go's io.Copy) do not see redirected bytes", kKeepOff,
       Redirected(Splice)},
      {"waitall", ProbeScope::kAll, kProbeDegraded,
       "recv(MSG_WAITALL) of 1000 bytes sent in two parts", "MSG_WAITALL waits for all",
       "MSG_WAITALL returns early", kKeepOff, Redirected(WaitAll)},
      {"rcvlowat", ProbeScope::kAll, kProbeDegraded,
       "poll() with SO_RCVLOWAT 1000 and 100 bytes there", "SO_RCVLOWAT is honoured",
       "SO_RCVLOWAT is ignored", kGateCovers, Redirected(ReceiveLowWater)},
      {"zerocopy", ProbeScope::kAll, kProbeDegraded, "send(MSG_ZEROCOPY) and its completion",
       "zero-copy senders get their buffers back", "zero-copy senders never get their buffers back",
       kKeepOff, Redirected(ZeroCopy)},
      {"oob", ProbeScope::kAll, kProbeDegraded, "send(MSG_OOB) after AAAA, then recv()",
       "urgent bytes stay out of band", "urgent bytes arrive in line", kKeepOff,
       Redirected(OutOfBand)},
      {"shutdown_then_send", ProbeScope::kAll, kProbeDegraded, "send() after shutdown(SHUT_WR)",
       "sending after the end of the stream fails", "sending after the end of the stream succeeds",
       kGateCovers, RedirectedIfSent(SendAfterShutdown)},
      {"close_with_unread", ProbeScope::kAll, kProbeDegraded,
       "closing a socket with 10 redirected bytes unread",
       "a sender learns that its bytes were not read",
       "a sender sees a normal end where TCP reports that its bytes were not read",
       "nothing, unless a program relies on ECONNRESET: then keep its port out of the policy",
       Redirected(CloseWithUnread)},
      {"tcp_info_counts", ProbeScope::kAll, kProbeDegraded, "TCP_INFO after 1000 redirected bytes",
       "TCP_INFO counts redirected bytes",
       "byte counters of ss and TCP_INFO leave redirected bytes out",
       "read Shunt's own counters of redirected bytes", Redirected(CountByTcpInfo)},
      {"delete_keeps_unread", ProbeScope::kAll, kProbeDegraded,
       "deleting the key of a socket with 10 redirected bytes unread",
       "a socket can leave at any time",
       "a socket that leaves with bytes unread loses them: delete no key of Shunt's by hand",
       "nothing: the engine lets a socket go only when nothing is unread",
       Redirected(DeleteWithUnread)},
      {"disconnect_leaves_map", ProbeScope::kAll, kProbeDegraded,
       "connect(AF_UNSPEC) of an enrolled socket",
       "a disconnected socket leaves the sockhash (fix 4 of 2018 holds)",
       "a disconnected socket stays in the sockhash (fix 4 of 2018 was removed)",
       "nothing: the engine's own programs take it out", StayAfterDisconnect},
      {"only_connected_join", ProbeScope::kAll, kProbeDegraded,
       "entering a socket that was never connected",
       "unconnected sockets cannot join (fix 2 of 2018 holds)",
       "unconnected sockets can join (fix 2 of 2018 is missing)",
       "nothing: the engine enters sockets at the end of their handshake only", EnrolIdleSocket},
      {"listen_refused", ProbeScope::kAll, kProbeDegraded, "entering a listening socket",
       "listeners cannot join (fixes 2 and 6 of 2018 hold)",
       "listeners can join (fixes 2 and 6 of 2018 were reversed in 5.7)",
       "nothing: the engine enters sockets at the end of their handshake only", EnrolListener},
      {"ulp_refused", ProbeScope::kAll, kProbeDegraded, "entering a socket that has kernel TLS",
       "a kernel TLS socket cannot join", "a kernel TLS socket can join",
       "nothing: the engine enters sockets at the end of their handshake, before TLS can be set up",
       EnrolUlp},
      {"release_drops_programs", ProbeScope::kAll, kProbeDegraded,
       "closing the last descriptor of a sockhash and of its program",
       "a sockhash that nobody uses goes, with its program (fix 5 of 2018 holds)",
       "a sockhash that nobody uses stays for ever (fix 5 of 2018 is missing)",
       "restart the node after Shunt has been removed, or use a kernel with the fix",
       ReleasePrograms, false},
  };
  return *rows;
}

ProbeView View(const Row& row, const Finding& finding) {
  ProbeView view;
  view.name = row.name;
  view.tried = row.tried;
  view.happened = finding.happened;
  switch (finding.found) {
    case Found::kAsWanted:
      view.verdict = kProbeOk;
      view.means = row.means_as_wanted;
      return view;
    case Found::kOtherwise:
      view.verdict = row.otherwise;
      view.means = row.means_otherwise;
      view.to_do = row.to_do;
      return view;
    case Found::kNotHere:
      view.verdict = kProbeSkipped;
      view.means = "could not be tried here, and decides nothing";
      return view;
    case Found::kFailed:
      break;
  }
  // What decides must be known: in doubt, plain TCP.
  const bool decides = std::string_view(row.otherwise) == kProbeFatal;
  view.verdict = decides ? kProbeFatal : kProbeSkipped;
  view.means = "could not be found out";
  view.to_do = "see what happened; if it does not explain itself, report it";
  return view;
}

// ---- loading ---------------------------------------------------------------

bool Holds(int capability) {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  return syscall(SYS_capget, &header, data) == 0 &&
         (data[CAP_TO_INDEX(capability)].effective & CAP_TO_MASK(capability)) != 0;
}

// Those of the agent's three capabilities that this thread does not hold. For
// bpf(), CAP_SYS_ADMIN stands for all of them.
std::vector<std::string> MissingCapabilities() {
  constexpr std::pair<int, const char*> kNeeded[] = {
      {CAP_BPF, "CAP_BPF"}, {CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {CAP_PERFMON, "CAP_PERFMON"}};
  std::vector<std::string> missing;
  for (const auto& [capability, name] : kNeeded) {
    if (!Holds(capability) && !Holds(CAP_SYS_ADMIN)) {
      missing.push_back(name);
    }
  }
  return missing;
}

ProbeView LoadedView(const absl::Status& status, bool scratch_netns) {
  ProbeView view;
  view.name = "programs_load";
  view.tried = "loading sk_msg, sock_ops and iterator programs with all that the engine's own need";
  if (status.ok()) {
    view.verdict = kProbeOk;
    view.happened = scratch_netns
                        ? "loaded; sockets are tried in a scratch network namespace"
                        : "loaded; sockets are tried on the loopback of this process's own "
                          "network namespace: no capability for a scratch one";
    view.means = "the portable engine can be loaded";
    return view;
  }
  view.verdict = kProbeFatal;
  view.happened = std::string(status.message());
  view.means = "the portable engine cannot be loaded";
  const std::vector<std::string> missing = MissingCapabilities();
  const std::vector<std::string> lockdown = WordsOf("/sys/kernel/security/lockdown");
  if (!missing.empty()) {
    absl::StrAppend(&view.happened, "; missing: ", absl::StrJoin(missing, ", "));
    view.to_do = absl::StrCat("give the agent ", absl::StrJoin(missing, ", "),
                              " (in a container: securityContext.capabilities.add)");
  } else if (std::find(lockdown.begin(), lockdown.end(), "[confidentiality]") != lockdown.end()) {
    view.to_do =
        "boot without lockdown=confidentiality, which forbids programs to read kernel memory";
  } else if (absl::IsPermissionDenied(status)) {
    view.to_do =
        "all capabilities are there: see whether a security module or the container's seccomp "
        "profile forbids bpf()";
  } else {
    view.to_do = "use kernel 5.15 or later, or the kernel module";
  }
  return view;
}

// ---- one run -----------------------------------------------------------------

bool BringLoopbackUp() {
  const UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request = {};
  strncpy(request.ifr_name, "lo", IFNAMSIZ - 1);
  request.ifr_flags = IFF_UP;
  return fd.valid() && ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

Finding Try(const Row& row, Lab* lab) {
  try {
    return row.find(lab);
  } catch (const std::system_error& error) {
    return {Found::kFailed, absl::StrCat("starting a thread: ", error.what())};
  }
}

// On the thread whose network namespace may be replaced; the workers inherit
// it from here.
void RunHere(ProbeScope scope, ProbeReport* report) {
  // Without CAP_NET_ADMIN its loopback could not be brought up.
  report->scratch_netns = Holds(CAP_NET_ADMIN) && unshare(CLONE_NEWNET) == 0 && BringLoopbackUp();

  absl::StatusOr<std::unique_ptr<Lab>> lab = Lab::Create();
  std::vector<const Row*> rows;
  for (const Row& row : Rows()) {
    if (row.scope == ProbeScope::kEssential || scope == ProbeScope::kAll) {
      rows.push_back(&row);
    }
  }
  std::vector<ProbeView> views(rows.size());
  std::atomic<size_t> next = 0;
  const Bound retry{milliseconds(1000)};
  const auto work = [&] {
    for (size_t i = next++; i < rows.size(); i = next++) {
      const Row& row = *rows[i];
      if (row.needs_lab && !lab.ok()) {
        views[i] = View(row, {Found::kNotHere, "not tried: programs_load failed"});
        views[i].means = "could not be found out";
        continue;
      }
      views[i] = View(row, Try(row, lab.ok() ? lab->get() : nullptr));
      // A busy machine is not a broken kernel: what would decide against the
      // engine is tried again, while there is time.
      if (views[i].verdict == kProbeFatal && retry.Left() > 0) {
        views[i] = View(row, Try(row, lab.ok() ? lab->get() : nullptr));
      }
    }
  };
  std::vector<std::thread> workers;
  try {
    for (size_t i = 1; i < kWorkers; ++i) {
      workers.emplace_back(work);
    }
  } catch (const std::system_error&) {
    // No more threads for us: those there are do it all.
  }
  work();
  for (std::thread& worker : workers) {
    worker.join();
  }
  report->rows.push_back(LoadedView(lab.status(), report->scratch_netns));
  std::move(views.begin(), views.end(), std::back_inserter(report->rows));
  const ProbeView* charged = report->Find("rmem_is_charged");
  report->rmem_is_charged = charged != nullptr && charged->verdict == kProbeOk;
}

}  // namespace

const ProbeView* ProbeReport::Find(std::string_view name) const {
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const ProbeView& row) { return row.name == name; });
  return found == rows.end() ? nullptr : &*found;
}

absl::StatusOr<ProbeReport> RunProbes(ProbeScope scope) {
  ProbeReport report;
  try {
    std::thread(RunHere, scope, &report).join();
  } catch (const std::system_error& error) {
    return ErrnoStatus(error.code().value(), "probing the kernel: starting a thread");
  }
  return report;
}

}  // namespace shunt

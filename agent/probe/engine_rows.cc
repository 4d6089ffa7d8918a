// SPDX-License-Identifier: Apache-2.0
//
// What the sockhash engine stands on: without these it must not be used.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/compare.h"
#include "agent/probe/lab.h"
#include "agent/probe/row.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace shunt {
namespace {

Finding ReadKernelTypes(const ProbeContext&) {
  constexpr char kPath[] = "/sys/kernel/btf/vmlinux";
  const UniqueFd fd(open(kPath, O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return {Found::kOtherwise, absl::StrCat("opening ", kPath, ": ", Errno(errno))};
  }
  return {Found::kAsWanted, absl::StrCat(kPath, " is readable")};
}

Finding ReadIdentity(const ProbeContext& context) {
  const absl::StatusOr<Trial> trial = Trial::Make(context.lab, Family::kIpv4, Way::kMember);
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  probe_socket first = {};
  probe_socket second = {};
  trial->Send("0123456789");
  context.lab->ReadSocket(trial->tx(), &first);
  trial->Send("0123456789");
  context.lab->ReadSocket(trial->tx(), &second);
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

int64_t ReceiveMemoryOf(int socket) {
  std::array<uint32_t, SK_MEMINFO_VARS> info = {};
  socklen_t size = sizeof(info);
  return getsockopt(socket, SOL_SOCKET, SO_MEMINFO, info.data(), &size) == 0
             ? static_cast<int64_t>(info[SK_MEMINFO_RMEM_ALLOC])
             : -1;
}

Finding ChargeReceiveMemory(const ProbeContext& context) {
  const absl::StatusOr<Trial> trial = Trial::Make(context.lab, Family::kIpv4, Way::kRedirect);
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

Finding MissingPeer(const ProbeContext& context) {
  absl::StatusOr<Trial> trial = Trial::Make(context.lab, Family::kIpv4, Way::kRedirect);
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

Finding Walk(Lab* lab, const struct ::bpf_program* program, bool reads_storage) {
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

Finding ListMembers(const ProbeContext& context) {
  return Walk(context.lab, context.lab->list_program(), false);
}

Finding LetMemberGo(const ProbeContext& context) {
  return Walk(context.lab, context.lab->let_go_program(), true);
}

}  // namespace

std::vector<Row> EngineRows() {
  return {
      {"btf", "", ProbeScope::kEssential, kProbeFatal, "reading the kernel's own type information",
       "programs adapt to this kernel's layout",
       "programs cannot be adapted to this kernel's layout",
       "use a kernel built with CONFIG_DEBUG_INFO_BTF, and let /sys be visible in the container",
       ReadKernelTypes, false},
      {"identity_reads", "", ProbeScope::kEssential, kProbeFatal,
       "reading a socket's identity and sequence number from an sk_msg program",
       "the engine can tell one connection from another",
       "the engine would mistake one connection for another", kUseAnotherKernel, ReadIdentity},
      {"redirect_delivers_ipv4", "", ProbeScope::kEssential, kProbeFatal,
       "messages of 1 to 70000 bytes handed to the peer's socket, IPv4",
       "redirected bytes arrive as sent", "redirected bytes are lost or changed", kUseAnotherKernel,
       Redirected(DeliverExactly)},
      {"redirect_delivers_ipv6", "", ProbeScope::kEssential, kProbeFatal,
       "messages of 1 to 70000 bytes handed to the peer's socket, IPv6",
       "redirected bytes arrive as sent", "redirected bytes are lost or changed", kUseAnotherKernel,
       Redirected(DeliverExactly, Family::kIpv6)},
      {"redirect_delivers_v4_mapped", "", ProbeScope::kEssential, kProbeFatal,
       "messages of 1 to 70000 bytes handed to the peer's socket, IPv4 on IPv6 sockets",
       "redirected bytes arrive as sent", "redirected bytes are lost or changed", kUseAnotherKernel,
       Redirected(DeliverExactly, Family::kV4Mapped)},
      {"psock_queue_read_first", "", ProbeScope::kEssential, kProbeFatal,
       "one message redirected, the next by TCP, then read",
       "falling back to TCP keeps the order of bytes",
       "falling back to TCP reorders bytes (kernel commit e7a5f1f1cd00 is missing)",
       kUseAnotherKernel, Redirected(RedirectThenTcp)},
      {"rmem_is_charged", "", ProbeScope::kEssential, kProbeDegraded,
       "SO_MEMINFO of a socket with redirected bytes unread",
       "a reader's unread bytes can be counted, and its sender held back as on TCP",
       "a reader's unread bytes cannot be counted (kernel commit d888b7af7c14 is missing)",
       "nothing: the engine redirects one message at a time here, which is slower",
       ChargeReceiveMemory},
      {"missing_peer_is_not_silent", "", ProbeScope::kEssential, kProbeFatal,
       "redirecting to a key that has left the sockhash", "nothing is lost when the peer leaves",
       "bytes are lost when the peer leaves (needs the fixes of kernel 5.18)", kUseAnotherKernel,
       MissingPeer},
      {"poll_epoll_wake", "", ProbeScope::kEssential, kProbeFatal,
       "poll() and edge-triggered epoll on redirected bytes", "readers wake as on TCP",
       "readers sleep on, or wake for nothing", kUseAnotherKernel, Redirected(PollAndEpoll)},
      {"peek", "", ProbeScope::kEssential, kProbeFatal, "recv(MSG_PEEK) of redirected bytes",
       "peeking works as on TCP", "proxies that peek (Envoy's listener filters) stall",
       kUseAnotherKernel, Redirected(Peek)},
      {"eof_after_data", "", ProbeScope::kEssential, kProbeFatal,
       "1000 redirected bytes, then shutdown(SHUT_WR)", "the end of a stream comes after its data",
       "the end of a stream overtakes or loses data", kUseAnotherKernel, Redirected(EofAfterData)},
      {"unread_survives_reset", "", ProbeScope::kEssential, kProbeFatal,
       "10 redirected bytes unread when the sender resets the connection",
       "bytes sent before a reset stay readable, as on TCP",
       "bytes sent before a reset are lost, unlike on TCP", kUseAnotherKernel,
       Redirected(ResetWithUnread)},
      {"iter_sockmap_available", "", ProbeScope::kEssential, kProbeFatal,
       "listing the sockhash by an iterator program", "the agent can see what is enrolled",
       "the agent cannot see what is enrolled, so it could never let it go", kUseAnotherKernel,
       ListMembers},
      {"sk_storage_in_iter", "", ProbeScope::kEssential, kProbeFatal,
       "reading socket storage and deleting a key from the iterator",
       "the agent can let a connection go once it is drained",
       "the agent could never let a connection go", kUseAnotherKernel, LetMemberGo},
  };
}

}  // namespace shunt

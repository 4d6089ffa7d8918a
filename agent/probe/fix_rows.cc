// SPDX-License-Identifier: Apache-2.0
//
// The six fixes that sockhash got in June 2018, and what their cover letter
// notes of kernel TLS: which of them does the running kernel hold?
#include <bpf/bpf.h>
#include <linux/filter.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/compare.h"
#include "agent/probe/lab.h"
#include "agent/probe/row.h"

namespace shunt {
namespace {

using std::chrono::milliseconds;

// An IPv6 socket that got IPv4's functions cannot connect to an IPv6 address.
std::string ReconnectByIpv6(Trial& trial) {
  trial.ByTcp();
  if (const int error = Disconnect(trial.tx()); error != 0) {
    return absl::StrCat("connect(AF_UNSPEC): ", Errno(error));
  }
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv6);
  if (!listener.ok()) {
    return std::string(listener.status().message());
  }
  const int error = ConnectTo(trial.tx(), listener->get());
  return absl::StrCat("connecting anew: ", error == 0 ? "connected" : Errno(error));
}

Finding EnrolIdleSocket(const ProbeContext& context) {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int error = context.lab->Enrol(fd.get());
  return error != 0 ? Finding{Found::kAsWanted, absl::StrCat("refused: ", Errno(error))}
                    : Finding{Found::kOtherwise, "a socket in state CLOSE was accepted"};
}

Finding EnrolListener(const ProbeContext& context) {
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv4);
  if (!listener.ok()) {
    return Failed(listener.status());
  }
  const int error = context.lab->Enrol(listener->get());
  return error != 0 ? Finding{Found::kAsWanted, absl::StrCat("refused: ", Errno(error))}
                    : Finding{Found::kOtherwise, "a socket in state LISTEN was accepted"};
}

Finding StayAfterDisconnect(const ProbeContext& context) {
  const absl::StatusOr<Trial> trial = Trial::Make(context.lab, Family::kIpv4, Way::kMember);
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  if (!context.lab->IsMember(trial->tx_key())) {
    return {Found::kFailed, "a member cannot be looked up"};
  }
  if (const int error = Disconnect(trial->tx()); error != 0) {
    return {Found::kFailed, absl::StrCat("connect(AF_UNSPEC): ", Errno(error))};
  }
  sockaddr_storage peer;
  socklen_t size = sizeof(peer);
  if (getpeername(trial->tx(), reinterpret_cast<sockaddr*>(&peer), &size) == 0) {
    return {Found::kFailed, "connect(AF_UNSPEC) did not disconnect"};
  }
  return context.lab->IsMember(trial->tx_key())
             ? Finding{Found::kOtherwise, "the socket is still in the sockhash"}
             : Finding{Found::kAsWanted, "the socket has left the sockhash"};
}

// A sockhash holds its program and the program the sockhash: unless the last
// descriptor's close breaks the ring, both stay for ever.
Finding ReleasePrograms(const ProbeContext&) {
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

// Asking for a ULP that is not there yet would make the kernel load it. The
// list of those that are, tcp_available_ulp, shows in the first network
// namespace only.
bool HasKernelTls() { return access("/sys/module/tls", F_OK) == 0; }

// A connection, one end of which has kernel TLS; in `finding` why there is none.
std::optional<Trial> WithKernelTls(Lab* lab, Way way, Finding* finding) {
  if (!HasKernelTls()) {
    *finding = {Found::kNotHere, "kernel TLS is not loaded here (modprobe tls)"};
    return std::nullopt;
  }
  absl::StatusOr<Trial> trial = Trial::Make(lab, Family::kIpv4, way);
  if (!trial.ok()) {
    *finding = Failed(trial.status());
    return std::nullopt;
  }
  if (setsockopt(trial->tx(), IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) != 0) {
    *finding = {Found::kNotHere, absl::StrCat("TCP_ULP: ", Errno(errno))};
    return std::nullopt;
  }
  return std::move(*trial);
}

Finding EnrolUlp(const ProbeContext& context) {
  Finding finding;
  const std::optional<Trial> trial = WithKernelTls(context.lab, Way::kPlain, &finding);
  if (!trial) {
    return finding;
  }
  const int error = context.lab->Enrol(trial->tx());
  return error != 0 ? Finding{Found::kAsWanted, absl::StrCat("refused: ", Errno(error))}
                    : Finding{Found::kOtherwise, "a kernel TLS socket was accepted"};
}

Finding UlpOfMember(const ProbeContext& context) {
  Finding finding;
  if (WithKernelTls(context.lab, Way::kMember, &finding)) {
    return {Found::kOtherwise, "TCP_ULP tls was accepted"};
  }
  if (finding.found == Found::kNotHere && HasKernelTls()) {
    finding.found = Found::kAsWanted;
  }
  return finding;
}

Finding DisconnectUlp(const ProbeContext& context) {
  Finding finding;
  const std::optional<Trial> trial = WithKernelTls(context.lab, Way::kPlain, &finding);
  if (!trial) {
    return finding;
  }
  const int error = Disconnect(trial->tx());
  return error != 0 ? Finding{Found::kAsWanted, absl::StrCat("refused: ", Errno(error))}
                    : Finding{Found::kOtherwise, "a kernel TLS socket was disconnected"};
}

// Closing is what the fix is about. Closers are not set against deleters here:
// on a kernel without the fix that corrupts memory.
Finding CloseMembers(const ProbeContext& context) {
  constexpr int kMembers = 8;
  std::vector<uint64_t> keys;
  for (int i = 0; i < kMembers; ++i) {
    const absl::StatusOr<Trial> trial = Trial::Make(context.lab, Family::kIpv4, Way::kMember);
    if (!trial.ok()) {
      return Failed(trial.status());
    }
    keys.insert(keys.end(), {trial->tx_key(), trial->rx_key()});
  }
  const auto left = std::count_if(keys.begin(), keys.end(),
                                  [&](uint64_t key) { return context.lab->IsMember(key); });
  if (left > 0) {
    return {Found::kOtherwise,
            absl::StrCat(left, " of ", keys.size(), " closed sockets are still in the sockhash")};
  }
  Finding finding = {Found::kUnknown,
                     absl::StrCat("all ", keys.size(),
                                  " closed sockets have left; whether the bucket was locked "
                                  "meanwhile is not measurable from user space")};
  finding.means =
      "close takes sockets out; source: net/core/sock_map.c, sock_hash_delete_from_link() holds "
      "the bucket's lock since the rewrite of 4.20 (fix 3 of 2018, reworked)";
  finding.to_do = "nothing: to see the lock itself, run a kernel with lockdep and KASAN";
  return finding;
}

// What a connection that rx makes anew reads of the one before.
std::string ReadAfterReconnect(Trial& trial, const UniqueFd& listener) {
  if (const int error = ConnectTo(trial.rx(), listener.get()); error != 0) {
    return absl::StrCat("connecting anew: ", Errno(error));
  }
  std::array<char, 16> buffer;
  const ssize_t n = trial.Receive(buffer.data(), buffer.size(), 0, 20);
  return n > 0 ? absl::StrCat("the new connection reads ", n, " bytes of the old one")
               : "the new connection reads nothing of the old one";
}

std::string SendAfterDisconnect(Trial& trial) {
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv4);
  if (!listener.ok()) {
    return std::string(listener.status().message());
  }
  Disconnect(trial.rx());
  trial.Send("0123456789");
  return ReadAfterReconnect(trial, *listener);
}

std::string DisconnectWithUnread(Trial& trial) {
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv4);
  if (!listener.ok()) {
    return std::string(listener.status().message());
  }
  trial.Send("0123456789");
  trial.Wait(trial.rx(), POLLIN);
  Disconnect(trial.rx());
  return ReadAfterReconnect(trial, *listener);
}

Finding AcceptFromMember(const ProbeContext& context) {
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv4);
  if (!listener.ok()) {
    return Failed(listener.status());
  }
  if (const int error = context.lab->Enrol(listener->get()); error != 0) {
    return {Found::kAsWanted, absl::StrCat("the listener was refused: ", Errno(error))};
  }
  const UniqueFd client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval limit = {0, 200000};
  setsockopt(listener->get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  if (const int error = ConnectTo(client.get(), listener->get()); error != 0) {
    return {Found::kFailed, absl::StrCat("connecting to the listener: ", Errno(error))};
  }
  const UniqueFd child(accept4(listener->get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!child.valid()) {
    return {Found::kFailed, absl::StrCat("accepting: ", Errno(errno))};
  }
  if (context.lab->IsMember(CookieOf(child.get()))) {
    return {Found::kOtherwise, "the accepted socket is in the sockhash, too"};
  }
  const int error = context.lab->Enrol(child.get());
  return error == 0 ? Finding{Found::kAsWanted,
                              "the accepted socket is not in the sockhash, and can join by itself"}
                    : Finding{Found::kOtherwise,
                              absl::StrCat("the accepted socket cannot join: ", Errno(error))};
}

}  // namespace

std::vector<Row> FixRows() {
  return {
      {"ipv6_protos", "fix 1", ProbeScope::kEssential, kProbeFatal,
       "disconnecting an enrolled IPv6 socket and connecting it anew",
       "an enrolled IPv6 socket keeps IPv6's functions (fix 1 of 2018 holds)",
       "an enrolled IPv6 socket is given IPv4's functions (fix 1 of 2018 is missing)",
       kUseAnotherKernel, Member(ReconnectByIpv6, Family::kIpv6)},
      {"only_connected_join", "fix 2", ProbeScope::kAll, kProbeDegraded,
       "entering a socket that was never connected",
       "unconnected sockets cannot join (fix 2 of 2018 holds)",
       "unconnected sockets can join (fix 2 of 2018 is missing)",
       "nothing: the engine enters sockets at the end of their handshake only", EnrolIdleSocket},
      {"close_takes_bucket_lock", "fix 3", ProbeScope::kAll, kProbeDegraded,
       "closing enrolled sockets, then looking for their keys",
       "closed sockets leave the sockhash under its lock",
       "closed sockets stay in the sockhash (fix 3 of 2018 is missing)", kUseAnotherKernel,
       CloseMembers},
      {"disconnect_leaves_map", "fix 4", ProbeScope::kAll, kProbeDegraded,
       "connect(AF_UNSPEC) of an enrolled socket",
       "a disconnected socket leaves the sockhash (fix 4 of 2018, the unhash hook, holds)",
       "the missing unhash: a disconnected socket stays in the sockhash (fix 4 of 2018 was removed "
       "in 5.16)",
       "nothing: the engine's own programs take it out", StayAfterDisconnect},
      {"disconnect_ends_stream", "fix 4, hazard 16", ProbeScope::kAll, kProbeDegraded,
       "sending to a peer that has done connect(AF_UNSPEC), then connecting it elsewhere",
       "a new connection reads nothing that was sent after the old one",
       "the missing unhash: a new connection reads what was sent after the old one",
       "nothing: the engine takes a socket out when it leaves ESTABLISHED",
       RedirectedIfSent(SendAfterDisconnect)},
      {"disconnect_drops_unread", "fix 4, hazard 16", ProbeScope::kAll, kProbeDegraded,
       "connect(AF_UNSPEC) with 10 redirected bytes unread, then connecting elsewhere",
       "a new connection reads nothing that the old one left unread",
       "the missing unhash: a new connection reads what the old one left unread",
       "nothing: the engine takes a socket out when it leaves ESTABLISHED, which drops its unread "
       "bytes, as TCP does",
       Redirected(DisconnectWithUnread)},
      {"release_drops_programs", "fix 5", ProbeScope::kAll, kProbeDegraded,
       "closing the last descriptor of a sockhash and of its program",
       "a sockhash that nobody uses goes, with its program (fix 5 of 2018 holds)",
       "a sockhash that nobody uses stays for ever (fix 5 of 2018 is missing)",
       "restart the node after Shunt has been removed, or use a kernel with the fix",
       ReleasePrograms, false},
      {"listen_refused", "fix 2, fix 6", ProbeScope::kAll, kProbeDegraded,
       "entering a listening socket", "listeners cannot join (fixes 2 and 6 of 2018 hold)",
       "listeners can join (fixes 2 and 6 of 2018 were reversed in 5.7)",
       "nothing: the engine enters sockets at the end of their handshake only", EnrolListener},
      {"ulp_refused", "kTLS note", ProbeScope::kAll, kProbeDegraded,
       "entering a socket that has kernel TLS", "a kernel TLS socket cannot join",
       "a kernel TLS socket can join",
       "nothing: the engine enters sockets at the end of their handshake, before TLS can be set up",
       EnrolUlp},
      {"ulp_on_member_refused", "kTLS note", ProbeScope::kAll, kProbeDegraded,
       "TCP_ULP tls on an enrolled socket", "an enrolled socket cannot turn to kernel TLS",
       "an enrolled socket can turn to kernel TLS, on top of the sockhash",
       "keep the ports of programs that use kernel TLS out of the policy", UlpOfMember},
      {"listener_children_are_plain", "fix 6", ProbeScope::kAll, kProbeDegraded,
       "accepting a connection from an enrolled listener",
       "what a listener in the sockhash accepts is a plain socket",
       "what a listener in the sockhash accepts is not a plain socket",
       "nothing: the engine never enters a listener", AcceptFromMember},
      {"ktls_refuses_disconnect", "kTLS note", ProbeScope::kAll, kProbeDegraded,
       "connect(AF_UNSPEC) of a socket that has kernel TLS",
       "kernel TLS refuses the disconnect that it would miss",
       "kernel TLS misses a disconnect, as the fixes' cover letter says",
       "nothing: the engine leaves kernel TLS sockets alone", DisconnectUlp, false},
  };
}

}  // namespace shunt

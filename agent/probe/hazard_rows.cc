// SPDX-License-Identifier: Apache-2.0
//
// The table of docs/hazards.md, row by row: what the kernel's sockhash does by
// itself, without the engine's gate. What needs threads that race is in
// race_rows.cc.
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/compare.h"
#include "agent/probe/lab.h"
#include "agent/probe/row.h"

namespace shunt {
namespace {

using std::chrono::milliseconds;

// How long something is given to happen that should not.
constexpr int kQuietMs = 20;

std::string TcpThenRedirect(Trial& trial) {
  trial.ByTcp();
  trial.Send("AAAA");
  trial.ByRedirect();
  trial.Send("BBBB");
  return trial.ReceiveAll(8);
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

Finding BoundUnread(const ProbeContext& context) {
  constexpr size_t kStop = 4 << 20;
  const absl::StatusOr<Trial> plain = Trial::Make(context.lab, Family::kIpv4, Way::kPlain);
  const absl::StatusOr<Trial> redirected = Trial::Make(context.lab, Family::kIpv4, Way::kRedirect);
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

std::string SendAfterShutdown(Trial& trial) {
  shutdown(trial.tx(), SHUT_WR);
  return absl::StrCat("send: ", Outcome(trial.Send("0123456789")));
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

std::string CountByTcpInfo(Trial& trial) {
  trial.Send(Pattern(1000));
  trial.ReceiveAll(1000);
  tcp_info info = {};
  socklen_t size = sizeof(info);
  getsockopt(trial.rx(), IPPROTO_TCP, TCP_INFO, &info, &size);
  return absl::StrCat("tcpi_bytes_received ", info.tcpi_bytes_received);
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

std::string DeleteWithUnread(Trial& trial) {
  trial.Send("0123456789");
  trial.Wait(trial.rx(), POLLIN);
  trial.ExpelRx();
  std::array<char, 16> buffer;
  return absl::StrCat("reading: ",
                      Outcome(trial.Receive(buffer.data(), buffer.size(), 0, kQuietMs)));
}

std::string AskFionreadMixed(Trial& trial) {
  trial.Send("0123456789");
  trial.ByTcp();
  trial.Send("0123456789");
  trial.Wait(trial.rx(), POLLIN);
  int waiting = -1;
  const Bound arrives{milliseconds(kQuietMs)};
  do {  // by TCP the second message takes its time
    if (ioctl(trial.rx(), FIONREAD, &waiting) != 0) {
      return Errno(errno);
    }
  } while (waiting < 20 && arrives.Left() > 0);
  return absl::StrCat("FIONREAD says ", waiting, " of 20 bytes");
}

std::string SendThenReceiveAfterReset(Trial& trial) {
  const linger reset = {1, 0};
  setsockopt(trial.rx(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  trial.CloseRx();
  trial.Wait(trial.tx(), POLLHUP);
  const ssize_t sent = trial.Send("0123456789");
  char byte;
  const ssize_t n = recv(trial.tx(), &byte, 1, MSG_DONTWAIT);
  return absl::StrCat("send: ", Outcome(sent),
                      ", then recv: ", n == 0 ? "EOF" : Outcome(n < 0 ? -errno : n));
}

// Redirected bytes fill the receive buffer while a message goes by TCP: when
// they have been read, does TCP's receiver open its window by itself?
Finding ReopenWindow(const ProbeContext& context) {
  constexpr size_t kRedirected = 256 * 1024;
  constexpr size_t kByTcp = 20000;
  constexpr milliseconds kLate{100};
  absl::StatusOr<Trial> trial =
      Trial::Make(context.lab, Family::kIpv4, Way::kRedirect, milliseconds(800));
  if (!trial.ok()) {
    return Failed(trial.status());
  }
  const int buffer = 32 * 1024;
  setsockopt(trial->rx(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
  size_t expected = 0;
  for (; expected < kRedirected; expected += 16384) {
    if (trial->Send(Pattern(16384)) != 16384) {
      return {Found::kNotHere, absl::StrCat("only ", expected, " bytes could be redirected")};
    }
  }
  trial->ByTcp();
  // Segments that meet a full buffer: the first is taken, the others wait.
  for (int i = 0; i < 3; ++i) {
    const ssize_t sent =
        send(trial->tx(), Pattern(kByTcp).data(), kByTcp, MSG_DONTWAIT | MSG_NOSIGNAL);
    expected += sent > 0 ? static_cast<size_t>(sent) : 0;
    std::this_thread::sleep_for(milliseconds(2));
  }
  int waiting = 0;
  if (ioctl(trial->tx(), SIOCOUTQ, &waiting) != 0 || waiting == 0) {
    return {Found::kUnknown, "TCP took all segments: its window did not close"};
  }
  const auto begin = std::chrono::steady_clock::now();
  const size_t got = trial->ReceiveAll(expected).size();
  const auto took =
      std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - begin);
  const std::string happened =
      absl::StrCat(got, " of ", expected, " bytes read, the last after ", took.count(), " ms; ",
                   waiting, " had been waiting in the sender");
  return {took > kLate ? Found::kOtherwise : Found::kAsWanted, happened};
}

// ---- the cost of small messages ---------------------------------------------

constexpr size_t kSmall = 64;

// Bytes per microsecond from one thread to another, each slice until all are
// read. Negative if bytes did not arrive.
double SmallMessageSpeed(const Trial& trial, milliseconds slice) {
  std::atomic<size_t> received = 0;
  std::atomic<bool> stop = false;
  std::thread reader([&] {
    std::vector<char> buffer(65536);
    while (!stop) {
      const ssize_t n = trial.Receive(buffer.data(), buffer.size(), 0, 5);
      if (n > 0) {
        received += static_cast<size_t>(n);
      }
    }
  });
  const std::string message = Pattern(kSmall);
  const auto begin = std::chrono::steady_clock::now();
  size_t sent = 0;
  while (std::chrono::steady_clock::now() - begin < slice) {
    for (int i = 0; i < 16; ++i) {
      const ssize_t n = send(trial.tx(), message.data(), message.size(), MSG_NOSIGNAL);
      sent += n > 0 ? static_cast<size_t>(n) : 0;
    }
  }
  while (received < sent && trial.bound().Left() > 0) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
  const bool complete = received >= sent;
  stop = true;
  reader.join();
  return complete ? static_cast<double>(sent) / took.count() : -1;
}

// The best of some slices in turn: other programs share these CPUs.
Finding StreamSmallMessages(const ProbeContext& context) {
  constexpr int kSlices = 4;
  constexpr milliseconds kSlice{20};
  constexpr double kAsFast = 0.9;
  constexpr Way kWays[] = {Way::kPlain, Way::kRedirect, Way::kMember};
  std::array<double, 3> best = {};
  for (int slice = 0; slice < kSlices; ++slice) {
    for (size_t i = 0; i < best.size(); ++i) {
      const absl::StatusOr<Trial> trial =
          Trial::Make(context.lab, Family::kIpv4, kWays[i], milliseconds(300));
      if (!trial.ok()) {
        return Failed(trial.status());
      }
      best[i] = std::max(best[i], SmallMessageSpeed(*trial, kSlice));
    }
  }
  if (best[0] <= 0 || best[1] <= 0 || best[2] <= 0) {
    return {Found::kFailed, "the machine is too busy to measure"};
  }
  const double redirected = best[1] / best[0];
  const double member = best[2] / best[0];
  return {redirected < kAsFast || member < kAsFast ? Found::kOtherwise : Found::kAsWanted,
          absl::StrFormat("%d-byte messages: %.2f of plain TCP's bytes per second redirected, "
                          "%.2f enrolled and sent by TCP",
                          kSmall, redirected, member)};
}

}  // namespace

std::vector<Row> HazardRows() {
  return {
      {"tcp_then_redirect_keeps_order", "hazard 1", ProbeScope::kAll, kProbeDegraded,
       "one message by TCP, the next redirected, then read", "redirecting keeps the order of bytes",
       "a redirected message overtakes unread bytes that went by TCP", kGateCovers,
       Redirected(TcpThenRedirect)},
      {"unread_is_bounded", "hazard 2", ProbeScope::kAll, kProbeDegraded,
       "sending with small buffers and nobody reading", "a sender is held back as on TCP",
       "nothing but the engine holds a sender back", kGateCovers, BoundUnread},
      {"splice_reads_redirected", "hazard 3", ProbeScope::kAll, kProbeDegraded,
       "splice() of 5000 redirected bytes into a pipe", "splice() works as on TCP",
       "programs that splice (HAProxy, Go's io.Copy) do not see redirected bytes", kKeepOff,
       Redirected(Splice)},
      {"waitall", "hazard 4", ProbeScope::kAll, kProbeDegraded,
       "recv(MSG_WAITALL) of 1000 bytes sent in two parts", "MSG_WAITALL waits for all",
       "MSG_WAITALL returns early", kKeepOff, Redirected(WaitAll)},
      {"rcvlowat", "hazard 5", ProbeScope::kAll, kProbeDegraded,
       "poll() with SO_RCVLOWAT 1000 and 100 bytes there", "SO_RCVLOWAT is honoured",
       "SO_RCVLOWAT is ignored", kGateCovers, Redirected(ReceiveLowWater)},
      {"zerocopy", "hazard 6", ProbeScope::kAll, kProbeDegraded,
       "send(MSG_ZEROCOPY) and its completion", "zero-copy senders get their buffers back",
       "zero-copy senders never get their buffers back", kKeepOff, Redirected(ZeroCopy)},
      {"oob", "hazard 7", ProbeScope::kAll, kProbeDegraded, "send(MSG_OOB) after AAAA, then recv()",
       "urgent bytes stay out of band", "urgent bytes arrive in line", kKeepOff,
       Redirected(OutOfBand)},
      {"shutdown_then_send", "hazard 8", ProbeScope::kAll, kProbeDegraded,
       "send() after shutdown(SHUT_WR)", "sending after the end of the stream fails",
       "sending after the end of the stream succeeds", kGateCovers,
       RedirectedIfSent(SendAfterShutdown)},
      {"close_with_unread", "hazard 9", ProbeScope::kAll, kProbeDegraded,
       "closing a socket with 10 redirected bytes unread",
       "a sender learns that its bytes were not read",
       "a sender sees a normal end where TCP reports that its bytes were not read",
       "nothing, unless a program relies on ECONNRESET: then keep its port out of the policy",
       Redirected(CloseWithUnread)},
      {"tcp_info_counts", "hazard 10", ProbeScope::kAll, kProbeDegraded,
       "TCP_INFO after 1000 redirected bytes", "TCP_INFO counts redirected bytes",
       "byte counters of ss and TCP_INFO leave redirected bytes out",
       "read Shunt's own counters of redirected bytes", Redirected(CountByTcpInfo)},
      {"fionread_counts_redirected", "hazard 11", ProbeScope::kEssential, kProbeDegraded,
       "FIONREAD with 10 redirected bytes unread",
       "FIONREAD tells the truth about redirected bytes",
       "programs that ask FIONREAD (nginx, Java, .NET) may leave redirected bytes unread", kKeepOff,
       Redirected(AskFionread)},
      {"fionread_counts_tcp_bytes", "hazard 11", ProbeScope::kEssential, kProbeDegraded,
       "FIONREAD of an enrolled socket with 10 bytes unread that came by TCP",
       "FIONREAD tells the truth about messages that fell back to TCP",
       "this kernel has the FIONREAD regression (commit 929e30f93125): programs that ask FIONREAD "
       "(nginx, Java, .NET) may stall on messages that fell back to TCP",
       "use a kernel with commit 04af4efde58a, or the kernel module, or keep the ports of such "
       "programs out of the policy",
       Member(AskFionread)},
      {"fionread_counts_both", "hazard 11", ProbeScope::kAll, kProbeDegraded,
       "FIONREAD with 10 redirected bytes and 10 bytes by TCP unread",
       "FIONREAD counts both queues",
       "FIONREAD counts one of two queues: a reader that trusts it leaves the other's bytes unread",
       "use a kernel with commit 04af4efde58a, or the kernel module, or keep the ports of programs "
       "that ask FIONREAD out of the policy",
       Redirected(AskFionreadMixed)},
      {"delete_keeps_unread", "hazard 12", ProbeScope::kAll, kProbeDegraded,
       "deleting the key of a socket with 10 redirected bytes unread",
       "a socket can leave at any time",
       "a socket that leaves with bytes unread loses them: delete no key of Shunt's by hand",
       "nothing: the engine lets a socket go only when nothing is unread",
       Redirected(DeleteWithUnread)},
      {"small_message_stream", "hazard 13", ProbeScope::kAll, kProbeDegraded,
       "a stream of 64-byte messages between two threads", "streams of small messages lose nothing",
       "streams of small messages are slower than plain TCP, redirected or merely enrolled",
       "keep the ports of programs that stream small messages out of the policy, or use the kernel "
       "module",
       StreamSmallMessages, true, true},
      {"send_then_recv_after_reset", "hazard 18", ProbeScope::kAll, kProbeDegraded,
       "send() and then recv() after the peer has reset the connection",
       "a reset is reported once, as on TCP", "a reset is reported twice",
       "nothing, unless a program relies on reading an end of file there: then keep its port out "
       "of the policy",
       Member(SendThenReceiveAfterReset)},
      {"window_reopens", "", ProbeScope::kAll, kProbeDegraded,
       "a message by TCP while redirected bytes fill the receive buffer, then reading all",
       "falling back to TCP costs no wait",
       "reading redirected bytes opens no TCP window: a message that fell back waits for the "
       "sender's timer",
       "nothing: the engine falls back before the receive buffer is full", ReopenWindow},
  };
}

}  // namespace shunt

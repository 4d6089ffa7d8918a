// SPDX-License-Identifier: Apache-2.0
// What a program can see, on a plain connection and on a paired one: the two
// transcripts are equal. Each scenario runs on v4, v6 and v4-mapped, with bytes
// that came by the ring before and bytes that lie in it.
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "connection.h"
#include "harness.h"

namespace guest {
namespace {

using Scenario = void (*)(Connection& c, Transcript& t);

// Long enough for loopback, also under load.
void Settle() { usleep(20000); }

void Exercise(Connection& c) {
  char x;
  for (int i = 0; i < 3; ++i) {
    WriteAll(c.a, "x", 1);
    CHECK_EQ(ReadAll(c.b, &x, 1), 1);
    WriteAll(c.b, "y", 1);
    CHECK_EQ(ReadAll(c.a, &x, 1), 1);
  }
}

std::string Observe(Family family, bool paired, Scenario scenario) {
  Device device;
  Connection c(family);
  uint64_t before = device.Counter(SHUNT_KMOD_EXIT_SENT);
  if (paired) device.MustPair(c.a, c.b);
  Exercise(c);
  if (paired) CHECK(device.Counter(SHUNT_KMOD_EXIT_SENT) > before);
  Transcript transcript;
  scenario(c, transcript);
  return transcript.text();
}

void SameAsTcp(Scenario scenario) {
  for (Family family : kFamilies) {
    std::string tcp = Observe(family, false, scenario), ours = Observe(family, true, scenario);
    if (tcp.empty()) Fail("nothing was observed");
    if (tcp != ours) Fail("%s\nTCP:\n%spaired:\n%s", NameOf(family), tcp.c_str(), ours.c_str());
  }
}

// The result of a call, with errno where it failed.
void Note(Transcript& t, const char* what, long long result) {
  int error = result < 0 ? errno : 0;
  t.Add("%s %lld errno %d", what, result, error);
}

void NoteRecv(Transcript& t, const char* what, int fd, size_t size, int flags) {
  char buffer[4096] = {};
  ssize_t n = recv(fd, buffer, std::min(size, sizeof buffer - 1), flags);
  int error = n < 0 ? errno : 0;
  t.Add("%s %zd '%.*s' errno %d", what, n, n > 0 ? (int)n : 0, buffer, error);
}

void NotePoll(Transcript& t, const char* what, int fd) {
  pollfd p = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
  poll(&p, 1, 0);
  t.Add("%s poll 0x%x", what, p.revents);
}

#define SAME(name)                                           \
  static void Scenario_##name(Connection& c, Transcript& t); \
  TEST(same_##name, 60) { SameAsTcp(Scenario_##name); }      \
  static void Scenario_##name(Connection& c, Transcript& t)

SAME(splice_read) {
  int pipes[2];
  CHECK(!pipe(pipes));
  WriteAll(c.a, "hello splice", 12);
  Settle();
  Note(t, "splice", splice(c.b, nullptr, pipes[1], nullptr, 65536, SPLICE_F_NONBLOCK));
  char buffer[32] = {};
  Note(t, "pipe", read(pipes[0], buffer, sizeof buffer));
  t.Add("%s", buffer);
  // Blocked in splice when bytes come.
  pid_t child = fork();
  if (child == 0) _exit(splice(c.b, nullptr, pipes[1], nullptr, 100, 0) == 5 ? 0 : 1);
  usleep(50000);
  WriteAll(c.a, "later", 5);
  int status;
  waitpid(child, &status, 0);
  t.Add("blocked splice 0x%x", status);
  SetNonBlocking(c.b, true);
  Note(t, "empty", splice(c.b, nullptr, pipes[1], nullptr, 100, SPLICE_F_NONBLOCK));
  c.CloseA();
  Settle();
  Note(t, "eof", splice(c.b, nullptr, pipes[1], nullptr, 100, SPLICE_F_NONBLOCK));
  close(pipes[0]);
  close(pipes[1]);
}

SAME(splice_write_and_sendfile) {
  int pipes[2];
  CHECK(!pipe(pipes));
  WriteAll(c.a, "ring ", 5);
  WriteAll(pipes[1], "spliced ", 8);
  Note(t, "splice", splice(pipes[0], nullptr, c.a, nullptr, 8, 0));
  WriteAll(c.a, "ring ", 5);
  int file = open("/init", O_RDONLY);
  Note(t, "sendfile", sendfile(c.a, file, nullptr, 16));
  WriteAll(c.a, "ring", 4);
  close(file);
  char buffer[64] = {};
  Note(t, "read", ReadAll(c.b, buffer, 5 + 8 + 5 + 16 + 4));
  t.Add("%s", buffer);
  close(pipes[0]);
  close(pipes[1]);
}

SAME(wait_all) {
  pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 10; ++i) {
      WriteAll(c.a, "0123456789", 10);
      usleep(3000);
    }
    _exit(0);
  }
  NoteRecv(t, "waitall", c.b, 100, MSG_WAITALL);
  waitpid(child, nullptr, 0);
  WriteAll(c.a, "short", 5);
  Settle();
  NoteRecv(t, "dontwait", c.b, 100, MSG_WAITALL | MSG_DONTWAIT);
  WriteAll(c.a, "tail", 4);
  c.CloseA();
  NoteRecv(t, "eof", c.b, 100, MSG_WAITALL);
}

SAME(receive_timeout) {
  timeval limit = {0, 30000};
  setsockopt(c.b, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  NoteRecv(t, "nothing", c.b, 10, 0);
  WriteAll(c.a, "part", 4);
  NoteRecv(t, "part", c.b, 10, MSG_WAITALL);
  NoteRecv(t, "again", c.b, 10, MSG_PEEK);
}

SAME(low_water) {
  int mark = 100;
  char buffer[200];
  memset(buffer, 'b', sizeof buffer);
  WriteAll(c.a, buffer, 30);
  Settle();
  setsockopt(c.b, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark);
  WriteAll(c.a, buffer, 40);
  Settle();
  NotePoll(t, "70", c.b);
  t.Add("unread %d", Unread(c.b));
  WriteAll(c.a, buffer, 40);
  Settle();
  NotePoll(t, "110", c.b);
  NoteRecv(t, "recv", c.b, 200, 0);
  mark = 1;
  setsockopt(c.b, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark);
  WriteAll(c.a, "z", 1);
  Settle();
  NotePoll(t, "1", c.b);
  NoteRecv(t, "recv", c.b, 200, 0);
}

SAME(low_water_set_over_unread) {
  int mark = 10;
  WriteAll(c.a, "12345", 5);
  Settle();
  setsockopt(c.b, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark);
  NotePoll(t, "below", c.b);
  WriteAll(c.a, "67890", 5);
  Settle();
  NotePoll(t, "at", c.b);
  NoteRecv(t, "recv", c.b, 100, 0);
}

SAME(zero_copy) {
  int on = 1;
  Note(t, "enable", setsockopt(c.a, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
  WriteAll(c.a, "before", 6);
  std::vector<char> data(20000, 'z');
  Note(t, "send", send(c.a, data.data(), data.size(), MSG_ZEROCOPY));
  Note(t, "read", ReadAll(c.b, data.data(), 6) + ReadAll(c.b, data.data(), 20000));
  WaitReadable(c.a, 0);
  Settle();
  pollfd p = {c.a, 0, 0};
  poll(&p, 1, 1000);
  t.Add("poll 0x%x", p.revents);
  char control[128];
  msghdr message = {};
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n = recvmsg(c.a, &message, MSG_ERRQUEUE);
  Note(t, "completion", n);
  cmsghdr* header = n < 0 ? nullptr : CMSG_FIRSTHDR(&message);
  if (header) {
    auto* report = reinterpret_cast<sock_extended_err*>(CMSG_DATA(header));
    t.Add("origin %d info %u data %u", report->ee_origin, report->ee_info, report->ee_data);
  }
}

SAME(out_of_band) {
  WriteAll(c.a, "abc", 3);
  Note(t, "oob", send(c.a, "X", 1, MSG_OOB));
  WriteAll(c.a, "def", 3);
  Settle();
  NotePoll(t, "urgent", c.b);
  NoteRecv(t, "read", c.b, 32, 0);
  int mark = -1;
  ioctl(c.b, SIOCATMARK, &mark);
  t.Add("mark %d", mark);
  NoteRecv(t, "oob", c.b, 1, MSG_OOB);
  NoteRecv(t, "rest", c.b, 32, MSG_DONTWAIT);
  NoteRecv(t, "none", c.b, 32, MSG_DONTWAIT);
  NoteRecv(t, "no oob", c.b, 1, MSG_OOB);
  WriteAll(c.a, "on", 2);
  NoteRecv(t, "on", c.b, 32, 0);
}

SAME(out_of_band_inline) {
  int on = 1;
  setsockopt(c.b, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
  WriteAll(c.a, "abc", 3);
  send(c.a, "X", 1, MSG_OOB);
  WriteAll(c.a, "def", 3);
  Settle();
  for (int i = 0; i < 3; ++i) NoteRecv(t, "read", c.b, 32, MSG_DONTWAIT);
}

SAME(peek) {
  WriteAll(c.a, "peekme", 6);
  Settle();
  NoteRecv(t, "peek", c.b, 3, MSG_PEEK);
  WriteAll(c.a, "more", 4);
  Settle();
  NoteRecv(t, "peek", c.b, 32, MSG_PEEK);
  NoteRecv(t, "trunc", c.b, 4, MSG_TRUNC);
  NoteRecv(t, "read", c.b, 32, 0);
  NoteRecv(t, "empty", c.b, 32, MSG_PEEK | MSG_DONTWAIT);
  // A reader that sleeps in PEEK.
  pid_t child = fork();
  if (child == 0) {
    char x[8];
    _exit(recv(c.b, x, sizeof x, MSG_PEEK) == 4 ? 0 : 1);
  }
  usleep(50000);
  WriteAll(c.a, "late", 4);
  int status;
  waitpid(child, &status, 0);
  t.Add("blocked peek 0x%x", status);
  NoteRecv(t, "read", c.b, 32, 0);
}

SAME(unread_count) {
  t.Add("unread %d", Unread(c.b));
  WriteAll(c.a, "12345", 5);
  Settle();
  t.Add("unread %d", Unread(c.b));
  WriteAll(c.a, "12345", 5);
  Settle();
  t.Add("unread %d", Unread(c.b));
  NoteRecv(t, "read", c.b, 7, 0);
  t.Add("unread %d", Unread(c.b));
  int unsent = -1;
  ioctl(c.a, TIOCOUTQ, &unsent);
  t.Add("outq %d", unsent);
}

SAME(tcp_info) {
  std::vector<char> data(3000, 1);
  WriteAll(c.a, data.data(), data.size());
  usleep(300000);  // the last delayed ACK
  tcp_info a = {}, b = {};
  // Older libc headers end before the counters: they follow at fixed places.
  struct {
    tcp_info info;
    unsigned char rest[128];
  } wide[2] = {};
  socklen_t length = sizeof wide[0];
  getsockopt(c.a, IPPROTO_TCP, TCP_INFO, &wide[0], &length);
  length = sizeof wide[1];
  getsockopt(c.b, IPPROTO_TCP, TCP_INFO, &wide[1], &length);
  a = wide[0].info;
  b = wide[1].info;
  auto at = [&](int i, int offset) {
    uint64_t value;
    memcpy(&value, reinterpret_cast<char*>(&wide[i]) + offset, sizeof value);
    return (unsigned long long)value;
  };
  // include/uapi/linux/tcp.h: tcpi_bytes_acked 120, tcpi_bytes_received 128, tcpi_bytes_sent 200.
  t.Add("state %d %d acked %llu received %llu sent %llu", a.tcpi_state, b.tcpi_state, at(0, 120),
        at(1, 128), at(0, 200));
  t.Add("unacked %u retransmits %u total %u", a.tcpi_unacked, a.tcpi_retransmits,
        a.tcpi_total_retrans);
}

SAME(shutdown_then_send) {
  WriteAll(c.a, "last", 4);
  Note(t, "shutdown", shutdown(c.a, SHUT_WR));
  Note(t, "send", send(c.a, "x", 1, MSG_NOSIGNAL));
  Settle();
  NotePoll(t, "peer", c.b);
  NoteRecv(t, "last", c.b, 32, 0);
  NoteRecv(t, "eof", c.b, 32, 0);
  // The other half lives on.
  WriteAll(c.b, "answer", 6);
  NoteRecv(t, "answer", c.a, 32, 0);
  Note(t, "shutdown", shutdown(c.b, SHUT_WR));
  NoteRecv(t, "eof", c.a, 32, 0);
  Settle();
  NotePoll(t, "a", c.a);
  NotePoll(t, "b", c.b);
}

SAME(shutdown_read) {
  WriteAll(c.a, "before", 6);
  Settle();
  Note(t, "shutdown", shutdown(c.b, SHUT_RD));
  NoteRecv(t, "before", c.b, 32, 0);
  NoteRecv(t, "eof", c.b, 32, 0);
  Note(t, "send", send(c.a, "after", 5, MSG_NOSIGNAL));
  Settle();
  NoteRecv(t, "after", c.b, 32, 0);
  Note(t, "send", send(c.a, "after", 5, MSG_NOSIGNAL));
}

SAME(close_with_unread_bytes) {
  WriteAll(c.a, "unread", 6);
  Settle();
  c.CloseB();
  Settle();
  NotePoll(t, "reset", c.a);
  Note(t, "send", send(c.a, "x", 1, MSG_NOSIGNAL));
  NoteRecv(t, "recv", c.a, 1, 0);
  Note(t, "send", send(c.a, "x", 1, MSG_NOSIGNAL));
}

SAME(close_with_bytes_both_ways) {
  WriteAll(c.b, "for a", 5);
  WriteAll(c.a, "for b", 5);
  Settle();
  c.CloseB();
  Settle();
  NoteRecv(t, "recv", c.a, 32, 0);
  NoteRecv(t, "recv", c.a, 32, 0);
}

SAME(close_clean) {
  WriteAll(c.a, "bye", 3);
  c.CloseA();
  Settle();
  NoteRecv(t, "bye", c.b, 32, 0);
  NoteRecv(t, "eof", c.b, 32, 0);
  Note(t, "send", send(c.b, "x", 1, MSG_NOSIGNAL));
  Settle();
  Note(t, "send", send(c.b, "x", 1, MSG_NOSIGNAL));
  NoteRecv(t, "recv", c.b, 32, 0);
}

SAME(linger_zero) {
  linger option = {1, 0};
  WriteAll(c.a, "lost?", 5);
  Settle();
  setsockopt(c.a, SOL_SOCKET, SO_LINGER, &option, sizeof option);
  c.CloseA();
  Settle();
  NotePoll(t, "reset", c.b);
  NoteRecv(t, "recv", c.b, 32, 0);
  NoteRecv(t, "recv", c.b, 32, 0);
  Note(t, "send", send(c.b, "x", 1, MSG_NOSIGNAL));
}

SAME(peer_killed) {
  pid_t child = fork();
  if (child == 0) {
    close(c.a);
    WriteAll(c.b, "dying", 5);
    kill(getpid(), SIGKILL);
  }
  c.CloseB();
  waitpid(child, nullptr, 0);
  Settle();
  NoteRecv(t, "dying", c.a, 32, 0);
  NoteRecv(t, "eof", c.a, 32, 0);
  Note(t, "send", send(c.a, "x", 1, MSG_NOSIGNAL));
  Settle();
  Note(t, "send", send(c.a, "x", 1, MSG_NOSIGNAL));
}

SAME(disconnect) {
  WriteAll(c.a, "for b", 5);
  WriteAll(c.b, "for a", 5);
  Settle();
  sockaddr none = {};
  none.sa_family = AF_UNSPEC;
  Note(t, "disconnect", connect(c.a, &none, sizeof none));
  NoteRecv(t, "a", c.a, 32, MSG_DONTWAIT);
  Settle();
  NoteRecv(t, "b", c.b, 32, 0);
  NoteRecv(t, "b", c.b, 32, 0);
  Note(t, "send", send(c.b, "x", 1, MSG_NOSIGNAL));
}

SAME(edge_triggered) {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event = {EPOLLIN | EPOLLET, {}};
  epoll_ctl(epoll, EPOLL_CTL_ADD, c.b, &event);
  auto wait = [&] { return epoll_wait(epoll, &event, 1, 20); };
  t.Add("idle %d", wait());
  WriteAll(c.a, "one", 3);
  t.Add("one %d", wait());
  t.Add("no edge %d", wait());
  NoteRecv(t, "part", c.b, 1, 0);
  t.Add("no edge %d", wait());
  WriteAll(c.a, "two", 3);
  t.Add("two %d", wait());
  t.Add("unread %d", Unread(c.b));
  t.Add("no edge %d", wait());
  NoteRecv(t, "rest", c.b, 32, 0);
  c.CloseA();
  t.Add("eof %d", wait());
  close(epoll);
}

SAME(signal_interrupts_recv) {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  sigaction(SIGALRM, &action, nullptr);
  ualarm(50000, 0);
  NoteRecv(t, "interrupted", c.b, 32, 0);
  ualarm(50000, 0);
  NoteRecv(t, "interrupted", c.b, 32, MSG_PEEK);
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, nullptr);
  pid_t child = fork();
  if (child == 0) {
    usleep(150000);
    WriteAll(c.a, "restarted", 9);
    _exit(0);
  }
  ualarm(50000, 0);
  NoteRecv(t, "restarted", c.b, 32, 0);
  waitpid(child, nullptr, 0);
}

SAME(bad_buffers) {
  Note(t, "send", send(c.a, reinterpret_cast<void*>(8), 100, 0));
  WriteAll(c.a, "ok", 2);
  Settle();
  Note(t, "recv", recv(c.b, reinterpret_cast<void*>(8), 100, 0));
  NoteRecv(t, "recv", c.b, 32, MSG_DONTWAIT);
  Note(t, "zero", send(c.a, "", 0, 0));
  NoteRecv(t, "zero", c.b, 0, MSG_DONTWAIT);
  NoteRecv(t, "none", c.b, 32, MSG_DONTWAIT);
}

SAME(vectors) {
  char x[3] = {'a', 'b', 'c'}, y[5] = {'d', 'e', 'f', 'g', 'h'};
  iovec out[2] = {{x, 3}, {y, 5}};
  Note(t, "writev", writev(c.a, out, 2));
  char p[4] = {}, q[10] = {};
  iovec in[2] = {{p, 3}, {q, 9}};
  Settle();
  Note(t, "readv", readv(c.b, in, 2));
  t.Add("%s %s", p, q);
}

// kTLS on one end later: the bytes before are whole, those after are records.
SAME(ktls_later) {
  WriteAll(c.a, "plain", 5);
  Settle();
  int done = setsockopt(c.a, IPPROTO_TCP, TCP_ULP, "tls", 4);
  if (done && errno == ENOENT) Skip("no tls module in this kernel");
  Note(t, "ulp", done);
  // AES-GCM-128, as linux/tls.h lays it out.
  struct {
    uint16_t version = 0x0303, cipher = 51;
    unsigned char iv[8] = {}, key[16] = {1}, salt[4] = {}, sequence[8] = {};
  } crypto;
  Note(t, "tx", setsockopt(c.a, 282 /* SOL_TLS */, 1 /* TLS_TX */, &crypto, sizeof crypto));
  Note(t, "send", send(c.a, "secret", 6, 0));
  Settle();
  unsigned char buffer[128] = {};
  ssize_t n = recv(c.b, buffer, sizeof buffer, 0);
  if (n == 5) n += std::max<ssize_t>(0, recv(c.b, buffer + 5, sizeof buffer - 5, 0));
  t.Add("received %zd: %.5s type %d, plain text on the wire: %d", n, buffer, buffer[5],
        memmem(buffer, sizeof buffer, "secret", 6) != nullptr);
}

}  // namespace
}  // namespace guest

// SPDX-License-Identifier: Apache-2.0
// Who may be paired, and who is refused with which errno.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "connection.h"
#include "harness.h"

namespace guest {
namespace {

// Joined, and bytes really cross without TCP, both ways.
void PairedAndUsed(Family family) {
  Device device;
  Connection c(family);
  device.MustPair(c.a, c.b);
  CHECK_EQ(device.List().size(), 1);
  char buffer[64];
  for (int i = 0; i < 20; ++i) {
    WriteAll(c.a, "ping", 4);
    CHECK_EQ(ReadAll(c.b, buffer, 4), 4);
    CHECK(!memcmp(buffer, "ping", 4));
    WriteAll(c.b, "pong!", 5);
    CHECK_EQ(ReadAll(c.a, buffer, 5), 5);
    CHECK(!memcmp(buffer, "pong!", 5));
  }
  auto records = device.List();
  CHECK_EQ(records.size(), 1);
  CHECK_EQ(records[0].client_sent_bytes, 80);
  CHECK_EQ(records[0].server_sent_bytes, 100);
  c.CloseA();
  CHECK_EQ(read(c.b, buffer, sizeof buffer), 0);
  c.CloseB();
  for (int i = 0; i < 500 && !device.List().empty(); ++i) usleep(1000);
  CHECK(device.List().empty());
}

TEST(pair_v4, 20) { PairedAndUsed(Family::kV4); }
TEST(pair_v6, 20) { PairedAndUsed(Family::kV6); }
TEST(pair_v4_mapped, 20) { PairedAndUsed(Family::kMapped); }

// The agent pairs at the handshake, before accept().
TEST(pair_before_accept, 20) {
  for (Family family : kFamilies) {
    Device device;
    int listener = Listen(family);
    int a = ConnectTo(family, listener);
    shunt_kmod_pair request = RequestFor(a, a);
    // The other end is a mirror image, and nobody has asked for its cookie yet.
    std::swap(request.server.local_port, request.server.remote_port);
    std::swap(request.server.local_address, request.server.remote_address);
    request.server.socket_cookie = 0;
    CHECK_EQ(ioctl(device.fd(), SHUNT_IOC_PAIR, &request), 0);
    char buffer[64];
    WriteAll(a, "early", 5);
    int b = Accept(listener);
    CHECK_EQ(ReadAll(b, buffer, 5), 5);
    for (int i = 0; i < 20; ++i) {
      WriteAll(b, "x", 1);
      CHECK_EQ(ReadAll(a, buffer, 1), 1);
      WriteAll(a, "y", 1);
      CHECK_EQ(ReadAll(b, buffer, 1), 1);
    }
    auto records = device.List();
    CHECK_EQ(records.size(), 1);
    CHECK(records[0].client_sent_bytes > 0 && records[0].server_sent_bytes > 0);
    close(a);
    close(b);

    // And one that nobody ever accepts: its listener goes.
    a = ConnectTo(family, listener);
    request = RequestFor(a, a);
    std::swap(request.server.local_port, request.server.remote_port);
    std::swap(request.server.local_address, request.server.remote_address);
    request.server.socket_cookie = 0;
    CHECK_EQ(ioctl(device.fd(), SHUNT_IOC_PAIR, &request), 0);
    WriteAll(a, "never", 5);
    close(listener);
    CHECK_EQ(read(a, buffer, sizeof buffer), -1);
    CHECK_EQ(errno, ECONNRESET);
    close(a);
    for (int i = 0; i < 500 && !device.List().empty(); ++i) usleep(1000);
    CHECK(device.List().empty());
  }
}

TEST(refused_listen, 20) {
  Device device;
  Connection c;
  int listener = Listen(Family::kV4);
  CHECK_EQ(device.Pair(listener, c.b), EOPNOTSUPP);
  CHECK_EQ(device.Pair(c.a, listener), EOPNOTSUPP);
  CHECK(device.List().empty());
  // Refused means untouched: children of the listener are plain sockets.
  for (int i = 0; i < 1000; ++i) {
    int a = ConnectTo(Family::kV4, listener);
    int b = Accept(listener);
    WriteAll(a, "x", 1);
    char x;
    CHECK_EQ(read(b, &x, 1), 1);
    close(a);
    close(b);
  }
  close(listener);
}

TEST(refused_states, 30) {
  Device device;
  Connection c;
  // SYN_SENT: nobody answers on a listener whose backlog is full.
  int listener = Listen(Family::kV4, 0);
  sockaddr_in address;
  socklen_t length = sizeof address;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  int waiting[4];
  for (int& fd : waiting) {
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    connect(fd, reinterpret_cast<sockaddr*>(&address), length);
  }
  usleep(50000);
  tcp_info info;
  length = sizeof info;
  getsockopt(waiting[3], IPPROTO_TCP, TCP_INFO, &info, &length);
  CHECK_EQ(info.tcpi_state, TCP_SYN_SENT);
  shunt_kmod_pair request = RequestFor(waiting[3], c.b);
  // getpeername() knows no peer yet.
  memcpy(request.client.remote_address, &address.sin_addr, 4);
  request.client.remote_port = ntohs(address.sin_port);
  CHECK_EQ(ioctl(device.fd(), SHUNT_IOC_PAIR, &request), -1);
  CHECK_EQ(errno, EOPNOTSUPP);
  for (int fd : waiting) close(fd);
  close(listener);

  // Half closed.
  Connection half;
  shutdown(half.a, SHUT_WR);
  usleep(20000);
  CHECK_EQ(device.Pair(half.a, half.b), EOPNOTSUPP);
  // Closed: the tuple is nobody's.
  Connection gone;
  request = RequestFor(gone.a, gone.b);
  gone.CloseA();
  gone.CloseB();
  usleep(20000);
  CHECK_EQ(ioctl(device.fd(), SHUNT_IOC_PAIR, &request), -1);
  CHECK(errno == ENOENT || errno == EOPNOTSUPP);  // TIME_WAIT is found
  CHECK(device.List().empty());
}

TEST(refused_arguments, 20) {
  Device device;
  Connection c, other;
  const shunt_kmod_pair good = RequestFor(c.a, c.b);
  auto ask = [&](auto change) {
    shunt_kmod_pair request = good;
    change(request);
    return ioctl(device.fd(), SHUNT_IOC_PAIR, &request) ? errno : 0;
  };
  CHECK_EQ(ask([](auto& r) { r.abi_version++; }), EPROTONOSUPPORT);
  CHECK_EQ(ask([](auto& r) { r.flags = 1; }), EINVAL);
  CHECK_EQ(ask([](auto& r) { r.client.zero = 1; }), EINVAL);
  CHECK_EQ(ask([](auto& r) { r.server.family = AF_UNIX; }), EAFNOSUPPORT);
  CHECK_EQ(ask([](auto& r) { r.netns_cookie = ~0ull; }), ENONET);
  CHECK_EQ(ask([](auto& r) { r.client.socket_cookie++; }), ESTALE);
  CHECK_EQ(ask([](auto& r) { r.client.local_port ^= 1; }), ENOENT);
  CHECK_EQ(ask([](auto& r) { r.server = r.client; }), ELOOP);
  // Not two ends of one connection, although each is fine.
  CHECK_EQ(device.Pair(c.a, other.b), EPROTO);
  CHECK_EQ(ioctl(device.fd(), _IOWR(0xA7, 1, __u32), &good), -1);
  CHECK_EQ(errno, ENOTTY);
  CHECK_EQ(ioctl(device.fd(), _IO(0xA7, 99), 0), -1);
  CHECK_EQ(errno, ENOTTY);
  CHECK_EQ(ioctl(device.fd(), SHUNT_IOC_PAIR, nullptr), -1);
  CHECK_EQ(errno, EFAULT);
  CHECK_EQ(device.Unpair(1ull << 60), ESRCH);
  // UDP has no TCP tuple.
  int udp = socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(9);
  connect(udp, reinterpret_cast<sockaddr*>(&address), sizeof address);
  CHECK_EQ(device.Pair(udp, c.b), ENOENT);
  close(udp);
  CHECK(device.List().empty());
  // After all that the connection can still be paired, once.
  CHECK_EQ(ask([](auto&) {}), 0);
  CHECK_EQ(ask([](auto&) {}), EALREADY);
  CHECK_EQ(device.List().size(), 1);
}

TEST(refused_other_netns, 20) {
  Device device;
  Connection here;
  int pipes[2];
  CHECK(!pipe(pipes));
  pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWNET)) _exit(1);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    __u64 cookie = 0;
    socklen_t length = sizeof cookie;
    getsockopt(s, SOL_SOCKET, 71 /* SO_NETNS_COOKIE */, &cookie, &length);
    if (write(pipes[1], &cookie, sizeof cookie) != sizeof cookie) _exit(1);
    pause();
  }
  __u64 cookie = 0;
  CHECK_EQ(read(pipes[0], &cookie, sizeof cookie), sizeof cookie);
  shunt_kmod_pair request = RequestFor(here.a, here.b);
  CHECK(request.netns_cookie != cookie);
  request.netns_cookie = cookie;
  CHECK_EQ(ioctl(device.fd(), SHUNT_IOC_PAIR, &request), -1);
  CHECK_EQ(errno, ENOENT);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST(refused_without_capability, 20) {
  pid_t child = fork();
  if (child == 0) {
    if (chmod("/dev/shunt", 0666) || setuid(12345)) _exit(2);
    _exit(open("/dev/shunt", O_RDWR) >= 0 ? 3 : errno == EPERM ? 0 : 4);
  }
  int status;
  waitpid(child, &status, 0);
  chmod("/dev/shunt", 0600);
  CHECK_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace guest

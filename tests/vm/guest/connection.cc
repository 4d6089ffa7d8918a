// SPDX-License-Identifier: Apache-2.0
#include "connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "harness.h"

namespace guest {

const char* NameOf(Family family) {
  return family == Family::kV4 ? "v4" : family == Family::kV6 ? "v6" : "v4-mapped";
}

static socklen_t Loopback(Family family, sockaddr_storage* out) {
  memset(out, 0, sizeof *out);
  if (family == Family::kV4) {
    auto* address = reinterpret_cast<sockaddr_in*>(out);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof *address;
  }
  auto* address = reinterpret_cast<sockaddr_in6*>(out);
  address->sin6_family = AF_INET6;
  if (family == Family::kV6) {
    address->sin6_addr = in6addr_loopback;
  } else {
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &address->sin6_addr);
  }
  return sizeof *address;
}

int Listen(Family family, int backlog) {
  sockaddr_storage address;
  socklen_t length = Loopback(family, &address);
  int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), length) || listen(fd, backlog)) {
    Fail("listen on %s: errno %d", NameOf(family), errno);
  }
  return fd;
}

int ConnectTo(Family family, int listener) {
  sockaddr_storage address;
  socklen_t length = sizeof address;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), length)) {
    Fail("connect on %s: errno %d", NameOf(family), errno);
  }
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

int Accept(int listener) {
  int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) Fail("accept: errno %d", errno);
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

Connection::Connection(Family family) {
  int listener = Listen(family);
  a = ConnectTo(family, listener);
  b = Accept(listener);
  close(listener);
}

Connection::~Connection() {
  CloseA();
  CloseB();
}

void Connection::CloseA() {
  if (a >= 0) close(a);
  a = -1;
}

void Connection::CloseB() {
  if (b >= 0) close(b);
  b = -1;
}

void WriteAll(int fd, const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size) {
    ssize_t n = write(fd, at, size);
    if (n <= 0) Fail("write: errno %d", errno);
    at += n;
    size -= n;
  }
}

ssize_t ReadAll(int fd, void* data, size_t size) {
  char* at = static_cast<char*>(data);
  size_t got = 0;
  while (got < size) {
    ssize_t n = read(fd, at + got, size - got);
    if (n < 0) return -1;
    if (n == 0) break;
    got += n;
  }
  return got;
}

void SetNonBlocking(int fd, bool on) {
  int flags = fcntl(fd, F_GETFL);
  fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

int Unread(int fd) {
  int n = -1;
  ioctl(fd, FIONREAD, &n);
  return n;
}

bool WaitReadable(int fd, int timeout) {
  pollfd p = {fd, POLLIN, 0};
  return poll(&p, 1, timeout) > 0;
}

}  // namespace guest

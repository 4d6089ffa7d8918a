// SPDX-License-Identifier: Apache-2.0
#include "tests/support/sockets.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace shunt::test {
namespace {

int MillisecondsUntil(Clock::time_point end) {
  const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::now()).count();
  return left > 0 ? static_cast<int>(left) : 0;
}

// How long a socket must stay unwritable to be called full: longer than a delayed
// ACK and a window probe (200 ms each) can take to make it writable again.
constexpr milliseconds kStaysFull{600};

}  // namespace

Endpoint::Endpoint(const std::string& address, uint16_t port) {
  auto* v4 = reinterpret_cast<struct sockaddr_in*>(&storage_);
  auto* v6 = reinterpret_cast<struct sockaddr_in6*>(&storage_);
  if (inet_pton(AF_INET, address.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    size_ = sizeof(*v4);
  } else if (inet_pton(AF_INET6, address.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    size_ = sizeof(*v6);
  } else {
    Stop(Where::Here(), "not an IP address: " + address);
  }
}

Endpoint Endpoint::LocalOf(int fd, const Where& where) {
  Endpoint endpoint;
  endpoint.size_ = sizeof(endpoint.storage_);
  if (getsockname(fd, reinterpret_cast<struct sockaddr*>(&endpoint.storage_), &endpoint.size_) !=
      0) {
    StopErrno(where, "getsockname", errno);
  }
  return endpoint;
}

uint16_t Endpoint::port() const {
  return ntohs(family() == AF_INET
                   ? reinterpret_cast<const struct sockaddr_in*>(&storage_)->sin_port
                   : reinterpret_cast<const struct sockaddr_in6*>(&storage_)->sin6_port);
}

std::string ToString(IpMode mode) {
  switch (mode) {
    case IpMode::kV4:
      return "v4";
    case IpMode::kV6:
      return "v6";
    case IpMode::kMapped:
      return "v4-mapped";
    case IpMode::kMixed:
      return "v4 to dual-stack";
  }
  return "?";
}

Endpoint ListenEndpoint(IpMode mode, uint16_t port) {
  switch (mode) {
    case IpMode::kV4:
      return Endpoint("127.0.0.1", port);
    case IpMode::kV6:
      return Endpoint("::1", port);
    case IpMode::kMapped:
    case IpMode::kMixed:
      break;
  }
  return Endpoint("::", port);
}

Endpoint ConnectEndpoint(IpMode mode, uint16_t port) {
  switch (mode) {
    case IpMode::kV6:
      return Endpoint("::1", port);
    case IpMode::kMapped:
      return Endpoint("::ffff:127.0.0.1", port);
    case IpMode::kV4:
    case IpMode::kMixed:
      break;
  }
  return Endpoint("127.0.0.1", port);
}

void SetOption(int fd, int level, int name, int value, const Where& where) {
  if (setsockopt(fd, level, name, &value, sizeof(value)) != 0) {
    StopErrno(where, "setsockopt " + std::to_string(name), errno);
  }
}

int GetOption(int fd, int level, int name, const Where& where) {
  int value = 0;
  socklen_t size = sizeof(value);
  if (getsockopt(fd, level, name, &value, &size) != 0) {
    StopErrno(where, "getsockopt " + std::to_string(name), errno);
  }
  return value;
}

UniqueFd Listen(Container& container, const Endpoint& endpoint, int backlog, const Where& where) {
  UniqueFd fd = container.Socket(endpoint.family(), where);
  SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, where);
  if (bind(fd.get(), endpoint.get(), endpoint.size()) != 0) {
    StopErrno(where, "bind to port " + std::to_string(endpoint.port()), errno);
  }
  if (listen(fd.get(), backlog) != 0) {
    StopErrno(where, "listen", errno);
  }
  return fd;
}

UniqueFd Connect(Container& container, const Endpoint& to, const Endpoint* from,
                 const Where& where) {
  UniqueFd fd = container.Socket(to.family(), where);
  if (from != nullptr) {
    SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, where);
    if (bind(fd.get(), from->get(), from->size()) != 0) {
      StopErrno(where, "bind to port " + std::to_string(from->port()), errno);
    }
  }
  ConnectAgain(fd.get(), to, where);
  return fd;
}

void ConnectAgain(int fd, const Endpoint& to, const Where& where) {
  BoundBlocking(fd, kPatience, where);  // bounds connect() as well
  if (connect(fd, to.get(), to.size()) != 0) {
    StopErrno(where, "connect to port " + std::to_string(to.port()), errno);
  }
}

void Disconnect(int fd, const Where& where) {
  struct sockaddr nothing = {};
  nothing.sa_family = AF_UNSPEC;
  if (connect(fd, &nothing, sizeof(nothing)) != 0) {
    StopErrno(where, "connect(AF_UNSPEC)", errno);
  }
}

UniqueFd Accept(int listener, const Where& where) {
  WaitPoll(listener, POLLIN, kPatience, where);
  UniqueFd fd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) {
    StopErrno(where, "accept", errno);
  }
  BoundBlocking(fd.get(), kPatience, where);
  return fd;
}

Connection MakePair(Container& clients, Container& servers, IpMode mode, uint16_t port,
                    const Where& where) {
  Connection connection;
  const UniqueFd listener = Listen(servers, ListenEndpoint(mode, port), 128, where);
  connection.client = Connect(clients, ConnectEndpoint(mode, port), nullptr, where);
  connection.server = Accept(listener.get(), where);
  return connection;
}

void BoundBlocking(int fd, milliseconds patience, const Where& where) {
  const struct timeval value = {patience.count() / 1000, patience.count() % 1000 * 1000};
  if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value)) != 0 ||
      setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof(value)) != 0) {
    StopErrno(where, "bounding blocking calls", errno);
  }
}

short WaitPoll(int fd, short wanted, milliseconds patience, const Where& where) {
  struct pollfd entry = {fd, wanted, 0};
  const int ready = poll(&entry, 1, static_cast<int>(patience.count()));
  if (ready < 0) {
    StopErrno(where, "poll", errno);
  }
  if (ready == 0) {
    Stop(where, "gave up after " + std::to_string(patience.count()) +
                    " ms waiting for poll to say " + PollText(wanted) + "; it says " +
                    PollText(PollNow(fd)));
  }
  return entry.revents;
}

short PollNow(int fd) {
  struct pollfd entry = {fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0};
  poll(&entry, 1, 0);
  return entry.revents;
}

std::string PollText(short events) {
  constexpr struct {
    short bit;
    const char* name;
  } kNames[] = {{POLLIN, "IN"},       {POLLPRI, "PRI"}, {POLLOUT, "OUT"},
                {POLLRDHUP, "RDHUP"}, {POLLHUP, "HUP"}, {POLLERR, "ERR"}};
  std::string text;
  for (const auto& [bit, name] : kNames) {
    if (events & bit) {
      text += (text.empty() ? "" : "|") + std::string(name);
    }
  }
  return text.empty() ? "nothing" : text;
}

void SendAll(int fd, std::string_view data, const Where& where) {
  const Clock::time_point end = Clock::now() + kPatience;
  while (!data.empty()) {
    const ssize_t sent = send(fd, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      data.remove_prefix(sent);
    } else if (errno == EAGAIN) {
      WaitPoll(fd, POLLOUT, milliseconds(MillisecondsUntil(end)), where);
    } else {
      StopErrno(where, "send with " + std::to_string(data.size()) + " bytes to go", errno);
    }
  }
}

std::string ReadExactly(int fd, size_t size, const Where& where) {
  const Clock::time_point end = Clock::now() + kPatience;
  std::string data(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = recv(fd, data.data() + done, size - done, MSG_DONTWAIT);
    if (got > 0) {
      done += got;
    } else if (got == 0) {
      Stop(where, "end of stream after " + std::to_string(done) + " of " + std::to_string(size) +
                      " bytes");
    } else if (errno == EAGAIN) {
      WaitPoll(fd, POLLIN, milliseconds(MillisecondsUntil(end)), where);
    } else {
      StopErrno(where,
                "recv after " + std::to_string(done) + " of " + std::to_string(size) + " bytes",
                errno);
    }
  }
  return data;
}

ToEnd ReadToEnd(int fd, const Where& where) {
  const Clock::time_point end = Clock::now() + kPatience;
  ToEnd result;
  std::vector<char> buffer(65536);
  for (;;) {
    const ssize_t got = recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got > 0) {
      result.data.append(buffer.data(), got);
    } else if (got == 0) {
      return result;
    } else if (errno == EAGAIN) {
      WaitPoll(fd, POLLIN, milliseconds(MillisecondsUntil(end)), where);
    } else {
      result.error = errno;
      return result;
    }
  }
}

uint64_t SendUntilFull(int fd, size_t chunk,
                       const std::function<void(uint64_t, char*, size_t)>& fill,
                       const Where& where) {
  constexpr uint64_t kNeverFull = 1ULL << 30;
  std::vector<char> buffer(chunk);
  uint64_t accepted = 0;
  for (;;) {
    fill(accepted, buffer.data(), chunk);
    const ssize_t sent = send(fd, buffer.data(), chunk, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      accepted += sent;
    } else if (errno != EAGAIN) {
      StopErrno(where, "send after " + std::to_string(accepted) + " bytes", errno);
    } else {
      struct pollfd entry = {fd, POLLOUT, 0};
      if (poll(&entry, 1, static_cast<int>(kStaysFull.count())) == 0) {
        return accepted;
      }
    }
    if (accepted > kNeverFull) {
      Stop(where, "1 GiB accepted with nobody reading: no back-pressure");
    }
  }
}

void PingPong(const Connection& connection, const Where& where) {
  SendAll(connection.client.get(), "?", where);
  EXPECT_EQ(ReadExactly(connection.server.get(), 1, where), "?");
  SendAll(connection.server.get(), "!", where);
  EXPECT_EQ(ReadExactly(connection.client.get(), 1, where), "!");
}

}  // namespace shunt::test

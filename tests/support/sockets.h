// SPDX-License-Identifier: Apache-2.0
//
// TCP sockets of pods, with every wait bounded and every failure reported at the
// line of the test that asked. Thread-safe: no state.
#ifndef SHUNT_TESTS_SUPPORT_SOCKETS_H_
#define SHUNT_TESTS_SUPPORT_SOCKETS_H_

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>

#include "agent/base/unique_fd.h"
#include "tests/support/pod.h"
#include "tests/support/stop.h"

namespace shunt::test {

// An address and a port.
class Endpoint {
 public:
  // "127.0.0.1", "::1", "::ffff:127.0.0.1"; port in host byte order, 0: any.
  Endpoint(const std::string& address, uint16_t port);
  static Endpoint LocalOf(int fd, const Where& where = Where::Here());

  const struct sockaddr* get() const { return reinterpret_cast<const struct sockaddr*>(&storage_); }
  socklen_t size() const { return size_; }
  int family() const { return storage_.ss_family; }
  uint16_t port() const;

 private:
  Endpoint() = default;

  struct sockaddr_storage storage_ = {};
  socklen_t size_ = 0;
};

// How the two ends of a connection see IP.
enum class IpMode {
  kV4,
  kV6,
  kMapped,  // both ends AF_INET6, the addresses IPv4
  kMixed,   // an AF_INET client of a dual-stack AF_INET6 listener
};
inline constexpr IpMode kIpModes[] = {IpMode::kV4, IpMode::kV6, IpMode::kMapped, IpMode::kMixed};

std::string ToString(IpMode mode);
inline std::ostream& operator<<(std::ostream& out, IpMode mode) { return out << ToString(mode); }

// Where to listen and where to connect for a mode, on loopback.
Endpoint ListenEndpoint(IpMode mode, uint16_t port);
Endpoint ConnectEndpoint(IpMode mode, uint16_t port);

void SetOption(int fd, int level, int name, int value, const Where& where = Where::Here());
int GetOption(int fd, int level, int name, const Where& where = Where::Here());

UniqueFd Listen(Container& container, const Endpoint& endpoint, int backlog = 128,
                const Where& where = Where::Here());
// `from` null: the kernel chooses.
UniqueFd Connect(Container& container, const Endpoint& to, const Endpoint* from = nullptr,
                 const Where& where = Where::Here());
void ConnectAgain(int fd, const Endpoint& to, const Where& where = Where::Here());
// connect(AF_UNSPEC)
void Disconnect(int fd, const Where& where = Where::Here());
UniqueFd Accept(int listener, const Where& where = Where::Here());

// Both ends of an established connection.
struct Connection {
  UniqueFd client;
  UniqueFd server;
};
// Listens for this one connection only: the port is free for the next.
Connection MakePair(Container& clients, Container& servers, IpMode mode, uint16_t port,
                    const Where& where = Where::Here());
inline Connection MakePair(Pod& pod, IpMode mode, uint16_t port,
                           const Where& where = Where::Here()) {
  return MakePair(pod.container(), pod.container(), mode, port, where);
}

// Bounds what a blocking call may wait (SO_RCVTIMEO, SO_SNDTIMEO).
void BoundBlocking(int fd, milliseconds patience = kPatience, const Where& where = Where::Here());

// The events of poll() once one of `wanted` is among them.
short WaitPoll(int fd, short wanted, milliseconds patience = kPatience,
               const Where& where = Where::Here());
// The events now, of all that poll() can tell of a stream socket.
short PollNow(int fd);
// "IN|OUT|RDHUP"
std::string PollText(short events);

// All of `data`, never blocking longer than patience.
void SendAll(int fd, std::string_view data, const Where& where = Where::Here());
std::string ReadExactly(int fd, size_t size, const Where& where = Where::Here());

struct ToEnd {
  std::string data;
  int error = 0;  // 0: a clean end of stream
};
ToEnd ReadToEnd(int fd, const Where& where = Where::Here());

// How many bytes `fd` takes, nobody reading, until it stays unwritable.
// `fill(buffer)` makes the next bytes to send; returns how many were accepted.
uint64_t SendUntilFull(int fd, size_t chunk,
                       const std::function<void(uint64_t, char*, size_t)>& fill,
                       const Where& where = Where::Here());

// One byte each way: proof that the connection works.
void PingPong(const Connection& connection, const Where& where = Where::Here());

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_SOCKETS_H_

// SPDX-License-Identifier: Apache-2.0
// One TCP connection between two sockets of this process.
#ifndef SHUNT_TESTS_VM_GUEST_CONNECTION_H_
#define SHUNT_TESTS_VM_GUEST_CONNECTION_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "device.h"

namespace guest {

enum class Family { kV4, kV6, kMapped };

constexpr Family kFamilies[] = {Family::kV4, Family::kV6, Family::kMapped};

const char* NameOf(Family family);

// A listener on loopback, any port. The caller closes it.
int Listen(Family family, int backlog = 8);
// A client connected to it.
int ConnectTo(Family family, int listener);
int Accept(int listener);

// Closes both ends when it goes.
struct Connection {
  int a = -1, b = -1;  // client, server
  explicit Connection(Family family = Family::kV4);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  void CloseA();
  void CloseB();
};

// Everything, or the test fails.
void WriteAll(int fd, const void* data, size_t size);
// Up to size bytes until EOF; -1 on error.
ssize_t ReadAll(int fd, void* data, size_t size);

// Byte number i of a stream: never the same for two streams or neighbours.
inline unsigned char Pattern(uint64_t stream, uint64_t i) {
  return static_cast<unsigned char>(((i + 1) * 2654435761u >> 13) ^ (i >> 8) ^ stream * 0x5a);
}

void SetNonBlocking(int fd, bool on);
int Unread(int fd);  // FIONREAD

// Milliseconds.
bool WaitReadable(int fd, int timeout);

}  // namespace guest

#endif

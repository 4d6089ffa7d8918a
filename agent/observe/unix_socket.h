// SPDX-License-Identifier: Apache-2.0
//
// The path and the client's side of a unix stream socket. Thread-safe: no state.
#ifndef SHUNT_AGENT_OBSERVE_UNIX_SOCKET_H_
#define SHUNT_AGENT_OBSERVE_UNIX_SOCKET_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/base/unique_fd.h"

namespace shunt {

// INVALID_ARGUMENT if the kernel could not take `path` as a socket's name.
absl::Status CheckSocketPath(const std::string& path);

// A connected, non-blocking socket; never waits. INVALID_ARGUMENT: the path;
// NOT_FOUND: nothing there; UNAVAILABLE: nobody listens on it; RESOURCE_EXHAUSTED:
// somebody does and is too busy to accept; PERMISSION_DENIED and others by errno.
// The message is the cause alone: the caller knows what it wanted to reach.
absl::StatusOr<UniqueFd> ConnectSocket(const std::string& path);

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_UNIX_SOCKET_H_

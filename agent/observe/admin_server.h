// SPDX-License-Identifier: Apache-2.0
//
// The admin socket: shunt.v1.AdminService (proto/shunt/v1/admin.proto) and
// grpc.health.v1.Health on a unix socket that only the agent's user can open.
//
// Health knows the services "" and "liveness" (serving while this object lives)
// and "readiness" (follows NodeView::Ready(), which is asked at every check, so
// nothing polls). Watch is UNIMPLEMENTED: it would hold a thread per watcher.
//
// Thread-safe. Calls NodeView from its own few threads from Create() on, until
// the destructor returns.
#ifndef SHUNT_AGENT_OBSERVE_ADMIN_SERVER_H_
#define SHUNT_AGENT_OBSERVE_ADMIN_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "agent/observe/node_view.h"

namespace shunt {

class AdminServer {
 public:
  struct Options {
    std::string socket;  // path; its directory is made (0755) if it is missing
  };

  // Serves when it returns. The socket appears under its name complete: mode
  // 0600 and listening. A socket left there by an agent that is gone is replaced.
  // INVALID_ARGUMENT: the path; ALREADY_EXISTS: an agent answers there;
  // FAILED_PRECONDITION: something that is not a socket is there.
  // `view` is not owned and outlives this object.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Create(const Options& options,
                                                             NodeView* view);

  // Removes the socket, ends a drain at its next report, gives other calls a
  // second before it cancels them, and waits for all.
  virtual ~AdminServer() = default;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_ADMIN_SERVER_H_

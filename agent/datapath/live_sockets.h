// SPDX-License-Identifier: Apache-2.0
//
// Counts a pod's connections to listed ports that were there before the pod was
// attached: those stay on TCP. Looks through the descriptors of all processes once
// per count. Not thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_LIVE_SOCKETS_H_
#define SHUNT_AGENT_DATAPATH_LIVE_SOCKETS_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/datapath/datapath.h"

struct live;  // live.skel.h, from bpf/live.bpf.c

namespace shunt {

class LiveSockets {
 public:
  // `socket_state`: the map of that name; used here only. If the kernel does not
  // take the iterator, every Count() says so.
  explicit LiveSockets(int socket_state);
  ~LiveSockets();

  // Established connections of the pod, a listed port at this end, without a Shunt
  // state. Connections that nobody has accepted yet are not seen.
  // FAILED_PRECONDITION: processes of the pod are in a pid namespace that the agent
  // does not see (hostPID), so that their sockets are not seen either.
  absl::StatusOr<uint64_t> Count(const PodTarget& pod);

  // Count(), as the pod's counts and the log tell it.
  LiveBefore Report(const PodTarget& pod);

 private:
  struct SkeletonDeleter {
    void operator()(struct ::live* skeleton) const;
  };

  absl::Status Load(int socket_state);

  std::unique_ptr<struct ::live, SkeletonDeleter> skeleton_;
  absl::Status loaded_;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_LIVE_SOCKETS_H_

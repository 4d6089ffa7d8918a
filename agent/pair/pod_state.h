// SPDX-License-Identifier: Apache-2.0
//
// Where a wanted pod stands.
//
//   kWaiting <-> kEnrolling -> kLeaving -> (forgotten)
//       \------> kFailed <----/
#ifndef SHUNT_AGENT_PAIR_POD_STATE_H_
#define SHUNT_AGENT_PAIR_POD_STATE_H_

#include <string_view>

namespace shunt {

enum class PodState {
  kEnrolling,  // attached: new connections to its ports are accelerated
  kWaiting,    // its cgroup is not there (yet)
  kFailed,     // the kernel side refused it; tried again
  kLeaving,    // not wanted any more, some of its ends hold unread bytes
  kObserved,   // engine none: nothing is enrolled
};

// "enrolling", "waiting", …: stable, for JSON and metrics.
std::string_view ToString(PodState state);

}  // namespace shunt

#endif  // SHUNT_AGENT_PAIR_POD_STATE_H_

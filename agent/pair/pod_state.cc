// SPDX-License-Identifier: Apache-2.0
#include "agent/pair/pod_state.h"

namespace shunt {

std::string_view ToString(PodState state) {
  switch (state) {
    case PodState::kEnrolling:
      return "enrolling";
    case PodState::kWaiting:
      return "waiting";
    case PodState::kFailed:
      return "failed";
    case PodState::kLeaving:
      return "leaving";
    case PodState::kObserved:
      return "observed";
  }
  return "unknown";
}

}  // namespace shunt

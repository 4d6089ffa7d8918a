// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/expected_gain.h"

#include "absl/strings/str_cat.h"

namespace shunt {

ExpectedGain GainOf(const PodObservation& observation) {
  if (observation.would_accelerate == 0 && observation.would_stay.empty()) {
    return {"unknown", "no connection to a listed port has been seen"};
  }
  if (observation.would_accelerate == 0) {
    return {"none", "every connection seen would stay on TCP"};
  }
  if (observation.receives == 0) {
    return {"unknown",
            "no receive was seen while workloads were watched, so the size of messages "
            "is not known; look again under traffic"};
  }
  return {"unknown",
          absl::StrCat("a dry run times nothing, and how much of a request is spent between the "
                       "two sockets is not known; ",
                       observation.receives, " receives of ",
                       observation.received_bytes / observation.receives,
                       " bytes on average were seen: `scripts/bench --quick` on this node says "
                       "what a round trip of such messages costs, as a ratio to TCP")};
}

}  // namespace shunt

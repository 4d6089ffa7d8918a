// SPDX-License-Identifier: Apache-2.0
//
// The kernel side's maps as plain values; `fd` is the map's.
#ifndef SHUNT_AGENT_DATAPATH_COUNTERS_H_
#define SHUNT_AGENT_DATAPATH_COUNTERS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/datapath/datapath.h"

namespace shunt {

// One exit of the map `exits`, all CPUs.
absl::StatusOr<uint64_t> ReadExitCounter(int fd, uint32_t exit);

// All of the map `workloads`.
absl::StatusOr<std::vector<WorkloadRecord>> ReadWorkloadMap(int fd);

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_COUNTERS_H_

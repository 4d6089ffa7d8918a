// SPDX-License-Identifier: Apache-2.0
//
// A pod's policy as the kernel side reads it.
#ifndef SHUNT_AGENT_DATAPATH_POLICY_H_
#define SHUNT_AGENT_DATAPATH_POLICY_H_

#include <cstdint>
#include <vector>

#include "agent/pair/pod.h"
#include "kmod/uapi/shunt.h"

namespace shunt {

// At most SHUNT_MAX_PORT_RANGES ports.
inline shunt_policy PolicyOf(uint32_t pod_id, uint32_t mode, const std::vector<PortRange>& ports) {
  shunt_policy policy = {};
  policy.pod = pod_id;
  policy.mode = mode;
  for (const PortRange& range : ports) {
    policy.ranges[policy.range_count++] = {range.first, range.last};
  }
  return policy;
}

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_POLICY_H_

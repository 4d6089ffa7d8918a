// SPDX-License-Identifier: Apache-2.0
//
// From the kernel's list of ends to pairs that people understand. Pure.
#ifndef SHUNT_AGENT_OBSERVE_PAIRS_H_
#define SHUNT_AGENT_OBSERVE_PAIRS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "agent/observe/node_view.h"
#include "kmod/uapi/shunt.h"

namespace shunt {

// Joins clients with servers by key, in the order of the clients. An end whose
// other end is not in the list is skipped: it was listed while its pair was
// being made or ended. Of several records of one end, the last counts: the
// iterator may repeat itself while the map grows.
//
// uid_of: the pod behind shunt_end.pod. proxy_uid_of: that pod's proxy user, by
// pod uid; only with it a direction is told. now_ns: CLOCK_MONOTONIC.
std::vector<PairView> JoinEnds(
    const std::vector<shunt_end_record>& ends, const std::function<std::string(uint32_t)>& uid_of,
    const std::function<std::optional<uint32_t>(const std::string&)>& proxy_uid_of,
    uint64_t now_ns);

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_PAIRS_H_

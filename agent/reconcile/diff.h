// SPDX-License-Identifier: Apache-2.0
//
// From what is attached to what is wanted. Pure.
#ifndef SHUNT_AGENT_RECONCILE_DIFF_H_
#define SHUNT_AGENT_RECONCILE_DIFF_H_

#include <string>
#include <vector>

#include "agent/datapath/datapath.h"

namespace shunt {

struct Plan {
  std::vector<PodTarget> enrol;     // new, or with another policy or sandbox
  std::vector<std::string> retire;  // uids, attached and not wanted

  friend bool operator==(const Plan& a, const Plan& b) {
    return a.enrol == b.enrol && a.retire == b.retire;
  }
};

// Both sets are complete: what is missing from `wanted` is to be retired. Order
// of the result follows the order of the sets.
Plan Diff(const std::vector<PodTarget>& attached, const std::vector<PodTarget>& wanted);

// "enrol demo, b; retire c", for logs and test failures.
std::string ToString(const Plan& plan);

}  // namespace shunt

#endif  // SHUNT_AGENT_RECONCILE_DIFF_H_

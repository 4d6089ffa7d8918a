// SPDX-License-Identifier: Apache-2.0
#include "agent/reconcile/diff.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace shunt {
namespace {

const PodTarget* Find(const std::vector<PodTarget>& pods, const std::string& uid) {
  const auto found = std::find_if(pods.begin(), pods.end(),
                                  [&uid](const PodTarget& pod) { return pod.uid == uid; });
  return found == pods.end() ? nullptr : &*found;
}

}  // namespace

Plan Diff(const std::vector<PodTarget>& attached, const std::vector<PodTarget>& wanted) {
  Plan plan;
  for (const PodTarget& pod : wanted) {
    const PodTarget* known = Find(attached, pod.uid);
    if (known == nullptr || !(*known == pod)) {
      plan.enrol.push_back(pod);
    }
  }
  for (const PodTarget& pod : attached) {
    if (Find(wanted, pod.uid) == nullptr) {
      plan.retire.push_back(pod.uid);
    }
  }
  return plan;
}

std::string ToString(const Plan& plan) {
  const std::string enrol =
      absl::StrJoin(plan.enrol, ", ",
                    [](std::string* out, const PodTarget& pod) { absl::StrAppend(out, pod.uid); });
  return absl::StrCat("enrol ", enrol, "; retire ", absl::StrJoin(plan.retire, ", "));
}

}  // namespace shunt

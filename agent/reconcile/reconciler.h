// SPDX-License-Identifier: Apache-2.0
//
// Brings the kernel to the desired state, one pass at a time, and knows where
// each pod stands. Not thread-safe: the owner serialises calls.
#ifndef SHUNT_AGENT_RECONCILE_RECONCILER_H_
#define SHUNT_AGENT_RECONCILE_RECONCILER_H_

#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "agent/datapath/datapath.h"
#include "agent/pair/pod.h"
#include "agent/pair/pod_state.h"
#include "agent/resolve/cgroup_resolver.h"

namespace shunt {

struct PodStanding {
  PodSpec spec;
  PodState state = PodState::kWaiting;
  std::string reason;  // stable code, see docs/operations.md
  std::string detail;  // a sentence, may be empty
};

class Reconciler {
 public:
  using Milliseconds = std::chrono::milliseconds;

  // Both not owned; they outlive this object.
  Reconciler(Datapath* datapath, const CgroupResolver* resolver);

  // The complete set of wanted pods. Takes effect in the next Step().
  void SetDesired(std::vector<PodSpec> pods);

  // One pass: resolve, diff, apply, let go. Returns when to come again although
  // nothing else happens: soon while something leaves, later while a pod waits
  // for its cgroup, kIdleLook otherwise (cgroups may be removed at any time).
  Milliseconds Step();

  std::vector<PodStanding> Standings() const;
  // What the pods that are leaving wait for: summed, and by uid.
  Waiting StillWaiting() const;
  std::vector<std::pair<std::string, Waiting>> WaitingPods() const;
  // Attached pods, leaving ones included.
  size_t AttachedCount() const { return attached_.size(); }
  // Has the desired state been applied once?
  bool Applied() const { return applied_; }

  static constexpr Milliseconds kLeavingLook{2};
  static constexpr Milliseconds kLeavingLookMax{50};
  static constexpr Milliseconds kIdleLook{1000};

 private:
  void Settle(const std::string& uid, PodState state, std::string reason, std::string detail);
  void LetGo();

  Datapath* const datapath_;
  const CgroupResolver* const resolver_;

  std::vector<PodSpec> desired_;
  bool desired_known_ = false;
  bool applied_ = false;
  std::map<std::string, PodTarget> attached_;  // as enrolled in the datapath
  std::map<std::string, Waiting> leaving_;     // pods with closed gates to look after
  std::set<std::string> retired_;              // of those: the whole pod
  std::map<std::string, PodStanding> standings_;
  Milliseconds leaving_look_ = kLeavingLook;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_RECONCILE_RECONCILER_H_

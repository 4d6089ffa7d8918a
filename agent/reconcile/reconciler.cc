// SPDX-License-Identifier: Apache-2.0
#include "agent/reconcile/reconciler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/base/log.h"
#include "agent/reconcile/diff.h"

namespace shunt {
namespace {

std::string PortsText(const std::vector<PortRange>& ports) {
  return absl::StrJoin(ports, ",", [](std::string* out, const PortRange& range) {
    absl::StrAppend(out, ToString(range));
  });
}

}  // namespace

Reconciler::Reconciler(Datapath* datapath, const CgroupResolver* resolver)
    : datapath_(datapath), resolver_(resolver) {
  for (PodTarget& pod : datapath_->Adopted()) {
    log::Info("pod adopted from an earlier agent",
              {{"pod_uid", pod.uid}, {"ports", PortsText(pod.ports)}, {"reason", "adopted"}});
    // An earlier agent may have died while the pod was leaving.
    leaving_[pod.uid];
    attached_.emplace(pod.uid, std::move(pod));
  }
}

void Reconciler::SetDesired(std::vector<PodSpec> pods) {
  desired_ = std::move(pods);
  desired_known_ = true;
  leaving_look_ = kLeavingLook;
}

Reconciler::Milliseconds Reconciler::Step() {
  if (!desired_known_) {
    return kIdleLook;
  }
  std::vector<PodTarget> wanted;
  for (const PodSpec& spec : desired_) {
    standings_[spec.uid].spec = spec;
    absl::StatusOr<PodTarget> target = resolver_->Resolve(spec);
    if (target.ok()) {
      wanted.push_back(*std::move(target));
    } else {
      Settle(spec.uid, PodState::kWaiting, "cgroup_not_found",
             std::string(target.status().message()));
    }
  }

  std::vector<PodTarget> attached;
  for (const auto& [uid, pod] : attached_) {
    if (retired_.count(uid) == 0) {
      attached.push_back(pod);
    }
  }
  const Plan plan = Diff(attached, wanted);
  for (const std::string& uid : plan.retire) {
    if (absl::Status status = datapath_->Retire(uid); !status.ok()) {
      Settle(uid, PodState::kFailed, "retire_failed", std::string(status.message()));
      continue;
    }
    retired_.insert(uid);
    leaving_[uid];
  }
  for (const PodTarget& pod : plan.enrol) {
    if (absl::Status status = datapath_->Enrol(pod); !status.ok()) {
      Settle(pod.uid, PodState::kFailed, "attach_failed", std::string(status.message()));
      continue;
    }
    retired_.erase(pod.uid);
    leaving_[pod.uid];
    attached_[pod.uid] = pod;
  }
  for (const PodTarget& pod : wanted) {
    if (attached_.count(pod.uid) != 0 && retired_.count(pod.uid) == 0 &&
        attached_[pod.uid] == pod) {
      const std::string ports = absl::StrCat("ports ", PortsText(pod.ports), " of ", pod.cgroup);
      if (datapath_->observes()) {
        Settle(pod.uid, PodState::kObserved, "dry_run", absl::StrCat("only looked at: ", ports));
      } else {
        Settle(pod.uid, PodState::kEnrolling, "enrolled", ports);
      }
    }
  }
  LetGo();

  // Forget pods that are neither wanted nor attached.
  for (auto it = standings_.begin(); it != standings_.end();) {
    const std::string& uid = it->first;
    const bool is_wanted = std::any_of(desired_.begin(), desired_.end(),
                                       [&uid](const PodSpec& pod) { return pod.uid == uid; });
    if (!is_wanted && attached_.count(uid) == 0) {
      it = standings_.erase(it);
    } else {
      ++it;
    }
  }
  applied_ = true;
  if (leaving_.empty()) {
    leaving_look_ = kLeavingLook;
    return kIdleLook;
  }
  return std::exchange(leaving_look_, std::min(2 * leaving_look_, kLeavingLookMax));
}

void Reconciler::LetGo() {
  for (auto it = leaving_.begin(); it != leaving_.end();) {
    const std::string uid = it->first;
    const bool retired = retired_.count(uid) != 0;
    absl::StatusOr<Waiting> waiting = datapath_->LetGo(uid);
    if (!waiting.ok()) {
      Settle(uid, PodState::kFailed, "let_go_failed", std::string(waiting.status().message()));
      ++it;
      continue;
    }
    if (waiting->ends > 0 || waiting->may_grow) {
      if (retired && waiting->ends > 0) {
        Settle(uid, PodState::kLeaving, "ends_not_drained",
               absl::StrCat("waits for ", waiting->ends, " enrolled sockets, ",
                            waiting->unread_bytes, " bytes unread"));
      }
      it->second = *std::move(waiting);
      ++it;
      continue;
    }
    if (retired) {
      log::Info("pod released: its connections are plain TCP",
                {{"pod_uid", uid}, {"reason", "released"}});
      retired_.erase(uid);
      attached_.erase(uid);
    }
    it = leaving_.erase(it);
  }
}

void Reconciler::Settle(const std::string& uid, PodState state, std::string reason,
                        std::string detail) {
  PodStanding& standing = standings_[uid];
  if (standing.spec.uid.empty()) {
    standing.spec.uid = uid;
  }
  const bool changed = standing.state != state || standing.reason != reason;
  standing.state = state;
  standing.reason = std::move(reason);
  standing.detail = std::move(detail);
  if (!changed) {
    return;
  }
  const log::Fields fields = {{"pod_uid", uid},
                              {"state", std::string(ToString(state))},
                              {"reason", standing.reason},
                              {"detail", standing.detail}};
  if (state == PodState::kFailed) {
    log::Warning("pod stays on plain TCP", fields);
  } else {
    log::Info("pod decided", fields);
  }
}

std::vector<PodStanding> Reconciler::Standings() const {
  std::vector<PodStanding> standings;
  for (const auto& [uid, standing] : standings_) {
    standings.push_back(standing);
  }
  return standings;
}

Waiting Reconciler::StillWaiting() const {
  Waiting sum;
  for (const auto& [uid, waiting] : leaving_) {
    sum.ends += waiting.ends;
    sum.unread_bytes += waiting.unread_bytes;
    sum.examples.insert(sum.examples.end(), waiting.examples.begin(), waiting.examples.end());
  }
  return sum;
}

std::vector<std::pair<std::string, Waiting>> Reconciler::WaitingPods() const {
  return {leaving_.begin(), leaving_.end()};
}

}  // namespace shunt

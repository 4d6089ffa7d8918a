// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/observing_datapath.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "agent/base/log.h"
#include "agent/base/status.h"
#include "agent/datapath/counters.h"
#include "agent/datapath/policy.h"
#include "sockhash.skel.h"

namespace shunt {

void ObservingDatapath::SkeletonDeleter::operator()(struct ::sockhash* skeleton) const {
  sockhash__destroy(skeleton);
}

ObservingDatapath::~ObservingDatapath() = default;

absl::StatusOr<std::unique_ptr<ObservingDatapath>> ObservingDatapath::Open(
    const ObservingDatapathOptions& options) {
  const std::string pins = absl::StrCat(options.bpffs, "/v1");
  if (access(pins.c_str(), F_OK) == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("observing: ", pins,
                     " is what an agent that accelerates left: start that agent and `shuntctl "
                     "drain` it, then use --dry-run"));
  }
  std::unique_ptr<ObservingDatapath> datapath(new ObservingDatapath(options));
  SHUNT_RETURN_IF_ERROR(datapath->Load(), "loading BPF programs that observe");
  SHUNT_ASSIGN_OR_RETURN(datapath->events_,
                         EventRing::Open(bpf_map__fd(datapath->skeleton_->maps.events)), "");
  datapath->live_sockets_ =
      std::make_unique<LiveSockets>(bpf_map__fd(datapath->skeleton_->maps.socket_state));
  return datapath;
}

absl::Status ObservingDatapath::Load() {
  int error = OpenAndLoad(/*watches=*/true);
  const bool watches = error == 0;
  if (error != 0 && error != -EPERM) {
    error = OpenAndLoad(/*watches=*/false);
  }
  if (std::abs(error) == EPERM) {
    return absl::PermissionDeniedError(
        "the agent needs the capabilities BPF, NET_ADMIN and PERFMON (in a container: "
        "securityContext.capabilities.add)");
  }
  if (error != 0) {
    return ErrnoStatus(error, "the kernel refuses them");
  }
  std::vector<struct ::bpf_program*> programs;
  if (watches) {
    programs = WatchingPrograms(skeleton_.get());
  } else {
    log::Warning(
        "what programs do cannot be watched on this kernel: no hazards are seen but "
        "socket options",
        {{"reason", "no_tracepoints"}});
  }
  watcher_ = std::make_unique<Watcher>(std::move(programs));
  return absl::OkStatus();
}

int ObservingDatapath::OpenAndLoad(bool watches) {
  skeleton_.reset(sockhash__open());
  if (skeleton_ == nullptr) {
    return -errno;
  }
  skeleton_->rodata->observes = 1;
  skeleton_->rodata->can_watch = watches;
  skeleton_->rodata->fionread_counts_tcp = options_.fionread_counts_tcp;
  struct bpf_program* program;
  bpf_object__for_each_program(program, skeleton_->obj) {
    bpf_program__set_autoload(program, false);
  }
  bpf_program__set_autoload(skeleton_->progs.shunt_sock_ops, true);
  bpf_program__set_autoload(skeleton_->progs.shunt_setsockopt, true);
  for (struct bpf_program* watching : WatchingPrograms(skeleton_.get())) {
    bpf_program__set_autoload(watching, watches);
  }
  // Nothing ever enters these.
  bpf_map__set_max_entries(skeleton_->maps.sockets, 1);
  bpf_map__set_max_entries(skeleton_->maps.ends, 1);
  return sockhash__load(skeleton_.get());
}

absl::Status ObservingDatapath::Enrol(const PodTarget& pod) {
  if (pod.ports.size() > SHUNT_MAX_PORT_RANGES) {
    return absl::InvalidArgumentError(
        absl::StrCat("observing pod ", pod.uid, ": ", pod.ports.size(),
                     " port ranges; allowed: at most ", SHUNT_MAX_PORT_RANGES));
  }
  const std::string context = absl::StrCat("observing pod ", pod.uid);
  const auto found = pods_.find(pod.uid);
  if (found != pods_.end() && found->second.target.cgroup_id == pod.cgroup_id) {
    Watch();  // there may be new ports
    found->second.target = pod;
    return Annotate(WritePolicy(found->second), context);
  }
  pods_.erase(pod.uid);  // a new sandbox
  return Annotate(Attach(pod), context);
}

absl::Status ObservingDatapath::Attach(const PodTarget& pod) {
  const UniqueFd cgroup(open(pod.cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!cgroup.valid()) {
    return ErrnoStatus(errno, absl::StrCat("opening cgroup ", pod.cgroup));
  }
  ObservedPod observed;
  observed.target = pod;
  observed.id = next_pod_++;
  observed.live_before = live_sockets_->Report(pod);
  Watch();
  observed.options.Reset(bpf_link_create(bpf_program__fd(skeleton_->progs.shunt_setsockopt),
                                         cgroup.get(), BPF_CGROUP_SETSOCKOPT, nullptr));
  if (!observed.options.valid()) {
    return ErrnoStatus(errno, absl::StrCat("linking setsockopt program to cgroup ", pod.cgroup));
  }
  observed.link.Reset(bpf_link_create(bpf_program__fd(skeleton_->progs.shunt_sock_ops),
                                      cgroup.get(), BPF_CGROUP_SOCK_OPS, nullptr));
  if (!observed.link.valid()) {
    return ErrnoStatus(errno, absl::StrCat("linking sock_ops program to cgroup ", pod.cgroup));
  }
  SHUNT_RETURN_IF_ERROR(WritePolicy(observed), "");
  pods_.insert_or_assign(pod.uid, std::move(observed));
  return absl::OkStatus();
}

absl::Status ObservingDatapath::WritePolicy(const ObservedPod& pod) {
  const shunt_policy policy = PolicyOf(pod.id, SHUNT_MODE_ENROL, pod.target.ports);
  if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.policy), &pod.target.cgroup_id, &policy,
                          BPF_EXIST) != 0) {
    return ErrnoStatus(errno, absl::StrCat("writing policy of cgroup id ", pod.target.cgroup_id));
  }
  return absl::OkStatus();
}

absl::Status ObservingDatapath::Retire(const std::string& uid) {
  if (pods_.erase(uid) == 0) {
    return absl::NotFoundError(absl::StrCat("no longer observing pod ", uid, ": not attached"));
  }
  return absl::OkStatus();
}

PodObservation ObservingDatapath::ObservationOf(uint32_t pod_id) const {
  PodObservation observation;
  for (uint32_t verdict = 0; verdict < SHUNT_EXIT_COUNT; ++verdict) {
    const shunt_verdict_key key = {pod_id, verdict};
    uint64_t count = 0;
    if (bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.observed_verdicts), &key, &count) != 0) {
      continue;  // did not happen yet
    }
    if (verdict == SHUNT_EXIT_PAIR_MADE) {
      observation.would_accelerate = count;
    } else {
      observation.would_stay[verdict] = count;
    }
  }
  shunt_observed_receives seen = {};
  if (bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.observed_receives), &pod_id, &seen) == 0) {
    observation.receives = seen.receives;
    observation.received_bytes = seen.bytes;
  }
  return observation;
}

absl::StatusOr<Totals> ObservingDatapath::ReadTotals() {
  Totals totals;
  for (uint32_t exit = 0; exit < SHUNT_EXIT_COUNT; ++exit) {
    SHUNT_ASSIGN_OR_RETURN(totals.exits[exit],
                           ReadExitCounter(bpf_map__fd(skeleton_->maps.exits), exit), "");
  }
  return totals;
}

absl::StatusOr<std::vector<std::pair<std::string, PodCounts>>> ObservingDatapath::ReadPods() {
  SHUNT_ASSIGN_OR_RETURN(const std::vector<WorkloadRecord> workloads, ReadWorkloads(), "");
  std::vector<std::pair<std::string, PodCounts>> pods;
  for (const auto& [uid, pod] : pods_) {
    PodCounts counts;
    counts.live_before = pod.live_before;
    counts.observation = ObservationOf(pod.id);
    for (const WorkloadRecord& record : workloads) {
      if (record.key.pod == pod.id && record.workload.hazards != 0) {
        counts.observation->hazards[static_cast<uint16_t>(record.key.port)] =
            record.workload.hazards;
      }
    }
    pods.emplace_back(uid, std::move(counts));
  }
  return pods;
}

std::string ObservingDatapath::UidOf(uint32_t pod_id) const {
  for (const auto& [uid, pod] : pods_) {
    if (pod.id == pod_id) {
      return uid;
    }
  }
  return "";
}

absl::Status ObservingDatapath::DrainEvents(
    const std::function<void(const shunt_event&)>& receive) {
  return events_->Drain([this, &receive](const shunt_event& event) {
    if (event.kind == SHUNT_EVENT_OBSERVED && IsNew({event.pod, event.port})) {
      Watch();
    } else if (event.kind == SHUNT_EVENT_WORKLOAD && event.reason == SHUNT_EXIT_WORKLOAD_NEW) {
      Watch();
    }
    receive(event);
  });
}

bool ObservingDatapath::IsNew(const shunt_workload_key& key) const {
  shunt_workload workload = {};
  return bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.workloads), &key, &workload) == 0 &&
         workload.state == SHUNT_WORKLOAD_WATCHED;
}

void ObservingDatapath::Watch() {
  if (absl::Status status = watcher_->Watch(Watcher::Clock::now()); !status.ok()) {
    log::Error("no hazards are seen but socket options: workloads cannot be watched",
               {{"reason", "no_tracepoints"}, {"err", std::string(status.message())}});
  }
}

std::optional<std::chrono::microseconds> ObservingDatapath::Tend() {
  const auto next = watcher_->Step(Watcher::Clock::now());
  return next.has_value() ? std::optional(std::chrono::ceil<std::chrono::microseconds>(*next))
                          : std::nullopt;
}

absl::StatusOr<std::vector<WorkloadRecord>> ObservingDatapath::ReadWorkloads() {
  return ReadWorkloadMap(bpf_map__fd(skeleton_->maps.workloads));
}

int ObservingDatapath::EventsFd() const { return events_->fd(); }

}  // namespace shunt

// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/bpf_datapath.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "agent/base/log.h"
#include "agent/base/status.h"
#include "agent/datapath/counters.h"
#include "agent/datapath/policy.h"
#include "sockhash.skel.h"

namespace shunt {
namespace {

constexpr uint32_t kOnly = 0;  // the key of single-entry arrays
constexpr size_t kMaxExamples = 5;

constexpr char kSockOps[] = "sock_ops";
constexpr char kSkMsg[] = "sk_msg";

// bpffs forbids dots in names; a pod uid may hold them but never a tilde.
std::string PinName(const std::string& uid) { return absl::StrReplaceAll(uid, {{".", "~"}}); }
std::string UidFromPin(const std::string& name) { return absl::StrReplaceAll(name, {{"~", "."}}); }

// Constants, and arguments of the agent's own programs: not pinned, each generation
// of programs loads its own. And maps of ObservingDatapath, which are not made here.
bool IsOfOneGeneration(const struct bpf_map* map) {
  return bpf_map__is_internal(map) || !bpf_map__autocreate(map);
}

absl::Status LoadError(int error) {
  absl::Status status = ErrnoStatus(error, "loading BPF programs");
  if (std::abs(error) == EPERM) {
    return Annotate(status,
                    "the agent needs the capabilities BPF, NET_ADMIN and PERFMON (in a "
                    "container: securityContext.capabilities.add)");
  }
  return status;
}

absl::StatusOr<std::string> ProgramTag(int fd) {
  struct bpf_prog_info info = {};
  __u32 size = sizeof(info);
  if (bpf_obj_get_info_by_fd(fd, &info, &size) != 0) {
    return ErrnoStatus(errno, "reading program info");
  }
  return std::string(reinterpret_cast<const char*>(info.tag), sizeof(info.tag));
}

// Each read() starts its hash bucket anew, so one member may come twice; of its
// records the last is the one that counts.
std::vector<shunt_end_record> WithoutRepeats(std::vector<shunt_end_record> records) {
  const auto before = [](const shunt_end_record& a, const shunt_end_record& b) {
    return std::memcmp(&a.key, &b.key, sizeof(a.key)) < 0;
  };
  const auto same = [](const shunt_end_record& a, const shunt_end_record& b) {
    return std::memcmp(&a.key, &b.key, sizeof(a.key)) == 0;
  };
  std::reverse(records.begin(), records.end());
  std::stable_sort(records.begin(), records.end(), before);
  records.erase(std::unique(records.begin(), records.end(), same), records.end());
  return records;
}

// Does the new list of ranges, normalized, hold every port of the old one?
bool Covers(const std::vector<PortRange>& now, const std::vector<PortRange>& then) {
  return std::all_of(then.begin(), then.end(), [&now](const PortRange& old) {
    return std::any_of(now.begin(), now.end(), [&old](const PortRange& range) {
      return range.first <= old.first && old.last <= range.last;
    });
  });
}

}  // namespace

void BpfDatapath::SkeletonDeleter::operator()(struct ::sockhash* skeleton) const {
  sockhash__destroy(skeleton);
}

BpfDatapath::BpfDatapath(Pins pins, const BpfDatapathOptions& options)
    : pins_(std::move(pins)),
      options_(options),
      grace_(std::make_unique<Grace>([this] { AwaitGrace(); })),
      memory_(options.memory_path) {}

BpfDatapath::~BpfDatapath() = default;

absl::StatusOr<std::unique_ptr<BpfDatapath>> BpfDatapath::Open(const BpfDatapathOptions& options) {
  SHUNT_ASSIGN_OR_RETURN(Pins pins, Pins::Open(options.bpffs), "");
  std::unique_ptr<BpfDatapath> datapath(new BpfDatapath(std::move(pins), options));
  if (datapath->pins_.Exists()) {
    SHUNT_RETURN_IF_ERROR(datapath->AdoptKernelSide(),
                          absl::StrCat("adopting pins in ", options.bpffs, "/v1"));
  } else {
    SHUNT_RETURN_IF_ERROR(datapath->CreateKernelSide(),
                          absl::StrCat("creating pins in ", options.bpffs, "/v1"));
  }
  SHUNT_ASSIGN_OR_RETURN(datapath->events_,
                         EventRing::Open(bpf_map__fd(datapath->skeleton_->maps.events)), "");
  datapath->live_sockets_ =
      std::make_unique<LiveSockets>(bpf_map__fd(datapath->skeleton_->maps.socket_state));
  return datapath;
}

absl::Status BpfDatapath::Load(bool adopt) {
  int error = 0;
  for (const Variant& variant :
       {Variant{true, true}, Variant{false, true}, Variant{true, false}, Variant{false, false}}) {
    SHUNT_RETURN_IF_ERROR(OpenSkeleton(adopt, variant), "");
    error = sockhash__load(skeleton_.get());
    if (error == 0) {
      log::Debug("kernel programs loaded",
                 {{"direct_loads", variant.direct}, {"watches_workloads", variant.watches}});
      std::vector<struct ::bpf_program*> programs;
      if (variant.watches) {
        programs = WatchingPrograms(skeleton_.get());
      } else {
        log::Warning("new workloads cannot be watched on this kernel: they are trusted",
                     {{"reason", "no_tracepoints"}});
      }
      watcher_ = std::make_unique<Watcher>(std::move(programs));
      return absl::OkStatus();
    }
    if (error == -EPERM) {
      break;
    }
  }
  return LoadError(error);
}

absl::Status BpfDatapath::OpenSkeleton(bool adopt, const Variant& variant) {
  skeleton_.reset(sockhash__open());
  if (skeleton_ == nullptr) {
    return ErrnoStatus(errno, "opening BPF object");
  }
  skeleton_->rodata->rmem_is_charged = options_.rmem_is_charged;
  skeleton_->rodata->fionread_counts_tcp = options_.fionread_counts_tcp;
  skeleton_->rodata->can_watch = variant.watches;
  for (struct bpf_map* map : {skeleton_->maps.observed_clients, skeleton_->maps.observed_verdicts,
                              skeleton_->maps.observed_receives}) {
    bpf_map__set_autocreate(map, false);
  }
  bpf_map__set_max_entries(skeleton_->maps.sockets, 2 * options_.max_pairs);
  bpf_map__set_max_entries(skeleton_->maps.ends, 2 * options_.max_pairs);
  bpf_program__set_autoload(skeleton_->progs.shunt_msg_direct, variant.direct);
  bpf_program__set_autoload(skeleton_->progs.shunt_msg_probe, !variant.direct);
  for (struct bpf_program* program : WatchingPrograms(skeleton_.get())) {
    bpf_program__set_autoload(program, variant.watches);
  }
  msg_program_ =
      variant.direct ? skeleton_->progs.shunt_msg_direct : skeleton_->progs.shunt_msg_probe;
  return adopt ? ReusePinnedMaps() : absl::OkStatus();
}

absl::Status BpfDatapath::CreateKernelSide() {
  SHUNT_RETURN_IF_ERROR(Load(/*adopt=*/false), "");
  // Sockets copy the program at insertion, so it is there before the first one.
  if (bpf_prog_attach(bpf_program__fd(msg_program_), bpf_map__fd(skeleton_->maps.sockets),
                      BPF_SK_MSG_VERDICT, 0) != 0) {
    return ErrnoStatus(errno, "attaching sk_msg program to the sockhash");
  }
  const struct shunt_meta meta = {
      .abi_version = SHUNT_ABI_VERSION, .next_pod = 1, .watching = 0, .zero = 0};
  if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.meta), &kOnly, &meta, BPF_ANY) != 0) {
    return ErrnoStatus(errno, "writing meta map");
  }
  SHUNT_RETURN_IF_ERROR(pins_.BeginNew(), "");
  struct bpf_map* map;
  bpf_object__for_each_map(map, skeleton_->obj) {
    if (!IsOfOneGeneration(map)) {
      SHUNT_RETURN_IF_ERROR(pins_.PinNew(bpf_map__fd(map), "maps", bpf_map__name(map)), "");
    }
  }
  const int sock_ops = bpf_program__fd(skeleton_->progs.shunt_sock_ops);
  SHUNT_RETURN_IF_ERROR(pins_.PinNew(sock_ops, "progs", kSockOps), "");
  SHUNT_RETURN_IF_ERROR(pins_.PinNew(bpf_program__fd(msg_program_), "progs", kSkMsg), "");
  SHUNT_RETURN_IF_ERROR(pins_.PublishNew(), "");
  sock_ops_.Reset(dup(sock_ops));
  return absl::OkStatus();
}

absl::Status BpfDatapath::AdoptKernelSide() {
  SHUNT_RETURN_IF_ERROR(Load(/*adopt=*/true), "");
  SHUNT_RETURN_IF_ERROR(AdoptPrograms(), "");
  SHUNT_RETURN_IF_ERROR(AdoptLinks(), "");
  Watch();  // an earlier agent's tracepoints went with it
  return FindLeavingPairs();
}

absl::Status BpfDatapath::ReusePinnedMaps() {
  constexpr char kRemedy[] =
      "; drain with the agent version that made them, or, once no accelerated connection is "
      "left, remove the directory, then start this agent again";
  absl::StatusOr<UniqueFd> meta_fd = pins_.Get("maps", "meta");
  struct shunt_meta meta = {};
  if (!meta_fd.ok() || bpf_map_lookup_elem(meta_fd->get(), &kOnly, &meta) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("pin directory is damaged: no readable maps/meta", kRemedy));
  }
  if (meta.abi_version != SHUNT_ABI_VERSION) {
    return absl::FailedPreconditionError(absl::StrCat("pins have ABI version ", meta.abi_version,
                                                      ", this agent speaks version ",
                                                      SHUNT_ABI_VERSION, kRemedy));
  }
  struct bpf_map* map;
  bpf_object__for_each_map(map, skeleton_->obj) {
    if (IsOfOneGeneration(map)) {
      continue;
    }
    const std::string name = bpf_map__name(map);
    absl::StatusOr<UniqueFd> fd = pins_.Get("maps", name);
    if (!fd.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("pin directory is damaged: ", fd.status().message(), kRemedy));
    }
    const __u32 key_size = bpf_map__key_size(map);
    const __u32 value_size = bpf_map__value_size(map);
    const __u32 entries = bpf_map__max_entries(map);
    // Of these the size is part of the layout; of the others it is the agent's choice.
    const bool fixed_size =
        bpf_map__type(map) == BPF_MAP_TYPE_PERCPU_ARRAY || bpf_map__type(map) == BPF_MAP_TYPE_ARRAY;
    if (const int error = bpf_map__reuse_fd(map, fd->get()); error != 0) {
      return ErrnoStatus(error, absl::StrCat("reusing pinned map ", name));
    }
    if (bpf_map__key_size(map) != key_size || bpf_map__value_size(map) != value_size ||
        (fixed_size && bpf_map__max_entries(map) != entries)) {
      return absl::FailedPreconditionError(absl::StrCat("pin directory is damaged: maps/", name,
                                                        " has another layout than ABI ", "version ",
                                                        SHUNT_ABI_VERSION, kRemedy));
    }
  }
  return absl::OkStatus();
}

absl::Status BpfDatapath::AdoptPrograms() {
  const int fresh_ops = bpf_program__fd(skeleton_->progs.shunt_sock_ops);
  const int fresh_msg = bpf_program__fd(msg_program_);
  SHUNT_ASSIGN_OR_RETURN(UniqueFd pinned_ops, pins_.Get("progs", kSockOps),
                         "pin directory is damaged");
  SHUNT_ASSIGN_OR_RETURN(UniqueFd pinned_msg, pins_.Get("progs", kSkMsg),
                         "pin directory is damaged");
  SHUNT_ASSIGN_OR_RETURN(const std::string fresh_ops_tag, ProgramTag(fresh_ops), "");
  SHUNT_ASSIGN_OR_RETURN(const std::string fresh_msg_tag, ProgramTag(fresh_msg), "");
  SHUNT_ASSIGN_OR_RETURN(const std::string pinned_ops_tag, ProgramTag(pinned_ops.get()), "");
  SHUNT_ASSIGN_OR_RETURN(const std::string pinned_msg_tag, ProgramTag(pinned_msg.get()), "");
  if (fresh_ops_tag == pinned_ops_tag && fresh_msg_tag == pinned_msg_tag) {
    sock_ops_ = std::move(pinned_ops);
    return absl::OkStatus();
  }
  // Sockets that are in the map keep the program they joined with; both
  // generations speak the same maps.
  if (bpf_prog_attach(fresh_msg, bpf_map__fd(skeleton_->maps.sockets), BPF_SK_MSG_VERDICT, 0) !=
      0) {
    return ErrnoStatus(errno, "attaching the new sk_msg program to the sockhash");
  }
  SHUNT_RETURN_IF_ERROR(pins_.Replace(fresh_msg, "progs", kSkMsg), "");
  SHUNT_RETURN_IF_ERROR(pins_.Replace(fresh_ops, "progs", kSockOps), "");
  sock_ops_.Reset(dup(fresh_ops));
  log::Info("kernel programs replaced; existing connections keep theirs",
            {{"reason", "program_changed"}});
  return absl::OkStatus();
}

absl::Status BpfDatapath::AdoptLinks() {
  SHUNT_ASSIGN_OR_RETURN(const std::vector<std::string> names, pins_.List("links"), "");
  for (const std::string& name : names) {
    SHUNT_ASSIGN_OR_RETURN(UniqueFd link, pins_.Get("links", name), "pin directory is damaged");
    struct bpf_link_info info = {};
    __u32 size = sizeof(info);
    if (bpf_obj_get_info_by_fd(link.get(), &info, &size) != 0) {
      return ErrnoStatus(errno, absl::StrCat("reading link info of pod ", UidFromPin(name)));
    }
    AttachedPod pod;
    pod.target.uid = UidFromPin(name);
    pod.target.cgroup_id = info.cgroup.cgroup_id;
    struct shunt_policy policy = {};
    const uint64_t cgroup_id = info.cgroup.cgroup_id;
    if (cgroup_id == 0 ||
        bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.policy), &cgroup_id, &policy) != 0) {
      // The cgroup was removed while no agent ran: the kernel detached the link.
      SHUNT_RETURN_IF_ERROR(pins_.Unpin("links", name), "");
      SHUNT_RETURN_IF_ERROR(pins_.Unpin("options", name), "");
      log::Info("pod's cgroup is gone", {{"pod_uid", pod.target.uid}, {"reason", "cgroup_gone"}});
      continue;
    }
    pod.id = policy.pod;
    pod.retired = policy.mode == SHUNT_MODE_OFF;
    pod.sweeps = true;  // the agent may have died between policy and gates
    pod.joins = grace_->Ask();
    for (uint32_t i = 0; i < std::min<uint32_t>(policy.range_count, SHUNT_MAX_PORT_RANGES); ++i) {
      pod.target.ports.push_back({policy.ranges[i].first, policy.ranges[i].last});
    }
    if (bpf_link_update(link.get(), sock_ops_.get(), nullptr) != 0) {
      return ErrnoStatus(errno, absl::StrCat("updating sock_ops program of pod ", pod.target.uid));
    }
    pod.link = std::move(link);
    SHUNT_ASSIGN_OR_RETURN(pod.options, pins_.Get("options", name), "pin directory is damaged");
    if (bpf_link_update(pod.options.get(), bpf_program__fd(skeleton_->progs.shunt_setsockopt),
                        nullptr) != 0) {
      return ErrnoStatus(errno,
                         absl::StrCat("updating setsockopt program of pod ", pod.target.uid));
    }
    pods_.emplace(pod.target.uid, std::move(pod));
  }
  return absl::OkStatus();
}

std::vector<PodTarget> BpfDatapath::Adopted() const {
  std::vector<PodTarget> targets;
  for (const auto& [uid, pod] : pods_) {
    targets.push_back(pod.target);
    if (pod.retired) {
      targets.back().ports.clear();
    }
  }
  return targets;
}

absl::Status BpfDatapath::Enrol(const PodTarget& pod) {
  if (pod.ports.size() > SHUNT_MAX_PORT_RANGES) {
    return absl::InvalidArgumentError(
        absl::StrCat("enrolling pod ", pod.uid, ": ", pod.ports.size(),
                     " port ranges; allowed: at most ", SHUNT_MAX_PORT_RANGES));
  }
  const auto found = pods_.find(pod.uid);
  if (found == pods_.end()) {
    return Annotate(Attach(pod), absl::StrCat("attaching pod ", pod.uid));
  }
  if (found->second.target.cgroup_id != pod.cgroup_id) {
    // Same pod, new sandbox: its old cgroup is gone and so are its sockets.
    SHUNT_RETURN_IF_ERROR(Detach(pod.uid), absl::StrCat("replacing sandbox of pod ", pod.uid));
    return Annotate(Attach(pod), absl::StrCat("attaching pod ", pod.uid));
  }
  const std::string context = absl::StrCat("updating policy of pod ", pod.uid);
  Watch();  // there may be new ports
  const shunt_policy policy = PolicyOf(found->second.id, SHUNT_MODE_ENROL, pod.ports);
  SHUNT_RETURN_IF_ERROR(WritePolicy(policy, pod.cgroup_id), context);
  const bool nothing_leaves = Covers(pod.ports, found->second.target.ports);
  found->second.target = pod;
  found->second.retired = false;
  SHUNT_RETURN_IF_ERROR(RecallWorkloads(found->second), context);
  return nothing_leaves ? absl::OkStatus() : Annotate(BeginSweep(&found->second), context);
}

absl::Status BpfDatapath::Attach(const PodTarget& pod) {
  UniqueFd cgroup(open(pod.cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!cgroup.valid()) {
    return ErrnoStatus(errno, absl::StrCat("opening cgroup ", pod.cgroup));
  }
  AttachedPod attached;
  attached.target = pod;
  SHUNT_ASSIGN_OR_RETURN(attached.id, AllotPodId(), "");
  // Until the policy is written the storage is zero, which is SHUNT_MODE_OFF.
  attached.link.Reset(bpf_link_create(sock_ops_.get(), cgroup.get(), BPF_CGROUP_SOCK_OPS, nullptr));
  if (!attached.link.valid()) {
    return ErrnoStatus(errno, absl::StrCat("linking sock_ops program to cgroup ", pod.cgroup));
  }
  // Before any socket of the pod can join.
  attached.options.Reset(bpf_link_create(bpf_program__fd(skeleton_->progs.shunt_setsockopt),
                                         cgroup.get(), BPF_CGROUP_SETSOCKOPT, nullptr));
  if (!attached.options.valid()) {
    return ErrnoStatus(errno, absl::StrCat("linking setsockopt program to cgroup ", pod.cgroup));
  }
  SHUNT_RETURN_IF_ERROR(RecallWorkloads(attached), "");
  // While the pod's storage is zero: afterwards new connections without a state come
  // by that are not older than the agent, from other pods.
  attached.live_before = live_sockets_->Report(pod);
  pins_.Unpin("options", PinName(pod.uid)).IgnoreError();  // of an agent that died here
  SHUNT_RETURN_IF_ERROR(pins_.Pin(attached.options.get(), "options", PinName(pod.uid)), "");
  // The pod id must be there before an agent can find the link and adopt it.
  SHUNT_RETURN_IF_ERROR(
      WritePolicy(PolicyOf(attached.id, SHUNT_MODE_OFF, pod.ports), pod.cgroup_id), "");
  SHUNT_RETURN_IF_ERROR(pins_.Pin(attached.link.get(), "links", PinName(pod.uid)), "");
  if (absl::Status status =
          WritePolicy(PolicyOf(attached.id, SHUNT_MODE_ENROL, pod.ports), pod.cgroup_id);
      !status.ok()) {
    pins_.Unpin("links", PinName(pod.uid)).IgnoreError();
    pins_.Unpin("options", PinName(pod.uid)).IgnoreError();
    return status;
  }
  pods_.emplace(pod.uid, std::move(attached));
  Watch();
  return absl::OkStatus();
}

absl::Status BpfDatapath::WritePolicy(const shunt_policy& policy, uint64_t cgroup_id) {
  if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.policy), &cgroup_id, &policy, BPF_EXIST) !=
      0) {
    return ErrnoStatus(errno, absl::StrCat("writing policy of cgroup id ", cgroup_id));
  }
  return absl::OkStatus();
}

absl::Status BpfDatapath::BeginSweep(AttachedPod* pod) {
  pod->sweeps = true;
  pod->all_closed = false;
  pod->joins = grace_->Ask();
  return CloseGates(*pod);
}

absl::Status BpfDatapath::CloseGates(const AttachedPod& pod) {
  skeleton_->bss->keep =
      PolicyOf(pod.id, pod.retired ? SHUNT_MODE_OFF : SHUNT_MODE_ENROL, pod.target.ports);
  SHUNT_RETURN_IF_ERROR(RunIterator(skeleton_->progs.shunt_close_gates, pod.id).status(),
                        "closing gates");
  InterruptCpus();
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> BpfDatapath::AllotPodId() {
  const int meta_fd = bpf_map__fd(skeleton_->maps.meta);
  struct shunt_meta meta = {};
  if (bpf_map_lookup_elem(meta_fd, &kOnly, &meta) != 0) {
    return ErrnoStatus(errno, "reading meta map");
  }
  const uint32_t id = meta.next_pod++;
  if (bpf_map_update_elem(meta_fd, &kOnly, &meta, BPF_ANY) != 0) {
    return ErrnoStatus(errno, "writing meta map");
  }
  return id;
}

absl::Status BpfDatapath::Retire(const std::string& uid) {
  const auto found = pods_.find(uid);
  const std::string context = absl::StrCat("retiring pod ", uid);
  if (found == pods_.end()) {
    return absl::NotFoundError(absl::StrCat(context, ": not attached"));
  }
  const shunt_policy policy =
      PolicyOf(found->second.id, SHUNT_MODE_OFF, found->second.target.ports);
  // NOT_FOUND: the cgroup is gone, and so is everything that could enrol.
  if (absl::Status status = WritePolicy(policy, found->second.target.cgroup_id);
      !status.ok() && !absl::IsNotFound(status)) {
    return Annotate(status, context);
  }
  found->second.retired = true;
  return Annotate(BeginSweep(&found->second), context);
}

absl::StatusOr<Waiting> BpfDatapath::LetGo(const std::string& uid) {
  const auto found = pods_.find(uid);
  if (found == pods_.end()) {
    return absl::NotFoundError(absl::StrCat("letting pod ", uid, " go: not attached"));
  }
  AttachedPod& pod = found->second;
  const std::string context = absl::StrCat("letting pod ", uid, " go");
  if (pod.sweeps && !pod.all_closed) {
    // A socket may have joined under the old policy since the last sweep.
    const bool last = grace_->Passed(pod.joins);
    SHUNT_RETURN_IF_ERROR(CloseGates(pod), context);
    pod.all_closed = last;
  }
  SHUNT_ASSIGN_OR_RETURN(const std::vector<shunt_end_record> records,
                         RunIterator(skeleton_->progs.shunt_list_ends, pod.id), context);
  Waiting waiting;
  for (const shunt_end_record& record : records) {
    if (!record.end.leaving) {
      continue;
    }
    leaver_.Add(record.key);
    ++waiting.ends;
    waiting.unread_bytes += record.unread_bytes;
    if (waiting.examples.size() < kMaxExamples) {
      waiting.examples.push_back(record);
    }
  }
  waiting.may_grow = pod.sweeps && !pod.all_closed;
  if (waiting.ends > 0 || waiting.may_grow) {
    return waiting;
  }
  pod.sweeps = false;
  if (pod.retired) {
    SHUNT_RETURN_IF_ERROR(Detach(uid), context);
  }
  return waiting;
}

absl::Status BpfDatapath::Detach(const std::string& uid) {
  const auto found = pods_.find(uid);
  const uint32_t id = found->second.id;
  SHUNT_RETURN_IF_ERROR(pins_.Unpin("links", PinName(uid)), "");
  SHUNT_RETURN_IF_ERROR(pins_.Unpin("options", PinName(uid)), "");
  pods_.erase(found);
  bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.pod_totals), &id);
  SHUNT_ASSIGN_OR_RETURN(const std::vector<WorkloadRecord> workloads, ReadWorkloads(), "");
  for (const WorkloadRecord& record : workloads) {
    if (record.key.pod == id) {
      bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.workloads), &record.key);
    }
  }
  return ForgetLeftovers(id);
}

// Sockets on their way to TCP_CLOSE have left the sockhash but not the ends map,
// and with the link their last callback is gone.
absl::Status BpfDatapath::ForgetLeftovers(uint32_t pod_id) {
  SHUNT_ASSIGN_OR_RETURN(const auto ends, ReadEnds(), "");
  for (const auto& [key, end] : ends) {
    if (end.pod == pod_id) {
      bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.ends), &key);
    }
  }
  return absl::OkStatus();
}

absl::Status BpfDatapath::RemovePins() {
  if (!pods_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("removing pins: ", pods_.size(), " pods are still attached"));
  }
  return pins_.RemoveAll();
}

void BpfDatapath::AwaitGrace() const {
  const int token = bpf_map__fd(skeleton_->maps.grace_token);
  if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.grace), &kOnly, &token, BPF_ANY) != 0) {
    // Of a map that is there, with a value that is there: only for want of memory.
    log::Error("waiting for running BPF programs failed; waiting a second instead",
               {{"reason", "grace_failed"}, {"err", std::string(strerror(errno))}});
    sleep(1);
  }
}

absl::StatusOr<std::vector<shunt_end_record>> BpfDatapath::RunIterator(
    const struct ::bpf_program* program, uint32_t pod_id) {
  const std::string context = absl::StrCat("running ", bpf_program__name(program));
  skeleton_->bss->target_pod = pod_id;
  union bpf_iter_link_info target = {};
  target.map.map_fd = bpf_map__fd(skeleton_->maps.sockets);
  DECLARE_LIBBPF_OPTS(bpf_iter_attach_opts, options, .link_info = &target,
                      .link_info_len = sizeof(target));
  struct bpf_link* link = bpf_program__attach_iter(program, &options);
  if (link == nullptr) {
    return ErrnoStatus(errno, context);
  }
  UniqueFd iterator(bpf_iter_create(bpf_link__fd(link)));
  const int error = errno;
  bpf_link__destroy(link);
  if (!iterator.valid()) {
    return ErrnoStatus(error, context);
  }
  std::vector<shunt_end_record> records;
  std::string bytes;
  char chunk[64 * 1024];
  for (;;) {
    const ssize_t got = read(iterator.get(), chunk, sizeof(chunk));
    if (got < 0 && errno == EAGAIN) {
      continue;  // the iterator ran its budget of objects without output
    }
    if (got < 0) {
      return ErrnoStatus(errno, context);
    }
    if (got == 0) {
      return WithoutRepeats(std::move(records));
    }
    bytes.append(chunk, static_cast<size_t>(got));
    const size_t whole = bytes.size() / sizeof(shunt_end_record);
    const size_t before = records.size();
    records.resize(before + whole);
    std::memcpy(&records[before], bytes.data(), whole * sizeof(shunt_end_record));
    bytes.erase(0, whole * sizeof(shunt_end_record));
  }
}

absl::StatusOr<std::vector<std::pair<shunt_end_key, shunt_end>>> BpfDatapath::ReadEnds() const {
  const int fd = bpf_map__fd(skeleton_->maps.ends);
  constexpr __u32 kBatch = 1024;
  std::vector<shunt_end_key> keys(kBatch);
  std::vector<shunt_end> values(kBatch);
  std::vector<std::pair<shunt_end_key, shunt_end>> ends;
  __u32 cursor = 0;
  bool first = true;
  for (;;) {
    __u32 count = static_cast<__u32>(keys.size());
    const int result = bpf_map_lookup_batch(fd, first ? nullptr : &cursor, &cursor, keys.data(),
                                            values.data(), &count, nullptr);
    const int error = errno;
    if (result != 0 && error == ENOSPC) {  // one bucket holds more than fits
      keys.resize(keys.size() * 2);
      values.resize(values.size() * 2);
      continue;
    }
    if (result != 0 && error != ENOENT) {
      return ErrnoStatus(error, "reading ends map");
    }
    for (__u32 i = 0; i < count; ++i) {
      ends.emplace_back(keys[i], values[i]);
    }
    if (result != 0) {
      return ends;
    }
    first = false;
  }
}

absl::StatusOr<Totals> BpfDatapath::ReadTotals() {
  const size_t cpus = static_cast<size_t>(libbpf_num_possible_cpus());
  std::vector<uint64_t> values(cpus);
  Totals totals;
  for (uint32_t exit = 0; exit < SHUNT_EXIT_COUNT; ++exit) {
    SHUNT_ASSIGN_OR_RETURN(totals.exits[exit], ReadExit(exit), "");
  }
  if (bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.redirected_bytes), &kOnly, values.data()) !=
      0) {
    return ErrnoStatus(errno, "reading redirected_bytes map");
  }
  for (const uint64_t value : values) {
    totals.redirected_bytes += value;
  }
  SHUNT_ASSIGN_OR_RETURN(const auto ends, ReadEnds(), "");
  totals.ends = ends.size();
  totals.ends_capacity = bpf_map__max_entries(skeleton_->maps.ends);
  return totals;
}

absl::StatusOr<std::vector<std::pair<std::string, PodCounts>>> BpfDatapath::ReadPods() {
  SHUNT_ASSIGN_OR_RETURN(const std::vector<shunt_end_record> live, ListEnds(), "");
  std::unordered_map<uint32_t, PodCounts> counts;
  for (const shunt_end_record& record : live) {
    PodCounts& pod = counts[record.end.pod];
    pod.redirected_bytes += record.redirected_bytes;
    pod.pairs_live += record.key.role == SHUNT_SERVER;
  }
  const size_t cpus = static_cast<size_t>(libbpf_num_possible_cpus());
  std::vector<shunt_pod_totals> values(cpus);
  std::vector<std::pair<std::string, PodCounts>> pods;
  for (const auto& [uid, pod] : pods_) {
    PodCounts& sum = counts[pod.id];
    // No entry yet means nothing has ended yet.
    if (bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.pod_totals), &pod.id, values.data()) == 0) {
      for (const shunt_pod_totals& value : values) {
        sum.pairs_made += value.pairs_made;
        sum.redirected_bytes += value.redirected_bytes;
        sum.refused += value.refused;
      }
    }
    sum.live_before = pod.live_before;
    pods.emplace_back(uid, sum);
  }
  return pods;
}

absl::StatusOr<std::vector<shunt_end_record>> BpfDatapath::ListEnds() {
  return RunIterator(skeleton_->progs.shunt_list_ends, 0);
}

std::string BpfDatapath::UidOf(uint32_t pod_id) const {
  for (const auto& [uid, pod] : pods_) {
    if (pod.id == pod_id) {
      return uid;
    }
  }
  return "";
}

absl::Status BpfDatapath::DrainEvents(const std::function<void(const shunt_event&)>& receive) {
  return events_->Drain([this, &receive](const shunt_event& event) {
    TakeNote(event);
    receive(event);
  });
}

void BpfDatapath::TakeNote(const shunt_event& event) {
  if (event.kind == SHUNT_EVENT_LEAVING) {
    leaver_.Add(event.key);
  } else if (event.kind == SHUNT_EVENT_WORKLOAD && (event.reason == SHUNT_EXIT_WORKLOAD_NEW ||
                                                    event.reason == SHUNT_EXIT_WORKLOAD_UNSEEN)) {
    Watch();
  } else if (event.kind == SHUNT_EVENT_WORKLOAD) {
    judged_.push_back({event.pod, event.port});
  }
}

absl::Status BpfDatapath::RecallWorkloads(const AttachedPod& pod) {
  for (const KnownWorkload& known : memory_.OfPod(pod.target.uid)) {
    const shunt_workload_key key = {pod.id, known.port};
    shunt_workload workload = {};
    workload.state = known.hazards != 0 ? SHUNT_WORKLOAD_HAZARD : SHUNT_WORKLOAD_CLEAN;
    workload.hazards = known.hazards;
    if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.workloads), &key, &workload, BPF_NOEXIST) !=
            0 &&
        errno != EEXIST) {
      return ErrnoStatus(errno, "writing workloads map");
    }
  }
  return absl::OkStatus();
}

void BpfDatapath::RememberWorkload(const shunt_workload_key& key) {
  const std::string uid = UidOf(key.pod);
  shunt_workload workload = {};
  if (uid.empty() ||
      bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.workloads), &key, &workload) != 0) {
    return;  // the pod is gone
  }
  const auto name = [&workload](shunt_role role) {
    return std::string(workload.comm[role], strnlen(workload.comm[role], SHUNT_COMM_LEN));
  };
  KnownWorkload known = {uid, static_cast<uint16_t>(key.port), workload.hazards, name(SHUNT_CLIENT),
                         name(SHUNT_SERVER)};
  const uint32_t elsewhere = memory_.HazardsOf(known.port, known.client, known.server);
  if (workload.state == SHUNT_WORKLOAD_CLEAN && !known.server.empty() && elsewhere != 0) {
    workload.state = SHUNT_WORKLOAD_HAZARD;
    known.hazards = workload.hazards = elsewhere;
    bpf_map_update_elem(bpf_map__fd(skeleton_->maps.workloads), &key, &workload, BPF_EXIST);
    log::Warning("workload stays on TCP: another pod's of the same programs does",
                 {{"pod_uid", uid},
                  {"server_port", key.port},
                  {"client", known.client},
                  {"server", known.server},
                  {"hazards", HazardNames(elsewhere)},
                  {"reason", "hazard_known"}});
  }
  if (workload.state != SHUNT_WORKLOAD_WATCHED) {
    memory_.Remember(known);
  }
  if (workload.state == SHUNT_WORKLOAD_HAZARD) {
    LeaveWorkload(key);
  }
}

void BpfDatapath::Watch() {
  if (absl::Status status = watcher_->Watch(Watcher::Clock::now()); !status.ok()) {
    log::Error("new workloads stay on TCP: they cannot be watched",
               {{"reason", "no_tracepoints"}, {"err", std::string(status.message())}});
  }
  SayWatching();
}

void BpfDatapath::SayWatching() {
  const int fd = bpf_map__fd(skeleton_->maps.meta);
  struct shunt_meta meta = {};
  if (bpf_map_lookup_elem(fd, &kOnly, &meta) == 0 && meta.watching != watcher_->attached()) {
    meta.watching = watcher_->attached();
    bpf_map_update_elem(fd, &kOnly, &meta, BPF_EXIST);
  }
}

void BpfDatapath::LeaveWorkload(const shunt_workload_key& workload) {
  const absl::StatusOr<std::vector<shunt_end_record>> ends = ListEnds();
  if (!ends.ok()) {
    log::Error("pairs of a hazardous workload not found",
               {{"reason", "hazard"}, {"err", std::string(ends.status().message())}});
    return;
  }
  for (const shunt_end_record& record : *ends) {
    if (record.key.role == SHUNT_SERVER && record.end.pod == workload.pod &&
        record.end.local_port == workload.port) {
      leaver_.Add(record.key);
    }
  }
}

absl::Status BpfDatapath::FindLeavingPairs() {
  SHUNT_ASSIGN_OR_RETURN(const std::vector<shunt_end_record> ends, ListEnds(),
                         "finding pairs that were told to leave");
  for (const shunt_end_record& record : ends) {
    if (record.end.leaving) {
      leaver_.Add(record.key);
    }
  }
  return absl::OkStatus();
}

std::optional<std::chrono::microseconds> BpfDatapath::Tend() {
  using Microseconds = std::chrono::microseconds;
  for (const shunt_workload_key& workload : judged_) {
    RememberWorkload(workload);
  }
  judged_.clear();
  if (const absl::StatusOr<uint64_t> lost = ReadExit(SHUNT_EXIT_EVENT_LOST);
      lost.ok() && *lost != events_lost_ && FindLeavingPairs().ok()) {
    events_lost_ = *lost;
  }
  std::optional<Microseconds> next = leaver_.Step(Leaver::Clock::now());
  const auto watch = watcher_->Step(Watcher::Clock::now());
  SayWatching();
  if (watch.has_value()) {
    const auto until = std::chrono::ceil<Microseconds>(*watch);
    next = next.has_value() ? std::min(*next, until) : until;
  }
  return next;
}

LeavingPairs::Run BpfDatapath::RunLeavePair(const shunt_end_key& key, bool grace_passed) {
  skeleton_->bss->leaving_key = key;
  skeleton_->bss->grace_passed = grace_passed;
  char packet[64] = {};  // not looked at
  DECLARE_LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet,
                      .data_size_in = sizeof(packet));
  const int error =
      bpf_prog_test_run_opts(bpf_program__fd(skeleton_->progs.shunt_leave_pair), &options);
  if (error != 0) {
    log::Error("pair cannot be let go: it stays in order, and accelerated in no direction",
               {{"reason", "let_go_failed"}, {"err", std::string(strerror(-error))}});
    return {};
  }
  return {static_cast<int>(options.retval & ~SHUNT_GATE_CLOSED_NOW),
          (options.retval & SHUNT_GATE_CLOSED_NOW) != 0};
}

void BpfDatapath::InterruptCpus() {
  const int program = bpf_program__fd(skeleton_->progs.shunt_interrupt);
  for (int cpu = 0; cpu < libbpf_num_possible_cpus(); ++cpu) {
    DECLARE_LIBBPF_OPTS(bpf_test_run_opts, options, .flags = BPF_F_TEST_RUN_ON_CPU,
                        .cpu = static_cast<__u32>(cpu));
    // Fails for a CPU that is not online, which runs nothing.
    bpf_prog_test_run_opts(program, &options);
  }
}

absl::StatusOr<uint64_t> BpfDatapath::ReadExit(uint32_t exit) const {
  return ReadExitCounter(bpf_map__fd(skeleton_->maps.exits), exit);
}

absl::StatusOr<std::vector<WorkloadRecord>> BpfDatapath::ReadWorkloads() {
  return ReadWorkloadMap(bpf_map__fd(skeleton_->maps.workloads));
}

int BpfDatapath::EventsFd() const { return events_->fd(); }

}  // namespace shunt

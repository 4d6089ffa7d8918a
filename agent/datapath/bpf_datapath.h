// SPDX-License-Identifier: Apache-2.0
//
// The sockhash engine: loads, pins and owns bpf/shunt.bpf.c.
//
// Open() either makes the kernel side, as one transaction, or adopts what an
// earlier agent left pinned; in both cases nothing that runs is disturbed if it
// fails. Destroying the object leaves everything pinned and working. Not
// thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_BPF_DATAPATH_H_
#define SHUNT_AGENT_DATAPATH_BPF_DATAPATH_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/base/unique_fd.h"
#include "agent/datapath/datapath.h"
#include "agent/datapath/event_ring.h"
#include "agent/datapath/grace.h"
#include "agent/datapath/leaver.h"
#include "agent/datapath/live_sockets.h"
#include "agent/datapath/pins.h"
#include "agent/datapath/watcher.h"
#include "agent/datapath/workload_memory.h"

struct bpf_program;  // libbpf
struct sockhash;     // sockhash.skel.h, from bpf/shunt.bpf.c

namespace shunt {

struct BpfDatapathOptions {
  std::string bpffs;           // pin directory
  uint32_t max_pairs = 65536;  // room in the maps; an adopted map keeps its own size
  // From the behaviour probes.
  bool rmem_is_charged = true;
  bool fionread_counts_tcp = true;
  std::string memory_path;  // of WorkloadMemory
};

class BpfDatapath : public Datapath, private LeavingPairs {
 public:
  // FAILED_PRECONDITION: bpffs missing or read-only, pins damaged or of another
  // ABI version. ALREADY_EXISTS: another agent. PERMISSION_DENIED: capabilities.
  static absl::StatusOr<std::unique_ptr<BpfDatapath>> Open(const BpfDatapathOptions& options);
  ~BpfDatapath() override;

  std::string_view engine() const override { return "sockhash"; }
  std::vector<PodTarget> Adopted() const override;
  absl::Status Enrol(const PodTarget& pod) override;
  absl::Status Retire(const std::string& uid) override;
  absl::StatusOr<Waiting> LetGo(const std::string& uid) override;
  absl::Status RemovePins() override;
  absl::StatusOr<Totals> ReadTotals() override;
  absl::StatusOr<std::vector<std::pair<std::string, PodCounts>>> ReadPods() override;
  absl::StatusOr<std::vector<shunt_end_record>> ListEnds() override;
  std::string UidOf(uint32_t pod_id) const override;
  absl::Status DrainEvents(const std::function<void(const shunt_event&)>& receive) override;
  std::optional<std::chrono::microseconds> Tend() override;
  absl::StatusOr<std::vector<WorkloadRecord>> ReadWorkloads() override;
  int EventsFd() const override;

 private:
  struct SkeletonDeleter {
    void operator()(struct ::sockhash* skeleton) const;
  };
  struct AttachedPod {
    PodTarget target;
    uint32_t id = 0;
    bool retired = false;
    UniqueFd link;
    UniqueFd options;  // link of the setsockopt program
    LiveBefore live_before = {std::nullopt, "the pod was attached by an earlier agent"};
    // Ends that the policy does not list any more are leaving:
    bool sweeps = false;      // gates are being closed
    Grace::Ticket joins = 0;  // after it nothing joins under the old policy,
    bool all_closed = false;  // so this was the last time that gates were closed
  };
  // How much of the object this kernel takes.
  struct Variant {
    bool direct;   // sk_msg looks at the peer by direct loads
    bool watches;  // the tracepoints of bpf/watch.h
  };

  BpfDatapath(Pins pins, const BpfDatapathOptions& options);

  // Opens the object, on the pinned maps if `adopt`, and loads the best variant
  // that the kernel takes.
  absl::Status Load(bool adopt);
  absl::Status OpenSkeleton(bool adopt, const Variant& variant);
  absl::Status CreateKernelSide();
  absl::Status AdoptKernelSide();
  absl::Status ReusePinnedMaps();
  absl::Status AdoptPrograms();
  absl::Status AdoptLinks();

  absl::Status Attach(const PodTarget& pod);
  absl::Status WritePolicy(const shunt_policy& policy, uint64_t cgroup_id);
  // The pod's policy has become narrower: begins to close gates, see LetGo().
  absl::Status BeginSweep(AttachedPod* pod);
  // Closes the gates of the pod's ends that its policy does not list.
  absl::Status CloseGates(const AttachedPod& pod);
  absl::StatusOr<uint32_t> AllotPodId();
  absl::Status Detach(const std::string& uid);
  // Returns when every BPF program that runs now has ended.
  void AwaitGrace() const;
  // Runs an iterator program over all members; the pod with this id, or all (0).
  absl::StatusOr<std::vector<shunt_end_record>> RunIterator(const struct ::bpf_program* program,
                                                            uint32_t pod_id);
  absl::StatusOr<std::vector<std::pair<shunt_end_key, shunt_end>>> ReadEnds() const;
  absl::Status ForgetLeftovers(uint32_t pod_id);

  // LeavingPairs.
  Run RunLeavePair(const shunt_end_key& key, bool grace_passed) override;
  void InterruptCpus() override;
  Grace::Ticket AskGrace() override { return grace_->Ask(); }
  bool GracePassed(Grace::Ticket ticket) override { return grace_->Passed(ticket); }

  void TakeNote(const shunt_event& event);
  // Pairs that were told to leave and whose event was lost, or the agent.
  absl::Status FindLeavingPairs();
  void LeaveWorkload(const shunt_workload_key& workload);
  // Tells the kernel side what is remembered of a pod that is being attached.
  absl::Status RecallWorkloads(const AttachedPod& pod);
  // Keeps the verdict on a workload; looks whether its programs are known by now.
  void RememberWorkload(const shunt_workload_key& key);
  absl::StatusOr<uint64_t> ReadExit(uint32_t exit) const;
  void Watch();
  void SayWatching();

  Pins pins_;
  BpfDatapathOptions options_;
  const struct ::bpf_program* msg_program_ = nullptr;  // of skeleton_
  std::unique_ptr<struct ::sockhash, SkeletonDeleter> skeleton_;
  std::unique_ptr<EventRing> events_;
  UniqueFd sock_ops_;  // the generation that new pods are attached with
  std::map<std::string, AttachedPod> pods_;
  std::unique_ptr<Grace> grace_;  // uses the maps of skeleton_
  Leaver leaver_{this};
  std::unique_ptr<Watcher> watcher_;
  std::unique_ptr<LiveSockets> live_sockets_;
  WorkloadMemory memory_;
  std::vector<shunt_workload_key> judged_;  // since the last Tend()
  uint64_t events_lost_ = 0;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_BPF_DATAPATH_H_

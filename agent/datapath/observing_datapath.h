// SPDX-License-Identifier: Apache-2.0
//
// --dry-run: the kernel side looks at the pods' connections and changes none.
//
// Attached by links that end with this object, or with the process however it
// ends; nothing is pinned. What is learnt of workloads is not kept, and what
// earlier agents learnt is not asked. Not thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_OBSERVING_DATAPATH_H_
#define SHUNT_AGENT_DATAPATH_OBSERVING_DATAPATH_H_

#include <chrono>
#include <cstdint>
#include <functional>
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
#include "agent/datapath/live_sockets.h"
#include "agent/datapath/watcher.h"

struct sockhash;  // sockhash.skel.h, from bpf/shunt.bpf.c

namespace shunt {

struct ObservingDatapathOptions {
  std::string bpffs;  // where an agent that accelerates would pin; only looked at
  bool fionread_counts_tcp = true;
};

class ObservingDatapath : public Datapath {
 public:
  // FAILED_PRECONDITION: there are pins, so connections may be accelerated and would
  // be observed wrongly. PERMISSION_DENIED: capabilities.
  static absl::StatusOr<std::unique_ptr<ObservingDatapath>> Open(
      const ObservingDatapathOptions& options);
  ~ObservingDatapath() override;

  std::string_view engine() const override { return "none"; }
  bool observes() const override { return true; }
  std::vector<PodTarget> Adopted() const override { return {}; }
  absl::Status Enrol(const PodTarget& pod) override;
  absl::Status Retire(const std::string& uid) override;
  absl::StatusOr<Waiting> LetGo(const std::string&) override { return Waiting(); }
  absl::Status RemovePins() override { return absl::OkStatus(); }
  absl::StatusOr<Totals> ReadTotals() override;
  absl::StatusOr<std::vector<std::pair<std::string, PodCounts>>> ReadPods() override;
  absl::StatusOr<std::vector<shunt_end_record>> ListEnds() override {
    return std::vector<shunt_end_record>();
  }
  std::string UidOf(uint32_t pod_id) const override;
  absl::Status DrainEvents(const std::function<void(const shunt_event&)>& receive) override;
  std::optional<std::chrono::microseconds> Tend() override;
  absl::StatusOr<std::vector<WorkloadRecord>> ReadWorkloads() override;
  int EventsFd() const override;

 private:
  struct SkeletonDeleter {
    void operator()(struct ::sockhash* skeleton) const;
  };
  struct ObservedPod {
    PodTarget target;
    uint32_t id = 0;
    LiveBefore live_before;
    UniqueFd link;
    UniqueFd options;  // link of the setsockopt program
  };

  explicit ObservingDatapath(const ObservingDatapathOptions& options) : options_(options) {}

  absl::Status Load();
  int OpenAndLoad(bool watches);
  absl::Status Attach(const PodTarget& pod);
  absl::Status WritePolicy(const ObservedPod& pod);
  PodObservation ObservationOf(uint32_t pod_id) const;
  // Has too little been seen of its programs to call it clean or a hazard?
  bool IsNew(const shunt_workload_key& key) const;
  void Watch();

  ObservingDatapathOptions options_;
  std::unique_ptr<struct ::sockhash, SkeletonDeleter> skeleton_;
  std::unique_ptr<EventRing> events_;
  std::unique_ptr<Watcher> watcher_;  // its programs are skeleton_'s
  std::unique_ptr<LiveSockets> live_sockets_;
  std::map<std::string, ObservedPod> pods_;
  uint32_t next_pod_ = 1;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_OBSERVING_DATAPATH_H_

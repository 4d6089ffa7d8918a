// SPDX-License-Identifier: Apache-2.0
//
// The kernel, as the rest of the agent sees it: enrol pods, let them go, count.
// One implementation per engine, and a behavioural fake for tests.
//
// Not thread-safe: one caller at a time (the Reconciler's lock).
#ifndef SHUNT_AGENT_DATAPATH_DATAPATH_H_
#define SHUNT_AGENT_DATAPATH_DATAPATH_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/pair/exits.h"
#include "agent/pair/pod.h"
#include "kmod/uapi/shunt.h"

namespace shunt {

// A pod whose cgroup has been found.
struct PodTarget {
  std::string uid;
  std::string cgroup;            // directory
  uint64_t cgroup_id = 0;        // its inode: the same path with another id is a new sandbox
  std::vector<PortRange> ports;  // Normalized()

  friend bool operator==(const PodTarget& a, const PodTarget& b) {
    return a.uid == b.uid && a.cgroup_id == b.cgroup_id && a.ports == b.ports;
  }
};

// What still holds a pod, or the node, back from being let go.
struct Waiting {
  uint64_t ends = 0;                       // members that could not leave yet
  uint64_t unread_bytes = 0;               // redirected to them and not read
  std::vector<shunt_end_record> examples;  // at most a few
  bool may_grow = false;                   // more may join yet: the policy is that new
};

// Connections to a pod's listed ports that were there when it was attached.
struct LiveBefore {
  std::optional<uint64_t> connections;
  std::string unknown;  // why, if it has no value
};

// What would have become of a pod's connections (--dry-run).
struct PodObservation {
  uint64_t would_accelerate = 0;
  std::map<uint32_t, uint64_t> would_stay;  // on TCP, by shunt_exit
  std::map<uint16_t, uint32_t> hazards;     // by server port
  uint64_t receives = 0;                    // seen while its workloads were watched
  uint64_t received_bytes = 0;
};

struct PodCounts {
  uint64_t pairs_made = 0;
  uint64_t pairs_live = 0;
  uint64_t redirected_bytes = 0;
  uint64_t refused = 0;
  LiveBefore live_before = {std::nullopt, "not attached"};
  std::optional<PodObservation> observation;  // if the datapath observes
};

// The programs at the two ends of a port of a pod.
struct WorkloadRecord {
  shunt_workload_key key = {};
  shunt_workload workload = {};
};

struct Totals {
  ExitCounts exits{};
  uint64_t redirected_bytes = 0;
  uint64_t ends = 0;  // enrolled sockets
  uint64_t ends_capacity = 0;
};

class Datapath {
 public:
  virtual ~Datapath() = default;

  // "sockhash", "kmod", "none".
  virtual std::string_view engine() const = 0;
  // Enrolled pods are only looked at.
  virtual bool observes() const { return false; }

  // Pods found attached when this object was made: what an earlier agent left.
  // Without a path; and without ports if the pod was being retired.
  virtual std::vector<PodTarget> Adopted() const = 0;

  // Attaches the pod's cgroup or, if it is attached, replaces its policy.
  // New connections follow it from now on; enrolled connections whose port it does
  // not list are to leave: call LetGo(). Fails without effect.
  // INVALID_ARGUMENT: too many port ranges; NOT_FOUND: cgroup is gone.
  virtual absl::Status Enrol(const PodTarget& pod) = 0;

  // No new connection of the pod is enrolled any more and all that are leave: call
  // LetGo() until they are gone. Idempotent. NOT_FOUND: not attached.
  virtual absl::Status Retire(const std::string& uid) = 0;

  // Has the ends of the pod that are to leave looked after by Tend(), which lets each
  // go when that is free of loss, and says how many there are; a retired pod with
  // none left is detached. Call again, a little later, until ends == 0 and not
  // may_grow.
  virtual absl::StatusOr<Waiting> LetGo(const std::string& uid) = 0;

  // After every pod is gone: removes all pins. The object is unusable after.
  virtual absl::Status RemovePins() = 0;

  virtual absl::StatusOr<Totals> ReadTotals() = 0;
  // By pod uid.
  virtual absl::StatusOr<std::vector<std::pair<std::string, PodCounts>>> ReadPods() = 0;
  virtual absl::StatusOr<std::vector<shunt_end_record>> ListEnds() = 0;
  // The uid that enrolled ends carry as shunt_end.pod; empty if unknown.
  virtual std::string UidOf(uint32_t pod_id) const = 0;

  // Delivers what the kernel side reported since the last call, and takes note of
  // it for Tend(). Never blocks.
  virtual absl::Status DrainEvents(const std::function<void(const shunt_event&)>& receive) = 0;
  // Does what the kernel side asked for by events: takes pairs back to TCP, watches
  // new workloads. When to come again although nothing else happens, if ever.
  virtual std::optional<std::chrono::microseconds> Tend() = 0;
  // What is known of the workloads of pods that are attached.
  virtual absl::StatusOr<std::vector<WorkloadRecord>> ReadWorkloads() = 0;
  // Readable when many events wait; -1 if there are none.
  virtual int EventsFd() const = 0;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_DATAPATH_H_

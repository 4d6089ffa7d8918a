// SPDX-License-Identifier: Apache-2.0
//
// What an operator can see of this node, and the one thing they can order
// (drain). The admin service, the metrics and the health check all read this
// one object. Implementations are thread-safe.
#ifndef SHUNT_AGENT_OBSERVE_NODE_VIEW_H_
#define SHUNT_AGENT_OBSERVE_NODE_VIEW_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/datapath/datapath.h"
#include "agent/pair/pod.h"
#include "agent/pair/pod_state.h"
#include "agent/probe/probe.h"

namespace shunt {

struct PodView {
  PodSpec spec;
  PodState state = PodState::kWaiting;
  std::string reason;  // a stable code: "enrolled", "cgroup_not_found", …
  std::string detail;  // a sentence for people; may be empty
  PodCounts counts;
};

// Two enrolled ends of one connection.
struct PairView {
  std::string pod_uid;
  uint16_t client_port = 0;             // as bound by the client
  uint16_t server_port = 0;             // as bound by the server: after NAT
  uint16_t dialed_port = 0;             // what the client connected to: before NAT
  std::string family;                   // "ipv4", "ipv6"
  std::string direction;                // "app_to_proxy", "proxy_to_app", or "" without proxyUid
  uint64_t client_to_server_bytes = 0;  // redirected
  uint64_t server_to_client_bytes = 0;
  uint64_t unread_bytes = 0;
  double age_seconds = 0;
  std::string state;  // "accelerated", "leaving"
};

struct NodeStatus {
  std::string engine;  // "sockhash", "kmod", "none"
  std::string engine_reason;
  std::string version;
  bool draining = false;
  uint64_t pods = 0;  // wanted
  uint64_t pods_enrolling = 0;
  uint64_t pairs_live = 0;         // accelerated now
  uint64_t connections_plain = 0;  // to listed ports, left on TCP, since the maps were made
  Totals totals;
  std::optional<PodObservation> observation;  // of all pods, with --dry-run
  std::string config_error;  // why the last reload was refused; empty if it was not
};

struct DrainProgress {
  bool done = false;
  uint64_t pods = 0;                                          // still attached
  Waiting waiting;                                            // of all of them
  std::vector<std::pair<std::string, Waiting>> waiting_pods;  // by uid; a few suffice
};

class NodeView {
 public:
  virtual ~NodeView() = default;

  virtual absl::StatusOr<NodeStatus> Status() = 0;
  virtual absl::StatusOr<std::vector<PodView>> Pods() = 0;
  virtual absl::StatusOr<std::vector<PairView>> Pairs() = 0;
  virtual std::vector<ProbeView> Doctor() = 0;

  // Closes every gate and lets every connection go; returns when the pins are
  // removed, when `report` returns false, or on failure. Reports about ten
  // times a second. The agent stays up afterwards, with engine "none", reason
  // "drained", until it is restarted.
  virtual absl::Status Drain(const std::function<bool(const DrainProgress&)>& report) = 0;

  // True once desired state has been applied for the first time.
  virtual bool Ready() = 0;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_NODE_VIEW_H_

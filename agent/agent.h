// SPDX-License-Identifier: Apache-2.0
//
// The composition: source -> reconciler -> datapath, and what operators see of
// it. One thread runs the loop; the admin server's threads read through
// NodeView. Destroying it leaves the kernel side pinned and working.
#ifndef SHUNT_AGENT_AGENT_H_
#define SHUNT_AGENT_AGENT_H_

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/base/unique_fd.h"
#include "agent/config/config.h"
#include "agent/datapath/datapath.h"
#include "agent/observe/admin_server.h"
#include "agent/observe/event_log.h"
#include "agent/observe/metrics.h"
#include "agent/observe/node_view.h"
#include "agent/probe/engine_choice.h"
#include "agent/reconcile/reconciler.h"
#include "agent/resolve/cgroup_resolver.h"
#include "agent/source/source.h"

namespace shunt {

struct AgentOptions {
  std::string config_path;
  std::optional<EngineChoice> engine;  // overrides the file's
  bool dry_run = false;                // observe only
  uint32_t max_pairs = 65536;
};

class Agent : public NodeView {
 public:
  // Everything that can be refused is refused here, before anything that runs
  // is touched.
  static absl::StatusOr<std::unique_ptr<Agent>> Create(const AgentOptions& options);
  ~Agent() override;

  // Runs until SIGTERM or SIGINT, which must be blocked in every thread.
  absl::Status Run();

  absl::StatusOr<NodeStatus> Status() override;
  absl::StatusOr<std::vector<PodView>> Pods() override;
  absl::StatusOr<std::vector<PairView>> Pairs() override;
  std::vector<ProbeView> Doctor() override;
  absl::Status Drain(const std::function<bool(const DrainProgress&)>& report) override;
  bool Ready() override;

 private:
  Agent() = default;

  absl::Status ChooseEngine(const AgentOptions& options, const AgentConfig& config);
  absl::Status StartSource(const std::string& config_path);
  void OnPods(std::vector<PodSpec> pods);
  void OnSourceStatus(const absl::Status& status);
  void Wake();
  using Microseconds = std::chrono::microseconds;
  // One pass of the loop's work; how long it may sleep after it, if not for ever.
  std::optional<Microseconds> Pass();

  // Constant after Create().
  EngineDecision decision_;
  std::unique_ptr<CgroupResolver> resolver_;
  UniqueFd wake_;

  std::mutex drain_mutex_;                  // held by the one drain; taken before mutex_
  std::mutex mutex_;                        // guards all below
  std::unique_ptr<Datapath> datapath_;      // null: nothing is accelerated
  std::unique_ptr<Reconciler> reconciler_;  // null with datapath_
  std::vector<PodSpec> pods_;
  bool pods_known_ = false;
  bool draining_ = false;
  bool drained_ = false;
  std::string config_error_;
  EventLog event_log_;
  std::chrono::steady_clock::time_point reconcile_at_;

  // Call into this object from their own threads: stopped first.
  std::unique_ptr<Source> source_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<AdminServer> admin_;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_AGENT_H_

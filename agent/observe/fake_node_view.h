// SPDX-License-Identifier: Apache-2.0
//
// A node of which a test says what is seen. Thread-safe once it is being read;
// set the members before.
#ifndef SHUNT_AGENT_OBSERVE_FAKE_NODE_VIEW_H_
#define SHUNT_AGENT_OBSERVE_FAKE_NODE_VIEW_H_

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "agent/observe/node_view.h"

namespace shunt {

class FakeNodeView : public NodeView {
 public:
  absl::StatusOr<NodeStatus> Status() override { return status; }
  absl::StatusOr<std::vector<PodView>> Pods() override { return pods; }
  absl::StatusOr<std::vector<PairView>> Pairs() override {
    std::this_thread::sleep_for(pairs_take);
    return pairs;
  }
  std::vector<ProbeView> Doctor() override { return probes; }

  // Reports drain_steps one after the other, the last one again and again
  // unless it is done; then returns drain_result.
  absl::Status Drain(const std::function<bool(const DrainProgress&)>& report) override {
    ++drains;
    for (size_t step = 0; step < drain_steps.size();) {
      if (!report(drain_steps[step])) {
        ++abandoned_drains;
        return absl::OkStatus();
      }
      if (drain_steps[step].done || step + 1 < drain_steps.size()) {
        ++step;
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
    }
    return drain_result;
  }

  bool Ready() override { return ready; }

  absl::StatusOr<NodeStatus> status = NodeStatus{};
  absl::StatusOr<std::vector<PodView>> pods = std::vector<PodView>{};
  absl::StatusOr<std::vector<PairView>> pairs = std::vector<PairView>{};
  std::chrono::milliseconds pairs_take{0};
  std::vector<ProbeView> probes;
  std::vector<DrainProgress> drain_steps;
  absl::Status drain_result;
  std::atomic<bool> ready{false};
  std::atomic<int> drains{0};
  std::atomic<int> abandoned_drains{0};
};

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_FAKE_NODE_VIEW_H_

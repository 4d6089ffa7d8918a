// SPDX-License-Identifier: Apache-2.0
//
// Prometheus metrics of the node. Everything is read from NodeView when it is
// scraped; between scrapes nothing runs. No label names a pod or a port, so the
// number of series does not grow with the node. Thread-safe.
#ifndef SHUNT_AGENT_OBSERVE_METRICS_H_
#define SHUNT_AGENT_OBSERVE_METRICS_H_

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/observe/node_view.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"
#include "prometheus/metric_family.h"

namespace shunt {

// One scrape's answer. Where NodeView fails, the families that depend on the
// answer are left out and shunt_agent_scrape_errors_total grows.
class NodeCollector : public prometheus::Collectable {
 public:
  // `view` is not owned and outlives this object.
  explicit NodeCollector(NodeView* view) : view_(view) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  NodeView* const view_;
  mutable std::atomic<uint64_t> errors_{0};
};

class Metrics {
 public:
  // Answers GET /metrics on `address` when it returns: "127.0.0.1:9464",
  // "[::1]:9464"; port 0 lets the kernel choose. INVALID_ARGUMENT: not such an
  // address; otherwise why it could not be had.
  // `view` is not owned and outlives this object.
  static absl::StatusOr<std::unique_ptr<Metrics>> Create(const std::string& address,
                                                         NodeView* view);

  // Waits for scrapes under way.
  ~Metrics();

  int port() const { return exposer_->GetListeningPorts().front(); }

 private:
  Metrics(std::string host, NodeView* view)
      : host_(std::move(host)), collector_(std::make_shared<NodeCollector>(view)) {}

  const std::string host_;  // without brackets
  const std::shared_ptr<NodeCollector> collector_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_METRICS_H_

// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/metrics.h"

#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <exception>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "agent/base/log.h"
#include "agent/base/status.h"
#include "agent/base/unique_fd.h"
#include "agent/pair/exits.h"

namespace shunt {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// A scraper and a person with curl; a third waits.
constexpr char kServerThreads[] = "2";
constexpr char kRequestTimeoutMs[] = "5000";

MetricFamily Family(MetricType type, std::string name, std::string help) {
  return {std::move(name), std::move(help), type, {}};
}

void Add(MetricFamily* family, std::vector<ClientMetric::Label> labels, uint64_t value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  if (family->type == MetricType::Counter) {
    metric.counter.value = static_cast<double>(value);
  } else {
    metric.gauge.value = static_cast<double>(value);
  }
  family->metric.push_back(std::move(metric));
}

MetricFamily Single(MetricType type, std::string name, std::string help, uint64_t value) {
  MetricFamily family = Family(type, std::move(name), std::move(help));
  Add(&family, {}, value);
  return family;
}

// The families that every exit belongs to exactly one of.
enum class Counted { kConnection, kMessage, kExit };

struct Outcome {
  Counted what;
  const char* result;  // null for kExit
};

Outcome OutcomeOf(uint32_t exit) {
  switch (exit) {
    case SHUNT_EXIT_PAIR_MADE:
      return {Counted::kConnection, "paired"};
    case SHUNT_EXIT_REDIRECTED:
      return {Counted::kMessage, "redirected"};
    case SHUNT_EXIT_ORPHAN_RELEASED:
      // Its connection has been counted by the reason why the server could not join.
      return {Counted::kExit, nullptr};
    default:
      break;
  }
  switch (ClassOf(exit)) {
    case ExitClass::kPlain:
      return {Counted::kConnection, "plain"};
    case ExitClass::kRefused:
      return {Counted::kConnection, "refused"};
    case ExitClass::kFallback:
      return {Counted::kMessage, "fallback"};
    case ExitClass::kProgress:
    case ExitClass::kLeaving:
    case ExitClass::kAgent:
      return {Counted::kExit, nullptr};
  }
  return {Counted::kExit, nullptr};
}

void AddExits(const ExitCounts& exits, std::vector<MetricFamily>* families) {
  MetricFamily connections = Family(
      MetricType::Counter, "shunt_agent_connections_total",
      "Connections by what was decided about them; one that stays on TCP inside a pod may be "
      "decided about at each of its two ends.");
  MetricFamily messages =
      Family(MetricType::Counter, "shunt_agent_messages_total",
             "Messages sent on enrolled connections: redirected to the peer's socket, or sent by "
             "TCP for a reason.");
  MetricFamily others =
      Family(MetricType::Counter, "shunt_agent_exits_total",
             "Exits of the kernel programs that decide about neither a connection nor a message.");
  for (uint32_t exit = 0; exit < SHUNT_EXIT_COUNT; ++exit) {
    const Outcome outcome = OutcomeOf(exit);
    const ClientMetric::Label reason{"reason", std::string(ExitReason(exit))};
    if (outcome.what == Counted::kExit) {
      Add(&others, {reason}, exits[exit]);
    } else {
      Add(outcome.what == Counted::kConnection ? &connections : &messages,
          {{"result", outcome.result}, reason}, exits[exit]);
    }
  }
  families->push_back(std::move(connections));
  families->push_back(std::move(messages));
  families->push_back(std::move(others));
}

void AddStatus(const NodeStatus& status, std::vector<MetricFamily>* families) {
  MetricFamily build =
      Family(MetricType::Gauge, "shunt_build_info", "Always 1; what runs is in the labels.");
  Add(&build, {{"version", status.version}, {"engine", status.engine}}, 1);
  families->push_back(std::move(build));

  families->push_back(Single(MetricType::Counter, "shunt_agent_redirected_bytes_total",
                             "Bytes handed from socket to socket instead of through TCP.",
                             status.totals.redirected_bytes));
  AddExits(status.totals.exits, families);
  families->push_back(Single(MetricType::Gauge, "shunt_agent_pairs", "Connections accelerated now.",
                             status.pairs_live));
  for (const auto& [name, help, value] :
       {std::tuple("shunt_agent_map_entries", "Entries of a kernel map.", status.totals.ends),
        std::tuple("shunt_agent_map_max_entries", "Room of a kernel map.",
                   status.totals.ends_capacity)}) {
    MetricFamily family = Family(MetricType::Gauge, name, help);
    Add(&family, {{"map", "ends"}}, value);
    families->push_back(std::move(family));
  }
}

MetricFamily PodsByState(const std::vector<PodView>& pods) {
  std::map<PodState, uint64_t> counts = {{PodState::kEnrolling, 0},
                                         {PodState::kWaiting, 0},
                                         {PodState::kFailed, 0},
                                         {PodState::kLeaving, 0},
                                         {PodState::kObserved, 0}};
  for (const PodView& pod : pods) {
    ++counts[pod.state];
  }
  MetricFamily family =
      Family(MetricType::Gauge, "shunt_agent_pods", "Pods of this node by where they stand.");
  for (const auto& [state, count] : counts) {
    Add(&family, {{"state", std::string(ToString(state))}}, count);
  }
  return family;
}

// Pods of which it is unknown have no sample.
MetricFamily LiveBeforeByPod(const std::vector<PodView>& pods) {
  MetricFamily family =
      Family(MetricType::Gauge, "shunt_agent_pod_live_before_connections",
             "Connections to listed ports of a pod that were there when it was attached; they "
             "stay on TCP.");
  for (const PodView& pod : pods) {
    if (pod.counts.live_before.connections.has_value()) {
      Add(&family, {{"pod_uid", pod.spec.uid}}, *pod.counts.live_before.connections);
    }
  }
  return family;
}

// With --dry-run only.
MetricFamily Observed(const PodObservation& observation) {
  MetricFamily family =
      Family(MetricType::Counter, "shunt_agent_observed_connections_total",
             "Connections to listed ports by what would become of them (--dry-run).");
  Add(&family, {{"result", "would_accelerate"}, {"reason", "would_accelerate"}},
      observation.would_accelerate);
  for (const auto& [exit, count] : observation.would_stay) {
    Add(&family, {{"result", "would_stay"}, {"reason", std::string(ExitReason(exit))}}, count);
  }
  return family;
}

struct Address {
  std::string host;  // without brackets
  std::string port;
};

absl::StatusOr<Address> Parse(const std::string& text) {
  const absl::Status refused = absl::InvalidArgumentError(absl::StrCat(
      "metrics address \"", text,
      "\" is not an IP address and a port: write it like 127.0.0.1:9464 or [::1]:9464"));
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    return refused;
  }
  Address address{text.substr(0, colon), text.substr(colon + 1)};
  if (address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
  } else if (address.host.find(':') != std::string::npos) {
    return refused;
  }
  unsigned port = 0;
  if (address.host.empty() || !absl::SimpleAtoi(address.port, &port) || port > 65535) {
    return refused;
  }
  address.port = absl::StrCat(port);
  return address;
}

using AddressInfo = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// Null if the host is not an IP address.
AddressInfo Lookup(const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  return AddressInfo(found, &freeaddrinfo);
}

// Civetweb does not say why it cannot listen, so the kernel is asked first.
absl::Status TryListening(const std::string& text, const Address& address) {
  const AddressInfo found = Lookup(address.host, address.port);
  if (found == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address \"", text, "\": ", address.host,
                     " is not an IP address: write it like 127.0.0.1:9464 or [::1]:9464"));
  }
  const UniqueFd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(fd.get(), found->ai_addr, found->ai_addrlen) != 0 || listen(fd.get(), 1) != 0) {
    const int error = errno;
    const char* to_do = error == EADDRINUSE
                            ? ": stop who listens there, or choose another admin.metrics"
                            : ": set admin.metrics to an address of this node";
    const absl::Status status =
        ErrnoStatus(error, absl::StrCat("listening on metrics address ", text));
    return absl::Status(status.code(), absl::StrCat(status.message(), to_do));
  }
  return absl::OkStatus();
}

// Makes a listener's poll() return. `address` may be a wildcard.
void Knock(const addrinfo& address) {
  const UniqueFd fd(socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  connect(fd.get(), address.ai_addr, address.ai_addrlen);
}

}  // namespace

std::vector<MetricFamily> NodeCollector::Collect() const {
  std::vector<MetricFamily> families;
  const absl::StatusOr<NodeStatus> status = view_->Status();
  if (status.ok()) {
    AddStatus(*status, &families);
    if (status->observation.has_value()) {
      families.push_back(Observed(*status->observation));
    }
  }
  const absl::StatusOr<std::vector<PodView>> pods = view_->Pods();
  if (pods.ok()) {
    families.push_back(PodsByState(*pods));
    if (MetricFamily live_before = LiveBeforeByPod(*pods); !live_before.metric.empty()) {
      families.push_back(std::move(live_before));
    }
  }
  for (const absl::Status& part : {status.status(), pods.status()}) {
    if (!part.ok()) {
      ++errors_;
      log::Warning("metrics are incomplete", {{"err", std::string(part.message())}});
    }
  }
  families.push_back(Single(MetricType::Counter, "shunt_agent_scrape_errors_total",
                            "Parts of scrapes that could not be read from the node.", errors_));
  return families;
}

absl::StatusOr<std::unique_ptr<Metrics>> Metrics::Create(const std::string& address,
                                                         NodeView* view) {
  const absl::StatusOr<Address> parsed = Parse(address);
  if (!parsed.ok()) {
    return parsed.status();
  }
  if (absl::Status status = TryListening(address, *parsed); !status.ok()) {
    return status;
  }
  auto metrics = absl::WrapUnique(new Metrics(parsed->host, view));
  try {
    metrics->exposer_ = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", address, "num_threads", kServerThreads,
                                 "request_timeout_ms", kRequestTimeoutMs});
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("listening on metrics address ", address, ": ",
                                               error.what(), ": choose another admin.metrics"));
  }
  metrics->exposer_->RegisterCollectable(metrics->collector_);
  return metrics;
}

// Civetweb looks for its end every two seconds, or when somebody knocks.
Metrics::~Metrics() {
  if (exposer_ == nullptr) {
    return;
  }
  const AddressInfo address = Lookup(host_, absl::StrCat(port()));
  std::atomic<bool> stopped{false};
  std::thread knocker([&] {
    while (address != nullptr && !stopped) {
      Knock(*address);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  exposer_.reset();
  stopped = true;
  knocker.join();
}

}  // namespace shunt

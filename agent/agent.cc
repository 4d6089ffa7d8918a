// SPDX-License-Identifier: Apache-2.0
#include "agent/agent.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "agent/base/log.h"
#include "agent/base/status.h"
#include "agent/base/version.h"
#include "agent/datapath/bpf_datapath.h"
#include "agent/datapath/observing_datapath.h"
#include "agent/observe/pairs.h"
#include "agent/probe/probe.h"
#include "agent/source/static_source.h"

namespace shunt {
namespace {

using Milliseconds = std::chrono::milliseconds;

constexpr Milliseconds kDrainReport{100};

uint64_t MonotonicNanoseconds() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// What the file says of cgroups that exist must be true; one that does not is
// waited for.
absl::StatusOr<AgentConfig> LoadChecked(const std::string& path) {
  absl::StatusOr<AgentConfig> config = LoadConfig(path);
  if (config.ok()) {
    for (const PodSpec& pod : config->pods) {
      SHUNT_RETURN_IF_ERROR(CheckCgroup(pod), path);
    }
  }
  return config;
}

// What one pod's observation adds to the node's.
void AddTo(const PodObservation& pod, NodeStatus* status) {
  if (!status->observation.has_value()) {
    status->observation.emplace();
  }
  PodObservation& node = *status->observation;
  node.would_accelerate += pod.would_accelerate;
  node.receives += pod.receives;
  node.received_bytes += pod.received_bytes;
  for (const auto& [verdict, count] : pod.would_stay) {
    node.would_stay[verdict] += count;
    status->connections_plain += count;
  }
  for (const auto& [port, hazards] : pod.hazards) {
    node.hazards[port] |= hazards;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Agent>> Agent::Create(const AgentOptions& options) {
  SHUNT_ASSIGN_OR_RETURN(const AgentConfig config, LoadChecked(options.config_path), "");
  if (config.controller.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.config_path,
                     ": controller: this agent has no controller source; list the pods under "
                     "static: instead"));
  }
  std::unique_ptr<Agent> agent(new Agent);
  agent->wake_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!agent->wake_.valid()) {
    return ErrnoStatus(errno, "making the loop's eventfd");
  }
  SHUNT_ASSIGN_OR_RETURN(const std::string mount, FindCgroup2Mount(), "");
  agent->resolver_ = std::make_unique<CgroupResolver>(mount);
  // The socket first: it is how a second agent of the same node finds out.
  SHUNT_ASSIGN_OR_RETURN(agent->admin_, AdminServer::Create({config.admin_socket}, agent.get()),
                         "serving the admin socket");
  SHUNT_ASSIGN_OR_RETURN(agent->metrics_, Metrics::Create(config.metrics_address, agent.get()),
                         "serving metrics");
  SHUNT_RETURN_IF_ERROR(agent->ChooseEngine(options, config), "");
  SHUNT_RETURN_IF_ERROR(agent->StartSource(options.config_path), "");
  return agent;
}

Agent::~Agent() {
  source_.reset();
  metrics_.reset();
  admin_.reset();
}

absl::Status Agent::ChooseEngine(const AgentOptions& options, const AgentConfig& config) {
  const EngineChoice choice = options.engine.value_or(config.engine);
  EngineDecision decision;
  ProbeReport report;
  if (options.dry_run) {
    SHUNT_ASSIGN_OR_RETURN(report, RunProbes(ProbeScope::kEssential), "probing the kernel");
    const absl::StatusOr<EngineDecision> real = Choose(choice, report, /*kmod_present=*/false);
    decision = {"none", "dry_run",
                absl::StrCat("--dry-run: connections are looked at, none is changed; without it: ",
                             real.ok() ? absl::StrCat(real->engine, ", ", real->detail)
                                       : std::string(real.status().message()))};
    decision.fionread_counts_tcp_bytes = !real.ok() || real->fionread_counts_tcp_bytes;
  } else if (choice == EngineChoice::kNone) {
    decision = {"none", "configured", "engine: none"};
  } else {
    SHUNT_ASSIGN_OR_RETURN(report, RunProbes(ProbeScope::kEssential), "probing the kernel");
    SHUNT_ASSIGN_OR_RETURN(decision, Choose(choice, report, /*kmod_present=*/false),
                           "choosing the engine");
  }
  std::unique_ptr<Datapath> datapath;
  if (options.dry_run) {
    SHUNT_ASSIGN_OR_RETURN(
        datapath, ObservingDatapath::Open({config.bpffs, decision.fionread_counts_tcp_bytes}), "");
  } else if (decision.engine == "sockhash") {
    BpfDatapathOptions datapath_options;
    datapath_options.bpffs = config.bpffs;
    datapath_options.max_pairs = options.max_pairs;
    datapath_options.rmem_is_charged = report.rmem_is_charged;
    datapath_options.fionread_counts_tcp = decision.fionread_counts_tcp_bytes;
    datapath_options.memory_path =
        (std::filesystem::path(config.admin_socket).parent_path() / "workloads.json").string();
    SHUNT_ASSIGN_OR_RETURN(datapath, BpfDatapath::Open(datapath_options), "");
  }
  log::Info(
      "engine chosen",
      {{"engine", decision.engine}, {"reason", decision.reason}, {"detail", decision.detail}});
  std::lock_guard<std::mutex> lock(mutex_);
  decision_ = std::move(decision);
  if (datapath != nullptr) {
    datapath_ = std::move(datapath);
    reconciler_ = std::make_unique<Reconciler>(datapath_.get(), resolver_.get());
  }
  return absl::OkStatus();
}

absl::Status Agent::StartSource(const std::string& config_path) {
  const auto load = [config_path]() -> absl::StatusOr<std::vector<PodSpec>> {
    absl::StatusOr<AgentConfig> config = LoadChecked(config_path);
    if (!config.ok()) {
      return config.status();
    }
    return std::move(config->pods);
  };
  source_ = std::make_unique<StaticSource>(
      config_path, load, [this](const absl::Status& status) { OnSourceStatus(status); });
  return Annotate(source_->Start([this](std::vector<PodSpec> pods) { OnPods(std::move(pods)); }),
                  "starting the static source");
}

void Agent::OnPods(std::vector<PodSpec> pods) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    log::Info("desired state", {{"pods", pods.size()}, {"reason", "source_changed"}});
    pods_ = std::move(pods);
    pods_known_ = true;
    if (reconciler_ != nullptr && !draining_) {
      reconciler_->SetDesired(pods_);
    }
  }
  Wake();
}

void Agent::OnSourceStatus(const absl::Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (status.ok() == config_error_.empty() && status.message() == config_error_) {
    return;
  }
  config_error_ = std::string(status.message());
  if (status.ok()) {
    log::Info("configuration is good again", {{"reason", "config_accepted"}});
  } else {
    log::Error("configuration refused, the last good one stays in force",
               {{"reason", "config_refused"}, {"err", config_error_}});
  }
}

void Agent::Wake() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    reconcile_at_ = {};
  }
  const uint64_t one = 1;
  // Fails only if the counter is full, and then the loop is awake anyway.
  (void)!write(wake_.get(), &one, sizeof(one));
}

std::optional<Agent::Microseconds> Agent::Pass() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (reconciler_ == nullptr) {
    return std::nullopt;
  }
  const absl::Status events = datapath_->DrainEvents([this](const shunt_event& event) {
    event_log_.Write(event, [this](uint32_t pod) { return datapath_->UidOf(pod); });
  });
  if (!events.ok()) {
    log::Error("events lost", {{"reason", "event_lost"}, {"err", std::string(events.message())}});
  }
  // The reconciler looks at every cgroup: not each time a pair leaves.
  const auto now = std::chrono::steady_clock::now();
  if (now >= reconcile_at_) {
    reconcile_at_ = now + reconciler_->Step();
  }
  const auto until = std::chrono::ceil<Microseconds>(
      std::max(reconcile_at_ - now, decltype(reconcile_at_ - now)()));
  return std::min(until, datapath_->Tend().value_or(until));
}

absl::Status Agent::Run() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  UniqueFd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signal_fd.valid()) {
    return ErrnoStatus(errno, "listening for signals");
  }
  int events_fd = -1;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    events_fd = datapath_ == nullptr ? -1 : datapath_->EventsFd();
  }
  for (;;) {
    const std::optional<Microseconds> sleep = Pass();
    struct pollfd waits[] = {
        {signal_fd.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}, {events_fd, POLLIN, 0}};
    struct timespec longest = {};
    if (sleep.has_value()) {
      longest.tv_sec = sleep->count() / 1'000'000;
      longest.tv_nsec = sleep->count() % 1'000'000 * 1000;
    }
    if (ppoll(waits, 3, sleep.has_value() ? &longest : nullptr, nullptr) < 0 && errno != EINTR) {
      return ErrnoStatus(errno, "waiting for work");
    }
    if (waits[0].revents != 0) {
      log::Info("stopping; what is accelerated stays so", {{"reason", "signal"}});
      return absl::OkStatus();
    }
    uint64_t ignored;
    (void)!read(wake_.get(), &ignored, sizeof(ignored));
    if (waits[2].revents & POLLNVAL) {
      events_fd = -1;  // drained: the datapath is gone
    }
  }
}

absl::StatusOr<NodeStatus> Agent::Status() {
  std::lock_guard<std::mutex> lock(mutex_);
  NodeStatus status;
  status.engine = decision_.engine.empty() ? "none" : decision_.engine;
  status.engine_reason = decision_.engine.empty() ? "starting" : decision_.detail;
  if (drained_) {
    status.engine = "none";
    status.engine_reason = "drained";
  }
  status.version = kVersion;
  status.draining = draining_;
  status.pods = pods_.size();
  status.config_error = config_error_;
  if (datapath_ == nullptr) {
    return status;
  }
  SHUNT_ASSIGN_OR_RETURN(status.totals, datapath_->ReadTotals(), "reading totals");
  SHUNT_ASSIGN_OR_RETURN(const auto pods, datapath_->ReadPods(), "reading pods");
  for (const auto& [uid, counts] : pods) {
    status.pairs_live += counts.pairs_live;
    if (counts.observation.has_value()) {
      AddTo(*counts.observation, &status);
    }
  }
  for (const PodStanding& standing : reconciler_->Standings()) {
    status.pods_enrolling += standing.state == PodState::kEnrolling;
  }
  // Each connection to a listed port passes its server's callback once.
  const ExitCounts& exits = status.totals.exits;
  status.connections_plain += exits[SHUNT_EXIT_SERVER_ALONE] + exits[SHUNT_EXIT_ORPHAN_RELEASED] +
                              exits[SHUNT_EXIT_REFUSED_FAST_OPEN];
  return status;
}

absl::StatusOr<std::vector<PodView>> Agent::Pods() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<PodView> views;
  if (datapath_ == nullptr) {
    for (const PodSpec& pod : pods_) {
      views.push_back({pod,
                       PodState::kObserved,
                       drained_ ? "drained" : decision_.reason,
                       drained_ ? "" : decision_.detail,
                       {}});
    }
    return views;
  }
  SHUNT_ASSIGN_OR_RETURN(const auto counts, datapath_->ReadPods(), "reading pods");
  for (PodStanding& standing : reconciler_->Standings()) {
    PodView view{std::move(standing.spec),
                 standing.state,
                 std::move(standing.reason),
                 std::move(standing.detail),
                 {}};
    for (const auto& [uid, count] : counts) {
      if (uid == view.spec.uid) {
        view.counts = count;
      }
    }
    views.push_back(std::move(view));
  }
  return views;
}

absl::StatusOr<std::vector<PairView>> Agent::Pairs() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (datapath_ == nullptr) {
    return std::vector<PairView>();
  }
  SHUNT_ASSIGN_OR_RETURN(const std::vector<shunt_end_record> ends, datapath_->ListEnds(),
                         "listing enrolled sockets");
  return JoinEnds(
      ends, [this](uint32_t pod) { return datapath_->UidOf(pod); },
      [this](const std::string& uid) -> std::optional<uint32_t> {
        const auto found = std::find_if(pods_.begin(), pods_.end(),
                                        [&uid](const PodSpec& pod) { return pod.uid == uid; });
        return found == pods_.end() ? std::nullopt : found->proxy_uid;
      },
      MonotonicNanoseconds());
}

std::vector<ProbeView> Agent::Doctor() {
  ProbeOptions options;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const PodSpec& pod : pods_) {
      if (const absl::StatusOr<PodTarget> target = resolver_->Resolve(pod); target.ok()) {
        options.cgroups.push_back(target->cgroup);
      }
    }
  }
  absl::StatusOr<ProbeReport> report = RunProbes(options);
  if (!report.ok()) {
    return {{"probes", "fatal", "running the behaviour probes",
             std::string(report.status().message()), "nothing is known of this kernel",
             "check the agent's capabilities: BPF, NET_ADMIN, PERFMON", "environment", ""}};
  }
  return std::move(report->rows);
}

absl::Status Agent::Drain(const std::function<bool(const DrainProgress&)>& report) {
  const std::lock_guard<std::mutex> one(drain_mutex_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
    if (reconciler_ != nullptr) {
      reconciler_->SetDesired({});
    }
    log::Info("drain begins", {{"reason", "drain"}});
  }
  Wake();
  // If the caller gives up, the node goes back to what is configured.
  bool finished = false;
  absl::Cleanup undo = [this, &finished] {
    if (!finished) {
      std::lock_guard<std::mutex> lock(mutex_);
      draining_ = false;
      if (reconciler_ != nullptr) {
        reconciler_->SetDesired(pods_);
      }
      log::Warning("drain given up; the configured pods are enrolled again",
                   {{"reason", "drain_cancelled"}});
    }
  };
  for (;;) {
    DrainProgress progress;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (reconciler_ != nullptr) {
        reconciler_->Step();
        datapath_->Tend();
        progress.pods = reconciler_->AttachedCount();
        progress.waiting = reconciler_->StillWaiting();
        progress.waiting_pods = reconciler_->WaitingPods();
      }
      if (progress.pods == 0) {
        if (datapath_ != nullptr) {
          SHUNT_RETURN_IF_ERROR(datapath_->RemovePins(), "draining");
          reconciler_.reset();
          datapath_.reset();
        }
        drained_ = true;
        finished = true;
        progress.done = true;
        log::Info("drained: all connections are plain TCP, pins are removed",
                  {{"reason", "drained"}});
      }
    }
    if (!report(progress) && !progress.done) {
      return absl::CancelledError("draining: the caller gave up");
    }
    if (progress.done) {
      return absl::OkStatus();
    }
    const struct timespec pause = {0, std::chrono::nanoseconds(kDrainReport).count()};
    nanosleep(&pause, nullptr);
  }
}

bool Agent::Ready() {
  std::lock_guard<std::mutex> lock(mutex_);
  return pods_known_ &&
         (reconciler_ == nullptr ? !decision_.engine.empty() : reconciler_->Applied());
}

}  // namespace shunt

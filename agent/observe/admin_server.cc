// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/admin_server.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "agent/base/status.h"
#include "agent/observe/expected_gain.h"
#include "agent/observe/health.grpc.pb.h"
#include "agent/observe/probe_message.h"
#include "agent/observe/socket_name.h"
#include "agent/pair/exits.h"
#include "grpc/grpc.h"
#include "grpcpp/resource_quota.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "shunt/v1/admin.grpc.pb.h"

namespace shunt {
namespace {

constexpr std::chrono::seconds kDrainHandover{2};

constexpr size_t kMaxRequestBytes = 1 << 20;
// A full ListPairs answer is about 2 MiB.
constexpr size_t kQuotaBytes = 16 << 20;
// Pollers included. Each call holds one while it runs, a drain for long. Beyond
// that gRPC refuses calls at once, health checks too: so many more than callers
// can be expected. They are made when needed.
constexpr int kMaxThreads = 32;
constexpr int kMaxStreamsPerConnection = 16;
constexpr std::chrono::seconds kShutdownGrace{1};

constexpr uint32_t kDefaultPairs = 1000;
constexpr uint32_t kMaxPairs = 10000;

// The last gRPC object to go shuts the library down, which waits up to ten
// seconds for a poller (backup poller of its tcp_posix.cc) that a large answer
// may have started. One reference for ever: the process ends without that.
void KeepGrpc() {
  static const bool kept = (grpc_init(), true);
  static_cast<void>(kept);
}

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

// "app_to_proxy" to PAIR_DIRECTION_APP_TO_PROXY; the enum's zero if there is none.
template <typename Enum>
Enum FromName(bool (*parse)(google::protobuf::ConstStringParam, Enum*), std::string_view prefix,
              std::string_view name) {
  Enum value{};
  parse(absl::StrCat(std::string(prefix), absl::AsciiStrToUpper(std::string(name))), &value);
  return value;
}

v1::ExitClass ToProto(ExitClass exit_class) {
  switch (exit_class) {
    case ExitClass::kProgress:
      return v1::EXIT_CLASS_PROGRESS;
    case ExitClass::kPlain:
      return v1::EXIT_CLASS_PLAIN;
    case ExitClass::kRefused:
      return v1::EXIT_CLASS_REFUSED;
    case ExitClass::kFallback:
      return v1::EXIT_CLASS_FALLBACK;
    case ExitClass::kLeaving:
      return v1::EXIT_CLASS_LEAVING;
    case ExitClass::kAgent:
      return v1::EXIT_CLASS_AGENT;
  }
  return v1::EXIT_CLASS_UNSPECIFIED;
}

void Fill(const PodObservation& from, v1::Observation* to) {
  to->set_would_accelerate(from.would_accelerate);
  for (const auto& [exit, count] : from.would_stay) {
    v1::ExitCount* out = to->add_would_stay();
    out->set_reason(std::string(ExitReason(exit)));
    out->set_text(std::string(ExitText(exit)));
    out->set_exit_class(ToProto(ClassOf(exit)));
    out->set_count(count);
  }
  for (const auto& [port, hazards] : from.hazards) {
    v1::ObservedHazard* out = to->add_hazards();
    out->set_port(port);
    out->set_names(HazardNames(hazards));
  }
  to->set_receives(from.receives);
  to->set_received_bytes(from.received_bytes);
  const ExpectedGain gain = GainOf(from);
  to->set_expected_gain(gain.ratio);
  to->set_expected_gain_basis(gain.basis);
}

void Fill(const PodView& from, v1::Pod* to) {
  to->set_uid(from.spec.uid);
  to->set_cgroup(from.spec.cgroup);
  for (const PortRange& range : from.spec.ports) {
    v1::PortRange* out = to->add_ports();
    out->set_first(range.first);
    out->set_last(range.last);
  }
  if (from.spec.proxy_uid.has_value()) {
    to->set_proxy_uid(*from.spec.proxy_uid);
  }
  to->set_state(FromName(v1::PodState_Parse, "POD_STATE_", ToString(from.state)));
  to->set_reason(from.reason);
  to->set_detail(from.detail);
  to->set_pairs_made(from.counts.pairs_made);
  to->set_pairs_live(from.counts.pairs_live);
  to->set_redirected_bytes(from.counts.redirected_bytes);
  to->set_refused(from.counts.refused);
  if (from.counts.live_before.connections.has_value()) {
    to->set_live_before(*from.counts.live_before.connections);
  }
  to->set_live_before_unknown(from.counts.live_before.unknown);
  if (from.counts.observation.has_value()) {
    Fill(*from.counts.observation, to->mutable_observation());
  }
}

void Fill(const PairView& from, v1::Pair* to) {
  to->set_pod_uid(from.pod_uid);
  to->set_client_port(from.client_port);
  to->set_server_port(from.server_port);
  to->set_dialed_port(from.dialed_port);
  to->set_family(FromName(v1::AddressFamily_Parse, "ADDRESS_FAMILY_", from.family));
  to->set_direction(FromName(v1::PairDirection_Parse, "PAIR_DIRECTION_", from.direction));
  to->set_client_to_server_bytes(from.client_to_server_bytes);
  to->set_server_to_client_bytes(from.server_to_client_bytes);
  to->set_unread_bytes(from.unread_bytes);
  to->set_age_seconds(from.age_seconds);
  to->set_state(FromName(v1::PairState_Parse, "PAIR_STATE_", from.state));
}

void Fill(const DrainProgress& from, v1::DrainResponse* to) {
  to->set_done(from.done);
  to->set_pods(from.pods);
  to->set_ends(from.waiting.ends);
  to->set_unread_bytes(from.waiting.unread_bytes);
  for (const shunt_end_record& record : from.waiting.examples) {
    v1::WaitingEnd* end = to->add_examples();
    end->set_role(record.key.role == SHUNT_CLIENT ? v1::END_ROLE_CLIENT : v1::END_ROLE_SERVER);
    end->set_local_port(record.end.local_port);
    end->set_remote_port(record.end.remote_port);
    end->set_unread_bytes(record.unread_bytes);
  }
  for (const auto& [uid, waiting] : from.waiting_pods) {
    v1::WaitingPod* pod = to->add_waiting_pods();
    pod->set_uid(uid);
    pod->set_ends(waiting.ends);
    pod->set_unread_bytes(waiting.unread_bytes);
  }
}

bool IsBusier(const PairView& a, const PairView& b) {
  const uint64_t a_bytes = a.client_to_server_bytes + a.server_to_client_bytes;
  const uint64_t b_bytes = b.client_to_server_bytes + b.server_to_client_bytes;
  return a_bytes != b_bytes ? a_bytes > b_bytes : a.age_seconds > b.age_seconds;
}

absl::Status NoSuchPod(const std::string& uid) {
  return absl::NotFoundError(absl::StrCat("pod \"", uid,
                                          "\" is not among the pods of this node: "
                                          "`shuntctl pods` lists them"));
}

class AdminService final : public v1::AdminService::Service {
 public:
  explicit AdminService(NodeView* view) : view_(view) {}

  // From now on drains end at their next report.
  void Stop() { stopping_ = true; }

  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                         v1::GetStatusResponse* response) override {
    const absl::StatusOr<NodeStatus> status = view_->Status();
    if (!status.ok()) {
      return ToGrpc(Annotate(status.status(), "reading the node's status"));
    }
    response->set_engine(status->engine);
    response->set_engine_reason(status->engine_reason);
    response->set_version(status->version);
    response->set_draining(status->draining);
    response->set_pods(status->pods);
    response->set_pods_enrolling(status->pods_enrolling);
    response->set_pairs_live(status->pairs_live);
    response->set_connections_plain(status->connections_plain);
    response->set_redirected_bytes(status->totals.redirected_bytes);
    response->set_ends(status->totals.ends);
    response->set_ends_capacity(status->totals.ends_capacity);
    response->set_config_error(status->config_error);
    if (status->observation.has_value()) {
      Fill(*status->observation, response->mutable_observation());
    }
    for (uint32_t exit = 0; exit < SHUNT_EXIT_COUNT; ++exit) {
      v1::ExitCount* count = response->add_exits();
      count->set_reason(std::string(ExitReason(exit)));
      count->set_text(std::string(ExitText(exit)));
      count->set_exit_class(ToProto(ClassOf(exit)));
      count->set_count(status->totals.exits[exit]);
    }
    return grpc::Status::OK;
  }

  grpc::Status ListPods(grpc::ServerContext*, const v1::ListPodsRequest* request,
                        v1::ListPodsResponse* response) override {
    absl::StatusOr<std::vector<PodView>> pods = view_->Pods();
    if (!pods.ok()) {
      return ToGrpc(Annotate(pods.status(), "listing pods"));
    }
    std::sort(pods->begin(), pods->end(),
              [](const PodView& a, const PodView& b) { return a.spec.uid < b.spec.uid; });
    for (const PodView& pod : *pods) {
      if (request->pod_uid().empty() || pod.spec.uid == request->pod_uid()) {
        Fill(pod, response->add_pods());
      }
    }
    if (!request->pod_uid().empty() && response->pods().empty()) {
      return ToGrpc(NoSuchPod(request->pod_uid()));
    }
    return grpc::Status::OK;
  }

  grpc::Status ListPairs(grpc::ServerContext*, const v1::ListPairsRequest* request,
                         v1::ListPairsResponse* response) override {
    absl::StatusOr<std::vector<PairView>> pairs = view_->Pairs();
    if (!pairs.ok()) {
      return ToGrpc(Annotate(pairs.status(), "listing pairs"));
    }
    if (!request->pod_uid().empty()) {
      pairs->erase(
          std::remove_if(pairs->begin(), pairs->end(),
                         [&](const PairView& pair) { return pair.pod_uid != request->pod_uid(); }),
          pairs->end());
      if (pairs->empty()) {
        if (absl::Status status = CheckPod(request->pod_uid()); !status.ok()) {
          return ToGrpc(status);
        }
      }
    }
    const size_t limit =
        request->limit() == 0 ? kDefaultPairs : std::min<size_t>(request->limit(), kMaxPairs);
    const size_t shown = std::min(limit, pairs->size());
    std::partial_sort(pairs->begin(), pairs->begin() + shown, pairs->end(), IsBusier);
    for (size_t i = 0; i < shown; ++i) {
      Fill((*pairs)[i], response->add_pairs());
    }
    response->set_total(pairs->size());
    return grpc::Status::OK;
  }

  grpc::Status RunDoctor(grpc::ServerContext*, const v1::RunDoctorRequest*,
                         v1::RunDoctorResponse* response) override {
    for (const ProbeView& probe : view_->Doctor()) {
      *response->add_probes() = ToProto(probe);
    }
    return grpc::Status::OK;
  }

  grpc::Status Drain(grpc::ServerContext* context, const v1::DrainRequest*,
                     grpc::ServerWriter<v1::DrainResponse>* writer) override {
    // A drain whose caller has gone ends at its next report.
    const std::unique_lock<std::timed_mutex> only_one(drain_, kDrainHandover);
    if (!only_one.owns_lock()) {
      return ToGrpc(absl::FailedPreconditionError(
          "a drain is under way already: wait for it; `shuntctl status` tells how far it is"));
    }
    bool told_done = false;
    const absl::Status drained = view_->Drain([&](const DrainProgress& progress) {
      v1::DrainResponse response;
      Fill(progress, &response);
      told_done = progress.done;
      return writer->Write(response) && !stopping_;
    });
    if (stopping_ && !told_done) {
      return ToGrpc(
          absl::AbortedError("the agent was stopped while it drained: start it and drain again"));
    }
    if (context->IsCancelled()) {
      return ToGrpc(absl::CancelledError("the caller stopped waiting"));
    }
    if (!drained.ok()) {
      return ToGrpc(Annotate(drained, "draining the node"));
    }
    if (!told_done) {
      v1::DrainResponse response;
      response.set_done(true);
      writer->Write(response);
    }
    return grpc::Status::OK;
  }

 private:
  absl::Status CheckPod(const std::string& uid) {
    const absl::StatusOr<std::vector<PodView>> pods = view_->Pods();
    if (!pods.ok()) {
      return Annotate(pods.status(), "listing pods");
    }
    const bool known = std::any_of(pods->begin(), pods->end(),
                                   [&](const PodView& pod) { return pod.spec.uid == uid; });
    return known ? absl::OkStatus() : NoSuchPod(uid);
  }

  NodeView* const view_;
  std::atomic<bool> stopping_{false};
  std::timed_mutex drain_;  // held during a drain
};

class HealthService final : public grpc::health::v1::Health::Service {
 public:
  explicit HealthService(NodeView* view) : view_(view) {}

  grpc::Status Check(grpc::ServerContext*, const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override {
    using grpc::health::v1::HealthCheckResponse;
    const std::string& service = request->service();
    if (service.empty() || service == "liveness") {
      response->set_status(HealthCheckResponse::SERVING);
      return grpc::Status::OK;
    }
    if (service == "readiness") {
      response->set_status(view_->Ready() ? HealthCheckResponse::SERVING
                                          : HealthCheckResponse::NOT_SERVING);
      return grpc::Status::OK;
    }
    return ToGrpc(absl::NotFoundError(
        absl::StrCat("service \"", service, "\": there are \"\", \"liveness\" and \"readiness\"")));
  }

 private:
  NodeView* const view_;
};

class AdminServerImpl final : public AdminServer {
 public:
  AdminServerImpl(std::unique_ptr<SocketName> name, NodeView* view)
      : name_(std::move(name)), admin_(view), health_(view) {}

  ~AdminServerImpl() override {
    name_->Withdraw();
    admin_.Stop();
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
    }
  }

  absl::Status Start() {
    KeepGrpc();
    grpc::ResourceQuota quota("admin");
    quota.Resize(kQuotaBytes).SetMaxThreads(kMaxThreads);
    grpc::ServerBuilder builder;
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
    builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    int bound = 0;
    builder.AddListeningPort(absl::StrCat("unix:", name_->BindPath()),
                             grpc::InsecureServerCredentials(), &bound);
    builder.RegisterService(&admin_);
    builder.RegisterService(&health_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || bound == 0) {
      return absl::InternalError("gRPC could not listen: its own lines above say why");
    }
    return name_->Publish();
  }

 private:
  // In this order: the name outlives the server that listens on it.
  const std::unique_ptr<SocketName> name_;
  AdminService admin_;
  HealthService health_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Create(const Options& options,
                                                                 NodeView* view) {
  SHUNT_ASSIGN_OR_RETURN(std::unique_ptr<SocketName> name, SocketName::Claim(options.socket),
                         "opening the admin socket");
  auto server = std::make_unique<AdminServerImpl>(std::move(name), view);
  SHUNT_RETURN_IF_ERROR(server->Start(), absl::StrCat("serving the admin socket ", options.socket));
  return server;
}

}  // namespace shunt

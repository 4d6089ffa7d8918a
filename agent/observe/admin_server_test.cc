// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/admin_server.h"

#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <future>

#include "absl/strings/str_cat.h"
#include "agent/observe/fake_node_view.h"
#include "agent/observe/health.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "shunt/v1/admin.grpc.pb.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;
using grpc::health::v1::HealthCheckResponse;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AnyOf;
using ::testing::HasSubstr;

// Bounds every call.
struct Context : grpc::ClientContext {
  explicit Context(milliseconds patience = seconds(20)) {
    set_deadline(std::chrono::system_clock::now() + patience);
  }
};

class AdminServerTest : public ::testing::Test {
 protected:
  AdminServerTest() {
    std::string path = fs::temp_directory_path() / "shunt-admin-XXXXXX";
    directory_ = mkdtemp(path.data());
    socket_ = directory_ / "run" / "agent.sock";
    auto server = AdminServer::Create({socket_}, &view_);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    channel_ = grpc::CreateChannel("unix:" + socket_, grpc::InsecureChannelCredentials());
    admin_ = v1::AdminService::NewStub(channel_);
    health_ = grpc::health::v1::Health::NewStub(channel_);
  }
  ~AdminServerTest() override {
    server_.reset();
    fs::remove_all(directory_);
  }

  grpc::Status Check(const std::string& service, HealthCheckResponse* response) {
    Context context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    return health_->Check(&context, request, response);
  }

  grpc::Status ListPairs(uint32_t limit, const std::string& uid, v1::ListPairsResponse* response) {
    Context context;
    v1::ListPairsRequest request;
    request.set_limit(limit);
    request.set_pod_uid(uid);
    return admin_->ListPairs(&context, request, response);
  }

  FakeNodeView view_;
  fs::path directory_;
  std::string socket_;
  std::unique_ptr<AdminServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

TEST_F(AdminServerTest, SocketIsForItsUserAloneAndGoesWithTheServer) {
  struct stat found {};
  ASSERT_EQ(stat(socket_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 07777, 0600u);
  server_.reset();
  EXPECT_TRUE(fs::is_empty(directory_ / "run"));
}

TEST_F(AdminServerTest, SecondAgentIsRefusedAndTheFirstServesOn) {
  const auto second = AdminServer::Create({socket_}, &view_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("answers on ", socket_)));
  HealthCheckResponse response;
  EXPECT_TRUE(Check("", &response).ok());
}

TEST_F(AdminServerTest, SuccessorServesUnderTheSameName) {
  server_.reset();
  auto server = AdminServer::Create({socket_}, &view_);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = std::move(*server);
  const auto stub = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel("unix:" + socket_, grpc::InsecureChannelCredentials()));
  Context context;
  HealthCheckResponse response;
  EXPECT_TRUE(stub->Check(&context, {}, &response).ok());
}

TEST_F(AdminServerTest, BadPathIsRefused) {
  const auto server = AdminServer::Create({std::string(200, 'x')}, &view_);
  EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("200 bytes long"));
}

TEST_F(AdminServerTest, HealthFollowsTheNode) {
  HealthCheckResponse response;
  for (const char* service : {"", "liveness"}) {
    ASSERT_TRUE(Check(service, &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING) << service;
  }
  ASSERT_TRUE(Check("readiness", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  view_.ready = true;
  ASSERT_TRUE(Check("readiness", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  EXPECT_EQ(Check("nonsense", &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(AdminServerTest, StatusCarriesEveryExit) {
  NodeStatus status;
  status.engine = "sockhash";
  status.engine_reason = "probes passed";
  status.version = "1.2.3";
  status.draining = true;
  status.pods = 3;
  status.pods_enrolling = 2;
  status.pairs_live = 12;
  status.connections_plain = 4;
  status.totals.redirected_bytes = 5;
  status.totals.ends = 24;
  status.totals.ends_capacity = 100;
  status.totals.exits[SHUNT_EXIT_MSG_BACK_PRESSURE] = 6;
  status.config_error = "line 3";
  view_.status = status;

  Context context;
  v1::GetStatusResponse response;
  ASSERT_TRUE(admin_->GetStatus(&context, {}, &response).ok());
  EXPECT_EQ(response.exits_size(), SHUNT_EXIT_COUNT);
  const v1::ExitCount exit = response.exits(SHUNT_EXIT_MSG_BACK_PRESSURE);
  EXPECT_EQ(exit.reason(), "back_pressure");
  EXPECT_EQ(exit.exit_class(), v1::EXIT_CLASS_FALLBACK);
  EXPECT_EQ(exit.count(), 6u);
  response.clear_exits();
  EXPECT_EQ(response.ShortDebugString(),
            "engine: \"sockhash\" engine_reason: \"probes passed\" version: \"1.2.3\" "
            "draining: true pods: 3 pods_enrolling: 2 pairs_live: 12 connections_plain: 4 "
            "redirected_bytes: 5 ends: 24 ends_capacity: 100 config_error: \"line 3\"");
}

TEST_F(AdminServerTest, FailureKeepsItsCodeAndCause) {
  view_.status = absl::UnavailableError("map is gone");
  Context context;
  v1::GetStatusResponse response;
  const grpc::Status status = admin_->GetStatus(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "reading the node's status: map is gone");
}

TEST_F(AdminServerTest, PodsAreSortedAndFiltered) {
  PodView b;
  b.spec = {"b", "/sys/fs/cgroup/b", {{80, 80}, {100, 200}}, 1337};
  b.state = PodState::kEnrolling;
  b.reason = "enrolled";
  b.counts = {1, 2, 3, 4, {5, ""}, PodObservation()};
  b.counts.observation->would_accelerate = 6;
  b.counts.observation->would_stay[SHUNT_EXIT_SERVER_ALONE] = 7;
  b.counts.observation->hazards[80] = SHUNT_HAZARD_SPLICE | SHUNT_HAZARD_OOB;
  PodView a;
  a.spec.uid = "a";
  view_.pods = std::vector<PodView>{b, a};

  v1::ListPodsResponse response;
  {
    Context context;
    ASSERT_TRUE(admin_->ListPods(&context, {}, &response).ok());
  }
  ASSERT_EQ(response.pods_size(), 2);
  EXPECT_EQ(response.pods(0).ShortDebugString(),
            "uid: \"a\" state: POD_STATE_WAITING live_before_unknown: \"not attached\"");
  EXPECT_EQ(response.pods(1).ShortDebugString(),
            "uid: \"b\" cgroup: \"/sys/fs/cgroup/b\" ports { first: 80 last: 80 } "
            "ports { first: 100 last: 200 } proxy_uid: 1337 state: POD_STATE_ENROLLING "
            "reason: \"enrolled\" pairs_made: 1 pairs_live: 2 redirected_bytes: 3 refused: 4 "
            "live_before: 5 observation { would_accelerate: 6 would_stay { "
            "reason: \"server_alone\" "
            "text: \"the client is not enrolled: remote or plain\" "
            "exit_class: EXIT_CLASS_PLAIN count: 7 } "
            "hazards { port: 80 names: \"splice, msg_oob\" } expected_gain: \"unknown\" "
            "expected_gain_basis: \"no receive was seen while workloads were watched, so the "
            "size of messages is not known; look again under traffic\" }");

  v1::ListPodsRequest request;
  request.set_pod_uid("a");
  {
    Context context;
    ASSERT_TRUE(admin_->ListPods(&context, request, &response).ok());
  }
  EXPECT_EQ(response.pods_size(), 1);
  request.set_pod_uid("c");
  Context context;
  EXPECT_EQ(admin_->ListPods(&context, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(AdminServerTest, PairsComeBusiestFirstUpToTheLimit) {
  PairView pair;
  pair.pod_uid = "a";
  pair.client_port = 1;
  pair.server_port = 2;
  pair.dialed_port = 3;
  pair.family = "ipv6";
  pair.direction = "proxy_to_app";
  pair.client_to_server_bytes = 10;
  pair.server_to_client_bytes = 1;
  pair.unread_bytes = 5;
  pair.age_seconds = 1.5;
  pair.state = "leaving";
  std::vector<PairView> pairs(3, pair);
  pairs[1].server_to_client_bytes = 100;
  pairs[2].pod_uid = "b";
  view_.pairs = pairs;
  PodView quiet;
  quiet.spec.uid = "quiet";
  view_.pods = std::vector<PodView>{quiet};

  v1::ListPairsResponse response;
  ASSERT_TRUE(ListPairs(2, "", &response).ok());
  EXPECT_EQ(response.total(), 3u);
  ASSERT_EQ(response.pairs_size(), 2);
  EXPECT_EQ(response.pairs(0).server_to_client_bytes(), 100u);
  EXPECT_EQ(response.pairs(1).ShortDebugString(),
            "pod_uid: \"a\" client_port: 1 server_port: 2 dialed_port: 3 "
            "family: ADDRESS_FAMILY_IPV6 direction: PAIR_DIRECTION_PROXY_TO_APP "
            "client_to_server_bytes: 10 server_to_client_bytes: 1 unread_bytes: 5 "
            "age_seconds: 1.5 state: PAIR_STATE_LEAVING");

  ASSERT_TRUE(ListPairs(0, "b", &response).ok());
  EXPECT_EQ(response.total(), 1u);
  ASSERT_TRUE(ListPairs(0, "quiet", &response).ok());
  EXPECT_EQ(response.total(), 0u);
  EXPECT_EQ(ListPairs(0, "unknown", &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(AdminServerTest, FullAnswerFitsIntoWhatClientsTake) {
  PairView pair;
  pair.pod_uid = "01234567-89ab-cdef-0123-456789abcdef";
  pair.client_port = pair.server_port = pair.dialed_port = 65535;
  pair.family = "ipv4";
  pair.direction = "app_to_proxy";
  pair.client_to_server_bytes = pair.server_to_client_bytes = pair.unread_bytes = 1ull << 60;
  pair.age_seconds = 1;
  pair.state = "accelerated";
  view_.pairs = std::vector<PairView>(65536, pair);
  v1::ListPairsResponse response;
  ASSERT_TRUE(ListPairs(0, "", &response).ok());
  EXPECT_EQ(response.pairs_size(), 1000);
  const grpc::Status status = ListPairs(4000000000u, "", &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.pairs_size(), 10000);
  EXPECT_EQ(response.total(), 65536u);
}

TEST_F(AdminServerTest, ManyCallersAtOnceAreAllAnswered) {
  view_.pairs_take = milliseconds(20);
  std::vector<std::future<std::string>> callers;
  for (int caller = 0; caller < 16; ++caller) {
    callers.push_back(std::async(std::launch::async, [this] {
      grpc::ChannelArguments own_connection;
      own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      const auto stub = v1::AdminService::NewStub(grpc::CreateCustomChannel(
          "unix:" + socket_, grpc::InsecureChannelCredentials(), own_connection));
      std::string failures;
      for (int call = 0; call < 5; ++call) {
        Context context;
        v1::ListPairsResponse response;
        failures += stub->ListPairs(&context, {}, &response).error_message();
      }
      return failures;
    }));
  }
  for (auto& caller : callers) {
    EXPECT_EQ(caller.get(), "");
  }
}

TEST_F(AdminServerTest, OversizedRequestIsRefused) {
  v1::ListPairsResponse response;
  const grpc::Status status = ListPairs(0, std::string(2 << 20, 'x'), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("1048576"));
}

TEST_F(AdminServerTest, DoctorIsPassedOn) {
  view_.probes = {
      {"redirect", "unknown", "tried", "happened", "means", "do", "hazard", "hazard 14"}};
  Context context;
  v1::RunDoctorResponse response;
  ASSERT_TRUE(admin_->RunDoctor(&context, {}, &response).ok());
  EXPECT_EQ(response.ShortDebugString(),
            "probes { name: \"redirect\" verdict: PROBE_VERDICT_UNKNOWN tried: \"tried\" "
            "happened: \"happened\" means: \"means\" to_do: \"do\" family: \"hazard\" "
            "about: \"hazard 14\" }");
}

DrainProgress Holding(uint64_t ends) {
  shunt_end_record record{};
  record.key.role = SHUNT_SERVER;
  record.end.local_port = 15001;
  record.end.remote_port = 40000;
  record.unread_bytes = 50;
  DrainProgress progress;
  progress.pods = 1;
  progress.waiting = {ends, 50, {record}};
  progress.waiting_pods = {{"demo", progress.waiting}};
  return progress;
}

TEST_F(AdminServerTest, DrainStreamsProgressAndEndsDone) {
  view_.drain_steps = {Holding(2), Holding(1), DrainProgress{true, 0, {}, {}}};
  Context context;
  const auto reader = admin_->Drain(&context, {});
  std::vector<std::string> steps;
  for (v1::DrainResponse response; reader->Read(&response);) {
    steps.push_back(response.ShortDebugString());
  }
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(steps.size(), 3u);
  EXPECT_EQ(steps[0],
            "pods: 1 ends: 2 unread_bytes: 50 examples { role: END_ROLE_SERVER "
            "local_port: 15001 remote_port: 40000 unread_bytes: 50 } "
            "waiting_pods { uid: \"demo\" ends: 2 unread_bytes: 50 }");
  EXPECT_EQ(steps[2], "done: true");
}

TEST_F(AdminServerTest, DrainThatReportsNothingEndsDoneToo) {
  Context context;
  const auto reader = admin_->Drain(&context, {});
  v1::DrainResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(response.done());
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(AdminServerTest, FailedDrainIsNotDone) {
  view_.drain_result = absl::InternalError("cannot unpin");
  Context context;
  const auto reader = admin_->Drain(&context, {});
  v1::DrainResponse response;
  EXPECT_FALSE(reader->Read(&response));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(status.error_message(), "draining the node: cannot unpin");
}

TEST_F(AdminServerTest, DrainEndsWithItsCaller) {
  view_.drain_steps = {Holding(1)};
  {
    Context context(milliseconds(200));
    const auto reader = admin_->Drain(&context, {});
    for (v1::DrainResponse response; reader->Read(&response);) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  const auto give_up = std::chrono::steady_clock::now() + seconds(10);
  while (view_.abandoned_drains == 0 && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  EXPECT_EQ(view_.abandoned_drains, 1);
}

TEST_F(AdminServerTest, OneDrainAtATimeAndOtherCallsMeanwhile) {
  view_.drain_steps = {Holding(1)};
  Context first_context;
  const auto first = admin_->Drain(&first_context, {});
  v1::DrainResponse response;
  ASSERT_TRUE(first->Read(&response));

  Context second_context;
  const auto second = admin_->Drain(&second_context, {});
  EXPECT_FALSE(second->Read(&response));
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(view_.drains, 1);

  HealthCheckResponse health;
  EXPECT_TRUE(Check("", &health).ok());
  first_context.TryCancel();
  first->Finish();
}

TEST_F(AdminServerTest, ShutdownEndsADrain) {
  view_.drain_steps = {Holding(1)};
  Context context;
  const auto reader = admin_->Drain(&context, {});
  v1::DrainResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const auto start = std::chrono::steady_clock::now();
  auto stopped = std::async(std::launch::async, [&] { server_.reset(); });
  while (reader->Read(&response)) {
  }
  // The connection may be gone before the status is through.
  EXPECT_THAT(reader->Finish().error_code(),
              AnyOf(grpc::StatusCode::ABORTED, grpc::StatusCode::UNAVAILABLE));
  stopped.wait();
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(900))
      << "other calls' time of grace is not for drains";
  EXPECT_EQ(view_.abandoned_drains, 1);
}

}  // namespace
}  // namespace shunt

// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "agent/base/unique_fd.h"
#include "agent/observe/fake_node_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"

namespace shunt {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Render(const NodeCollector& collector) {
  return prometheus::TextSerializer().Serialize(collector.Collect());
}

FakeNodeView& Fill(FakeNodeView& view) {
  NodeStatus status;
  status.engine = "sockhash";
  status.version = "1.2.3";
  status.pairs_live = 12;
  status.totals.redirected_bytes = 1234567890123;
  status.totals.ends = 24;
  status.totals.ends_capacity = 131072;
  for (size_t exit = 0; exit < SHUNT_EXIT_COUNT; ++exit) {
    status.totals.exits[exit] = 1000 + exit;
  }
  view.status = status;
  PodView pod;
  pod.state = PodState::kEnrolling;
  PodView counted = pod;
  counted.spec.uid = "demo";
  counted.counts.live_before.connections = 5;
  view.pods = std::vector<PodView>{pod, counted};
  return view;
}

TEST(MetricsTest, RendersWhatTheNodeShows) {
  FakeNodeView view;
  const std::string text = Render(NodeCollector(&Fill(view)));
  for (const std::string& line : {
           std::string("shunt_build_info{version=\"1.2.3\",engine=\"sockhash\"} 1"),
           std::string("shunt_agent_redirected_bytes_total 1234567890123"),
           absl::StrCat("shunt_agent_connections_total{result=\"paired\",reason=\"pair_made\"} ",
                        1000 + SHUNT_EXIT_PAIR_MADE),
           absl::StrCat("shunt_agent_connections_total{result=\"plain\",reason=\"server_alone\"} ",
                        1000 + SHUNT_EXIT_SERVER_ALONE),
           absl::StrCat("shunt_agent_connections_total{result=\"refused\",reason=\"map_full\"} ",
                        1000 + SHUNT_EXIT_REFUSED_MAP_FULL),
           absl::StrCat("shunt_agent_messages_total{result=\"redirected\",reason=\"redirected\"} ",
                        1000 + SHUNT_EXIT_REDIRECTED),
           absl::StrCat("shunt_agent_messages_total{result=\"fallback\",reason=\"tcp_unread\"} ",
                        1000 + SHUNT_EXIT_MSG_TCP_UNREAD),
           absl::StrCat("shunt_agent_exits_total{reason=\"event_lost\"} ",
                        1000 + SHUNT_EXIT_EVENT_LOST),
           std::string("shunt_agent_pods{state=\"enrolling\"} 2"),
           std::string("shunt_agent_pods{state=\"failed\"} 0"),
           std::string("shunt_agent_pod_live_before_connections{pod_uid=\"demo\"} 5"),
           std::string("shunt_agent_pairs 12"),
           std::string("shunt_agent_map_entries{map=\"ends\"} 24"),
           std::string("shunt_agent_map_max_entries{map=\"ends\"} 131072"),
           std::string("shunt_agent_scrape_errors_total 0"),
       }) {
    EXPECT_THAT(text, HasSubstr(line + "\n"));
  }
}

TEST(MetricsTest, TellsWhatADryRunObserved) {
  FakeNodeView view;
  EXPECT_THAT(Render(NodeCollector(&Fill(view))), Not(HasSubstr("observed_connections")));
  view.status->observation.emplace();
  view.status->observation->would_accelerate = 3;
  view.status->observation->would_stay[SHUNT_EXIT_SERVER_ALONE] = 2;
  const std::string text = Render(NodeCollector(&view));
  EXPECT_THAT(text, HasSubstr("shunt_agent_observed_connections_total{result=\"would_accelerate\","
                              "reason=\"would_accelerate\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("shunt_agent_observed_connections_total{result=\"would_stay\","
                              "reason=\"server_alone\"} 2\n"));
}

// Every exit is in exactly one family: what people add up is what happened.
TEST(MetricsTest, EveryExitIsCountedOnce) {
  FakeNodeView view;
  std::map<std::string, int> seen;
  for (const prometheus::MetricFamily& family : NodeCollector(&Fill(view)).Collect()) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      for (const auto& label : metric.label) {
        if (label.name == "reason") {
          ++seen[label.value];
        }
      }
    }
  }
  EXPECT_EQ(seen.size(), static_cast<size_t>(SHUNT_EXIT_COUNT));
  for (uint32_t exit = 0; exit < SHUNT_EXIT_COUNT; ++exit) {
    EXPECT_EQ(seen[std::string(ExitReason(exit))], 1) << ExitReason(exit);
  }
}

// The rules of `promtool check metrics` that apply here.
TEST(MetricsTest, KeepsTheNamingRules) {
  FakeNodeView view;
  std::set<std::string> names;
  for (const prometheus::MetricFamily& family : NodeCollector(&Fill(view)).Collect()) {
    EXPECT_TRUE(names.insert(family.name).second) << family.name << " twice";
    EXPECT_TRUE(absl::StartsWith(family.name, "shunt_")) << family.name;
    EXPECT_EQ(family.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz_"), std::string::npos)
        << family.name;
    EXPECT_FALSE(family.help.empty()) << family.name;
    EXPECT_FALSE(family.metric.empty()) << family.name;
    EXPECT_EQ(absl::EndsWith(family.name, "_total"), family.type == prometheus::MetricType::Counter)
        << family.name;
  }
}

TEST(MetricsTest, FailuresAreCountedAndLeaveTheRest) {
  FakeNodeView view;
  Fill(view).status = absl::UnavailableError("map is gone");
  const NodeCollector collector(&view);
  Render(collector);
  const std::string text = Render(collector);
  EXPECT_THAT(text, HasSubstr("shunt_agent_pods{state=\"enrolling\"} 2\n"));
  EXPECT_THAT(text, Not(HasSubstr("shunt_agent_pairs")));
  EXPECT_THAT(text, HasSubstr("shunt_agent_scrape_errors_total 2\n"));
}

std::string Get(int port, const std::string& path) {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval patience{10, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return "";
  }
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
  EXPECT_EQ(write(fd.get(), request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd.get(), buffer, sizeof(buffer))) > 0;) {
    answer.append(buffer, n);
  }
  return answer;
}

TEST(MetricsTest, AnswersScrapes) {
  FakeNodeView view;
  const auto metrics = Metrics::Create("127.0.0.1:0", &Fill(view));
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_THAT(Get((*metrics)->port(), "/metrics"), HasSubstr("shunt_agent_pairs 12\n"));
}

TEST(MetricsTest, StopsAtOnce) {
  FakeNodeView view;
  auto metrics = Metrics::Create("127.0.0.1:0", &view);
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  Get((*metrics)->port(), "/metrics");
  const auto start = std::chrono::steady_clock::now();
  metrics->reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

TEST(MetricsTest, BusyAddressIsNamed) {
  FakeNodeView view;
  const auto first = Metrics::Create("127.0.0.1:0", &view);
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string address = absl::StrCat("127.0.0.1:", (*first)->port());
  EXPECT_EQ(Metrics::Create(address, &view).status().message(),
            absl::StrCat("listening on metrics address ", address,
                         ": Address already in use: stop who listens there, or choose another "
                         "admin.metrics"));
}

TEST(MetricsTest, BadAddressesAreNamed) {
  FakeNodeView view;
  for (const char* address : {"", "9464", ":9464", "localhost:9464", "127.0.0.1:", "127.0.0.1:x",
                              "127.0.0.1:70000", "::1:9464", "[]:9464", "[::1]"}) {
    const absl::Status status = Metrics::Create(address, &view).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat("metrics address \"", address, "\"")));
  }
  // An address of documentation: nobody has it.
  EXPECT_THAT(std::string(Metrics::Create("192.0.2.1:9464", &view).status().message()),
              HasSubstr("Cannot assign requested address: set admin.metrics to an address of "
                        "this node"));
}

}  // namespace
}  // namespace shunt

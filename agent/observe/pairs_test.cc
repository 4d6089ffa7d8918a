// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/pairs.h"

#include <sys/socket.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

constexpr uint32_t kApp = 1000;
constexpr uint32_t kProxy = 1337;
constexpr uint64_t kNow = 100'000'000'000;

shunt_end_record Client(uint32_t connection) {
  shunt_end_record record{};
  record.key = {7, connection, connection + 1, SHUNT_CLIENT, 0};
  record.end.pod = 3;
  record.end.uid = kApp;
  record.end.joined_ns = kNow - 5'000'000'000;
  record.end.local_port = 40000;
  record.end.remote_port = 80;
  record.end.family = AF_INET;
  record.redirected_bytes = 10;
  record.unread_bytes = 1;
  return record;
}

shunt_end_record Server(uint32_t connection) {
  shunt_end_record record = Client(connection);
  record.key.role = SHUNT_SERVER;
  record.end.uid = kProxy;
  record.end.joined_ns = kNow - 4'500'000'000;
  record.end.local_port = 15001;
  record.end.remote_port = 40000;
  record.redirected_bytes = 20;
  record.unread_bytes = 2;
  return record;
}

std::vector<PairView> Join(const std::vector<shunt_end_record>& ends,
                           std::optional<uint32_t> proxy_uid = kProxy) {
  return JoinEnds(
      ends, [](uint32_t pod) { return pod == 3 ? "demo" : ""; },
      [&](const std::string& uid) { return uid == "demo" ? proxy_uid : std::nullopt; }, kNow);
}

TEST(JoinEndsTest, TwoEndsAreOnePair) {
  const std::vector<PairView> pairs = Join({Server(1), Client(1)});
  ASSERT_EQ(pairs.size(), 1u);
  const PairView& pair = pairs[0];
  EXPECT_EQ(pair.pod_uid, "demo");
  EXPECT_EQ(pair.client_port, 40000);
  EXPECT_EQ(pair.dialed_port, 80);
  EXPECT_EQ(pair.server_port, 15001);
  EXPECT_EQ(pair.family, "ipv4");
  EXPECT_EQ(pair.direction, "app_to_proxy");
  EXPECT_EQ(pair.client_to_server_bytes, 10u);
  EXPECT_EQ(pair.server_to_client_bytes, 20u);
  EXPECT_EQ(pair.unread_bytes, 3u);
  EXPECT_DOUBLE_EQ(pair.age_seconds, 4.5);  // since the second end joined
  EXPECT_EQ(pair.state, "accelerated");
}

TEST(JoinEndsTest, EndsMeetByTheWholeKey) {
  shunt_end_record other_namespace = Server(1);
  other_namespace.key.netns_cookie = 8;
  shunt_end_record other_client = Server(1);
  other_client.key.client_next = 9;
  shunt_end_record other_server = Server(1);
  other_server.key.server_next = 9;
  EXPECT_TRUE(Join({Client(1), other_namespace, other_client, other_server}).empty());
}

TEST(JoinEndsTest, HalvesAreSkipped) { EXPECT_TRUE(Join({Client(1), Server(2)}).empty()); }

TEST(JoinEndsTest, KeepsTheOrderOfClients) {
  std::vector<shunt_end_record> ends = {Client(9), Client(1), Server(1),
                                        Client(5), Server(5), Server(9)};
  for (shunt_end_record& end : ends) {
    end.end.remote_port = end.key.client_next;
  }
  const std::vector<PairView> pairs = Join(ends);
  ASSERT_EQ(pairs.size(), 3u);
  EXPECT_EQ(pairs[0].dialed_port, 9);
  EXPECT_EQ(pairs[1].dialed_port, 1);
  EXPECT_EQ(pairs[2].dialed_port, 5);
}

TEST(JoinEndsTest, OfARepeatedEndTheLastCounts) {
  shunt_end_record later = Client(1);
  later.redirected_bytes = 11;
  const std::vector<PairView> pairs = Join({Client(1), Server(1), later});
  ASSERT_EQ(pairs.size(), 1u);
  EXPECT_EQ(pairs[0].client_to_server_bytes, 11u);
}

TEST(JoinEndsTest, DirectionIsToldOnlyWhenOneEndIsTheProxy) {
  shunt_end_record client = Client(1);
  shunt_end_record server = Server(1);
  EXPECT_EQ(Join({client, server}, std::nullopt)[0].direction, "");
  server.end.uid = kApp;
  EXPECT_EQ(Join({client, server})[0].direction, "");
  client.end.uid = kProxy;
  EXPECT_EQ(Join({client, server})[0].direction, "proxy_to_app");
  server.end.uid = kProxy;
  EXPECT_EQ(Join({client, server})[0].direction, "");
}

TEST(JoinEndsTest, FamilyIsThatOfThePackets) {
  shunt_end_record client = Client(1);
  shunt_end_record server = Server(1);
  server.end.family = AF_INET6;  // v4-mapped
  EXPECT_EQ(Join({client, server})[0].family, "ipv4");
  client.end.family = AF_INET6;
  EXPECT_EQ(Join({client, server})[0].family, "ipv6");
}

TEST(JoinEndsTest, OneClosedGateMakesThePairLeave) {
  for (const bool client_leaves : {true, false}) {
    shunt_end_record client = Client(1);
    shunt_end_record server = Server(1);
    (client_leaves ? client : server).end.gate_closed = 1;
    EXPECT_EQ(Join({client, server})[0].state, "leaving");
  }
}

TEST(JoinEndsTest, AgeIsNeverNegative) {
  shunt_end_record client = Client(1);
  client.end.joined_ns = kNow + 1;  // joined after the clock was read
  EXPECT_EQ(Join({client, Server(1)})[0].age_seconds, 0);
}

}  // namespace
}  // namespace shunt

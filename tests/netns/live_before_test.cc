// SPDX-License-Identifier: Apache-2.0
//
// Connections that are older than the agent stay on TCP, and are counted.
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/pod_fixture.h"

namespace shunt::test {
namespace {

class LiveBeforeTest : public PodTest {};

TEST_F(LiveBeforeTest, ConnectionsToListedPortsAreCountedAndLeftAlone) {
  std::vector<Connection> older;
  for (const IpMode mode : kIpModes) {
    older.push_back(MakePair(fast(), mode, kPort));
  }
  const std::unique_ptr<Container> below = fast().AddContainer("app");
  older.push_back(MakePair(*below, *below, IpMode::kV4, kPort));
  // One socket, however many descriptors.
  const UniqueFd again(dup(older[0].server.get()));
  const Connection unlisted = MakePair(fast(), IpMode::kV4, kPort + 1);
  const Connection elsewhere = MakePair(plain(), IpMode::kV4, kPort);
  const UniqueFd listener = Listen(fast().container(), Endpoint("127.0.0.2", kPort));
  Connection gone = MakePair(fast(), IpMode::kV4, kPort);
  gone = Connection();

  StartAgent();
  EXPECT_EQ(agent().PodEntry("fast").at("liveBefore"), 5) << agent().Output();
  const std::vector<Json> lines = agent().LogLines("reason", "live_before");
  ASSERT_EQ(lines.size(), 1u) << agent().Output();
  EXPECT_EQ(lines[0].at("connections"), 5);
  for (const Connection& connection : older) {
    ExpectPlain(connection);
  }
  const Connection younger = MakeFastPair();
  EXPECT_EQ(agent().PodEntry("fast").at("liveBefore"), 5);
}

TEST_F(LiveBeforeTest, OfAnAdoptedPodItIsUnknown) {
  const Connection older = MakePair(fast(), IpMode::kV4, kPort);
  StartAgent();
  EXPECT_EQ(agent().PodEntry("fast").at("liveBefore"), 1);
  agent().KillHard();
  agent().StartReady(1);
  const Json pod = agent().PodEntry("fast");
  EXPECT_EQ(pod.at("liveBefore"), "unknown");
  EXPECT_NE(pod.at("liveBeforeUnknown"), "");
}

// As without hostPID: none of the pod's processes is seen, so nothing is claimed.
TEST_F(LiveBeforeTest, InAnotherPidNamespaceItIsUnknown) {
  const Connection older = MakePair(fast(), IpMode::kV4, kPort);
  agent().SetLauncher({"unshare", "--pid", "--fork", "--kill-child"});
  StartAgent();
  const Json pod = agent().PodEntry("fast");
  EXPECT_EQ(pod.at("liveBefore"), "unknown") << agent().Output();
  EXPECT_NE(std::string(pod.at("liveBeforeUnknown")).find("hostPID"), std::string::npos) << pod;
  ExpectPlain(older);
}

}  // namespace
}  // namespace shunt::test

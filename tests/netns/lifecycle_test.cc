// SPDX-License-Identifier: Apache-2.0
//
// Agents come and go; connections do not notice.
#include <unistd.h>

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/patterned.h"
#include "tests/support/pod_fixture.h"
#include "tests/support/traffic.h"

namespace shunt::test {
namespace {

using testing::HasSubstr;

class LifecycleTest : public PodTest {
 protected:
  std::vector<Connection> MakeFastPairs(int count) {
    std::vector<Connection> connections;
    for (int i = 0; i < count; i++) {
      connections.push_back(MakeFastPair(kIpModes[i % std::size(kIpModes)]));
    }
    return connections;
  }

  // The traffic goes on and is accelerated.
  void ExpectAcceleratedProgress(Traffic& traffic, const Where& where = Where::Here()) {
    const uint64_t before = kernel().RedirectedBytes();
    traffic.WaitForProgress(where);
    EXPECT_GT(kernel().RedirectedBytes(), before) << kernel().CountsText();
  }

  bool HasPins() const { return access((bpffs().path() + "/v1").c_str(), F_OK) == 0; }
};

TEST_F(LifecycleTest, FirstAccelerationWithinASecondOfTheStart) {
  agent().WritePods({FastEntry()});
  const Clock::time_point start = Clock::now();
  agent().Start();
  WaitUntil("a connection is accelerated", [&] {
    const Connection connection = MakePair(fast(), IpMode::kV4, kPort);
    PingPong(connection);
    return kernel().Exists() && kernel().RedirectedBytes() > 0;
  });
  const auto took = std::chrono::duration_cast<milliseconds>(Clock::now() - start).count();
  printf("first acceleration after %lld ms\n", static_cast<long long>(took));
  EXPECT_LE(took, 1000);
}

TEST_F(LifecycleTest, KilledUnderLoadAndSucceeded) {
  StartAgent();
  const std::vector<Connection> connections = MakeFastPairs(8);
  Traffic traffic(connections);
  ExpectAcceleratedProgress(traffic);
  for (int round = 0; round < 3; round++) {
    agent().KillHard();
    ExpectAcceleratedProgress(traffic);
    // Made while no agent runs.
    const Connection young = MakeFastPair();
    PingPong(young);
    agent().StartReady(1);
    ExpectAcceleratedProgress(traffic);
    EXPECT_EQ(agent().Status().at("pairs").at("accelerated"), 9);
    EXPECT_EQ(agent().Ask({"pairs"}).at("pairs").size(), 9u);
  }
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), 11u) << kernel().CountsText();
  traffic.Stop();
}

TEST_F(LifecycleTest, SigtermLeavesAccelerationInPlace) {
  StartAgent();
  const std::vector<Connection> connections = MakeFastPairs(4);
  {
    Traffic traffic(connections);
    ExpectAcceleratedProgress(traffic);
    EXPECT_EQ(agent().Terminate(), 0);
    ExpectAcceleratedProgress(traffic);
  }
  ExpectRedirects(MakeFastPair());
  EXPECT_NE(access(agent().socket_path().c_str(), F_OK), 0) << "the admin socket is left behind";
  agent().StartReady(1);
  ExpectRedirects(connections[0]);
}

TEST_F(LifecycleTest, ANewAgentPrunesWhatIsNotWantedAnyMore) {
  Pod other;
  agent().WritePods({FastEntry(), {"other", other.cgroup(), {"8080"}, std::nullopt}});
  agent().StartReady(2);
  const Connection kept = MakeFastPair();
  const Connection pruned = MakePair(other, IpMode::kV4, kPort);
  ExpectRedirects(pruned);
  agent().KillHard();
  agent().WritePods({FastEntry()});
  agent().StartReady(1);
  WaitUntil("pod other is let go", [&] { return kernel().Entries("ends") == 2; });
  ExpectRedirects(kept);
  ExpectPlain(pruned);
  ExpectPlain(MakePair(other, IpMode::kV6, kPort));
}

TEST_F(LifecycleTest, DrainUnderLoadLosesNothing) {
  StartAgent();
  const std::vector<Connection> connections = MakeFastPairs(8);
  Traffic traffic(connections);
  ExpectAcceleratedProgress(traffic);
  const CommandResult drain = agent().Ctl({"drain", "--timeout", "15"});
  EXPECT_EQ(drain.exit_code, 0) << drain.out << drain.err;
  EXPECT_FALSE(HasPins());
  traffic.WaitForProgress();
  PingPong(MakePair(fast(), IpMode::kV4, kPort));
  traffic.Stop();
  const Json status = agent().Status();
  EXPECT_EQ(status.at("engine"), "none") << status;
  EXPECT_EQ(agent().Terminate(), 0);
  EXPECT_FALSE(HasPins());
  // And everything can start anew.
  agent().StartReady(1);
  ExpectRedirects(MakeFastPair());
}

TEST_F(LifecycleTest, DrainWaitsForAnUnreadConnectionAndSaysSo) {
  StartAgent();
  const Connection connection = MakeFastPair();
  const Pattern pattern(RunSeed());
  SendAll(connection.client.get(), pattern.At(0, 50000));
  ASSERT_EQ(kernel().RedirectedBytes(), 50000u);
  CommandResult drain = agent().Ctl({"drain", "--timeout", "1"});
  EXPECT_NE(drain.exit_code, 0);
  EXPECT_THAT(drain.out + drain.err, HasSubstr("50000"));
  EXPECT_THAT(drain.out + drain.err, HasSubstr("fast"));
  EXPECT_TRUE(HasPins());
  SendAll(connection.client.get(), pattern.At(50000, 1000));
  EXPECT_EQ(pattern.Difference(0, ReadExactly(connection.server.get(), 51000)).value_or(""), "");
  drain = agent().Ctl({"drain", "--timeout", "15"});
  EXPECT_EQ(drain.exit_code, 0) << drain.out << drain.err;
  EXPECT_FALSE(HasPins());
  PingPong(connection);
}

TEST_F(LifecycleTest, ASecondAgentIsRefused) {
  StartAgent();
  const Connection connection = MakeFastPair();
  AgentProcess second(bpffs().path());
  second.WritePods({FastEntry()});
  EXPECT_EQ(second.RunToExit(), 2);
  EXPECT_THAT(second.Output(), HasSubstr("another agent"));
  EXPECT_TRUE(agent().running());
  ExpectRedirects(connection);
  EXPECT_EQ(agent().Status().at("pairs").at("accelerated"), 1);
}

TEST_F(LifecycleTest, PinsOfAnotherAbiVersionAreRefused) {
  StartAgent();
  const Connection connection = MakeFastPair();
  agent().KillHard();
  kernel().SetAbiVersion(99);
  EXPECT_EQ(agent().RunToExit(), 2);
  EXPECT_THAT(agent().Output(), HasSubstr("99"));
  EXPECT_THAT(agent().Output(), HasSubstr("drain"));
  ExpectRedirects(connection);
}

TEST_F(LifecycleTest, DamagedPinsAreRefusedAndLeftAlone) {
  StartAgent();
  const Connection connection = MakeFastPair();
  agent().KillHard();
  for (const std::string pin : {"maps/ends", "maps/meta", "progs/sock_ops"}) {
    SCOPED_TRACE(pin);
    const std::string path = bpffs().path() + "/v1/" + pin;
    const std::string aside = bpffs().path() + "/aside";
    ASSERT_EQ(rename(path.c_str(), aside.c_str()), 0);
    EXPECT_EQ(agent().RunToExit(), 2);
    EXPECT_THAT(agent().Output(), HasSubstr("damaged"));
    ASSERT_EQ(rename(aside.c_str(), path.c_str()), 0);
    ExpectRedirects(connection);
  }
  agent().StartReady(1);
  ExpectRedirects(connection);
}

TEST_F(LifecycleTest, ADirectoryThatIsNoBpffsIsRefused) {
  AgentProcess process(MakeTempDir("not-bpffs"));
  process.WritePods({FastEntry()});
  EXPECT_EQ(process.RunToExit(), 2);
  EXPECT_THAT(process.Output(), HasSubstr("not on a bpffs"));
}

TEST_F(LifecycleTest, AReadOnlyBpffsIsRefused) {
  bpffs().Remount(/*read_only=*/true);
  agent().WritePods({FastEntry()});
  EXPECT_EQ(agent().RunToExit(), 2);
  EXPECT_THAT(agent().Output(), HasSubstr("read-only"));
}

TEST_F(LifecycleTest, MissingCapabilitiesAreNamed) {
  agent().SetLauncher({"setpriv", "--bounding-set=-all"});
  agent().WritePods({FastEntry()});
  EXPECT_EQ(agent().RunToExit(), 2);
  EXPECT_THAT(agent().Output(), HasSubstr("BPF"));
  EXPECT_FALSE(HasPins());
}

}  // namespace
}  // namespace shunt::test

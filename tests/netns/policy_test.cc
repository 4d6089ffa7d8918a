// SPDX-License-Identifier: Apache-2.0
//
// What is wanted changes while connections live: reloads, cgroups that go and
// come back.
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

class PolicyTest : public PodTest {
 protected:
  void WaitForState(const std::string& uid, const std::string& state,
                    const Where& where = Where::Here());

  void WaitForNoEnds(const Where& where = Where::Here()) {
    WaitUntil(
        "no end is enrolled",
        [this] { return kernel().Entries("ends") == 0 && kernel().Entries("sockets") == 0; },
        kPatience, where);
  }
};

void PolicyTest::WaitForState(const std::string& uid, const std::string& state,
                              const Where& where) {
  WaitUntil(
      "pod " + uid + " is " + state,
      [&] {
        const Json pod = agent().PodEntry(uid);
        return !pod.is_null() && pod.at("state") == state;
      },
      kPatience, where);
}

class ReloadTest : public PolicyTest, public testing::WithParamInterface<Rewrite> {};

INSTANTIATE_TEST_SUITE_P(How, ReloadTest,
                         testing::Values(Rewrite::kInPlace, Rewrite::kRename, Rewrite::kSymlink),
                         [](const testing::TestParamInfo<Rewrite>& how) {
                           return how.param == Rewrite::kInPlace  ? "InPlace"
                                  : how.param == Rewrite::kRename ? "Rename"
                                                                  : "Symlink";
                         });

TEST_P(ReloadTest, AddsAndRemovesAPod) {
  Pod other;
  const AgentPod other_entry = {"other", other.cgroup(), {"8080"}, std::nullopt};
  agent().WritePods({FastEntry(), other_entry});  // so that both are remembered
  agent().WritePods({FastEntry()}, GetParam());
  agent().StartReady(1);
  const Connection first = MakeFastPair();
  ExpectRedirects(first);
  ExpectPlain(MakePair(other, IpMode::kV4, kPort));

  agent().WritePods({FastEntry(), other_entry}, GetParam());
  agent().WaitEnrolling(2);
  ExpectRedirects(first);
  const Connection second = MakePair(other, IpMode::kV4, kPort);
  ExpectRedirects(second);

  agent().WritePods({other_entry}, GetParam());
  WaitUntil("pod fast is gone", [&] { return agent().PodEntry("fast").is_null(); });
  ExpectPlain(first);
  ExpectPlain(MakePair(fast(), IpMode::kV4, kPort));
  ExpectRedirects(second);
  EXPECT_EQ(kernel().Entries("ends"), 2u);
}

TEST_F(PolicyTest, ReloadChangesPorts) {
  StartAgent({"8080", "8081"});
  const Connection kept = MakePair(fast(), IpMode::kV4, 8080);
  const Connection dropped = MakePair(fast(), IpMode::kV4, 8081);
  ExpectRedirects(kept);
  ExpectRedirects(dropped);

  agent().WritePods({FastEntry({"8080", "8082"})});
  // The reload has arrived when a new connection to the new port is accelerated.
  WaitUntil("port 8082 is listed", [&] {
    const uint64_t before = kernel().Count(SHUNT_EXIT_PAIR_MADE);
    MakePair(fast(), IpMode::kV4, 8082);
    return kernel().Count(SHUNT_EXIT_PAIR_MADE) > before;
  });
  ExpectRedirects(kept);
  ExpectPlain(MakePair(fast(), IpMode::kV4, 8081));
  WaitUntil("the connection to the removed port is plain", [&] {
    const uint64_t redirected = kernel().RedirectedBytes();
    PingPong(dropped);
    return kernel().RedirectedBytes() == redirected;
  });
}

TEST_F(PolicyTest, ReloadUnderLoadLosesNothing) {
  StartAgent();
  std::vector<Connection> connections;
  for (int i = 0; i < 6; i++) {
    connections.push_back(MakeFastPair(kIpModes[i % std::size(kIpModes)]));
  }
  Traffic traffic(connections);
  for (int round = 0; round < 10; round++) {
    traffic.WaitForProgress();
    agent().WritePods({});
    WaitUntil("the pod is gone", [&] { return agent().PodEntry("fast").is_null(); });
    traffic.WaitForProgress();
    agent().WritePods({FastEntry()});
    agent().WaitEnrolling(1);
  }
  traffic.Stop();
}

TEST_F(PolicyTest, ABadReloadKeepsTheRunningState) {
  StartAgent();
  const Connection connection = MakeFastPair();
  ExpectRedirects(connection);
  const std::string good = agent().Yaml({FastEntry()});
  const std::string bad[] = {
      "static: [unclosed",
      good + "surprise: 1\n",
      agent().Yaml({FastEntry({"0"})}),
      agent().Yaml({FastEntry({"70000"})}),
      agent().Yaml({FastEntry({"9-8"})}),
      agent().Yaml({FastEntry(), FastEntry()}),
      "",
  };
  size_t refusals = 0;
  for (const std::string& text : bad) {
    SCOPED_TRACE(text);
    agent().WriteYaml(text);
    WaitUntil("the agent refuses the file", [&] {
      return agent().LogLines("level", "error").size() +
                 agent().LogLines("level", "warning").size() >
             refusals;
    });
    refusals =
        agent().LogLines("level", "error").size() + agent().LogLines("level", "warning").size();
    EXPECT_NE(agent().Status().at("configError"), "") << agent().Status();
    ExpectRedirects(connection);
    ExpectRedirects(MakeFastPair());
  }
  Pod other;
  agent().WritePods({FastEntry(), {"other", other.cgroup(), {"8080"}, std::nullopt}});
  agent().WaitEnrolling(2);
  EXPECT_EQ(agent().Status().at("configError"), "");
}

TEST_F(PolicyTest, ABadFileAtStartSaysWhereAndWhat) {
  const std::string good = agent().Yaml({FastEntry()});
  const struct {
    std::string text;
    std::vector<std::string> says;
  } cases[] = {
      {"static: [unclosed", {"agent.yaml:"}},
      {good + "surprise: 1\n", {"surprise", "agent.yaml:"}},
      {agent().Yaml({FastEntry({"0"})}), {"ports", "0", "65535"}},
      {agent().Yaml({FastEntry({"70000"})}), {"ports", "70000", "65535"}},
      {agent().Yaml({FastEntry(), FastEntry()}), {"uid", "fast"}},
      {agent().Yaml({{"fast", "/proc", {"8080"}, std::nullopt}}), {"/proc", "cgroup v2"}},
      {"", {}},
  };
  for (const auto& [text, says] : cases) {
    SCOPED_TRACE(text);
    AgentProcess process(bpffs().path());
    process.WriteYaml(text);
    EXPECT_EQ(process.RunToExit(), 2);
    for (const std::string& word : says) {
      EXPECT_THAT(process.Output(), HasSubstr(word));
    }
    EXPECT_FALSE(kernel().Exists()) << "something was half applied";
  }
}

TEST_F(PolicyTest, ASocketPathThatIsTooLongIsRefused) {
  std::string text = agent().Yaml({FastEntry()});
  const size_t at = text.find(agent().socket_path());
  text.replace(at, agent().socket_path().size(), "/run/" + std::string(200, 'x') + "/agent.sock");
  agent().WriteYaml(text);
  EXPECT_EQ(agent().RunToExit(), 2);
  EXPECT_THAT(agent().Output(), HasSubstr("107"));
}

TEST_F(PolicyTest, DryRunEnrolsNothing) {
  agent().WritePods({FastEntry()});
  agent().StartReady(0, {"--dry-run"});
  WaitForState("fast", "observed");
  EXPECT_EQ(agent().Status().at("engine"), "none");
  PingPong(MakePair(fast(), IpMode::kV4, kPort));
  EXPECT_EQ(agent().Terminate(), 0);
  EXPECT_FALSE(kernel().Exists());
}

TEST_F(PolicyTest, RemovalOfAPodWithUnreadBytesLosesNothing) {
  StartAgent();
  const Connection connection = MakeFastPair();
  const Pattern up(RunSeed()), down(RunSeed() + 1);
  SendAll(connection.client.get(), up.At(0, 50000));
  SendAll(connection.server.get(), down.At(0, 60000));
  ASSERT_EQ(kernel().RedirectedBytes(), 110000u) << kernel().CountsText();

  agent().WritePods({});
  WaitForState("fast", "leaving");
  // More goes by TCP, behind what is unread.
  SendAll(connection.client.get(), up.At(50000, 1000));
  SendAll(connection.server.get(), down.At(60000, 1000));
  EXPECT_EQ(kernel().RedirectedBytes(), 110000u);
  EXPECT_EQ(kernel().Entries("sockets"), 2u);

  EXPECT_EQ(up.Difference(0, ReadExactly(connection.server.get(), 51000)).value_or(""), "");
  EXPECT_EQ(down.Difference(0, ReadExactly(connection.client.get(), 61000)).value_or(""), "");
  WaitForNoEnds();
  WaitUntil("the pod is gone", [&] { return agent().PodEntry("fast").is_null(); });
  ExpectPlain(connection);
}

TEST_F(PolicyTest, APodThatComesBackWhileItStillLeaves) {
  StartAgent();
  const Connection connection = MakeFastPair();
  SendAll(connection.client.get(), "unread");
  agent().WritePods({});
  WaitForState("fast", "leaving");
  agent().WritePods({FastEntry()});
  agent().WaitEnrolling(1);
  ExpectRedirects(MakePair(fast(), IpMode::kV6, kPort));
  EXPECT_EQ(ReadExactly(connection.server.get(), 6), "unread");
  PingPong(connection);
}

TEST_F(PolicyTest, ACgroupThatIsRemovedWhileAttached) {
  StartAgent();
  Connection connection = MakeFastPair();
  ExpectRedirects(connection);
  SendAll(connection.client.get(), "unread");
  fast().RemoveCgroup();
  WaitUntil("the agent has noticed", [&] {
    const Json pod = agent().PodEntry("fast");
    return pod.is_null() || pod.at("state") != "enrolling";
  });
  // The sockets live on.
  EXPECT_EQ(ReadExactly(connection.server.get(), 6), "unread");
  for (int i = 0; i < 20; i++) {
    PingPong(connection);
  }
  connection = Connection();
  WaitForNoEnds();
}

TEST_F(PolicyTest, ACgroupThatIsMadeAgainWithTheSamePath) {
  StartAgent();
  const Connection old = MakeFastPair();
  ExpectRedirects(old);
  fast().RemoveCgroup();
  fast().RecreateCgroup();
  WaitUntil("the new cgroup is enrolled", [&] {
    const uint64_t before = kernel().Count(SHUNT_EXIT_PAIR_MADE);
    const Connection connection = MakePair(fast(), IpMode::kV6, kPort);
    PingPong(connection);
    return kernel().Count(SHUNT_EXIT_PAIR_MADE) > before;
  });
  ExpectRedirects(MakePair(fast(), IpMode::kV6, kPort));
  PingPong(old);
}

TEST_F(PolicyTest, ACgroupThatIsThereLaterThanTheAgent) {
  fast().RemoveCgroup();
  agent().WritePods({FastEntry()});
  agent().StartReady(0);
  WaitForState("fast", "waiting");
  fast().RecreateCgroup();
  agent().WaitEnrolling(1);
  ExpectRedirects(MakeFastPair());
}

}  // namespace
}  // namespace shunt::test

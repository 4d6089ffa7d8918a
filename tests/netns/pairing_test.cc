// SPDX-License-Identifier: Apache-2.0
//
// Which connections are accelerated, and which must never be.
#include <netinet/tcp.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/pod_fixture.h"

namespace shunt::test {
namespace {

constexpr uint16_t kProxyPort = 15001;
// Of TEST-NET-1 (RFC 5737): not an address of the pod.
constexpr char kService[] = "192.0.2.10";

class PairingTest : public PodTest {};

class PairingModeTest : public PairingTest, public testing::WithParamInterface<IpMode> {};

INSTANTIATE_TEST_SUITE_P(All, PairingModeTest, testing::ValuesIn(kIpModes),
                         [](const testing::TestParamInfo<IpMode>& mode) {
                           switch (mode.param) {
                             case IpMode::kV4:
                               return "V4";
                             case IpMode::kV6:
                               return "V6";
                             case IpMode::kMapped:
                               return "V4Mapped";
                             case IpMode::kMixed:
                               return "V4ToDualStack";
                           }
                           return "Unknown";
                         });

TEST_P(PairingModeTest, APairIsMadeUsedAndForgotten) {
  StartAgent();
  {
    const Connection connection = MakeFastPair(GetParam());
    for (int i = 0; i < 10; i++) {
      ExpectRedirects(connection);
    }
    EXPECT_EQ(kernel().Entries("sockets"), 2u);
    EXPECT_EQ(kernel().Entries("ends"), 2u);
    EXPECT_EQ(kernel().Entries("announced"), 0u);

    const Json status = agent().Status();
    EXPECT_EQ(status.at("engine"), "sockhash");
    EXPECT_EQ(status.at("pairs").at("accelerated"), 1);
    EXPECT_EQ(status.at("redirectedBytes"), 20);
    const Json pairs = agent().Ask({"pairs"}).at("pairs");
    ASSERT_EQ(pairs.size(), 1u) << pairs;
    EXPECT_EQ(pairs[0].at("serverPort"), kPort) << pairs;
  }
  WaitUntil("the maps are empty",
            [&] { return kernel().Entries("sockets") == 0 && kernel().Entries("ends") == 0; });
  EXPECT_EQ(agent().Status().at("pairs").at("accelerated"), 0);
}

TEST_P(PairingModeTest, ContainersInCgroupsOfTheirOwnBelowThePods) {
  StartAgent();
  const auto app = fast().AddContainer("app");
  const auto sidecar = fast().AddContainer("sidecar");
  const Connection connection = MakePair(*app, *sidecar, GetParam(), kPort);
  ExpectRedirects(connection);
}

TEST_F(PairingTest, BehindRedirect) {
  MustRun({"nft", "-f", "-"}, fast().netns().get(), R"(
    table inet sidecar {
      chain output {
        type nat hook output priority -100;
        tcp dport 8080 redirect to :15001
      }
    })");
  StartAgent({"15001"});
  for (const IpMode mode : kIpModes) {
    SCOPED_TRACE(mode);
    const UniqueFd listener = Listen(fast().container(), ListenEndpoint(mode, kProxyPort));
    Connection connection;
    connection.client = Connect(fast().container(), ConnectEndpoint(mode, 8080));
    connection.server = Accept(listener.get());
    ExpectRedirects(connection);
  }
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), std::size(kIpModes)) << kernel().CountsText();
}

TEST_F(PairingTest, BehindRedirectOfAnotherHostsAddress) {
  MustRun({"nft", "-f", "-"}, fast().netns().get(), R"(
    table ip sidecar {
      chain output {
        type nat hook output priority -100;
        ip daddr 192.0.2.0/24 meta l4proto tcp redirect to :15001
      }
    })");
  MustRun({"ip", "route", "add", "default", "dev", "lo", "src", "127.0.0.1"}, fast().netns().get());
  StartAgent({"15001"});
  const UniqueFd listener = Listen(fast().container(), Endpoint("127.0.0.1", kProxyPort));
  Connection connection;
  connection.client = Connect(fast().container(), Endpoint(kService, 80));
  connection.server = Accept(listener.get());
  ExpectRedirects(connection);
}

// With TPROXY nothing is translated: the server's socket has the address that the
// client dialled, so that port is the one to list.
TEST_F(PairingTest, BehindTproxy) {
  const NetnsToken* netns = fast().netns().get();
  MustRun({"nft", "-f", "-"}, netns, R"(
    table ip sidecar {
      chain output {
        type route hook output priority -150;
        ip daddr 192.0.2.10 tcp dport 80 meta mark set 1
      }
      chain prerouting {
        type filter hook prerouting priority -150;
        ip daddr 192.0.2.10 tcp dport 80 meta mark set 1 tproxy to :15001 accept
      }
    })");
  MustRun({"ip", "rule", "add", "fwmark", "1", "lookup", "100"}, netns);
  MustRun({"ip", "route", "add", "local", "default", "dev", "lo", "table", "100"}, netns);
  MustRun({"ip", "route", "add", "default", "dev", "lo", "src", "127.0.0.1"}, netns);
  fast().netns()->SetSysctl("net.ipv4.conf.lo.route_localnet", "1");
  StartAgent({"80"});

  const UniqueFd listener = fast().Socket(AF_INET);
  SetOption(listener.get(), SOL_IP, IP_TRANSPARENT, 1);
  const Endpoint proxy("0.0.0.0", kProxyPort);
  ASSERT_EQ(bind(listener.get(), proxy.get(), proxy.size()), 0);
  ASSERT_EQ(listen(listener.get(), 8), 0);
  Connection connection;
  connection.client = Connect(fast().container(), Endpoint(kService, 80));
  connection.server = Accept(listener.get());
  EXPECT_EQ(Endpoint::LocalOf(connection.server.get()).port(), 80);
  ExpectRedirects(connection);
}

TEST_F(PairingTest, EqualAddressesInTwoPodsNeverMeet) {
  Pod other;
  agent().WritePods({FastEntry(), {"other", other.cgroup(), {"8080"}, std::nullopt}});
  agent().StartReady(2);
  const Endpoint from("127.0.0.1", 40000), to("127.0.0.1", kPort);
  std::vector<Connection> connections(2);
  std::vector<UniqueFd> listeners;
  Pod* pods[] = {&fast(), &other};
  for (Pod* pod : pods) {
    listeners.push_back(Listen(pod->container(), to));
  }
  for (int round = 0; round < 20; round++) {
    for (int i = 0; i < 2; i++) {
      connections[i].client = Connect(pods[i]->container(), to, &from);
    }
    for (int i = 0; i < 2; i++) {
      connections[i].server = Accept(listeners[i].get());
    }
    const uint64_t before = kernel().RedirectedBytes();
    SendAll(connections[0].client.get(), "first");
    SendAll(connections[1].client.get(), "other");
    SendAll(connections[0].server.get(), "FIRST");
    SendAll(connections[1].server.get(), "OTHER");
    EXPECT_EQ(ReadExactly(connections[1].server.get(), 5), "other");
    EXPECT_EQ(ReadExactly(connections[0].server.get(), 5), "first");
    EXPECT_EQ(ReadExactly(connections[1].client.get(), 5), "OTHER");
    EXPECT_EQ(ReadExactly(connections[0].client.get(), 5), "FIRST");
    EXPECT_EQ(kernel().RedirectedBytes(), before + 20);
    for (Connection& connection : connections) {
      // The client's end goes by a reset, so that its port is free for the next.
      const struct linger now = {1, 0};
      setsockopt(connection.client.get(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
      connection = Connection();
    }
  }
  EXPECT_EQ(agent().PodEntry("fast").at("pairsMade"), 20);
  EXPECT_EQ(agent().PodEntry("other").at("pairsMade"), 20);
}

TEST_F(PairingTest, AnUnlistedPortStaysPlain) {
  StartAgent();
  const Connection connection = MakePair(fast(), IpMode::kV4, 8081);
  ExpectPlain(connection);
  EXPECT_EQ(kernel().Entries("ends"), 0u);
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_CLIENT_UNANNOUNCED), 1u) << kernel().CountsText();
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_SERVER_UNLISTED), 1u) << kernel().CountsText();
}

TEST_F(PairingTest, PortRangesAreInclusive) {
  StartAgent({"9000-9002", "9100"});
  for (const uint16_t port : {9000, 9001, 9002, 9100}) {
    ExpectRedirects(MakePair(fast(), IpMode::kV4, port));
  }
  for (const uint16_t port : {8999, 9003, 9099, 9101}) {
    ExpectPlain(MakePair(fast(), IpMode::kV4, port));
  }
}

TEST_F(PairingTest, AnUnlistedPodStaysPlain) {
  StartAgent();
  ExpectPlain(MakePair(plain(), IpMode::kV4, kPort));
  EXPECT_EQ(kernel().CountsText(), "");
}

TEST_F(PairingTest, AClientOutsideThePodsCgroupStaysPlain) {
  StartAgent();
  Pod stranger(fast().netns());
  const Connection connection =
      MakePair(stranger.container(), fast().container(), IpMode::kV4, kPort);
  ExpectPlain(connection);
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_SERVER_ALONE), 1u) << kernel().CountsText();
  EXPECT_EQ(kernel().Entries("ends"), 0u);
  EXPECT_GE(agent().Status().at("pairs").at("plain"), 1);
}

TEST_F(PairingTest, AServerOutsideThePodsCgroupLeavesNoOrphan) {
  StartAgent();
  Pod stranger(fast().netns());
  const Connection connection =
      MakePair(fast().container(), stranger.container(), IpMode::kV4, kPort);
  ExpectPlain(connection);
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_CLIENT_UNANNOUNCED), 1u) << kernel().CountsText();
  EXPECT_EQ(kernel().Entries("ends"), 0u);
  EXPECT_EQ(kernel().Entries("sockets"), 0u);
}

TEST_F(PairingTest, FastOpenStaysRightAndPlain) {
  fast().netns()->SetSysctl("net.ipv4.tcp_fastopen", "3");
  StartAgent();
  UniqueFd listener = Listen(fast().container(), Endpoint("127.0.0.1", kPort));
  SetOption(listener.get(), SOL_TCP, TCP_FASTOPEN, 16);
  const Endpoint to("127.0.0.1", kPort);
  // The first fetches the cookie, the later ones send data in the SYN.
  int with_data_in_syn = 0;
  for (int i = 0; i < 5; i++) {
    Connection connection;
    connection.client = fast().Socket(AF_INET);
    BoundBlocking(connection.client.get());
    ASSERT_EQ(sendto(connection.client.get(), "early", 5, MSG_FASTOPEN, to.get(), to.size()), 5)
        << ErrnoName(errno);
    connection.server = Accept(listener.get());
    SendAll(connection.client.get(), "late");
    EXPECT_EQ(ReadExactly(connection.server.get(), 9), "earlylate");
    SendAll(connection.server.get(), "answer");
    EXPECT_EQ(ReadExactly(connection.client.get(), 6), "answer");
    struct tcp_info info = {};
    socklen_t size = sizeof(info);
    ASSERT_EQ(getsockopt(connection.client.get(), SOL_TCP, TCP_INFO, &info, &size), 0);
    if (info.tcpi_options & TCPI_OPT_SYN_DATA) {
      with_data_in_syn++;
      ExpectPlain(connection);
      EXPECT_EQ(kernel().Entries("sockets"), 0u) << kernel().CountsText();
    }
    PingPong(connection);
  }
  EXPECT_EQ(with_data_in_syn, 4);
}

TEST_F(PairingTest, DeferAcceptKeepsEarlyDataInOrder) {
  StartAgent();
  for (const IpMode mode : kIpModes) {
    SCOPED_TRACE(mode);
    UniqueFd listener = Listen(fast().container(), ListenEndpoint(mode, kPort));
    SetOption(listener.get(), SOL_TCP, TCP_DEFER_ACCEPT, 5);
    Connection connection;
    connection.client = Connect(fast().container(), ConnectEndpoint(mode, kPort));
    // There is no server socket yet: its first data makes it.
    SendAll(connection.client.get(), "AAAA");
    SendAll(connection.client.get(), "BBBB");
    connection.server = Accept(listener.get());
    SendAll(connection.client.get(), "CCCC");
    EXPECT_EQ(ReadExactly(connection.server.get(), 12), "AAAABBBBCCCC");
    // Where FIONREAD does not show those bytes, such a pair goes back to TCP.
    if (kernel().Count(SHUNT_EXIT_LEAVING_MIXED) == 0) {
      ExpectRedirects(connection);
    } else {
      WaitUntil("the pair has left", [&] { return kernel().Entries("sockets") == 0; });
      PingPong(connection);
    }
  }
}

TEST_F(PairingTest, DataSentBeforeAcceptIsInOrder) {
  StartAgent();
  for (const IpMode mode : kIpModes) {
    SCOPED_TRACE(mode);
    UniqueFd listener = Listen(fast().container(), ListenEndpoint(mode, kPort));
    Connection connection;
    connection.client = Connect(fast().container(), ConnectEndpoint(mode, kPort));
    SendAll(connection.client.get(), "AAAA");
    SendAll(connection.client.get(), "BBBB");
    connection.server = Accept(listener.get());
    SendAll(connection.client.get(), "CCCC");
    EXPECT_EQ(ReadExactly(connection.server.get(), 12), "AAAABBBBCCCC");
    // Where FIONREAD does not show those bytes, such a pair goes back to TCP.
    if (kernel().Count(SHUNT_EXIT_LEAVING_MIXED) == 0) {
      ExpectRedirects(connection);
    } else {
      WaitUntil("the pair has left", [&] { return kernel().Entries("sockets") == 0; });
      PingPong(connection);
    }
  }
}

TEST_F(PairingTest, OneListenerWithAThousandChildrenNeverJoinsItself) {
  constexpr size_t kChildren = 1000;
  StartAgent();
  for (const IpMode mode : kIpModes) {
    SCOPED_TRACE(mode);
    UniqueFd listener = Listen(fast().container(), ListenEndpoint(mode, kPort), 4096);
    EXPECT_EQ(kernel().Entries("sockets"), 0u);
    std::vector<Connection> connections(kChildren);
    for (Connection& connection : connections) {
      connection.client = Connect(fast().container(), ConnectEndpoint(mode, kPort));
      connection.server = Accept(listener.get());
    }
    EXPECT_EQ(kernel().Entries("sockets"), 2 * kChildren);
    for (const Connection& connection : connections) {
      PingPong(connection);
    }
    connections.clear();
    WaitUntil("all children are gone", [&] { return kernel().Entries("ends") == 0; });
    // The listener is as it was.
    EXPECT_EQ(kernel().Entries("sockets"), 0u);
    Connection last;
    last.client = Connect(fast().container(), ConnectEndpoint(mode, kPort));
    last.server = Accept(listener.get());
    ExpectRedirects(last);
  }
}

// Both sides connect, nobody listens: each end is a client, so they do not pair.
TEST_F(PairingTest, ASocketConnectedToItselfStaysRight) {
  StartAgent();
  const Endpoint self("127.0.0.1", kPort);
  const UniqueFd fd = Connect(fast().container(), self, &self);
  SendAll(fd.get(), "hello");
  EXPECT_EQ(ReadExactly(fd.get(), 5), "hello");
  EXPECT_EQ(kernel().Entries("sockets"), 0u) << kernel().CountsText();
}

}  // namespace
}  // namespace shunt::test

// SPDX-License-Identifier: Apache-2.0
//
// Many connections: everything is counted right, and nothing is left of them.
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/pod_fixture.h"

namespace shunt::test {
namespace {

class ScaleTest : public PodTest {
 protected:
  void WaitForEmptyMaps(const Where& where = Where::Here()) {
    for (const char* map : {"ends", "sockets", "announced"}) {
      WaitUntil(
          std::string("map ") + map + " is empty", [&] { return kernel().Entries(map) == 0; },
          kPatience, where);
    }
    EXPECT_EQ(agent().Status(where).at("pairs").at("accelerated"), 0);
  }
};

// A process that accepts connections, answers one byte each, and keeps them open
// until it is killed; so that neither process needs more descriptors than it has.
Child KeepServing(const UniqueFd& listener) {
  return Child::Fork([&] {
    std::vector<int> accepted;
    for (;;) {
      const int fd = accept(listener.get(), nullptr, nullptr);
      char byte;
      if (fd < 0 || recv(fd, &byte, 1, 0) != 1 || send(fd, &byte, 1, MSG_NOSIGNAL) != 1) {
        return 1;
      }
      accepted.push_back(fd);
    }
  });
}

// The same, and closes each when its client has.
Child ServeOneByOne(const UniqueFd& listener) {
  return Child::Fork([&] {
    for (;;) {
      const int fd = accept(listener.get(), nullptr, nullptr);
      char byte;
      if (fd < 0) {
        return 1;
      }
      while (recv(fd, &byte, 1, 0) == 1 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1) {
      }
      close(fd);
    }
  });
}

void AskOneByte(int fd) {
  SendAll(fd, "x");
  EXPECT_EQ(ReadExactly(fd, 1), "x");
}

// "VmRSS" of a process, in KiB.
uint64_t ResidentKib(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmRSS:", 0) == 0) {
      return std::stoull(line.substr(6));
    }
  }
  return 0;
}

// User and system time of a process.
milliseconds CpuTime(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(stat)), std::istreambuf_iterator<char>());
  std::istringstream fields(text.substr(text.rfind(')') + 2));
  std::string skipped;
  for (int i = 3; i < 14; i++) {
    fields >> skipped;
  }
  uint64_t user = 0, system = 0;
  fields >> user >> system;
  return milliseconds((user + system) * 1000 / sysconf(_SC_CLK_TCK));
}

TEST_F(ScaleTest, TenThousandLivePairsThenNone) {
  constexpr size_t kPairs = 10000;
  StartAgent();
  const Endpoint to("127.0.0.1", kPort);
  UniqueFd listener = Listen(fast().container(), to, 1024);
  Child server = KeepServing(listener);
  std::vector<UniqueFd> clients;
  for (size_t i = 0; i < kPairs; i++) {
    clients.push_back(Connect(fast().container(), to));
    AskOneByte(clients.back().get());
  }
  EXPECT_EQ(kernel().Entries("sockets"), 2 * kPairs);
  EXPECT_EQ(kernel().Entries("ends"), 2 * kPairs);
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), kPairs);
  EXPECT_EQ(kernel().RedirectedBytes(), 2 * kPairs) << kernel().CountsText();
  const Json status = agent().Status();
  EXPECT_EQ(status.at("pairs").at("accelerated"), kPairs) << status;
  EXPECT_EQ(status.at("pairs").at("plain"), 0) << status;
  EXPECT_EQ(status.at("redirectedBytes"), 2 * kPairs) << status;
  clients.clear();
  server.Kill();
  WaitForEmptyMaps();
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_LEFT_CLOSED), 2 * kPairs) << kernel().CountsText();
}

TEST_F(ScaleTest, AHundredThousandConnectionsLeaveNothing) {
  constexpr size_t kConnections = 100000;
  StartAgent();
  const Endpoint to("127.0.0.1", kPort);
  UniqueFd listener = Listen(fast().container(), to, 1024);
  Child server = ServeOneByOne(listener);
  for (size_t i = 0; i < kConnections; i++) {
    const UniqueFd client = Connect(fast().container(), to);
    // No TIME_WAIT: the ports would run out.
    const struct linger now = {1, 0};
    setsockopt(client.get(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    AskOneByte(client.get());
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), kConnections) << kernel().CountsText();
  EXPECT_EQ(kernel().RedirectedBytes(), 2 * kConnections) << kernel().CountsText();
  WaitForEmptyMaps();
  const Json pod = agent().PodEntry("fast");
  EXPECT_EQ(pod.at("pairsMade"), kConnections) << pod;
  EXPECT_EQ(pod.at("pairs"), 0) << pod;
}

TEST_F(ScaleTest, AFullMapLeavesTheRestOnTcp) {
  constexpr size_t kRoom = 4;
  constexpr size_t kPairs = 12;
  StartAgent({"8080"}, {"--max-pairs", std::to_string(kRoom)});
  std::vector<Connection> connections(kPairs);
  UniqueFd listener = Listen(fast().container(), Endpoint("127.0.0.1", kPort));
  for (Connection& connection : connections) {
    connection.client = Connect(fast().container(), Endpoint("127.0.0.1", kPort));
    connection.server = Accept(listener.get());
    for (int i = 0; i < 5; i++) {
      PingPong(connection);
    }
  }
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), kRoom) << kernel().CountsText();
  EXPECT_GE(kernel().Count(SHUNT_EXIT_REFUSED_MAP_FULL), kPairs - kRoom) << kernel().CountsText();
  const Json status = agent().Status();
  EXPECT_EQ(status.at("pairs").at("accelerated"), kRoom) << status;
  EXPECT_EQ(status.at("pairs").at("plain"), kPairs - kRoom) << status;
  // Room comes back with the connections that end.
  connections.clear();
  WaitForEmptyMaps();
  ExpectRedirects(MakeFastPair(IpMode::kV6));
}

TEST_F(ScaleTest, TheAgentStaysSmallAndIdle) {
  constexpr size_t kPairs = 1000;
  constexpr milliseconds kWatched{5000};
  StartAgent();
  std::vector<Connection> connections(kPairs);
  UniqueFd listener = Listen(fast().container(), Endpoint("127.0.0.1", kPort));
  for (Connection& connection : connections) {
    connection.client = Connect(fast().container(), Endpoint("127.0.0.1", kPort));
    connection.server = Accept(listener.get());
    PingPong(connection);
  }
  EXPECT_EQ(agent().Ask({"pairs"}).at("pairs").size(), kPairs);
  EXPECT_EQ(agent().Status().at("pairs").at("accelerated"), kPairs);
  const uint64_t resident = ResidentKib(agent().pid());
  printf("agent with %zu pairs: %llu KiB resident\n", kPairs,
         static_cast<unsigned long long>(resident));
  EXPECT_GT(resident, 0u);
  EXPECT_LE(resident, 30u * 1024);

  const milliseconds before = CpuTime(agent().pid());
  std::this_thread::sleep_for(kWatched);
  const milliseconds used = CpuTime(agent().pid()) - before;
  printf("agent used %lld ms of CPU in %lld ms\n", static_cast<long long>(used.count()),
         static_cast<long long>(kWatched.count()));
  EXPECT_LE(used, milliseconds(50));
}

}  // namespace
}  // namespace shunt::test

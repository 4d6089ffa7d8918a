// SPDX-License-Identifier: Apache-2.0
//
// shunt-agent --dry-run: counts what would become of connections, and changes none.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/command.h"
#include "tests/support/pod_fixture.h"
#include "tests/support/traffic.h"

namespace shunt::test {
namespace {

using testing::Contains;
using testing::HasSubstr;

// Ids of all links to this cgroup.
std::set<uint32_t> LinksTo(uint64_t cgroup_id) {
  std::set<uint32_t> found;
  for (uint32_t id = 0; bpf_link_get_next_id(id, &id) == 0;) {
    const UniqueFd fd(bpf_link_get_fd_by_id(id));
    struct bpf_link_info info = {};
    __u32 size = sizeof(info);
    if (fd.valid() && bpf_obj_get_info_by_fd(fd.get(), &info, &size) == 0 &&
        info.type == BPF_LINK_TYPE_CGROUP && info.cgroup.cgroup_id == cgroup_id) {
      found.insert(id);
    }
  }
  return found;
}

// The number after `name` in the file, e.g. "map_id:\t7"; 0 if there is none.
uint32_t FieldOf(const std::filesystem::path& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    uint32_t value = 0;
    if (word == name + ":" && file >> value) {
      return value;
    }
  }
  return 0;
}

// The kernel puts some of its own into each bpffs.
std::set<std::string> FilesIn(const std::string& directory) {
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    files.insert(entry.path());
  }
  return files;
}

class ObserveTest : public PodTest {
 protected:
  void Observe(const std::vector<std::string>& ports = {std::to_string(kPort)},
               const Where& where = Where::Here()) {
    agent().LearnWorkloads();
    agent().WritePods({FastEntry(ports)});
    agent().Start({"--dry-run"});
    WaitUntil(
        "the pod is observed",
        [&] {
          const CommandResult pods = agent().Ctl({"--output", "json", "pods"});
          if (pods.exit_code != 0 && !agent().running()) {
            Stop(where, "the agent ended:\n" + agent().Output());
          }
          if (pods.exit_code != 0) {
            return false;
          }
          const Json list = Json::parse(pods.out).at("pods");
          return list.size() == 1 && list.front().at("state") == "observed";
        },
        kPatience, where);
  }

  Json Observed() { return agent().PodEntry("fast").at("observed"); }

  uint64_t CgroupId() const {
    struct stat info = {};
    stat(fast().cgroup().c_str(), &info);
    return info.st_ino;
  }

  // No program of the agent's can redirect, and no socket is in a sockhash of its own.
  void ExpectSocketsUntouched(const Where& where = Where::Here()) const {
    const std::string fds = "/proc/" + std::to_string(agent().pid()) + "/fdinfo";
    int maps = 0;
    for (const auto& fd : std::filesystem::directory_iterator(fds)) {
      EXPECT_NE(FieldOf(fd.path(), "prog_type"), uint32_t{BPF_PROG_TYPE_SK_MSG}) << where.line;
      if (FieldOf(fd.path(), "map_type") == BPF_MAP_TYPE_SOCKHASH) {
        const UniqueFd map(bpf_map_get_fd_by_id(FieldOf(fd.path(), "map_id")));
        shunt_end_key key;
        EXPECT_NE(bpf_map_get_next_key(map.get(), nullptr, &key), 0) << where.line;
        maps++;
      }
    }
    EXPECT_EQ(maps, 1) << where.line;
  }
};

TEST_F(ObserveTest, CountsWhatWouldBeAcceleratedAndTouchesNothing) {
  const std::set<std::string> files = FilesIn(bpffs().path());
  Observe();
  std::vector<Connection> connections;
  for (const IpMode mode : kIpModes) {
    connections.push_back(MakePair(fast(), mode, kPort));
  }
  {
    Traffic traffic(connections);
    traffic.WaitForProgress();
  }
  const Json observed = Observed();
  EXPECT_EQ(observed.at("wouldAccelerate"), 4) << observed;
  EXPECT_EQ(observed.at("wouldStay"), Json::object()) << observed;
  EXPECT_EQ(observed.at("hazards"), Json::object()) << observed;
  EXPECT_GT(observed.at("receives"), 0) << observed;
  EXPECT_EQ(observed.at("expectedGain"), "unknown");
  EXPECT_THAT(observed.at("expectedGainBasis"), HasSubstr("bytes on average"));

  const Json status = agent().Status();
  EXPECT_EQ(status.at("engine"), "none");
  EXPECT_EQ(status.at("redirectedBytes"), 0);
  EXPECT_EQ(status.at("pairs").at("accelerated"), 0);
  EXPECT_EQ(status.at("ends").at("used"), 0);
  EXPECT_EQ(status.at("observed").at("wouldAccelerate"), 4);
  EXPECT_EQ(status.at("exits").count("redirected"), 0u) << status;
  EXPECT_EQ(status.at("exits").count("pair_made"), 0u) << status;
  EXPECT_FALSE(kernel().Exists());
  EXPECT_EQ(FilesIn(bpffs().path()), files);
  ExpectSocketsUntouched();
  const CommandResult table = agent().Ctl({"pods"});
  EXPECT_THAT(table.out, HasSubstr("4 connections would be accelerated, 0 would stay on TCP"));
  // The agent reads what is not urgent once a second.
  WaitUntil("the first such connection is logged",
            [&] { return !agent().LogLines("reason", "would_accelerate").empty(); });
  EXPECT_EQ(agent().LogLines("reason", "would_accelerate").size(), 1u) << agent().Output();
}

TEST_F(ObserveTest, TellsWhyConnectionsWouldStayOnTcp) {
  fast().netns()->SetSysctl("net.ipv4.tcp_fastopen", "3");
  Observe({"8080", "8090", "8091"});
  Pod stranger(fast().netns());
  PingPong(MakePair(stranger.container(), fast().container(), IpMode::kV4, kPort));
  PingPong(MakePair(stranger.container(), fast().container(), IpMode::kV6, kPort));
  // Not to a listed port, and from the pod to elsewhere: not counted.
  PingPong(MakePair(fast(), IpMode::kV4, 8081));
  PingPong(MakePair(fast().container(), stranger.container(), IpMode::kV4, kPort));

  // The option of a listener is inherited.
  {
    const UniqueFd listener = Listen(fast().container(), Endpoint("127.0.0.1", 8090));
    SetOption(listener.get(), SOL_SOCKET, SO_RCVLOWAT, 10);
    const UniqueFd client = Connect(fast().container(), Endpoint("127.0.0.1", 8090));
    const UniqueFd server = Accept(listener.get());
  }
  const UniqueFd listener = Listen(fast().container(), Endpoint("127.0.0.1", 8091));
  SetOption(listener.get(), SOL_TCP, TCP_FASTOPEN, 16);
  const Endpoint to("127.0.0.1", 8091);
  for (int i = 0; i < 3; i++) {  // the first fetches the cookie
    const UniqueFd client = fast().Socket(AF_INET);
    ASSERT_EQ(sendto(client.get(), "early", 5, MSG_FASTOPEN, to.get(), to.size()), 5);
    const UniqueFd server = Accept(listener.get());
    EXPECT_EQ(ReadExactly(server.get(), 5), "early");
  }
  const Json observed = Observed();
  EXPECT_EQ(observed.at("wouldStay").value("server_alone", 0), 2) << observed;
  EXPECT_EQ(observed.at("wouldStay").value("socket_option", 0), 1) << observed;
  EXPECT_EQ(observed.at("wouldStay").value("fast_open", 0), 2) << observed;
  EXPECT_EQ(observed.at("wouldStay").size(), 3u) << observed;
  EXPECT_EQ(observed.at("wouldAccelerate"), 1) << observed;
  EXPECT_EQ(agent().Status().at("pairs").at("plain"), 5);
  WaitUntil("each reason is logged", [&] {
    return agent().LogLines("reason", "server_alone").size() == 1 &&
           agent().LogLines("reason", "socket_option").size() == 1 &&
           agent().LogLines("reason", "fast_open").size() == 1;
  });
}

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

TEST_F(ObserveTest, MultipathTcpIsTold) {
  const UniqueFd probe(socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP));
  if (!probe.valid()) {
    GTEST_SKIP() << "this kernel has no MPTCP";
  }
  Observe();
  // Made in the pod's cgroup and namespace by a program of its own.
  const CommandResult result =
      RunCommand({"bash", "-c",
                  "echo $$ > " + fast().cgroup() +
                      "/cgroup.procs && exec python3 -c '\n"
                      "import socket\n"
                      "def tcp(): return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n"
                      "l = tcp(); l.bind((\"127.0.0.1\", 8080)); l.listen()\n"
                      "c = tcp(); c.connect((\"127.0.0.1\", 8080))\n"
                      "s, _ = l.accept()\n"
                      "c.sendall(b\"x\"); assert s.recv(1) == b\"x\"\n'"},
                 fast().netns().get(), "");
  ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
  const Json observed = Observed();
  EXPECT_EQ(observed.at("wouldStay").value("mptcp", 0), 1) << observed;
  EXPECT_EQ(observed.at("wouldAccelerate"), 0) << observed;
}

TEST_F(ObserveTest, NamesTheHazardsOfAWorkload) {
  Observe({"8080", "8090"});
  const Connection harmless = MakePair(fast(), IpMode::kV4, 8090);
  PingPong(harmless);
  const Connection waiting = MakePair(fast(), IpMode::kV4, kPort);
  SendAll(waiting.client.get(), "0123456789");
  char buffer[10];
  ASSERT_EQ(recv(waiting.server.get(), buffer, sizeof(buffer), MSG_WAITALL), 10);
  WaitUntil("the hazard is named", [&] { return Observed().at("hazards").contains("8080"); });
  EXPECT_THAT(Observed().at("hazards").at("8080"), Contains("msg_waitall"));
  EXPECT_FALSE(Observed().at("hazards").contains("8090")) << Observed();
  WaitUntil("it is logged", [&] { return !agent().LogLines("reason", "workload_hazard").empty(); });

  // The next connection of these programs would not be enrolled.
  PingPong(MakePair(fast(), IpMode::kV4, kPort));
  const Json observed = Observed();
  EXPECT_EQ(observed.at("wouldStay").value("hazard_known", 0), 1) << observed;
  EXPECT_EQ(observed.at("wouldAccelerate"), 2) << observed;
  ExpectSocketsUntouched();
  const CommandResult table = agent().Ctl({"status"});
  EXPECT_THAT(table.out, HasSubstr("hazards at port 8080: msg_waitall"));
}

TEST_F(ObserveTest, LeavesNothingAfterSigkill) {
  const std::set<std::string> files = FilesIn(bpffs().path());
  const std::set<uint32_t> before = LinksTo(CgroupId());
  Observe();
  EXPECT_EQ(LinksTo(CgroupId()).size(), before.size() + 2);
  const Connection connection = MakePair(fast(), IpMode::kV4, kPort);
  PingPong(connection);
  agent().KillHard();
  WaitUntil("its links are gone", [&] { return LinksTo(CgroupId()) == before; });
  EXPECT_EQ(FilesIn(bpffs().path()), files);
  PingPong(connection);
  const Connection orphan = MakePair(fast(), IpMode::kV6, kPort);
  PingPong(orphan);

  // And an agent that accelerates starts clean: older connections are left alone.
  agent().StartReady(1);
  EXPECT_EQ(agent().PodEntry("fast").at("liveBefore"), 2);
  ExpectPlain(connection);
}

TEST_F(ObserveTest, RefusesToRunWhereConnectionsAreAccelerated) {
  StartAgent();
  const Connection connection = MakeFastPair();
  EXPECT_EQ(agent().Terminate(), 0);
  EXPECT_EQ(agent().RunToExit({"--dry-run"}), 2);
  EXPECT_THAT(agent().Output(), HasSubstr("shuntctl drain"));
  ExpectRedirects(connection);
}

}  // namespace
}  // namespace shunt::test

// SPDX-License-Identifier: Apache-2.0
#include "ctl/render.h"

#include "ctl/table.h"
#include "gmock/gmock.h"
#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"

namespace shunt::ctl {
namespace {

template <typename Message>
Message Parse(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message));
  return message;
}

v1::GetStatusResponse Status() {
  return Parse<v1::GetStatusResponse>(R"(
    engine: "sockhash" engine_reason: "every probe passed" version: "1.2.3"
    pods: 3 pods_enrolling: 2 pairs_live: 12 connections_plain: 1
    redirected_bytes: 1288490188 ends: 24 ends_capacity: 131072
    exits { reason: "pair_made" text: "both ends enrolled"
            exit_class: EXIT_CLASS_PROGRESS count: 40 }
    exits { reason: "server_alone" text: "remote or plain"
            exit_class: EXIT_CLASS_PLAIN count: 1 }
    exits { reason: "map_full" text: "no room for another end"
            exit_class: EXIT_CLASS_REFUSED count: 5 }
    exits { reason: "mptcp" text: "subflow" exit_class: EXIT_CLASS_REFUSED }
    exits { reason: "back_pressure" text: "peer holds a receive buffer's worth unread"
            exit_class: EXIT_CLASS_FALLBACK count: 1234 }
    exits { reason: "event_lost" text: "ring buffer was full" exit_class: EXIT_CLASS_AGENT }
  )");
}

TEST(RenderTest, StatusJson) {
  EXPECT_EQ(Render(Output::kJson, Status()), R"({
  "engine": "sockhash",
  "engineReason": "every probe passed",
  "pods": 3,
  "pairs": {
    "accelerated": 12,
    "plain": 1
  },
  "redirectedBytes": 1288490188,
  "fallbacks": {
    "map_full": 5,
    "back_pressure": 1234
  },
  "version": "1.2.3",
  "draining": false,
  "podsEnrolling": 2,
  "ends": {
    "used": 24,
    "capacity": 131072
  },
  "refused": {
    "map_full": 5
  },
  "left": {},
  "exits": {
    "pair_made": 40,
    "server_alone": 1,
    "map_full": 5,
    "back_pressure": 1234
  },
  "configError": "",
  "observed": null
}
)");
}

TEST(RenderTest, StatusJsonHasEveryKeyWhenNothingHappened) {
  EXPECT_EQ(Render(Output::kJson, v1::GetStatusResponse()), R"({
  "engine": "",
  "engineReason": "",
  "pods": 0,
  "pairs": {
    "accelerated": 0,
    "plain": 0
  },
  "redirectedBytes": 0,
  "fallbacks": {},
  "version": "",
  "draining": false,
  "podsEnrolling": 0,
  "ends": {
    "used": 0,
    "capacity": 0
  },
  "refused": {},
  "left": {},
  "exits": {},
  "configError": "",
  "observed": null
}
)");
}

TEST(RenderTest, StatusTable) {
  EXPECT_EQ(Render(Output::kTable, Status()),
            R"(engine      sockhash: every probe passed
version     1.2.3
pods        3 wanted, 2 enrolling
pairs       12 accelerated now, 1 connection left on TCP so far
redirected  1.2 GiB
sockets     24 of 131072 enrolled

WENT BY TCP    COUNT  OF           BECAUSE
map_full           5  connections  no room for another end
back_pressure   1234  messages     peer holds a receive buffer's worth unread
)");
}

TEST(RenderTest, StatusTableNamesWhatIsUnusual) {
  v1::GetStatusResponse status;
  status.set_engine("none");
  status.set_engine_reason("drained");
  status.set_draining(true);
  status.set_config_error("agent.yaml:3:5: port 0: allowed are 1 to 65535");
  EXPECT_EQ(Render(Output::kTable, status),
            R"(engine      none: drained
version     -
pods        0 wanted, 0 enrolling
pairs       0 accelerated now, 0 connections left on TCP so far
redirected  0 B
sockets     0 of 0 enrolled
draining    yes: nothing new is accelerated until the agent is restarted
config      last reload refused: agent.yaml:3:5: port 0: allowed are 1 to 65535

Nothing fell back to TCP.
)");
}

v1::ListPodsResponse Pods() {
  return Parse<v1::ListPodsResponse>(R"(
    pods { uid: "demo" cgroup: "/sys/fs/cgroup/demo" ports { first: 8080 last: 8080 }
           ports { first: 30000 last: 60000 } proxy_uid: 1337 state: POD_STATE_ENROLLING
           reason: "enrolled" pairs_made: 40 pairs_live: 12 redirected_bytes: 2048 refused: 5 live_before: 4 }
    pods { uid: "other" state: POD_STATE_WAITING reason: "cgroup_not_found"
           detail: "looked under /sys/fs/cgroup" live_before_unknown: "not attached" }
  )");
}

TEST(RenderTest, PodsJson) {
  EXPECT_EQ(Render(Output::kJson, Pods()), R"({
  "pods": [
    {
      "uid": "demo",
      "state": "enrolling",
      "reason": "enrolled",
      "detail": "",
      "cgroup": "/sys/fs/cgroup/demo",
      "ports": [
        "8080",
        "30000-60000"
      ],
      "proxyUid": 1337,
      "pairs": 12,
      "pairsMade": 40,
      "refused": 5,
      "redirectedBytes": 2048,
      "liveBefore": 4,
      "liveBeforeUnknown": "",
      "observed": null
    },
    {
      "uid": "other",
      "state": "waiting",
      "reason": "cgroup_not_found",
      "detail": "looked under /sys/fs/cgroup",
      "cgroup": "",
      "ports": [],
      "proxyUid": null,
      "pairs": 0,
      "pairsMade": 0,
      "refused": 0,
      "redirectedBytes": 0,
      "liveBefore": "unknown",
      "liveBeforeUnknown": "not attached",
      "observed": null
    }
  ]
}
)");
  EXPECT_EQ(Render(Output::kJson, v1::ListPodsResponse()), "{\n  \"pods\": []\n}\n");
}

TEST(RenderTest, PodsTable) {
  EXPECT_EQ(Render(Output::kTable, Pods()),
            "POD    STATE      REASON            PORTS             PAIRS  MADE  REFUSED  "
            "REDIRECTED  LIVE BEFORE  DETAIL\n"
            "demo   enrolling  enrolled          8080,30000-60000     12    40        5  "
            "   2.0 KiB            4  -\n"
            "other  waiting    cgroup_not_found  -                     0     0        0  "
            "       0 B      unknown  looked under /sys/fs/cgroup\n");
}

constexpr char kObservation[] = R"(
    observation { would_accelerate: 3 would_stay { reason: "server_alone" count: 2 }
                  would_stay { reason: "mptcp" count: 1 }
                  hazards { port: 8080 names: "splice, msg_waitall" } receives: 4
                  received_bytes: 400 expected_gain: "unknown"
                  expected_gain_basis: "a dry run times nothing" })";

TEST(RenderTest, ObservationOfADryRun) {
  const auto pods = Parse<v1::ListPodsResponse>(
      std::string("pods { uid: \"demo\" state: POD_STATE_OBSERVED ") + kObservation + " }");
  const std::string json = Render(Output::kJson, pods);
  EXPECT_THAT(json, testing::HasSubstr(R"("observed": {
        "wouldAccelerate": 3,
        "wouldStay": {
          "server_alone": 2,
          "mptcp": 1
        },
        "hazards": {
          "8080": [
            "splice",
            "msg_waitall"
          ]
        },
        "receives": 4,
        "receivedBytes": 400,
        "expectedGain": "unknown",
        "expectedGainBasis": "a dry run times nothing"
      })"));
  constexpr char kText[] =
      "  3 connections would be accelerated, 3 would stay on TCP (server_alone 2, mptcp 1)\n"
      "  hazards at port 8080: splice, msg_waitall: its next connections would stay on TCP\n"
      "  expected gain: unknown: a dry run times nothing\n";
  EXPECT_THAT(Render(Output::kTable, pods),
              testing::EndsWith(std::string("\nPod demo, observed:\n") + kText));
  EXPECT_THAT(Render(Output::kTable, Parse<v1::GetStatusResponse>(kObservation)),
              testing::EndsWith(std::string("\nObserved:\n") + kText));
}

TEST(RenderTest, EmptyTablesSayWhatToDo) {
  EXPECT_EQ(Render(Output::kTable, v1::ListPodsResponse()),
            "No pods: list some under static.pods in the agent's configuration, or see whether "
            "the controller knows this node.\n");
  EXPECT_EQ(Render(Output::kTable, v1::ListPairsResponse()),
            "No pairs: only connections made after their pod was enrolled are accelerated. "
            "`shuntctl pods` shows where pods stand, `shuntctl status` why connections stay on "
            "TCP.\n");
  EXPECT_EQ(Render(Output::kTable, v1::RunDoctorResponse()),
            "Nothing was tried: see the agent's log for why its engine has no probes.\n");
}

v1::ListPairsResponse Pairs() {
  return Parse<v1::ListPairsResponse>(R"(
    total: 2
    pairs { pod_uid: "demo" client_port: 40000 dialed_port: 80 server_port: 15001
            family: ADDRESS_FAMILY_IPV4 direction: PAIR_DIRECTION_APP_TO_PROXY
            client_to_server_bytes: 100 server_to_client_bytes: 10485760 unread_bytes: 7
            age_seconds: 192.3456789 state: PAIR_STATE_ACCELERATED }
    pairs { pod_uid: "other" client_port: 1 dialed_port: 2 server_port: 3
            family: ADDRESS_FAMILY_IPV6 age_seconds: 0.04 state: PAIR_STATE_LEAVING }
  )");
}

TEST(RenderTest, PairsJson) {
  EXPECT_EQ(Render(Output::kJson, Pairs()), R"({
  "total": 2,
  "pairs": [
    {
      "pod": "demo",
      "direction": "app_to_proxy",
      "family": "ipv4",
      "clientPort": 40000,
      "dialedPort": 80,
      "serverPort": 15001,
      "clientToServerBytes": 100,
      "serverToClientBytes": 10485760,
      "unreadBytes": 7,
      "ageSeconds": 192.346,
      "state": "accelerated"
    },
    {
      "pod": "other",
      "direction": "",
      "family": "ipv6",
      "clientPort": 1,
      "dialedPort": 2,
      "serverPort": 3,
      "clientToServerBytes": 0,
      "serverToClientBytes": 0,
      "unreadBytes": 0,
      "ageSeconds": 0.04,
      "state": "leaving"
    }
  ]
}
)");
  EXPECT_EQ(Render(Output::kJson, v1::ListPairsResponse()),
            "{\n  \"total\": 0,\n  \"pairs\": []\n}\n");
}

TEST(RenderTest, PairsTable) {
  const std::string table =
      "POD    DIRECTION     FAMILY  CLIENT  DIALED  SERVER  TO SERVER  TO CLIENT  UNREAD    AGE  "
      "STATE\n"
      "demo   app_to_proxy  ipv4     40000      80   15001      100 B   10.0 MiB     7 B  3m12s  "
      "accelerated\n"
      "other  -             ipv6         1       2       3        0 B        0 B     0 B   0.0s  "
      "leaving\n";
  v1::ListPairsResponse pairs = Pairs();
  EXPECT_EQ(Render(Output::kTable, pairs), table);
  pairs.set_total(1000);
  EXPECT_EQ(Render(Output::kTable, pairs),
            table + "\nThe busiest 2 of 1000 pairs: --limit shows more.\n");
}

v1::RunDoctorResponse Doctor() {
  return Parse<v1::RunDoctorResponse>(R"(
    probes { name: "redirect" verdict: PROBE_VERDICT_OK tried: "sent 3 bytes"
             happened: "3 bytes came" means: "fine" to_do: "nothing" family: "engine" }
    probes { name: "fionread_counts_tcp_bytes" verdict: PROBE_VERDICT_DEGRADED
             tried: "FIONREAD with 10 bytes waiting" happened: "0"
             means: "epoll readers may stall" to_do: "use a kernel with 04af4efde58a"
             family: "hazard" about: "hazard 11" }
  )");
}

TEST(RenderTest, DoctorJson) {
  v1::RunDoctorResponse doctor = Doctor();
  doctor.mutable_probes()->DeleteSubrange(0, 1);
  EXPECT_EQ(Render(Output::kJson, doctor), R"({
  "ok": true,
  "probes": [
    {
      "name": "fionread_counts_tcp_bytes",
      "verdict": "degraded",
      "tried": "FIONREAD with 10 bytes waiting",
      "happened": "0",
      "means": "epoll readers may stall",
      "toDo": "use a kernel with 04af4efde58a",
      "family": "hazard",
      "about": "hazard 11"
    }
  ]
}
)");
  doctor.mutable_probes(0)->set_verdict(v1::PROBE_VERDICT_FATAL);
  EXPECT_THAT(Render(Output::kJson, doctor), testing::HasSubstr("\"ok\": false"));
  doctor.mutable_probes(0)->set_verdict(v1::PROBE_VERDICT_UNKNOWN);
  EXPECT_THAT(Render(Output::kJson, doctor), testing::HasSubstr("\"verdict\": \"unknown\""));
  EXPECT_TRUE(IsHealthy(doctor));
}

TEST(RenderTest, DoctorTable) {
  v1::RunDoctorResponse doctor = Doctor();
  EXPECT_EQ(Render(Output::kTable, doctor),
            R"(PROBE                      ABOUT      VERDICT   HAPPENED
redirect                   engine     ok        3 bytes came
fionread_counts_tcp_bytes  hazard 11  degraded  0

fionread_counts_tcp_bytes
  tried  FIONREAD with 10 bytes waiting
  means  epoll readers may stall
  to do  use a kernel with 04af4efde58a

This kernel can be used.
)");
  EXPECT_THAT(Render(Output::kTable, doctor, true), testing::HasSubstr(R"(
redirect
  tried  sent 3 bytes
  means  fine
  to do  nothing

fionread_counts_tcp_bytes
)"));
  doctor.mutable_probes(0)->set_verdict(v1::PROBE_VERDICT_FATAL);
  EXPECT_THAT(Render(Output::kTable, doctor),
              testing::EndsWith("\nThis kernel cannot be used as it is.\n"));
}

v1::DrainResponse Waiting() {
  return Parse<v1::DrainResponse>(R"(
    pods: 2 ends: 3 unread_bytes: 5000
    waiting_pods { uid: "demo" ends: 3 unread_bytes: 5000 }
    examples { role: END_ROLE_SERVER local_port: 15001 remote_port: 40000 unread_bytes: 1 }
  )");
}

TEST(RenderTest, DrainProgress) {
  v1::DrainResponse waiting = Waiting();
  const std::string example =
      "  for example the server on port 15001, connected with port 40000: 1 byte unread\n";
  EXPECT_EQ(DrainProgressText(waiting),
            "waiting for 3 connection ends of pod demo: 5000 bytes unread\n" + example);
  waiting.set_ends(4);
  EXPECT_EQ(DrainProgressText(waiting),
            "waiting for 3 connection ends of pod demo: 5000 bytes unread\n"
            "waiting for 4 connection ends of 2 pods in all: 5000 bytes unread\n" +
                example);
  EXPECT_EQ(DrainProgressText(Parse<v1::DrainResponse>("pods: 1")), "letting go of 1 pod\n");
}

TEST(RenderTest, DrainJson) {
  EXPECT_EQ(RenderDrain(Output::kJson, false, Waiting()), R"({
  "drained": false,
  "pods": 2,
  "ends": 3,
  "unreadBytes": 5000,
  "waiting": [
    {
      "pod": "demo",
      "ends": 3,
      "unreadBytes": 5000
    }
  ],
  "examples": [
    {
      "role": "server",
      "localPort": 15001,
      "remotePort": 40000,
      "unreadBytes": 1
    }
  ]
}
)");
  EXPECT_EQ(RenderDrain(Output::kTable, true, {}),
            "Drained: every connection is plain TCP and nothing is pinned.\n");
}

TEST(RenderTest, WhatANewerAgentSaysIsUnknown) {
  v1::ListPodsResponse pods = Pods();
  pods.mutable_pods(0)->set_state(static_cast<v1::PodState>(99));
  EXPECT_THAT(Render(Output::kJson, pods), testing::HasSubstr("\"state\": \"unknown\""));
}

TEST(RenderTest, BytesThatAreNoTextAreReplaced) {
  v1::GetStatusResponse status;
  status.set_config_error("/etc/\xff");
  EXPECT_THAT(Render(Output::kJson, status),
              testing::HasSubstr("\"configError\": \"/etc/\xEF\xBF\xBD\""));
}

TEST(TableTest, HumaneBytes) {
  EXPECT_EQ(HumaneBytes(0), "0 B");
  EXPECT_EQ(HumaneBytes(1023), "1023 B");
  EXPECT_EQ(HumaneBytes(1024), "1.0 KiB");
  EXPECT_EQ(HumaneBytes(1024 * 1024 - 1), "1.0 MiB");
  EXPECT_EQ(HumaneBytes(~uint64_t{0}), "16.0 EiB");
}

TEST(TableTest, HumaneAge) {
  EXPECT_EQ(HumaneAge(0), "0.0s");
  EXPECT_EQ(HumaneAge(4.51), "4.5s");
  EXPECT_EQ(HumaneAge(59.96), "1m00s");
  EXPECT_EQ(HumaneAge(192), "3m12s");
  EXPECT_EQ(HumaneAge(3599.6), "1h00m");
  EXPECT_EQ(HumaneAge(18180), "5h03m");
  EXPECT_EQ(HumaneAge(187200), "2d04h");
}

}  // namespace
}  // namespace shunt::ctl

// SPDX-License-Identifier: Apache-2.0
#include "agent/config/config.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <regex>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// What every good file begins with; what a case adds begins at line 3.
constexpr char kHead[] = "apiVersion: shunt.dev/v1alpha1\nkind: AgentConfig\n";

std::string WithHead(const std::string& body) { return kHead + body; }

// A file whose one pod has `fields` from line 6 on, indented by four.
std::string WithPod(const std::string& fields) {
  return WithHead("static:\n  pods:\n  - uid: a\n    " + fields + "\n");
}

// Pod `a` with these ports at 6:12.
std::string WithPorts(const std::string& ports) { return WithPod("ports: " + ports); }

// A pod with this uid at 5:10.
std::string WithUid(const std::string& uid) {
  return WithHead("static:\n  pods:\n  - uid: " + uid + "\n    ports: [80]\n");
}

// No pods, and these fields from line 4 on.
std::string WithField(const std::string& field) { return WithHead("static: {}\n" + field + "\n"); }

std::string Pods(size_t count) {
  std::string pods = "static:\n  pods:\n";
  for (size_t i = 0; i < count; ++i) {
    absl::StrAppend(&pods, "  - {uid: p", i, ", ports: [80]}\n");
  }
  return WithHead(pods);
}

// `count` ports no two of which are neighbours.
std::string Separate(size_t count) {
  std::string ports = "[";
  for (size_t i = 0; i < count; ++i) {
    absl::StrAppend(&ports, i == 0 ? "" : ", ", 1000 + 2 * i);
  }
  return ports + "]";
}

std::string Message(const std::string& yaml) {
  const absl::StatusOr<AgentConfig> config = ParseConfig(yaml, "agent.yaml");
  if (config.ok()) {
    return "OK";
  }
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(config.status().message());
}

struct Case {
  const char* name;
  std::string yaml;
  std::string message;  // after "agent.yaml:"
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class Refusal : public ::testing::TestWithParam<Case> {};

TEST_P(Refusal, SaysWhereWhatAndWhatIsAllowed) {
  EXPECT_EQ(Message(GetParam().yaml), "agent.yaml:" + GetParam().message);
}

std::string NameOf(const ::testing::TestParamInfo<Case>& info) { return info.param.name; }

constexpr char kTop[] = "apiVersion, kind, engine, bpffs, admin, controller, static";
constexpr char kPort[] = R"(allowed: a port from 1 to 65535, or a range "first-last")";
constexpr char kUid[] = "allowed: 1 to 63 letters, digits, '.', '_' or '-', such as the pod's UID";
constexpr char kCgroup[] = "allowed: an absolute path of a cgroup v2 directory, without \"..\"";
constexpr char kSocket[] =
    "allowed: an absolute path of at most 107 bytes (a unix socket's name), without \"..\"";
constexpr char kMetrics[] = "allowed: host:port, such as \"127.0.0.1:9464\"";
constexpr char kBpffs[] = "allowed: an absolute path of a directory on a bpffs, without \"..\"";
constexpr char kProxyUid[] = "allowed: a user id from 0 to 4294967294";
constexpr char kTls[] = "  tls: {ca: /ca, cert: /cert, key: /key}\n";

INSTANTIATE_TEST_SUITE_P(
    Document, Refusal,
    ::testing::Values(
        Case{"NotYaml", "kind: [AgentConfig\n",
             "2:1: not YAML: end of sequence flow not found; mend the syntax at this place"},
        Case{"NotYamlAndNotPrintable", "kind: \"\\\n\x01\\\x02\"\n",
             "2:4: not YAML: unknown escape character: ?; mend the syntax at this place"},
        Case{"NoSuchAnchor", "kind: *other\n",
             "1:7: not YAML: the referenced anchor is not defined; "
             "mend the syntax at this place"},
        Case{"TooDeep", std::string(100000, '['),
             "1:1: not YAML: bad file; mend the syntax at this place"},
        Case{"Empty", "",
             absl::StrCat("1:1: found nothing; allowed: a map with the fields ", kTop)},
        Case{"OnlyAComment", "# nothing\n",
             absl::StrCat("1:1: found nothing; allowed: a map with the fields ", kTop)},
        Case{"AList", "- kind\n",
             absl::StrCat("1:1: found a list; allowed: a map with the fields ", kTop)},
        Case{"AScalar", "\n  hello\n",
             absl::StrCat("2:3: found \"hello\"; allowed: a map with the fields ", kTop)},
        Case{"TwoDocuments", WithField("---\nkind: AgentConfig"),
             "4:1: found a second document; allowed: one"},
        Case{"ASecondEmptyDocument", WithField("---\n---"),
             "4:1: found a second document; allowed: one"},
        // yaml-cpp gives out empty documents for ever here.
        Case{"OnlyAComma", ", ", "1:1: found a second document; allowed: one"},
        Case{"ACommaAfterTheDocument", WithField("...\n, "),
             "5:1: found a second document; allowed: one"},
        Case{"AnAnchor", WithField("engine: &e auto"),
             "4:9: found an anchor or alias; allowed: plain values; write the value out"},
        Case{"OverOneMiB", std::string((1 << 20) + 1, '#'),
             "1:1: found 1048577 bytes; allowed: at most 1048576"},
        Case{"NoApiVersion", "kind: AgentConfig\nstatic: {}\n",
             "1:1: apiVersion is missing; add apiVersion: shunt.dev/v1alpha1"},
        Case{"WrongApiVersion", "apiVersion: shunt.dev/v2\nkind: AgentConfig\nstatic: {}\n",
             "1:13: apiVersion: found \"shunt.dev/v2\"; allowed: \"shunt.dev/v1alpha1\""},
        Case{"NoKind", "apiVersion: shunt.dev/v1alpha1\nstatic: {}\n",
             "1:1: kind is missing; add kind: AgentConfig"},
        Case{"WrongKind", "apiVersion: shunt.dev/v1alpha1\nkind: Agent\nstatic: {}\n",
             "2:7: kind: found \"Agent\"; allowed: \"AgentConfig\""},
        Case{"NeitherControllerNorStatic", kHead,
             "1:1: no source of pods; add static: with the pods, or controller:"},
        Case{"BothControllerAndStatic",
             WithField("controller:\n  address: c:9443\n" + std::string(kTls)),
             "5:3: controller: found beside static; allowed: one of the two; remove one"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Field, Refusal,
    ::testing::Values(
        Case{"UnknownAtTop", WithField("bpfs: /sys/fs/bpf"),
             absl::StrCat("4:1: bpfs: unknown field; allowed: ", kTop, "; did you mean bpffs?")},
        Case{"UnknownInAdmin", WithField("admin:\n  metric: \":1\""),
             "5:3: admin.metric: unknown field; allowed: socket, metrics; did you mean metrics?"},
        Case{"UnknownInStatic", WithHead("static:\n  pod: []\n"),
             "4:3: static.pod: unknown field; allowed: pods; did you mean pods?"},
        Case{"UnknownInPod", WithPod("ports: [80]\n    proxyUID: 1337"),
             "7:5: static.pods[0].proxyUID: unknown field; allowed: uid, cgroup, ports, proxyUid; "
             "did you mean proxyUid?"},
        Case{"UnknownAndUnlike", WithField("loglevel: debug"),
             absl::StrCat("4:1: loglevel: unknown field; allowed: ", kTop)},
        Case{"UnknownWithControlCharacters", WithField("\"a\\nb\\e[2J\": 1"),
             absl::StrCat("4:1: a?b?[2J: unknown field; allowed: ", kTop)},
        Case{"UnknownAndLong", WithField(std::string(1000, 'x') + ": 1"),
             absl::StrCat("4:1: ", std::string(60, 'x'), "…: unknown field; allowed: ", kTop)},
        Case{"NameIsAList", WithField("? [a]\n: 1"),
             absl::StrCat("4:3: found a list as a field's name; allowed: ", kTop)},
        Case{"Duplicate", WithField("engine: auto\nengine: none"),
             "5:1: engine: found twice, first at 4:1; allowed: once; remove one"},
        Case{"DuplicateInPod", WithPod("ports: [80]\n    uid: b"),
             "7:5: static.pods[0].uid: found twice, first at 5:5; allowed: once; remove one"},
        Case{"ApiVersionIsAMap", "apiVersion: {}\nkind: AgentConfig\nstatic: {}\n",
             "1:13: apiVersion: found a map; allowed: \"shunt.dev/v1alpha1\""},
        Case{"EngineIsAList", WithField("engine: [auto]"),
             "4:9: engine: found a list; allowed: auto, sockhash, kmod or none"},
        Case{"EngineUnknown", WithField("engine: fast"),
             "4:9: engine: found \"fast\"; allowed: auto, sockhash, kmod or none"},
        Case{"AdminIsAScalar", WithField("admin: on"),
             "4:8: admin: found \"on\"; allowed: a map with the fields socket, metrics"},
        Case{"SocketIsNothing", WithField("admin: {socket: }"),
             absl::StrCat("4:17: admin.socket: found nothing; ", kSocket)},
        Case{"SocketIsRelative", WithField("admin: {socket: run/agent.sock}"),
             absl::StrCat("4:17: admin.socket: found \"run/agent.sock\"; ", kSocket)},
        Case{"SocketOf108Bytes", WithField("admin: {socket: /" + std::string(107, 's') + "}"),
             absl::StrCat("4:17: admin.socket: found \"/", std::string(59, 's'), "…\"; ", kSocket)},
        Case{"MetricsWithoutPort", WithField("admin: {metrics: localhost}"),
             absl::StrCat("4:18: admin.metrics: found \"localhost\"; ", kMetrics)},
        Case{"MetricsWithoutHost", WithField("admin: {metrics: \":9464\"}"),
             absl::StrCat("4:18: admin.metrics: found \":9464\"; ", kMetrics)},
        Case{"MetricsPortTooLarge", WithField("admin: {metrics: \"[::1]:70000\"}"),
             absl::StrCat("4:18: admin.metrics: found \"[::1]:70000\"; ", kMetrics)},
        Case{"MetricsPortNoNumber", WithField("admin: {metrics: \"h:http\"}"),
             absl::StrCat("4:18: admin.metrics: found \"h:http\"; ", kMetrics)},
        Case{"MetricsPortSigned", WithField("admin: {metrics: \"h:+80\"}"),
             absl::StrCat("4:18: admin.metrics: found \"h:+80\"; ", kMetrics)},
        Case{"MetricsHostWithSpace", WithField("admin: {metrics: \"my host:80\"}"),
             absl::StrCat("4:18: admin.metrics: found \"my host:80\"; ", kMetrics)},
        Case{"BpffsIsRelative", WithField("bpffs: sys/fs/bpf"),
             absl::StrCat("4:8: bpffs: found \"sys/fs/bpf\"; ", kBpffs)},
        Case{"BpffsWithDotDot", WithField("bpffs: /sys/fs/bpf/../x"),
             absl::StrCat("4:8: bpffs: found \"/sys/fs/bpf/../x\"; ", kBpffs)},
        Case{"BpffsWithNul", WithField("bpffs: \"/sys\\0/x\""),
             absl::StrCat("4:8: bpffs: found \"/sys?/x\"; ", kBpffs)},
        Case{"ControllerIsAScalar", WithHead("controller: c:9443\n"),
             "3:13: controller: found \"c:9443\"; allowed: a map with the fields address, tls"},
        Case{"ControllerWithoutTls", WithHead("controller:\n  address: c:9443\n"),
             "4:3: controller: incomplete; give address and tls"},
        Case{"ControllerWithoutAddress", WithHead("controller:\n" + std::string(kTls)),
             "4:3: controller: incomplete; give address and tls"},
        Case{"ControllerWithoutPort", WithHead("controller:\n  address: c\n" + std::string(kTls)),
             "4:12: controller.address: found \"c\"; allowed: host:port of the controller"},
        Case{"ControllerAtPortZero", WithHead("controller:\n  address: c:0\n" + std::string(kTls)),
             "4:12: controller.address: found \"c:0\"; allowed: host:port of the controller"},
        Case{"TlsIncomplete",
             WithHead("controller:\n  address: c:9443\n  tls: {ca: /ca, key: /key}\n"),
             "5:8: controller.tls: incomplete; give ca, cert and key"},
        Case{"TlsPathRelative",
             WithHead("controller:\n  address: c:9443\n  tls: {ca: ca, cert: /c, key: /k}\n"),
             "5:13: controller.tls.ca: found \"ca\"; allowed: an absolute path of a PEM file"},
        Case{"TlsMisspelt",
             WithHead("controller:\n  address: c:9443\n  tls: {ca: /c, crt: /c, key: /k}\n"),
             "5:8: controller.tls: incomplete; give ca, cert and key"},
        Case{"StaticIsNothing", WithHead("static:\n"),
             "4:1: static: found nothing; allowed: a map with the fields pods"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Ports, Refusal,
    ::testing::Values(
        Case{"Zero", WithPorts("[80, 0]"),
             absl::StrCat("6:17: static.pods[0].ports[1]: found \"0\"; ", kPort)},
        Case{"TooLarge", WithPorts("[\"70000\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"70000\"; ", kPort)},
        Case{"FarTooLarge", WithPorts("[4294967376]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"4294967376\"; ", kPort)},
        Case{"Reversed", WithPorts("[\"90-80\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"90-80\"; ", kPort)},
        Case{"Fraction", WithPorts("[\"8080.5\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"8080.5\"; ", kPort)},
        Case{"Negative", WithPorts("[\"-5\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"-5\"; ", kPort)},
        Case{"OpenRange", WithPorts("[\"80-\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"80-\"; ", kPort)},
        Case{"ThreePartRange", WithPorts("[\"80-81-82\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"80-81-82\"; ", kPort)},
        Case{"RangeWithSpaces", WithPorts("[\"80 - 81\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"80 - 81\"; ", kPort)},
        Case{"EmptyText", WithPorts("[\"\"]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"\"; ", kPort)},
        Case{"Hexadecimal", WithPorts("[0x50]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found \"0x50\"; ", kPort)},
        Case{"AMapInIt", WithPorts("[{port: 80}]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found a map; ", kPort)},
        Case{"NothingInIt", WithPorts("[~]"),
             absl::StrCat("6:13: static.pods[0].ports[0]: found nothing; ", kPort)},
        Case{"AScalar", WithPorts("8080"),
             "6:12: static.pods[0].ports: found \"8080\"; allowed: a list"},
        Case{"EmptyList", WithPorts("[]"),
             absl::StrCat("6:12: static.pods[0].ports: found an empty list; allowed: at least one "
                          "of a port from 1 to 65535, or a range \"first-last\"")},
        Case{"Missing", WithPod("proxyUid: 1"),
             "5:5: static.pods[0]: ports is missing; list the server ports to accelerate, each "
             "a port from 1 to 65535, or a range \"first-last\""},
        Case{"ThirtyThreeRanges", WithPorts(Separate(33)),
             "6:12: static.pods[0].ports: found 33 separate ranges; allowed: at most 32; "
             "join neighbouring ports to ranges"}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    Pods, Refusal,
    ::testing::Values(
        Case{"PodsIsAMap", WithHead("static:\n  pods: {uid: a}\n"),
             "4:9: static.pods: found a map; allowed: a list"},
        Case{"PodIsAScalar", WithHead("static:\n  pods: [a]\n"),
             "4:10: static.pods[0]: found \"a\"; allowed: a map with the fields uid, cgroup, "
             "ports, proxyUid"},
        Case{"TooMany", Pods(4097), "5:3: static.pods: found 4097 items; allowed: at most 4096"},
        Case{"UidMissing", WithHead("static:\n  pods:\n  - ports: [80]\n"),
             "5:5: static.pods[0]: uid is missing; give each pod one"},
        Case{"UidEmpty", WithUid("\"\""),
             absl::StrCat("5:10: static.pods[0].uid: found \"\"; ", kUid)},
        Case{"UidDot", WithUid("."), absl::StrCat("5:10: static.pods[0].uid: found \".\"; ", kUid)},
        Case{"UidDotDot", WithUid(".."),
             absl::StrCat("5:10: static.pods[0].uid: found \"..\"; ", kUid)},
        Case{"UidOf64", WithUid(std::string(64, 'u')),
             absl::StrCat("5:10: static.pods[0].uid: found \"", std::string(60, 'u'), "…\"; ",
                          kUid)},
        Case{"UidWithSlash", WithUid("a/b"),
             absl::StrCat("5:10: static.pods[0].uid: found \"a/b\"; ", kUid)},
        Case{"UidNotAscii", WithUid("pöd"),
             absl::StrCat("5:10: static.pods[0].uid: found \"p??d\"; ", kUid)},
        Case{"UidIsAList", WithUid("[a]"),
             absl::StrCat("5:10: static.pods[0].uid: found a list; ", kUid)},
        Case{"TwoPodsOneUid",
             WithHead("static:\n  pods:\n  - {uid: a, ports: [80]}\n  - {uid: b, ports: [80]}\n"
                      "  - {uid: a, ports: [81]}\n"),
             "7:11: static.pods[2].uid: found \"a\", which another pod has at line 5; "
             "allowed: one of its own for each pod"},
        Case{"TwoPodsOneCgroup",
             WithHead("static:\n  pods:\n  - {uid: a, cgroup: /c, ports: [80]}\n"
                      "  - {uid: b, cgroup: /c, ports: [80]}\n"),
             "6:22: static.pods[1].cgroup: found \"/c\", which another pod has at line 5; "
             "allowed: one of its own for each pod"},
        Case{"TwoPodsOneCgroupSpeltOtherwise",
             WithHead("static:\n  pods:\n  - {uid: a, cgroup: /c/d, ports: [80]}\n"
                      "  - {uid: b, cgroup: //c/./d/, ports: [80]}\n"),
             "6:22: static.pods[1].cgroup: found \"//c/./d/\", which another pod has at line 5; "
             "allowed: one of its own for each pod"},
        Case{"CgroupRelative", WithPod("cgroup: demo\n    ports: [80]"),
             absl::StrCat("6:13: static.pods[0].cgroup: found \"demo\"; ", kCgroup)},
        Case{"CgroupWithDotDot", WithPod("cgroup: /sys/fs/../x\n    ports: [80]"),
             absl::StrCat("6:13: static.pods[0].cgroup: found \"/sys/fs/../x\"; ", kCgroup)},
        Case{"ProxyUidNegative", WithPod("ports: [80]\n    proxyUid: -1"),
             absl::StrCat("7:15: static.pods[0].proxyUid: found \"-1\"; ", kProxyUid)},
        Case{"ProxyUidIsNobody", WithPod("ports: [80]\n    proxyUid: 4294967295"),
             absl::StrCat("7:15: static.pods[0].proxyUid: found \"4294967295\"; ", kProxyUid)},
        Case{"ProxyUidIsAWord", WithPod("ports: [80]\n    proxyUid: abc"),
             absl::StrCat("7:15: static.pods[0].proxyUid: found \"abc\"; ", kProxyUid)}),
    NameOf);

INSTANTIATE_TEST_SUITE_P(
    FirstByPosition, Refusal,
    ::testing::Values(
        // Each is found by the reader after a later one.
        Case{"MissingBeforeWrong", "kind: Agent\nstatic: {}\n",
             "1:1: apiVersion is missing; add apiVersion: shunt.dev/v1alpha1"},
        Case{"ListBeforeItsItem", WithPorts("[1-2-3, " + Separate(33).substr(1)),
             "6:12: static.pods[0].ports: found 33 separate ranges; allowed: at most 32; "
             "join neighbouring ports to ranges"},
        Case{"PodBeforeItsField", WithPod("proxyUid: abc"),
             "5:5: static.pods[0]: ports is missing; list the server ports to accelerate, each "
             "a port from 1 to 65535, or a range \"first-last\""},
        // And in the file's order where the reader finds them so.
        Case{"TwoFields", WithField("engine: fast\nbpffs: here"),
             "4:9: engine: found \"fast\"; allowed: auto, sockhash, kmod or none"},
        Case{"TwoPods",
             WithHead("static:\n  pods:\n  - {uid: a, ports: [0]}\n  - {uid: /, ports: [80]}\n"),
             absl::StrCat("5:22: static.pods[0].ports[0]: found \"0\"; ", kPort)}),
    NameOf);

constexpr char kFull[] = R"(# Everything that may stand in a file with static pods.
apiVersion: shunt.dev/v1alpha1
kind: AgentConfig
engine: sockhash
bpffs: /sys/fs/bpf/other
admin: {socket: /run/other.sock, metrics: "[::1]:9999"}
static:
  pods:
  - uid: demo
    cgroup: /sys/fs/cgroup/unified/demo
    ports: ["8080", 15001, "30000-60000"]
    proxyUid: 1337
  - uid: 8e2c5a3e-0f5b-4a55-9d5d-0a4a3c1b2d3e
    ports:
    - 1-65535
)";

TEST(ParseConfig, AFullFile) {
  const absl::StatusOr<AgentConfig> config = ParseConfig(kFull, "agent.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->engine, EngineChoice::kSockhash);
  EXPECT_EQ(config->bpffs, "/sys/fs/bpf/other");
  EXPECT_EQ(config->admin_socket, "/run/other.sock");
  EXPECT_EQ(config->metrics_address, "[::1]:9999");
  EXPECT_FALSE(config->controller.has_value());
  const PodSpec demo = {
      "demo", "/sys/fs/cgroup/unified/demo", {{8080, 8080}, {15001, 15001}, {30000, 60000}}, 1337};
  const PodSpec found = {"8e2c5a3e-0f5b-4a55-9d5d-0a4a3c1b2d3e", "", {{1, 65535}}, std::nullopt};
  EXPECT_THAT(config->pods, ElementsAre(demo, found));
}

TEST(ParseConfig, AFullFileWithAController) {
  const absl::StatusOr<AgentConfig> config =
      ParseConfig(WithHead("controller:\n  address: shunt-controller.shunt-system.svc:9443\n"
                           "  tls: {ca: /tls/ca.pem, cert: /tls/cert.pem, key: /tls/key.pem}\n"),
                  "agent.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_TRUE(config->controller.has_value());
  EXPECT_EQ(config->controller->address, "shunt-controller.shunt-system.svc:9443");
  EXPECT_EQ(config->controller->ca, "/tls/ca.pem");
  EXPECT_EQ(config->controller->cert, "/tls/cert.pem");
  EXPECT_EQ(config->controller->key, "/tls/key.pem");
  EXPECT_THAT(config->pods, IsEmpty());
}

TEST(ParseConfig, Defaults) {
  const absl::StatusOr<AgentConfig> config = ParseConfig(WithField(""), "agent.yaml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->engine, EngineChoice::kAuto);
  EXPECT_EQ(config->bpffs, "/sys/fs/bpf/shunt");
  EXPECT_EQ(config->admin_socket, "/run/shunt/agent.sock");
  EXPECT_EQ(config->metrics_address, "127.0.0.1:9464");
  EXPECT_FALSE(config->controller.has_value());
  EXPECT_THAT(config->pods, IsEmpty());
}

TEST(ParseConfig, EachLimitItselfIsAllowed) {
  std::string largest = WithField("");
  largest.resize(1 << 20, '#');
  EXPECT_EQ(Message(largest), "OK");
  EXPECT_EQ(Message(Pods(4096)), "OK");
  EXPECT_EQ(Message(WithPorts(Separate(32))), "OK");
  EXPECT_EQ(Message(WithPorts("[1-65535, 1, \"65535\"]")), "OK");
  EXPECT_EQ(Message(WithUid(std::string(63, 'u'))), "OK");
  EXPECT_EQ(Message(WithField("admin: {socket: /" + std::string(106, 's') + "}")), "OK");
  EXPECT_EQ(Message(WithField("admin: {metrics: \"h:0\"}")), "OK");
  EXPECT_EQ(Message(WithPod("ports: [80]\n    proxyUid: 0")), "OK");
  EXPECT_EQ(Message(WithPod("ports: [80]\n    proxyUid: 4294967294")), "OK");
}

TEST(ParseConfig, NeighboursCountAsOneRange) {
  std::string ports = "[1";
  for (int port = 2; port <= 100; ++port) {
    absl::StrAppend(&ports, ", ", port);
  }
  EXPECT_EQ(Message(WithPorts(ports + "]")), "OK");
}

TEST(ParseConfig, EveryEngine) {
  for (const EngineChoice engine :
       {EngineChoice::kAuto, EngineChoice::kSockhash, EngineChoice::kKmod, EngineChoice::kNone}) {
    const absl::StatusOr<AgentConfig> config =
        ParseConfig(WithField("engine: " + std::string(ToString(engine))), "agent.yaml");
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->engine, engine);
  }
}

// Cuts, doubles, swaps and spoils pieces of a good file.
std::string Mutated(std::string text, std::mt19937* random) {
  static constexpr std::string_view kPieces[] = {
      ":",     ": ",  "- ",     "[",     "]",    "{",    "}",
      ",",     "\n",  "\n  ",   "\t",    "\"",   "'",    "&a ",
      "*a",    "!t ", "!!map ", "? ",    "| ",   ">-\n", "#",
      "---\n", "~",   "null",   "...\n", "%Y\n", "\xff", "\xef\xbb\xbf",
      "<<: ",  "\\x", "70000",  "-1",    "uid: "};
  const auto below = [random](size_t bound) { return bound == 0 ? 0 : (*random)() % bound; };
  for (size_t left = 1 + below(4); left > 0; --left) {
    const size_t at = below(text.size() + 1);
    const size_t length = below(std::min<size_t>(text.size() - at + 1, 40));
    switch (below(6)) {
      case 0:
        text.erase(at, length);
        break;
      case 1:
        text.insert(at, text.substr(at, length));
        break;
      case 2:
        text.insert(below(text.size() + 1), text.substr(at, length));
        break;
      case 3:
        text.resize(at);
        break;
      case 4:
        if (at < text.size()) {
          text[at] = static_cast<char>((*random)());
        }
        break;
      default:
        text.insert(at, kPieces[below(std::size(kPieces))]);
    }
  }
  return text;
}

TEST(ParseConfig, AnyTextIsParsedOrRefusedAtAPlace) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const std::regex place("agent\\.yaml:[1-9][0-9]*:[1-9][0-9]*: .*");
  int refused = 0;
  constexpr int kRounds = 5000;
  for (int round = 0; round < kRounds; ++round) {
    const std::string text = Mutated(kFull, &random);
    const absl::StatusOr<AgentConfig> config = ParseConfig(text, "agent.yaml");
    if (config.ok()) {
      continue;
    }
    ++refused;
    ASSERT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
    ASSERT_TRUE(std::regex_match(std::string(config.status().message()), place))
        << config.status() << "\n"
        << text;
  }
  EXPECT_GT(refused, kRounds / 4);
  EXPECT_LT(refused, kRounds);
}

class LoadConfigTest : public ::testing::Test {
 protected:
  LoadConfigTest() {
    std::string name = testing::TempDir() + "config_test.XXXXXX";
    directory_ = mkdtemp(name.data());
  }
  ~LoadConfigTest() override { std::filesystem::remove_all(directory_); }

  std::string Write(const std::string& text) {
    const std::string path = directory_ + "/agent.yaml";
    std::ofstream(path) << text;
    return path;
  }

  std::string directory_;
};

TEST_F(LoadConfigTest, ReadsTheWholeFile) {
  const absl::StatusOr<AgentConfig> config = LoadConfig(Write(Pods(4096)));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->pods.size(), 4096u);
}

TEST_F(LoadConfigTest, NamesTheFileByItsPath) {
  const std::string path = Write(WithField("engine: fast"));
  const absl::Status status = LoadConfig(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            path + ":4:9: engine: found \"fast\"; allowed: auto, sockhash, kmod or none");
}

TEST_F(LoadConfigTest, RefusesAFileThatIsTooLargeAndOneWithoutEnd) {
  EXPECT_THAT(std::string(LoadConfig(Write(std::string(2 << 20, '#'))).status().message()),
              StartsWith(directory_ + "/agent.yaml:1:1: found "));
  EXPECT_EQ(LoadConfig("/dev/zero").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(LoadConfigTest, SaysWhyAFileCannotBeRead) {
  const absl::Status missing = LoadConfig(directory_ + "/none.yaml").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.message(),
            "reading configuration " + directory_ + "/none.yaml: No such file or directory");
  EXPECT_EQ(std::string(LoadConfig(directory_).status().message()),
            "reading configuration " + directory_ + ": Is a directory");
}

}  // namespace
}  // namespace shunt

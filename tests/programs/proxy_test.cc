// SPDX-License-Identifier: Apache-2.0
//
// Proxies that move bytes between two accelerated connections by splice(2).
#include "gmock/gmock.h"
#include "tests/programs/program_fixture.h"

namespace shunt::test {
namespace {

constexpr uint64_t kBytes = 8 << 20;

using ProxyTest = ProgramTest;

TEST_F(ProxyTest, GoCopiesBothWays) {
  const std::string proxy = std::string(SHUNT_PROGRAMS_BINARY) + "/programs_go_proxy";
  if (const std::string missing = MissingPrograms({proxy}); !missing.empty()) {
    GTEST_SKIP() << missing << " (golang-go, before the build)";
  }
  StartListed({8080, 9090});
  StartPeer({"sink", "9090", "--echo"}, 9090);
  StartServer("go", {proxy, "127.0.0.1:8080", "127.0.0.1:9090"}, 8080);
  for (const uint64_t bytes : {uint64_t{1000}, kBytes, kBytes}) {
    const std::string input = MakeInput(bytes);
    ASSERT_EQ(Peer({"echo", "8080", input}), Sha256(input)) << bytes << " bytes";
  }
}

constexpr char kHaproxyConfig[] = R"(
global
    nbthread 1
    maxconn 64
defaults
    mode http
    option splice-auto
    option splice-request
    option splice-response
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend app
    bind 127.0.0.1:8080
    http-request use-service prometheus-exporter if { path /metrics }
    use_backend sink if { path_beg /sink }
    default_backend nginx
backend nginx
    server nginx 127.0.0.1:9090
backend sink
    server sink 127.0.0.1:9091
)";

constexpr char kNginxConfig[] = R"(
daemon off;
user root;
pid @/nginx.pid;
error_log @/error.log warn;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path @/body;
    proxy_temp_path @/proxy;
    fastcgi_temp_path @/fastcgi;
    uwsgi_temp_path @/uwsgi;
    scgi_temp_path @/scgi;
    server { listen 127.0.0.1:9090; root @; }
}
)";

TEST_F(ProxyTest, HaproxySplices) {
  if (const std::string missing = MissingPrograms({"haproxy", "nginx", "curl"}); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  StartListed({8080, 9090, 9091});
  const std::string nginx = MakeDirectory("nginx", 0);
  std::string config = kNginxConfig;
  for (size_t at; (at = config.find('@')) != std::string::npos;) {
    config.replace(at, 1, nginx);
  }
  StartServer("nginx",
              {"nginx", "-e", nginx + "/error.log", "-c", WriteText(nginx + "/nginx.conf", config)},
              9090);
  StartPeer({"http-sink", "9091", "1"}, 9091);
  StartServer("haproxy", {"haproxy", "-db", "-f", WriteText(nginx + "/haproxy", kHaproxyConfig)},
              8080);

  const std::string input = MakeInput(kBytes);
  const std::string expected = Sha256(input);
  RunInPod({"cp", input, nginx + "/file"});
  for (int run = 0; run < 5; run++) {
    const std::string copy = nginx + "/copy-" + std::to_string(run);
    // Two in one connection; the second one to a reader that is slow.
    RunInPod({"curl", "-sSf", "-o", copy, "http://127.0.0.1:8080/file", "--next", "-sSf",
              "--limit-rate", "20m", "-o", copy + "-slow", "http://127.0.0.1:8080/file"});
    ASSERT_EQ(Sha256(copy), expected) << "download " << run;
    ASSERT_EQ(Sha256(copy + "-slow"), expected) << "slow download " << run;
  }
  EXPECT_EQ(RunInPod({"curl", "-sSf", "-T", input, "http://127.0.0.1:8080/sink"}), expected);
  const std::string metrics = RunInPod({"curl", "-sSf", "http://127.0.0.1:8080/metrics"});
  EXPECT_THAT(metrics, testing::ContainsRegex("\nhaproxy_process_spliced_bytes_out_total [1-9]"));
}

}  // namespace
}  // namespace shunt::test

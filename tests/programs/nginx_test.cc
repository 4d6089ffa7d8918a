// SPDX-License-Identifier: Apache-2.0
//
// A real nginx receives uploads, edge-triggered and with FIONREAD as it is built.
#include <algorithm>

#include "tests/programs/program_fixture.h"

namespace shunt::test {
namespace {

constexpr char kConfig[] = R"(
daemon off;
worker_processes 1;
user root;
pid @/nginx.pid;
error_log @/error.log warn;
events { worker_connections 64; use epoll; }
http {
    access_log off;
    client_max_body_size 0;
    client_body_buffer_size 16k;
    client_body_temp_path @/body;
    proxy_temp_path @/proxy;
    fastcgi_temp_path @/fastcgi;
    uwsgi_temp_path @/uwsgi;
    scgi_temp_path @/scgi;
    server {
        listen 127.0.0.1:8080;
        location /stored/ {
            root @;
            dav_methods PUT;
            create_full_put_path on;
            client_body_in_file_only clean;
        }
        location /proxied/ {
            proxy_pass http://127.0.0.1:9090;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_read_timeout 120s;
        }
        location /limited/ {
            alias @/;
            limit_rate 8m;
        }
    }
}
)";

class NginxTest : public ProgramTest {
 protected:
  void StartNginx() {
    directory_ = MakeDirectory("nginx", 0);
    std::string config = kConfig;
    for (size_t at; (at = config.find('@')) != std::string::npos;) {
      config.replace(at, 1, directory_);
    }
    WriteText(directory_ + "/nginx.conf", config);
    StartServer("nginx",
                {"nginx", "-e", directory_ + "/error.log", "-c", directory_ + "/nginx.conf"}, 8080);
  }

  // Its upstream takes seconds for each body: nginx has to stop reading.
  void UploadToSlowSink(const std::vector<uint16_t>& listed) {
    StartListed(listed);
    const uint64_t seconds = std::max<uint64_t>(2, UploadBytes() / 20000000);
    StartPeer({"http-sink", "9090", std::to_string(seconds)}, 9090);
    StartNginx();
    const std::string input = MakeInput(UploadBytes());
    const std::string expected = Sha256(input);
    for (int run = 0; run < UploadRuns(); run++) {
      SCOPED_TRACE("run " + std::to_string(run));
      ASSERT_EQ(Peer({"put", "8080", "/proxied/body", input}), expected);
    }
  }

  std::string directory_;
};

std::string Missing() { return MissingPrograms({"nginx", "curl", "sha256sum"}); }

TEST_F(NginxTest, UploadAtALimitedRate) {
  if (const std::string missing = Missing(); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  UploadToSlowSink({8080});
}

TEST_F(NginxTest, UploadAtALimitedRateBothHops) {
  if (const std::string missing = Missing(); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  UploadToSlowSink({8080, 9090});
}

TEST_F(NginxTest, UploadToAFileWithPauses) {
  if (const std::string missing = Missing(); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  StartListed({8080});
  StartNginx();
  const std::string input = MakeInput(UploadBytes());
  for (int run = 0; run < UploadRuns(); run++) {
    SCOPED_TRACE("run " + std::to_string(run));
    const std::string path = "/stored/body-" + std::to_string(run);
    Peer({"put", "8080", path, input});
    ASSERT_EQ(Sha256(directory_ + path), Sha256(input));
    MustRun({"rm", directory_ + path});
  }
}

TEST_F(NginxTest, DownloadAtALimitedRate) {
  if (const std::string missing = Missing(); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  StartListed({8080});
  StartNginx();
  const std::string input = MakeInput(20000000);
  RunInPod({"cp", input, directory_ + "/file"});
  RunInPod({"curl", "-sSf", "-o", directory_ + "/copy", "http://127.0.0.1:8080/limited/file"});
  EXPECT_EQ(Sha256(directory_ + "/copy"), Sha256(input));
}

}  // namespace
}  // namespace shunt::test

// SPDX-License-Identifier: Apache-2.0
//
// Real programs as one end, or as the proxy between both. Each runs in the
// cgroup of its run, which ends it.
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"
#include "tests/support/environment.h"
#include "tests/support/patterned.h"

namespace shunt::conformance {
namespace {

constexpr uint16_t kBackendPort = 8082;

// Where they are on distributions that are not in the path of root's shells.
constexpr char kMorePath[] =
    ":/usr/sbin:/usr/local/bin:/usr/local/go/bin:/usr/lib/postgresql/15/bin:"
    "/usr/lib/postgresql/16/bin:/usr/lib/postgresql/17/bin";

std::string FindProgram(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    return access(name.c_str(), X_OK) == 0 ? name : "";
  }
  const char* path = getenv("PATH");
  std::istringstream directories((path != nullptr ? path : "") + std::string(kMorePath));
  for (std::string directory; std::getline(directories, directory, ':');) {
    if (!directory.empty() && access((directory + "/" + name).c_str(), X_OK) == 0) {
      return directory + "/" + name;
    }
  }
  return "";
}

std::function<std::string()> Needs(const std::string& program, const std::string& package) {
  return [=] {
    return FindProgram(program).empty() ? program + " is not here: install " + package : "";
  };
}

std::string WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string RunDirectory() { return test::MakeTempDir("program-" + std::to_string(getpid())); }

// `user` empty: as the suite.
pid_t Spawn(const std::vector<std::string>& arguments, const std::string& output,
            const std::string& user = "") {
  const std::string program = FindProgram(arguments[0]);
  const pid_t pid = fork();
  if (pid != 0) {
    return pid;
  }
  const int fd = open(output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  dup2(fd, 1);
  dup2(fd, 2);
  dup2(open("/dev/null", O_RDONLY), 0);
  close_range(3, ~0U, 0);
  if (const struct passwd* who = user.empty() ? nullptr : getpwnam(user.c_str())) {
    if (setgroups(0, nullptr) != 0 || setgid(who->pw_gid) != 0 || setuid(who->pw_uid) != 0) {
      _exit(126);
    }
  }
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  execv(program.c_str(), argv.data());
  _exit(127);
}

int WaitFor(End& end, const char* name, pid_t pid) {
  int status = 0;
  end.Call(name, [&] { return waitpid(pid, &status, 0); });
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Until something in this network namespace listens; connects to nothing.
bool AwaitListener(End& end, uint16_t port, const std::string& output) {
  char wanted[16];
  snprintf(wanted, sizeof(wanted), ":%04X ", port);
  for (int looks = 0; looks < 1500; looks++) {
    for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
      std::istringstream lines(ReadFile(table));
      for (std::string line; std::getline(lines, line);) {
        // "  0: 0100007F:1F90 00000000:0000 0A …"
        if (line.size() > 40 && line.find(wanted) < 50 && line.find(" 0A ") != std::string::npos) {
          return true;
        }
      }
    }
    End::Sleep(10);
  }
  end.Note("the program does not listen: " + ReadFile(output).substr(0, 500));
  return false;
}

// Starts a server and waits for it; the other end goes on at its Meet().
void Serve(End& end, const std::vector<std::string>& arguments, uint16_t port = kServerPort,
           const std::string& user = "") {
  const std::string output = RunDirectory() + "/output";
  Spawn(arguments, output, user);
  AwaitListener(end, port, output);
}

std::string Digest(const std::string& data) {
  return std::to_string(data.size()) + " bytes with hash " + test::HashOf(data);
}

std::string ReceiveToEnd(End& end) {
  std::string all;
  std::vector<char> buffer(65536);
  for (;;) {
    struct pollfd entry = {end.fd(), POLLIN, 0};
    if (end.Call("receive to the end", [&] { return poll(&entry, 1, 4000); }) <= 0) {
      return all + " then nothing";
    }
    const ssize_t got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got <= 0) {
      return got == 0 ? all : all + " then " + ErrnoText(errno);
    }
    all.append(buffer.data(), got);
  }
}

// Status line and body of an answer; headers have dates in them.
void NoteAnswer(End& end, const std::string& answer) {
  const size_t body = answer.find("\r\n\r\n");
  end.Note(answer.substr(0, answer.find("\r\n")) + ", " +
           (body == std::string::npos ? "no body" : Digest(answer.substr(body + 4))));
}

Case Make(const char* name, const char* what, Program client, Program server,
          std::function<std::string()> missing) {
  Case test = {name, what, std::move(client), std::move(server)};
  test.start = Start::kCold;
  test.families = {IpMode::kV4};
  test.route = Route::kOwn;
  test.patience = milliseconds(25000);
  test.plain_runs = 1;
  test.engine_runs = 1;
  test.missing = std::move(missing);
  return test;
}

// ---- nginx -------------------------------------------------------------------

void ServeNginx(End& end) {
  const std::string directory = RunDirectory();
  for (const char* name : {"/files", "/body"}) {
    mkdir((directory + name).c_str(), 0777);
    chmod((directory + name).c_str(), 0777);
  }
  WriteFile(directory + "/files/large", test::Pattern(end.seed()).At(0, 8 << 20));
  const std::string configuration =
      WriteFile(directory + "/nginx.conf",
                "daemon off; worker_processes 1; user root; pid " + directory + "/pid; error_log " +
                    directory +
                    "/error.log;\nevents { use epoll; }\nhttp { access_log off; sendfile on; "
                    "client_max_body_size 100m; client_body_temp_path " +
                    directory + "/body; proxy_temp_path " + directory + "/proxy;\n" +
                    " server { listen 127.0.0.1:8080;\n"
                    "  location /files/ { root " +
                    directory +
                    "; dav_methods PUT; }\n"
                    "  location /proxy/ { proxy_pass http://127.0.0.1:8082/files/; } }\n"
                    " server { listen 127.0.0.1:8082; location /files/ { root " +
                    directory + "; dav_methods PUT; } } }\n");
  Serve(end, {"nginx", "-c", configuration, "-e", directory + "/error.log"});
}

std::string Ask(End& end, const std::string& request) {
  end.socket() = end.Dial();
  end.SendAll(request);
  std::string answer = ReceiveToEnd(end);
  end.socket().Reset();
  return answer;
}

Case Nginx() {
  return Make(
      "programs.nginx",
      "nginx: a large upload (edge-triggered), downloads with sendfile, as a proxy",
      [](End& end) {
        end.Meet();
        const std::string body = test::Pattern(end.seed() + 1).At(0, 8 << 20);
        const std::string tail = " HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n";
        NoteAnswer(end, Ask(end, "GET /files/large" + tail + "\r\n"));
        for (const char* path : {"/files/up", "/proxy/up2"}) {
          NoteAnswer(end, Ask(end, std::string("PUT ") + path + tail + "Content-Length: " +
                                       std::to_string(body.size()) + "\r\n\r\n" + body));
        }
        const std::string back = Ask(end, "GET /proxy/up2" + tail + "\r\n");
        NoteAnswer(end, back);
        end.Note(back.size() > body.size() &&
                         back.compare(back.size() - body.size(), body.size(), body) == 0
                     ? "came back as it went"
                     : "came back otherwise");
        // Many small requests on one connection.
        end.socket() = end.Dial();
        int good = 0;
        for (int i = 0; i < 300; i++) {
          end.SendAll("HEAD /files/large HTTP/1.1\r\nHost: pod\r\n\r\n");
          std::string head;
          while (head.find("\r\n\r\n") == std::string::npos) {
            char buffer[4096];
            const ssize_t got =
                end.Call("recv", [&] { return recv(end.fd(), buffer, sizeof(buffer), 0); });
            if (got <= 0) {
              end.NoteResult("recv", got);
              return;
            }
            head.append(buffer, got);
          }
          good += head.rfind("HTTP/1.1 200 ", 0) == 0;
        }
        end.Note("small requests answered: " + std::to_string(good));
        end.Meet();
      },
      [](End& end) {
        ServeNginx(end);
        end.Meet();
        end.Meet();
      },
      Needs("nginx", "nginx"));
}

// ---- proxies that splice ----------------------------------------------------

// The client talks through a proxy on kServerPort to the server's own echo on
// kBackendPort.
void TalkThroughProxy(End& end) {
  end.Meet();
  end.socket() = end.Dial();
  for (const size_t size : {1, 1000, 100000, 2000000}) {
    const std::string data = end.Bytes(size);
    std::thread sender([&] { end.SendAll(data); });
    std::string back;
    std::vector<char> buffer(65536);
    while (back.size() < size) {
      struct pollfd entry = {end.fd(), POLLIN, 0};
      if (end.Call("wait for the echo", [&] { return poll(&entry, 1, 4000); }) <= 0) {
        break;
      }
      const ssize_t got = recv(end.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got <= 0) {
        break;
      }
      back.append(buffer.data(), got);
    }
    const bool same = back == data;
    end.Note(std::to_string(size) + (same ? " came back" : " came back as " + Digest(back)));
    if (!same) {
      _exit(0);  // the sender may sleep for ever
    }
    sender.join();
  }
  end.Shutdown(SHUT_WR);
  end.ReadToEnd();
}

void EchoBehindProxy(End& end, const std::function<void()>& start_proxy) {
  const UniqueFd listener = end.Listen(kBackendPort);
  start_proxy();
  end.Meet();
  end.socket() = end.Accept(listener.get());
  std::vector<char> buffer(65536);
  for (;;) {
    const ssize_t got =
        end.Call("recv", [&] { return recv(end.fd(), buffer.data(), buffer.size(), 0); });
    if (got <= 0) {
      end.NoteResult("the stream ends", got);
      break;
    }
    if (!end.SendAll({buffer.data(), static_cast<size_t>(got)})) {
      break;
    }
  }
  end.Close();
}

Case Haproxy() {
  return Make(
      "programs.haproxy_splice", "HAProxy in TCP mode with splice-request and splice-response",
      TalkThroughProxy,
      [](End& end) {
        EchoBehindProxy(end, [&] {
          const std::string configuration = WriteFile(
              RunDirectory() + "/haproxy.cfg",
              "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout client 20s\n  timeout server "
              "20s\n  timeout connect 5s\n  option splice-request\n  option splice-response\n"
              "frontend in\n  bind 127.0.0.1:8080\n  default_backend out\n"
              "backend out\n  server echo 127.0.0.1:8082\n");
          Serve(end, {"haproxy", "-db", "-f", configuration});
        });
      },
      Needs("haproxy", "haproxy"));
}

Case GoCopy() {
  return Make(
      "programs.go_io_copy", "a Go proxy: io.Copy between two connections", TalkThroughProxy,
      [](End& end) {
        EchoBehindProxy(end, [&] {
          Serve(end, {SHUNT_GO_PROXY, "127.0.0.1:8080", "127.0.0.1:8082"});
        });
      },
      Needs(SHUNT_GO_PROXY, "golang-go and build again"));
}

// ---- Java ---------------------------------------------------------------------

Case Java() {
  return Make(
      "programs.java_available", "a Java client that reads what available() promises, 4 MiB",
      [](End& end) {
        end.Meet();
        const std::string output = RunDirectory() + "/output";
        const pid_t pid = Spawn({"java", "-Xshare:auto", "-cp", SHUNT_JAVA_CLASSES, "Available",
                                 "127.0.0.1", "8080", std::to_string(4 << 20)},
                                output);
        end.NoteResult("java", WaitFor(end, "java", pid));
        const std::string said = ReadFile(output);
        end.Note(said.substr(0, said.find('\n')));
        end.Meet();
      },
      [](End& end) {
        const UniqueFd listener = end.Listen();
        end.Meet();
        end.socket() = end.Accept(listener.get());
        end.ReadExactly(3);
        const std::string data = test::Pattern(end.seed()).At(0, 4 << 20);
        // Not all of it: how far a client that stalls let it get is not told.
        end.Call("send", [&] { return send(end.fd(), data.data(), data.size(), MSG_NOSIGNAL); });
        end.Meet();
      },
      [] {
        const std::string java = Needs("java", "default-jre-headless")();
        return !java.empty() ? java
               : access(SHUNT_JAVA_CLASSES "/Available.class", R_OK) != 0
                   ? std::string("javac was not here when this was built: default-jdk-headless")
                   : "";
      });
}

// ---- Node.js --------------------------------------------------------------------

Case Node() {
  return Make(
      "programs.node_streams", "Node.js: an echo by stream.pipe(), 2 MB both ways at once",
      TalkThroughProxy,
      [](End& end) {
        Serve(end, {"node", SHUNT_PROGRAMS_SOURCE "/echo.js", "8080"});
        end.Meet();
      },
      Needs("node", "nodejs"));
}

// ---- Redis ---------------------------------------------------------------------

Case Redis() {
  return Make(
      "programs.redis_pipelined", "Redis: 20,000 commands before the first answer is read",
      [](End& end) {
        end.Meet();
        end.socket() = end.Dial();
        std::thread sender([&] {
          for (int i = 0; i < 200; i++) {
            std::string batch;
            for (int j = 0; j < 50; j++) {
              const std::string n = std::to_string(i * 50 + j);
              batch += "SET key" + n + " value" + n + "\r\nGET key" + n + "\r\n";
            }
            end.SendAll(batch);
          }
          end.SendAll("QUIT\r\n");
        });
        End::Sleep(200);
        const std::string answers = ReceiveToEnd(end);
        sender.join();
        end.Note(Digest(answers));
      },
      [](End& end) {
        Serve(end, {"redis-server", "--port", "8080", "--bind", "127.0.0.1", "--save", "",
                    "--appendonly", "no", "--dir", RunDirectory()});
        end.Meet();
      },
      Needs("redis-server", "redis-server"));
}

// ---- PostgreSQL -------------------------------------------------------------------

Case Postgres() {
  return Make(
      "programs.postgresql", "PostgreSQL: psql, many rows, COPY in and out",
      [](End& end) {
        end.Meet();
        const std::string directory = RunDirectory();
        const std::string script =
            WriteFile(directory + "/script.sql",
                      "create table t (n int, s text);\n"
                      "insert into t select n, md5(n::text) from generate_series(1, 20000) n;\n"
                      "select * from t order by n;\n"
                      "\\copy t to '" +
                          directory +
                          "/out.csv' csv\n"
                          "\\copy t from '" +
                          directory +
                          "/out.csv' csv\n"
                          "select count(*), md5(string_agg(s, ',' order by n, s)) from t;\n");
        const std::string output = directory + "/output";
        const pid_t pid =
            Spawn({"psql", "-X", "-q", "-h", "127.0.0.1", "-p", "8080", "-U", "postgres", "-d",
                   "postgres", "-v", "ON_ERROR_STOP=1", "-f", script},
                  output);
        end.NoteResult("psql", WaitFor(end, "psql", pid));
        end.Note(Digest(ReadFile(output)));
        end.Note(Digest(ReadFile(directory + "/out.csv")));
      },
      [](End& end) {
        const std::string directory = RunDirectory();
        const struct passwd* who = getpwnam("postgres");
        (void)!chown(directory.c_str(), who->pw_uid, who->pw_gid);
        const std::string output = directory + "/output", data = directory + "/data";
        const int made = WaitFor(end, "initdb",
                                 Spawn({"initdb", "-D", data, "-A", "trust", "-N", "-U", "postgres",
                                        "--locale=C", "-E", "UTF8"},
                                       output, "postgres"));
        if (made != 0) {
          end.Note("initdb: " + ReadFile(output).substr(0, 500));
        }
        Spawn({"postgres", "-D", data, "-p", "8080", "-h", "127.0.0.1", "-k", directory, "-F"},
              output, "postgres");
        AwaitListener(end, kServerPort, output);
        // It listens a little before it takes connections.
        End::Sleep(500);
        end.Meet();
      },
      [] {
        for (const char* program : {"psql", "initdb", "postgres"}) {
          if (FindProgram(program).empty()) {
            return std::string(program) + " is not here: install postgresql";
          }
        }
        return getpwnam("postgres") == nullptr ? std::string("no user postgres") : "";
      });
}

}  // namespace

Cases ProgramCases() { return {Nginx(), Haproxy(), GoCopy(), Java(), Node(), Redis(), Postgres()}; }

}  // namespace shunt::conformance

// SPDX-License-Identifier: Apache-2.0
//
// The hop between an app and its sidecar, reduced to two processes and one
// socket each: measures one pattern over one transport, in the network
// namespace and cgroup it is started in, and prints one JSON object. Whether
// the connection is accelerated is not its business: scripts/bench runs it in
// a listed and an unlisted pod in turn and asks the agent.
//
//   hop rtt --size 64 --cpus 0,1 --seconds 1
//   hop stream --transport unix --size 65536
//
// Exit code 1: something failed, stderr says what, nothing was measured;
// 2: bad arguments.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "agent/base/unique_fd.h"
#include "nlohmann/json.hpp"

namespace shunt {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr size_t kLargestMessage = 1 << 20;
constexpr size_t kReaderBuffer = 64 * 1024;  // what proxies commonly read at once
constexpr size_t kRequestBytes = 64;         // of `connect` and `hold`
constexpr size_t kFewestSamples = 200;       // for a median, however long a hiccup the slice had
constexpr auto kNoProgress = std::chrono::milliseconds(400);  // above TCP's 200 ms window probe

struct Options {
  std::string transport = "tcp";
  uint16_t port = 8080;
  uint16_t dial = 0;      // what the client connects to; 0: port
  std::vector<int> cpus;  // of client and server; empty: wherever the scheduler puts them
  double seconds = 0.3;
  size_t size = 64;
  int exchanges = 1000;
  uint32_t seed = 1;
  int connections = 1000;
};

[[noreturn]] void Fail(const std::string& action) {
  fprintf(stderr, "hop: %s: %s\n", action.c_str(), strerror(errno));
  _exit(1);
}

void Print(const Json& result) {
  puts(result.dump().c_str());
  fflush(stdout);
}

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void Pin(const Options& options, size_t role) {
  if (options.cpus.empty()) {
    return;
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(options.cpus[role], &set);
  if (sched_setaffinity(0, sizeof(set), &set) != 0) {
    Fail("pinning to CPU " + std::to_string(options.cpus[role]));
  }
}

// ---- sockets ---------------------------------------------------------------

// 127.0.0.1:port, or a name in the network namespace's abstract AF_UNIX space.
struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;

  Address(const Options& options, uint16_t port) {
    if (options.transport == "unix") {
      auto* name = reinterpret_cast<sockaddr_un*>(&storage);
      name->sun_family = AF_UNIX;
      length = offsetof(sockaddr_un, sun_path) + 1 +
               snprintf(name->sun_path + 1, sizeof(name->sun_path) - 1, "shunt-bench-hop");
    } else {
      auto* name = reinterpret_cast<sockaddr_in*>(&storage);
      name->sin_family = AF_INET;
      name->sin_port = htons(port);
      name->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      length = sizeof(*name);
    }
  }
  int family() const { return storage.ss_family; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

Address ServerAddress(const Options& options) { return {options, options.port}; }
Address DialledAddress(const Options& options) {
  return {options, options.dial != 0 ? options.dial : options.port};
}

UniqueFd Socket(const Address& address) {
  UniqueFd fd(socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) {
    Fail("making a socket");
  }
  return fd;
}

void SetFlag(const UniqueFd& fd, int level, int option) {
  const int on = 1;
  if (setsockopt(fd.get(), level, option, &on, sizeof(on)) != 0) {
    Fail("setting a socket option");
  }
}

void NoDelay(const Options& options, const UniqueFd& fd) {
  if (options.transport == "tcp") {
    SetFlag(fd, IPPROTO_TCP, TCP_NODELAY);
  }
}

UniqueFd Listen(const Options& options) {
  const Address address = ServerAddress(options);
  UniqueFd fd = Socket(address);
  SetFlag(fd, SOL_SOCKET, SO_REUSEADDR);
  if (bind(fd.get(), address.get(), address.length) != 0 || listen(fd.get(), 1024) != 0) {
    Fail("listening");
  }
  return fd;
}

UniqueFd Connect(const Options& options) {
  const Address address = DialledAddress(options);
  UniqueFd fd = Socket(address);
  if (connect(fd.get(), address.get(), address.length) != 0) {
    Fail("connecting");
  }
  NoDelay(options, fd);
  return fd;
}

UniqueFd Accept(const Options& options, const UniqueFd& listener) {
  UniqueFd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) {
    Fail("accepting");
  }
  NoDelay(options, fd);
  return fd;
}

struct Connection {
  UniqueFd client;
  UniqueFd server;
};

Connection MakeConnection(const Options& options) {
  const UniqueFd listener = Listen(options);
  UniqueFd client = Connect(options);
  return {std::move(client), Accept(options, listener)};
}

void WriteAll(const UniqueFd& fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t n = write(fd.get(), data, size);
    if (n < 0) {
      Fail("writing");
    }
    data += n;
    size -= n;
  }
}

// False at end of file before the first byte.
bool ReadAll(const UniqueFd& fd, char* data, size_t size) {
  size_t got = 0;
  while (got < size) {
    const ssize_t n = read(fd.get(), data + got, size - got);
    if (n < 0) {
      Fail("reading");
    }
    if (n == 0) {
      if (got != 0) {
        errno = EPROTO;
        Fail("reading: end of file within a message");
      }
      return false;
    }
    got += n;
  }
  return true;
}

void MustRead(const UniqueFd& fd, char* data, size_t size) {
  if (!ReadAll(fd, data, size)) {
    errno = EPROTO;
    Fail("reading: unexpected end of file");
  }
}

// ---- the second process ------------------------------------------------------

// The server. Dies with its parent, so a killed measurement leaves nothing.
class Server {
 public:
  Server(const Options& options, const std::function<void()>& serve) : pid_(fork()) {
    if (pid_ < 0) {
      Fail("forking");
    }
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      Pin(options, 1);
      serve();
      _exit(0);
    }
    Pin(options, 0);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // For servers that end by themselves.
  void Join() {
    int status = 0;
    if (waitpid(pid_, &status, 0) != pid_ || status != 0) {
      errno = ECHILD;
      Fail("the server ended badly");
    }
  }
  void Kill() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  const pid_t pid_;
};

// ---- patterns ----------------------------------------------------------------

double Quantile(std::vector<double>* samples, double q) {
  const size_t index = std::min(samples->size() - 1, static_cast<size_t>(samples->size() * q));
  std::nth_element(samples->begin(), samples->begin() + index, samples->end());
  return (*samples)[index];
}

Json Latencies(std::vector<double>* microseconds) {
  double sum = 0;
  for (double sample : *microseconds) {
    sum += sample;
  }
  return {{"exchanges", microseconds->size()},
          {"meanUs", sum / microseconds->size()},
          {"p50Us", Quantile(microseconds, 0.5)},
          {"p99Us", Quantile(microseconds, 0.99)},
          {"maxUs", Quantile(microseconds, 1)}};
}

// One message there, the same size back. A tenth of the time warms up.
void RoundTrips(const Options& options) {
  Connection connection = MakeConnection(options);
  std::vector<char> buffer(options.size, 'x');
  Server server(options, [&] {
    connection.client.Reset();
    while (ReadAll(connection.server, buffer.data(), buffer.size())) {
      WriteAll(connection.server, buffer.data(), buffer.size());
    }
  });
  connection.server.Reset();

  std::vector<double> samples;
  samples.reserve(1 << 20);
  uint64_t bytes = 0;
  const double warm_up = options.seconds / 10;
  const Clock::time_point start = Clock::now();
  for (double now = 0; now < options.seconds + warm_up || samples.size() < kFewestSamples;) {
    const Clock::time_point before = Clock::now();
    WriteAll(connection.client, buffer.data(), buffer.size());
    MustRead(connection.client, buffer.data(), buffer.size());
    bytes += 2 * buffer.size();
    now = SecondsSince(start);
    if (now > warm_up) {
      samples.push_back(SecondsSince(before) * 1e6);
    }
  }
  connection.client.Reset();
  server.Join();
  Json result = Latencies(&samples);
  result["payloadBytes"] = bytes;
  Print(result);
}

// Blocking writes of one size against a reader that keeps up as it can. Counted
// until the reader has the last byte, so what lies in queues is not a gain; the
// reader says so through a pipe, so the connection is used one way only.
void Stream(const Options& options) {
  Connection connection = MakeConnection(options);
  std::vector<char> buffer(std::max(options.size, kReaderBuffer), 'x');
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    Fail("making a pipe");
  }
  const UniqueFd report(ends[0]);
  UniqueFd reporter(ends[1]);
  Server server(options, [&] {
    connection.client.Reset();
    uint64_t received = 0;
    for (;;) {
      const ssize_t n = read(connection.server.get(), buffer.data(), kReaderBuffer);
      if (n < 0) {
        Fail("reading");
      }
      if (n == 0) {
        break;
      }
      received += n;
    }
    WriteAll(reporter, reinterpret_cast<char*>(&received), sizeof(received));
  });
  connection.server.Reset();
  reporter.Reset();

  constexpr int kWritesPerLook = 16;  // at the clock, which costs as much as a small write
  uint64_t sent = 0;
  const Clock::time_point start = Clock::now();
  while (SecondsSince(start) < options.seconds) {
    for (int i = 0; i < kWritesPerLook; ++i) {
      WriteAll(connection.client, buffer.data(), options.size);
      sent += options.size;
    }
  }
  connection.client.Reset();
  uint64_t received = 0;
  MustRead(report, reinterpret_cast<char*>(&received), sizeof(received));
  const double elapsed = SecondsSince(start);
  server.Join();
  if (received != sent) {
    errno = EPROTO;
    Fail("stream: sent " + std::to_string(sent) + " bytes, received " + std::to_string(received));
  }
  Print({{"megabytesPerSecond", sent / elapsed / 1e6}, {"payloadBytes", sent}});
}

// Requests and replies of 64 B to 64 KiB, small ones more often, with pauses in
// between. The same seed gives the same sequence, so that sums compare.
class MixedPlan {
 public:
  explicit MixedPlan(uint32_t seed) : random_(seed) {}
  size_t Size() { return static_cast<size_t>(64 * std::exp2(exponent_(random_))); }
  std::chrono::microseconds Pause() { return std::chrono::microseconds(pause_(random_)); }

 private:
  std::mt19937 random_;
  std::uniform_real_distribution<double> exponent_{0, 10};
  std::uniform_int_distribution<int> pause_{0, 100};
};

void MixedExchanges(const Options& options) {
  Connection connection = MakeConnection(options);
  std::vector<char> buffer(64 * 1024, 'x');
  Server server(options, [&] {
    connection.client.Reset();
    MixedPlan plan(options.seed);
    while (ReadAll(connection.server, buffer.data(), plan.Size())) {
      WriteAll(connection.server, buffer.data(), plan.Size());
      plan.Pause();
    }
  });
  connection.server.Reset();

  MixedPlan plan(options.seed);
  std::vector<double> samples;
  uint64_t bytes = 0;
  for (int i = 0; i < options.exchanges; ++i) {
    const size_t request = plan.Size();
    const size_t reply = plan.Size();
    const Clock::time_point before = Clock::now();
    WriteAll(connection.client, buffer.data(), request);
    MustRead(connection.client, buffer.data(), reply);
    samples.push_back(SecondsSince(before) * 1e6);
    bytes += request + reply;
    std::this_thread::sleep_for(plan.Pause());
  }
  connection.client.Reset();
  server.Join();
  Json result = Latencies(&samples);
  // Pauses are the client's own and not counted.
  result["exchangesPerSecond"] = 1e6 / result["meanUs"].get<double>();
  result["payloadBytes"] = bytes;
  Print(result);
}

// A new connection per request, closed by the server.
void Connects(const Options& options) {
  const UniqueFd listener = Listen(options);
  std::vector<char> buffer(kRequestBytes, 'x');
  Server server(options, [&] {
    for (;;) {
      const UniqueFd connection = Accept(options, listener);
      if (ReadAll(connection, buffer.data(), buffer.size())) {
        WriteAll(connection, buffer.data(), buffer.size());
      }
    }
  });

  std::vector<double> samples;
  const Clock::time_point start = Clock::now();
  while (SecondsSince(start) < options.seconds || samples.empty()) {
    const Clock::time_point before = Clock::now();
    UniqueFd connection = Connect(options);
    WriteAll(connection, buffer.data(), buffer.size());
    MustRead(connection, buffer.data(), buffer.size());
    ReadAll(connection, buffer.data(), buffer.size());
    connection.Reset();
    samples.push_back(SecondsSince(before) * 1e6);
  }
  const double elapsed = SecondsSince(start);
  server.Kill();
  Json result = Latencies(&samples);
  result["connectionsPerSecond"] = samples.size() / elapsed;
  result["payloadBytes"] = samples.size() * 2 * kRequestBytes;
  Print(result);
}

// How much a sender can hand over while nobody reads.
void Unread(const Options& options) {
  const Connection connection = MakeConnection(options);
  const std::vector<char> buffer(options.size, 'x');
  uint64_t accepted = 0;
  for (Clock::time_point progress = Clock::now(); Clock::now() - progress < kNoProgress;) {
    const ssize_t n = send(connection.client.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n > 0) {
      accepted += n;
      progress = Clock::now();
      continue;
    }
    if (errno != EAGAIN) {
      Fail("sending");
    }
    pollfd writable{connection.client.get(), POLLOUT, 0};
    poll(&writable, 1, 20);
  }
  Print({{"acceptedBytes", accepted}, {"payloadBytes", accepted}});
}

// Live connections, each used once in both directions; prints when they stand,
// keeps them until its standard input ends.
void Hold(const Options& options) {
  const rlim_t wanted = 2 * options.connections + 64;
  rlimit limit{wanted, wanted};
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    Fail("raising the limit of open files to " + std::to_string(wanted));
  }
  const UniqueFd listener = Listen(options);
  std::vector<char> buffer(kRequestBytes, 'x');
  std::vector<Connection> held;
  for (int i = 0; i < options.connections; ++i) {
    UniqueFd client = Connect(options);
    held.push_back({std::move(client), Accept(options, listener)});
    WriteAll(held.back().client, buffer.data(), buffer.size());
    MustRead(held.back().server, buffer.data(), buffer.size());
    WriteAll(held.back().server, buffer.data(), buffer.size());
    MustRead(held.back().client, buffer.data(), buffer.size());
  }
  Print({{"connections", held.size()}, {"payloadBytes", held.size() * 2 * kRequestBytes}});
  while (read(STDIN_FILENO, buffer.data(), buffer.size()) > 0) {
  }
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  Options options;
  void (*measure)(const Options&) = nullptr;
  CLI::App app("Measures the hop between two processes of one pod; prints JSON.", "hop");
  app.require_subcommand(1);
  const auto add = [&](const char* name, const char* text, void (*function)(const Options&)) {
    CLI::App* command = app.add_subcommand(name, text);
    command->callback([&measure, function] { measure = function; });
    command->add_option("--transport", options.transport)
        ->check(CLI::IsMember({"tcp", "unix"}))
        ->capture_default_str();
    command->add_option("--port", options.port, "of the server, on 127.0.0.1")
        ->check(CLI::Range(1, 65535))
        ->capture_default_str();
    command->add_option("--dial", options.dial, "port the client connects to, if redirected by NAT")
        ->check(CLI::Range(1, 65535));
    command->add_option("--cpus", options.cpus, "of client and server, as 0,1")
        ->delimiter(',')
        ->expected(2);
    return command;
  };
  const auto with_size = [&](CLI::App* command) {
    command->add_option("--size", options.size, "bytes per message")
        ->check(CLI::Range(size_t{1}, kLargestMessage))
        ->capture_default_str();
    return command;
  };
  const auto with_seconds = [&](CLI::App* command) {
    command->add_option("--seconds", options.seconds)
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
  };
  with_seconds(with_size(add("rtt", "request and response of one size", RoundTrips)));
  with_seconds(with_size(add("stream", "one direction, throughput", Stream)));
  with_seconds(add("connect", "connect, request, response, close", Connects));
  with_size(add("unread", "bytes accepted while nobody reads", Unread));
  add("hold", "connections kept until standard input ends", Hold)
      ->add_option("--connections", options.connections)
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  CLI::App* mixed = add("mixed", "sizes from 64 B to 64 KiB with pauses", MixedExchanges);
  mixed->add_option("--exchanges", options.exchanges)
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  mixed->add_option("--seed", options.seed)->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  measure(options);
  return 0;
}

}  // namespace
}  // namespace shunt

int main(int argc, char** argv) { return shunt::Main(argc, argv); }

// SPDX-License-Identifier: Apache-2.0
//
// One end of a connection, as the program of a case sees it: its socket, calls
// that note how they ended, and ways to keep pace with the other end without
// using the connection.
//
// An end is a process of its own in the pod's network namespace and cgroup. It
// never waits for ever on its own account: the suite ends it when the run's time
// is over, and then notes the call it was in.
#ifndef SHUNT_TESTS_CONFORMANCE_END_H_
#define SHUNT_TESTS_CONFORMANCE_END_H_

#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "agent/base/unique_fd.h"
#include "tests/conformance/case.h"
#include "tests/support/patterned.h"

namespace shunt::conformance {

inline constexpr uint16_t kServerPort = 8080;
inline constexpr uint16_t kRedirectedPort = 9090;  // to kServerPort
inline constexpr uint16_t kTproxyPort = 9091;      // to kServerPort's listener
inline constexpr char kTproxyAddress[] = "192.0.2.10";

// Memory that both ends and the suite see during one run.
struct RunMemory {
  struct Side {
    std::atomic<pid_t> pid;
    std::atomic<bool> calling;  // inside the call named here
    char call[80];
  };
  Side sides[2];
  // For a case's own use; zero at the start.
  std::atomic<uint64_t> scratch[8];
};

enum class Role { kClient = 0, kServer = 1 };

// Not thread-safe except Note() and Call(); a case that uses threads notes from one.
class End {
 public:
  struct Setup {
    Role role;
    IpMode mode;
    uint64_t seed;
    int control;  // to the suite
    int partner;  // to the other end
    RunMemory* memory;
    const Case* test;
  };
  explicit End(const Setup& setup) : setup_(setup) {}

  // Connects, warms up, runs the program: the life of an end's process.
  void Live();

  int fd() const { return socket_.get(); }
  UniqueFd& socket() { return socket_; }
  bool client() const { return setup_.role == Role::kClient; }
  uint64_t seed() const { return setup_.seed; }
  IpMode mode() const { return setup_.mode; }
  std::atomic<uint64_t>& scratch(int index) { return setup_.memory->scratch[index]; }

  // ---- the transcript ----
  void Note(const std::string& line);
  // "<call> -> 10", "<call> -> EPIPE" by errno.
  void NoteResult(const std::string& call, ssize_t result);
  // Runs a system call that may block; errno stays as the call left it.
  template <typename F>
  ssize_t Call(const char* name, F&& call) {
    Enter(name);
    errno = 0;
    const ssize_t result = call();
    const int error = errno;
    Leave();
    errno = error;
    return result;
  }

  // Each makes one call and notes how it ended.
  ssize_t Send(std::string_view data, int flags = 0);
  ssize_t Send(size_t size, int flags = 0) { return Send(Bytes(size), flags); }
  std::string Recv(size_t size, int flags = 0);
  void Shutdown(int how);
  void Close();
  void SocketError();
  // The events within the time, of all that poll() can tell.
  void Poll(short wanted, int timeout_ms = 2000);
  void PollNow();
  void SetOption(const char* name, int level, int option, int value);
  int GetOption(const char* name, int level, int option, bool note = true);
  // FIONREAD, SIOCOUTQ, …
  int Ioctl(const char* name, unsigned long request, bool note = true);

  // Reads in however many pieces; notes the bytes, and what kept it from all. With
  // `note` false only the latter.
  bool ReadExactly(size_t size, bool note = true);
  void ReadToEnd();

  // ---- not noted ----
  // All of it, or notes what went wrong.
  bool SendAll(std::string_view data);
  // The next bytes of this end's own stream.
  std::string Bytes(size_t size);
  // Waits until poll() says one of `wanted`; false, and a note, after 2 s.
  bool Await(short wanted);

  // ---- keeping pace with the other end ----
  // Returns when the other end has come to its own Meet(), or is gone.
  void Meet();
  // Until the other end's process sleeps inside a noted call.
  void AwaitPeerBlocked();
  // Until TCP has nothing of mine on its way, if the window is not closed; to be
  // followed by Meet().
  void AwaitDelivered();
  static void Sleep(int ms);

  // ---- for Route::kOwn ----
  test::Endpoint ListenAddress(uint16_t port = kServerPort) const {
    return test::ListenEndpoint(setup_.mode, port);
  }
  test::Endpoint DialAddress(uint16_t port = kServerPort) const {
    return test::ConnectEndpoint(setup_.mode, port);
  }
  // These note only failure.
  UniqueFd Listen(uint16_t port = kServerPort, int backlog = 16);
  UniqueFd Dial(uint16_t port = kServerPort);
  UniqueFd Accept(int listener);
  // Both ends of a connection, this end being the client of it or the server.
  void ConnectBoth(uint16_t dial_port = kServerPort);
  // Requests and answers on the connection; both ends call it.
  void WarmUp();

 private:
  void Enter(const char* call);
  void Leave();
  void Tell(char kind, std::string_view text);
  void AwaitGo();

  Setup setup_;
  UniqueFd socket_;
  uint64_t sent_ = 0;
};

// A stop watch that speaks in classes: "at once", "on time", "late", "early".
class Watch {
 public:
  // In milliseconds.
  int64_t Elapsed() const;
  // For something that should take `expected` ms: TCP's own jitter is far below
  // the tolerance, a busy machine's is not, so a late one is looked at again.
  std::string Class(int expected, int tolerance = 500) const;

 private:
  test::Clock::time_point start_ = test::Clock::now();
};

// "0" or "EPIPE".
std::string ErrnoText(int error);

}  // namespace shunt::conformance

#endif  // SHUNT_TESTS_CONFORMANCE_END_H_

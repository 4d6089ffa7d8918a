// SPDX-License-Identifier: Apache-2.0
//
// The bench that probes work on: the loaded instrument (bpf/probe.bpf.c) and
// pairs of connected loopback sockets that may be enrolled in its sockhash.
// Everything is a descriptor of this process and goes with these objects.
//
// Lab is thread-safe once made; a Trial belongs to one thread. A Trial must
// not outlive its Lab. Sockets are made in the network namespace of the thread
// that calls.
#ifndef SHUNT_AGENT_PROBE_LAB_H_
#define SHUNT_AGENT_PROBE_LAB_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/base/unique_fd.h"
#include "bpf/probe.h"

struct probe;        // the skeleton
struct bpf_program;  // libbpf

namespace shunt {

enum class Family { kIpv4, kIpv6, kV4Mapped };

// How a trial's bytes travel.
enum class Way {
  kPlain,      // neither end is in the sockhash
  kMember,     // both are, messages go by TCP
  kRedirect,   // both are, messages go straight to the peer
  kJoinLater,  // neither is until Join(), which makes it kRedirect
};

class Lab {
 public:
  // Loads the instrument and attaches its sk_msg program. If only the
  // iterators are refused, goes on without them. The error's message holds
  // what the verifier said last.
  static absl::StatusOr<std::unique_ptr<Lab>> Create();
  ~Lab();

  // Enters a TCP socket under its cookie. 0 or a positive errno.
  int Enrol(int socket);
  // 0 or a positive errno; ENOENT if it is not in there.
  int Expel(uint64_t key);
  bool IsMember(uint64_t key);

  // Null if the kernel refused to load it.
  const struct ::bpf_program* list_program() const;
  const struct ::bpf_program* let_go_program() const;
  // Runs an iterator over all members, those of other trials included.
  absl::StatusOr<std::vector<probe_member>> Walk(const struct ::bpf_program* program);

  int ReadSocket(int socket, probe_socket* state);
  int WriteSocket(int socket, const probe_socket& state);

 private:
  struct Destroyer {
    void operator()(struct ::probe* skeleton) const;
  };
  Lab() = default;

  // Constant after Create().
  std::unique_ptr<struct ::probe, Destroyer> skeleton_;
  bool has_list_ = false;
  bool has_let_go_ = false;
};

// The time one trial may spend waiting, all its waits together.
class Bound {
 public:
  explicit Bound(std::chrono::milliseconds limit)
      : end_(std::chrono::steady_clock::now() + limit) {}
  // Milliseconds left, at most `most`, at least 0.
  int Left(int most = 1000) const;

 private:
  std::chrono::steady_clock::time_point end_;
};

// False: sockets of this family cannot be made or bound to loopback here.
bool HasLoopback(Family family);

// A fresh loopback socket that listens on a port of its own.
absl::StatusOr<UniqueFd> Listen(Family family);

uint64_t CookieOf(int socket);

// connect(AF_UNSPEC). 0 or a positive errno.
int Disconnect(int socket);

// Connects to where a socket listens. 0 or a positive errno.
int ConnectTo(int socket, int listener);

// One connection between two sockets of this process. Closing it resets it, so
// that nothing stays in TIME_WAIT.
class Trial {
 public:
  static absl::StatusOr<Trial> Make(
      Lab* lab, Family family, Way way,
      std::chrono::milliseconds limit = std::chrono::milliseconds(200));
  ~Trial();
  Trial(Trial&&) = default;
  Trial& operator=(Trial&&) = delete;

  int tx() const { return tx_.get(); }
  int rx() const { return rx_.get(); }
  void CloseTx();
  void CloseRx() { rx_.Reset(); }

  // From the next message on; both directions. No effect on a plain trial.
  void ByTcp();
  void ByRedirect();
  // The program redirects nothing once its socket was shut down, as the
  // engine's does. Both directions. No effect on a plain trial.
  void MindShutdown();
  // The program dawdles for about 100 us when it has decided about a message
  // of tx. No effect on a plain trial.
  void Dawdle();
  // Messages of tx that the program has seen; 0 on a plain trial.
  uint32_t Messages() const;
  // Waits until there are so many; not at all on a plain trial.
  void AwaitMessage(uint32_t messages) const;
  // Enrols both ends. No effect on a plain trial.
  absl::Status Join();
  // Takes the receiver out of the sockhash. No effect on a plain trial.
  void ExpelRx();
  // Messages of tx that the program handed to the peer; also after CloseTx().
  uint32_t Redirected() const;

  uint64_t tx_key() const { return tx_key_; }
  uint64_t rx_key() const { return rx_key_; }
  const Bound& bound() const { return bound_; }
  // From now on.
  void Allow(std::chrono::milliseconds limit) { bound_ = Bound(limit); }

  // Polls until one of `events` (or an error) is there; its revents, or 0.
  int Wait(int fd, short events, int most_ms = 1000) const;
  // Never blocks for longer than the bound. Bytes, or a negative errno.
  ssize_t Send(std::string_view data, int flags = 0) const;
  // Waits for readability, then one recv().
  ssize_t Receive(char* buffer, size_t size, int flags = 0, int most_ms = 1000) const;
  // Until `size` bytes, end of file, an error or the bound. `end` tells which
  // of them: "", "EOF", an errno's name.
  std::string ReceiveAll(size_t size, std::string* end = nullptr) const;

 private:
  Trial() = default;
  absl::Status Enrol(bool redirect);
  void Order(const std::function<void(probe_socket&)>& change);

  Lab* lab_ = nullptr;  // null: plain
  UniqueFd tx_;         // the client
  UniqueFd rx_;         // the server
  uint64_t tx_key_ = 0;
  uint64_t rx_key_ = 0;
  uint32_t redirected_at_close_ = 0;
  Bound bound_{std::chrono::milliseconds(200)};
};

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_LAB_H_

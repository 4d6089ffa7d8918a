// SPDX-License-Identifier: Apache-2.0
//
// Has the tracepoints of bpf/watch.h attached while a workload is new, and only
// then: they cost every system call of the node a little.
//
// Not thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_WATCHER_H_
#define SHUNT_AGENT_DATAPATH_WATCHER_H_

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"

struct bpf_link;     // libbpf
struct bpf_program;  // libbpf

namespace shunt {

// Those of a loaded or opened skeleton of bpf/shunt.bpf.c.
template <typename Skeleton>
std::vector<struct ::bpf_program*> WatchingPrograms(Skeleton* skeleton) {
  return {skeleton->progs.shunt_sock_recv_length, skeleton->progs.shunt_sock_send_length,
          skeleton->progs.shunt_sys_enter};
}

class Watcher {
 public:
  using Clock = std::chrono::steady_clock;

  // Not owned; loaded, and outlive this object. None: nothing can be watched.
  explicit Watcher(std::vector<struct ::bpf_program*> programs);
  ~Watcher();

  // There is, or may soon be, a workload to watch: attaches for kWatch from now.
  // On failure nothing is attached, and new workloads stay on TCP.
  absl::Status Watch(Clock::time_point now);

  // Detaches when it is time to; how long until then, if attached.
  std::optional<Clock::duration> Step(Clock::time_point now);

  bool attached() const { return !links_.empty(); }

  static constexpr std::chrono::seconds kWatch{10};

 private:
  struct LinkDeleter {
    void operator()(struct ::bpf_link* link) const;
  };

  const std::vector<struct ::bpf_program*> programs_;
  std::vector<std::unique_ptr<struct ::bpf_link, LinkDeleter>> links_;
  Clock::time_point until_;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_WATCHER_H_

// SPDX-License-Identifier: Apache-2.0
//
// RCU grace periods: after one, every BPF program that ran when it was asked for
// has ended. They take tens of milliseconds, and seconds on a saturated node, so
// a thread awaits them and nobody else.
//
// Thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_GRACE_H_
#define SHUNT_AGENT_DATAPATH_GRACE_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace shunt {

class Grace {
 public:
  using Ticket = uint64_t;

  // `await` returns after one grace period; called from a thread of this object.
  // Destroying the object waits for the one under way.
  explicit Grace(std::function<void()> await);
  ~Grace();
  Grace(const Grace&) = delete;
  Grace& operator=(const Grace&) = delete;

  // Asks for a grace period that begins after now.
  Ticket Ask();
  // Is it over?
  bool Passed(Ticket ticket) const;

 private:
  void Run();

  const std::function<void()> await_;
  mutable std::mutex mutex_;
  std::condition_variable asked_for_;
  Ticket asked_ = 0;
  Ticket passed_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_GRACE_H_

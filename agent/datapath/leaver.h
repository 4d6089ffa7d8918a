// SPDX-License-Identifier: Apache-2.0
//
// Takes single pairs back to plain TCP: those that a program in the kernel has
// told to leave (bpf/leave.h). Usually done within a few milliseconds; a pair
// whose reader does not read is looked at ever more rarely, up to once a second.
//
// Not thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_LEAVER_H_
#define SHUNT_AGENT_DATAPATH_LEAVER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>

#include "agent/datapath/grace.h"
#include "kmod/uapi/shunt.h"

namespace shunt {

// What the kernel is asked for; real in BpfDatapath, scripted in tests.
class LeavingPairs {
 public:
  virtual ~LeavingPairs() = default;

  struct Run {
    int members = 0;  // ends that are left
    bool gate_closed_now = false;
  };
  // Closes the gates of the pair's ends or, if they were closed in an earlier
  // run, lets the ends go if that is free of loss.
  virtual Run RunLeavePair(const shunt_end_key& key, bool grace_passed) = 0;
  // Returns when every CPU has been interrupted.
  virtual void InterruptCpus() = 0;
  // An RCU grace period that begins now; is it over?
  virtual Grace::Ticket AskGrace() = 0;
  virtual bool GracePassed(Grace::Ticket ticket) = 0;
};

class Leaver {
 public:
  using Clock = std::chrono::steady_clock;
  using Microseconds = std::chrono::microseconds;

  explicit Leaver(LeavingPairs* pairs) : pairs_(pairs) {}

  // The key of either end. Nothing happens if the pair is leaving already.
  void Add(const shunt_end_key& key);

  // Looks at the pairs that are due; when to come again, if ever.
  std::optional<Microseconds> Step(Clock::time_point now);

  size_t size() const { return leaving_.size(); }

  static constexpr Microseconds kFirstLooks{200};
  static constexpr unsigned kFirstLooksCount = 64;
  static constexpr Microseconds kRarestLook{1'000'000};

 private:
  struct ByPair {
    bool operator()(const shunt_end_key& a, const shunt_end_key& b) const;
  };
  struct Pair {
    Clock::time_point due;
    Microseconds pause = kFirstLooks;
    unsigned looks = 0;
    Grace::Ticket grace = 0;
  };

  // When the first of those that are left is due, if any is.
  std::optional<Clock::time_point> LookAtDuePairs(Clock::time_point now);

  LeavingPairs* const pairs_;
  std::map<shunt_end_key, Pair, ByPair> leaving_;
  // A gate has been closed since every CPU was interrupted: by a program before
  // Add(), or by a run, also of a server that joined late.
  bool gates_closed_ = false;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_LEAVER_H_

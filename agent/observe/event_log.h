// SPDX-License-Identifier: Apache-2.0
//
// What the kernel side reports, as log lines: every pair at debug; the first pair
// of each pod, the first verdict of each kind with --dry-run, and what is found of
// each workload at info or warning; refused
// connections and pairs that go back to TCP likewise, but there at most one line
// per pod, kind and reason in 10 s.
//
// Not thread-safe. Memory is bounded: when more pods have come by than it
// remembers it forgets them all, at the price of repeated lines.
#ifndef SHUNT_AGENT_OBSERVE_EVENT_LOG_H_
#define SHUNT_AGENT_OBSERVE_EVENT_LOG_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "agent/base/log.h"
#include "kmod/uapi/shunt.h"

namespace shunt {

class EventLog {
 public:
  using Clock = std::chrono::steady_clock;
  using UidOf = std::function<std::string(uint32_t)>;  // shunt_event.pod to pod uid

  struct Line {
    log::Level level;
    std::string message;
    log::Fields fields;
  };

  static constexpr std::chrono::seconds kQuiet{10};
  static constexpr size_t kRemembered = 4096;

  explicit EventLog(std::function<Clock::time_point()> now = &Clock::now) : now_(std::move(now)) {}

  // The line for `event`; nothing if it falls into a quiet time.
  std::optional<Line> Render(const shunt_event& event, const UidOf& uid_of);

  // The same, into the log; costs next to nothing for lines below its level.
  void Write(const shunt_event& event, const UidOf& uid_of);

 private:
  struct Verdict {
    log::Level level;
    std::string_view message;
    uint64_t suppressed = 0;
  };
  struct Quiet {
    Clock::time_point until;
    uint64_t suppressed = 0;
  };

  std::optional<Verdict> Judge(const shunt_event& event);
  static Verdict JudgeWorkload(uint32_t reason);
  Verdict JudgeObserved(const shunt_event& event);
  std::optional<uint64_t> PassQuiet(const shunt_event& event);

  const std::function<Clock::time_point()> now_;
  std::set<uint32_t> accelerated_;                    // pods that had their first pair
  std::set<std::pair<uint32_t, uint32_t>> observed_;  // pods and their verdicts (--dry-run)
  std::map<std::tuple<uint32_t, uint32_t, uint32_t>, Quiet> quiet_;  // by pod, kind, reason
};

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_EVENT_LOG_H_

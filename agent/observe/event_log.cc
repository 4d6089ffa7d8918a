// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/event_log.h"

#include <utility>

#include "agent/pair/exits.h"

namespace shunt {
namespace {

bool WouldBeAccelerated(const shunt_event& event) {
  return event.kind == SHUNT_EVENT_OBSERVED && event.reason == SHUNT_EXIT_PAIR_MADE;
}

EventLog::Line MakeLine(const shunt_event& event, log::Level level, std::string_view message,
                        uint64_t suppressed, const EventLog::UidOf& uid_of) {
  log::Fields fields = {
      {"pod_uid", uid_of(event.pod)},
      {"reason", std::string(ExitReason(event.reason))},
      {"detail", std::string(ExitText(event.reason))},
  };
  if (WouldBeAccelerated(event)) {
    fields["reason"] = "would_accelerate";
    fields["detail"] = "both ends seen in one network namespace";
  }
  if (event.kind != SHUNT_EVENT_WORKLOAD) {
    fields["role"] = event.key.role == SHUNT_CLIENT ? "client" : "server";
    fields["local_port"] = event.local_port;
    fields["remote_port"] = event.remote_port;
  }
  if (event.kind == SHUNT_EVENT_LEFT) {
    fields["redirected_bytes"] = event.redirected_bytes;
  }
  if (event.port != 0) {
    fields["server_port"] = event.port;
  }
  if (event.hazards != 0) {
    fields["hazards"] = HazardNames(event.hazards);
  }
  if (suppressed > 0) {
    fields["suppressed"] = suppressed;
  }
  return {level, std::string(message), std::move(fields)};
}

}  // namespace

std::optional<uint64_t> EventLog::PassQuiet(const shunt_event& event) {
  const Clock::time_point now = now_();
  const auto key = std::make_tuple(event.pod, event.kind, event.reason);
  if (quiet_.size() >= kRemembered && quiet_.count(key) == 0) {
    quiet_.clear();
  }
  auto [place, first] = quiet_.try_emplace(key, Quiet{now + kQuiet, 0});
  if (first) {
    return 0;
  }
  Quiet& quiet = place->second;
  if (now < quiet.until) {
    ++quiet.suppressed;
    return std::nullopt;
  }
  quiet.until = now + kQuiet;
  return std::exchange(quiet.suppressed, 0);
}

std::optional<EventLog::Verdict> EventLog::Judge(const shunt_event& event) {
  switch (event.kind) {
    case SHUNT_EVENT_PAIR_MADE:
      if (accelerated_.size() >= kRemembered) {
        accelerated_.clear();
      }
      if (accelerated_.insert(event.pod).second) {
        return Verdict{log::Level::kInfo, "pod accelerated: first pair"};
      }
      return Verdict{log::Level::kDebug, "pair made"};
    case SHUNT_EVENT_LEFT:
      return Verdict{log::Level::kDebug, "end left"};
    case SHUNT_EVENT_WORKLOAD:
      return JudgeWorkload(event.reason);
    case SHUNT_EVENT_OBSERVED:
      return JudgeObserved(event);
    case SHUNT_EVENT_REFUSED:
    case SHUNT_EVENT_LEAVING:
      break;
    default:
      return Verdict{log::Level::kDebug, "event of a kind that this agent does not know"};
  }
  if (ClassOf(event.reason) == ExitClass::kPlain) {
    // Its port was taken out of the policy between SYN and ESTABLISHED.
    return Verdict{log::Level::kDebug, "connection not enrolled"};
  }
  const std::optional<uint64_t> suppressed = PassQuiet(event);
  if (!suppressed.has_value()) {
    return std::nullopt;
  }
  if (event.kind == SHUNT_EVENT_LEAVING) {
    return Verdict{
        event.reason == SHUNT_EXIT_LEAVING_HAZARD ? log::Level::kWarning : log::Level::kInfo,
        "pair goes back to TCP", *suppressed};
  }
  return Verdict{log::Level::kWarning, "connection refused: it stays on TCP", *suppressed};
}

// Once per pod and verdict: the counts are in `shuntctl pods`.
EventLog::Verdict EventLog::JudgeObserved(const shunt_event& event) {
  if (observed_.size() >= kRemembered) {
    observed_.clear();
  }
  const bool is_first = observed_.insert({event.pod, event.reason}).second;
  return {is_first ? log::Level::kInfo : log::Level::kDebug, WouldBeAccelerated(event)
                                                                 ? "connection would be accelerated"
                                                                 : "connection would stay on TCP"};
}

EventLog::Verdict EventLog::JudgeWorkload(uint32_t reason) {
  switch (reason) {
    case SHUNT_EXIT_WORKLOAD_NEW:
      return {log::Level::kInfo, "workload is new: it is watched while on TCP"};
    case SHUNT_EXIT_WORKLOAD_UNSEEN:
      return {log::Level::kDebug, "workload is still new: to be watched"};
    case SHUNT_EXIT_WORKLOAD_CLEAN:
      return {log::Level::kInfo, "workload is clean: nothing speaks against accelerating it"};
    default:
      return {log::Level::kWarning, "workload stays on TCP"};
  }
}

std::optional<EventLog::Line> EventLog::Render(const shunt_event& event, const UidOf& uid_of) {
  const std::optional<Verdict> verdict = Judge(event);
  if (!verdict.has_value()) {
    return std::nullopt;
  }
  return MakeLine(event, verdict->level, verdict->message, verdict->suppressed, uid_of);
}

void EventLog::Write(const shunt_event& event, const UidOf& uid_of) {
  const std::optional<Verdict> verdict = Judge(event);
  if (!verdict.has_value() || !log::Enabled(verdict->level)) {
    return;
  }
  const Line line = MakeLine(event, verdict->level, verdict->message, verdict->suppressed, uid_of);
  log::Write(line.level, line.message, line.fields);
}

}  // namespace shunt

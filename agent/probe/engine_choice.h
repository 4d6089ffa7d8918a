// SPDX-License-Identifier: Apache-2.0
//
// Which engine follows from what is asked for and what the kernel does. Pure.
#ifndef SHUNT_AGENT_PROBE_ENGINE_CHOICE_H_
#define SHUNT_AGENT_PROBE_ENGINE_CHOICE_H_

#include <string>

#include "absl/status/statusor.h"
#include "agent/pair/engine.h"
#include "agent/probe/probe.h"

namespace shunt {

struct EngineDecision {
  std::string engine;  // "sockhash", "kmod", "none"
  // A stable code. sockhash: "probes_passed", "probes_degraded"; kmod:
  // "module_present", "configured"; none: "probes_failed", "not_probed",
  // "configured".
  std::string reason;
  std::string detail;  // a sentence for people
  // sockhash: FIONREAD of a member counts unread bytes that came by TCP. False
  // (commit 929e30f93125, or not found out): no member may hold such bytes while
  // its reader could ask for them.
  bool fionread_counts_tcp_bytes = false;
};

// auto: kmod if it answers, else sockhash unless a row is fatal, else none. A
// report without rows speaks for nothing: in doubt, plain TCP.
// FAILED_PRECONDITION: the engine that was asked for by name cannot be had.
absl::StatusOr<EngineDecision> Choose(EngineChoice choice, const ProbeReport& report,
                                      bool kmod_present);

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_ENGINE_CHOICE_H_

// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/engine_choice.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace shunt {
namespace {

const ProbeView* FirstFatal(const ProbeReport& report) {
  for (const ProbeView& row : report.rows) {
    if (row.verdict == kProbeFatal) {
      return &row;
    }
  }
  return nullptr;
}

EngineDecision Sockhash(const ProbeReport& report) {
  const ProbeView* fionread = report.Find("fionread_counts_tcp_bytes");
  const bool counts = fionread != nullptr && fionread->verdict == kProbeOk;
  std::vector<std::string> degraded;
  for (const ProbeView& row : report.rows) {
    if (row.verdict == kProbeDegraded) {
      degraded.push_back(row.name);
    }
  }
  if (degraded.empty()) {
    return {"sockhash", "probes_passed", "every behaviour probe passed", counts};
  }
  const bool regression = fionread != nullptr && fionread->verdict == kProbeDegraded;
  return {"sockhash", "probes_degraded",
          absl::StrCat("usable, but degraded: ", absl::StrJoin(degraded, ", "),
                       regression ? " (the FIONREAD regression of 929e30f93125)" : "",
                       "; see shuntctl doctor"),
          counts};
}

}  // namespace

absl::StatusOr<EngineDecision> Choose(EngineChoice choice, const ProbeReport& report,
                                      bool kmod_present) {
  const ProbeView* fatal = FirstFatal(report);
  switch (choice) {
    case EngineChoice::kNone:
      return EngineDecision{"none", "configured", "engine: none"};
    case EngineChoice::kKmod:
      if (!kmod_present) {
        return absl::FailedPreconditionError(
            "engine kmod: /dev/shunt does not answer; load the shunt module, or set engine: auto");
      }
      return EngineDecision{"kmod", "configured", "/dev/shunt answers"};
    case EngineChoice::kSockhash:
      if (report.rows.empty()) {
        return absl::FailedPreconditionError(
            "engine sockhash: the kernel was not probed; run shuntctl doctor, or set engine: auto");
      }
      if (fatal != nullptr) {
        return absl::FailedPreconditionError(absl::StrCat(
            "engine sockhash: probe ", fatal->name, ": ", fatal->happened, "; ", fatal->to_do));
      }
      return Sockhash(report);
    case EngineChoice::kAuto:
      break;
  }
  if (kmod_present) {
    return EngineDecision{"kmod", "module_present", "/dev/shunt answers"};
  }
  if (report.rows.empty()) {
    return EngineDecision{"none", "not_probed", "the kernel was not probed"};
  }
  if (fatal != nullptr) {
    return EngineDecision{
        "none", "probes_failed",
        absl::StrCat("probe ", fatal->name, ": ", fatal->happened, "; ", fatal->to_do)};
  }
  return Sockhash(report);
}

}  // namespace shunt

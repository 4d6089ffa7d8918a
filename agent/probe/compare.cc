// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/compare.h"

#include "absl/strings/str_cat.h"
#include "agent/base/status.h"

namespace shunt {
namespace {

struct Run {
  std::string outcome;
  uint32_t redirected = 0;  // messages
};

constexpr int kAttempts = 4;

absl::StatusOr<Run> RunOnce(Lab* lab, Family family, Way way, Scenario scenario) {
  SHUNT_ASSIGN_OR_RETURN(Trial trial, Trial::Make(lab, family, way), "");
  Run run;
  run.outcome = scenario(trial);
  run.redirected = trial.Redirected();
  return run;
}

absl::StatusOr<Run> RunUntilItSpeaks(Lab* lab, Family family, Way way, Scenario scenario) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    absl::StatusOr<Run> run = RunOnce(lab, family, way, scenario);
    if (!run.ok() || run->outcome != kTooBusy) {
      return run;
    }
  }
  return absl::UnavailableError(kTooBusy);
}

Finding Compare(Lab* lab, Family family, Way way, Scenario scenario, uint32_t redirected) {
  if (family != Family::kIpv4 && !HasLoopback(family)) {
    return {Found::kNotHere, "there is no such loopback here"};
  }
  const absl::StatusOr<Run> plain = RunUntilItSpeaks(lab, family, Way::kPlain, scenario);
  if (!plain.ok()) {
    return Failed(plain.status());
  }
  const absl::StatusOr<Run> member = RunUntilItSpeaks(lab, family, way, scenario);
  if (!member.ok()) {
    return Failed(member.status());
  }
  if (plain->outcome != member->outcome) {
    return {Found::kOtherwise, absl::StrCat(member->outcome, "; plain TCP: ", plain->outcome)};
  }
  if (member->redirected < redirected) {
    return {Found::kOtherwise,
            absl::StrCat("nothing was redirected: the program does not run, or finds no peer; "
                         "by TCP: ",
                         member->outcome)};
  }
  return {Found::kAsWanted, absl::StrCat(plain->outcome, ", as on plain TCP")};
}

Probe Comparing(Scenario scenario, Family family, Way way, uint32_t redirected) {
  return [=](const ProbeContext& context) {
    return Compare(context.lab, family, way, scenario, redirected);
  };
}

}  // namespace

Probe Redirected(Scenario scenario, Family family) {
  return Comparing(scenario, family, Way::kRedirect, 1);
}

Probe RedirectedIfSent(Scenario scenario) {
  return Comparing(scenario, Family::kIpv4, Way::kRedirect, 0);
}

Probe Member(Scenario scenario, Family family) {
  return Comparing(scenario, family, Way::kMember, 0);
}

Probe JoiningLater(Scenario scenario) {
  return Comparing(scenario, Family::kIpv4, Way::kJoinLater, 1);
}

}  // namespace shunt

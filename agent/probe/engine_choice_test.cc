// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/engine_choice.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using ::testing::HasSubstr;

ProbeReport With(const std::string& verdict) {
  ProbeReport report;
  report.rows.push_back({"first", kProbeOk, "t", "h", "m", ""});
  report.rows.push_back({"second", verdict, "tried", "it broke", "means", "do this"});
  return report;
}

TEST(EngineChoice, AutoTakesTheModuleWhenItAnswers) {
  EXPECT_EQ(Choose(EngineChoice::kAuto, With(kProbeFatal), true)->engine, "kmod");
}

TEST(EngineChoice, AutoTakesSockhashWhenNothingIsFatal) {
  const auto passed = Choose(EngineChoice::kAuto, With(kProbeOk), false);
  EXPECT_EQ(passed->engine, "sockhash");
  EXPECT_EQ(passed->reason, "probes_passed");
  const auto degraded = Choose(EngineChoice::kAuto, With(kProbeDegraded), false);
  EXPECT_EQ(degraded->engine, "sockhash");
  EXPECT_EQ(degraded->reason, "probes_degraded");
  EXPECT_THAT(degraded->detail, HasSubstr("second"));
}

// In doubt, no reader may have to ask for bytes that came by TCP.
TEST(EngineChoice, SaysWhetherFionreadCanBeTrusted) {
  ProbeReport report = With(kProbeOk);
  EXPECT_FALSE(Choose(EngineChoice::kAuto, report, false)->fionread_counts_tcp_bytes);
  report.rows.push_back({"fionread_counts_tcp_bytes", kProbeOk, "t", "h", "m", "nothing"});
  EXPECT_TRUE(Choose(EngineChoice::kAuto, report, false)->fionread_counts_tcp_bytes);
  for (const char* verdict : {kProbeDegraded, kProbeSkipped, kProbeUnknown}) {
    report.rows.back().verdict = verdict;
    EXPECT_FALSE(Choose(EngineChoice::kAuto, report, false)->fionread_counts_tcp_bytes) << verdict;
  }
  report.rows.back().verdict = kProbeDegraded;
  EXPECT_THAT(Choose(EngineChoice::kAuto, report, false)->detail, HasSubstr("929e30f93125"));
}

TEST(EngineChoice, AutoOnlyObservesWhenARowIsFatal) {
  const auto decision = Choose(EngineChoice::kAuto, With(kProbeFatal), false);
  EXPECT_EQ(decision->engine, "none");
  EXPECT_THAT(decision->detail, HasSubstr("it broke; do this"));
}

TEST(EngineChoice, NoEvidenceIsNotGoodEvidence) {
  const auto decision = Choose(EngineChoice::kAuto, ProbeReport(), false);
  EXPECT_EQ(decision->engine, "none");
  EXPECT_EQ(decision->reason, "not_probed");
  EXPECT_EQ(Choose(EngineChoice::kSockhash, ProbeReport(), false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(EngineChoice, ARefusalNamesTheRowAndWhatToDo) {
  const absl::Status refused = Choose(EngineChoice::kSockhash, With(kProbeFatal), false).status();
  EXPECT_EQ(refused.message(), "engine sockhash: probe second: it broke; do this");
  EXPECT_THAT(Choose(EngineChoice::kKmod, With(kProbeOk), false).status().message(),
              HasSubstr("load the shunt module"));
}

TEST(EngineChoice, ASkippedRowDecidesNothing) {
  EXPECT_EQ(Choose(EngineChoice::kAuto, With(kProbeSkipped), false)->reason, "probes_passed");
}

TEST(EngineChoice, EveryChoiceHasAName) {
  for (const EngineChoice choice :
       {EngineChoice::kAuto, EngineChoice::kSockhash, EngineChoice::kKmod, EngineChoice::kNone}) {
    EXPECT_EQ(EngineChoiceFromString(ToString(choice)), choice);
  }
  EXPECT_EQ(EngineChoiceFromString("Auto"), std::nullopt);
  EXPECT_EQ(EngineChoiceFromString(""), std::nullopt);
}

TEST(EngineChoice, WhatWasAskedForByNameIsHadOrRefused) {
  EXPECT_EQ(Choose(EngineChoice::kSockhash, With(kProbeFatal), true).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Choose(EngineChoice::kSockhash, With(kProbeSkipped), true)->engine, "sockhash");
  EXPECT_EQ(Choose(EngineChoice::kKmod, With(kProbeOk), false).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Choose(EngineChoice::kKmod, With(kProbeFatal), true)->engine, "kmod");
  EXPECT_EQ(Choose(EngineChoice::kNone, With(kProbeOk), true)->engine, "none");
}

}  // namespace
}  // namespace shunt

// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/event_log.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using std::chrono::seconds;

shunt_event Event(uint32_t kind, uint32_t reason, uint32_t pod = 1) {
  shunt_event event{};
  event.kind = kind;
  event.reason = reason;
  event.key.role = SHUNT_SERVER;
  event.pod = pod;
  event.local_port = 15001;
  event.remote_port = 40000;
  event.redirected_bytes = 77;
  return event;
}

class EventLogTest : public ::testing::Test {
 protected:
  std::optional<EventLog::Line> Render(const shunt_event& event) {
    return log_.Render(event, [](uint32_t pod) { return "pod-" + std::to_string(pod); });
  }

  EventLog::Clock::time_point now_{};
  EventLog log_{[this] { return now_; }};
};

TEST_F(EventLogTest, FirstPairOfEachPodIsInfoTheOthersDebug) {
  const shunt_event made = Event(SHUNT_EVENT_PAIR_MADE, SHUNT_EXIT_PAIR_MADE);
  const auto first = Render(made);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->level, log::Level::kInfo);
  EXPECT_EQ(first->message, "pod accelerated: first pair");
  EXPECT_EQ(first->fields.dump(),
            R"({"pod_uid":"pod-1","reason":"pair_made","detail":"both ends enrolled",)"
            R"("role":"server","local_port":15001,"remote_port":40000})");

  const auto second = Render(made);
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->level, log::Level::kDebug);
  EXPECT_EQ(second->message, "pair made");
  EXPECT_EQ(Render(Event(SHUNT_EVENT_PAIR_MADE, SHUNT_EXIT_PAIR_MADE, 2))->level,
            log::Level::kInfo);
}

TEST_F(EventLogTest, EachVerdictOfADryRunIsToldOncePerPod) {
  const auto yes = Render(Event(SHUNT_EVENT_OBSERVED, SHUNT_EXIT_PAIR_MADE));
  ASSERT_TRUE(yes.has_value());
  EXPECT_EQ(yes->level, log::Level::kInfo);
  EXPECT_EQ(yes->message, "connection would be accelerated");
  EXPECT_EQ(yes->fields["reason"], "would_accelerate");
  EXPECT_EQ(Render(Event(SHUNT_EVENT_OBSERVED, SHUNT_EXIT_PAIR_MADE))->level, log::Level::kDebug);

  const shunt_event alone = Event(SHUNT_EVENT_OBSERVED, SHUNT_EXIT_SERVER_ALONE);
  const auto no = Render(alone);
  ASSERT_TRUE(no.has_value());
  EXPECT_EQ(no->level, log::Level::kInfo);
  EXPECT_EQ(no->message, "connection would stay on TCP");
  EXPECT_EQ(no->fields["reason"], "server_alone");
  EXPECT_EQ(Render(alone)->level, log::Level::kDebug);
  EXPECT_EQ(Render(Event(SHUNT_EVENT_OBSERVED, SHUNT_EXIT_SERVER_ALONE, 2))->level,
            log::Level::kInfo);
}

TEST_F(EventLogTest, LeavingIsDebugAndTellsBytes) {
  const auto line = Render(Event(SHUNT_EVENT_LEFT, SHUNT_EXIT_LEFT_CLOSED));
  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(line->level, log::Level::kDebug);
  EXPECT_EQ(line->fields["reason"], "left_closed");
  EXPECT_EQ(line->fields["redirected_bytes"], 77);
}

TEST_F(EventLogTest, RefusalsAreOneLineInTenSecondsWithTheNumberOfOthers) {
  const shunt_event refused = Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_REFUSED_MAP_FULL);
  const auto first = Render(refused);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->level, log::Level::kWarning);
  EXPECT_EQ(first->fields["reason"], "map_full");
  EXPECT_FALSE(first->fields.contains("suppressed"));

  now_ += seconds(5);
  EXPECT_FALSE(Render(refused).has_value());
  now_ += seconds(5) - std::chrono::nanoseconds(1);
  EXPECT_FALSE(Render(refused).has_value());
  now_ += std::chrono::nanoseconds(1);
  const auto next = Render(refused);
  ASSERT_TRUE(next.has_value());
  EXPECT_EQ(next->fields["suppressed"], 2);
  now_ += seconds(5);
  EXPECT_FALSE(Render(refused).has_value());

  now_ += seconds(15);
  EXPECT_EQ(Render(refused)->fields["suppressed"], 1);
  now_ += seconds(10);
  EXPECT_FALSE(Render(refused)->fields.contains("suppressed"));
}

TEST_F(EventLogTest, EachPodKindAndReasonHasItsOwnQuietTime) {
  EXPECT_TRUE(Render(Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_REFUSED_MAP_FULL, 1)).has_value());
  EXPECT_TRUE(Render(Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_REFUSED_MAP_FULL, 2)).has_value());
  EXPECT_TRUE(Render(Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_REFUSED_MPTCP, 1)).has_value());
  EXPECT_TRUE(Render(Event(SHUNT_EVENT_LEAVING, SHUNT_EXIT_REFUSED_MPTCP, 1)).has_value());
  EXPECT_FALSE(Render(Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_REFUSED_MAP_FULL, 1)).has_value());
}

TEST_F(EventLogTest, HazardsAreWarnings) {
  const auto line = Render(Event(SHUNT_EVENT_LEAVING, SHUNT_EXIT_LEAVING_HAZARD));
  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(line->level, log::Level::kWarning);
}

TEST_F(EventLogTest, PolicyThatChangedMeanwhileIsNoWarning) {
  EXPECT_EQ(Render(Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_SERVER_UNLISTED))->level,
            log::Level::kDebug);
}

TEST_F(EventLogTest, UnknownNumbersAreNoHarm) {
  const auto line = Render(Event(99, 9999));
  ASSERT_TRUE(line.has_value());
  EXPECT_EQ(line->level, log::Level::kDebug);
  EXPECT_EQ(line->fields["reason"], "unknown");
}

TEST_F(EventLogTest, ForgetsRatherThanGrows) {
  const shunt_event made = Event(SHUNT_EVENT_PAIR_MADE, SHUNT_EXIT_PAIR_MADE, 0);
  const shunt_event refused = Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_REFUSED_MAP_FULL, 0);
  Render(made);
  Render(refused);
  for (uint32_t pod = 1; pod <= EventLog::kRemembered; ++pod) {
    EXPECT_EQ(Render(Event(SHUNT_EVENT_PAIR_MADE, SHUNT_EXIT_PAIR_MADE, pod))->level,
              log::Level::kInfo);
    EXPECT_TRUE(Render(Event(SHUNT_EVENT_REFUSED, SHUNT_EXIT_REFUSED_MAP_FULL, pod)).has_value());
  }
  EXPECT_EQ(Render(made)->level, log::Level::kInfo);
  EXPECT_TRUE(Render(refused).has_value());
}

}  // namespace
}  // namespace shunt

// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

extern "C" {
#include "bpf/gate.h"
}

namespace shunt {
namespace {

// Passes the gate with nothing to spare: one byte more would be too many.
shunt_gate_view PassingView() {
  shunt_gate_view view = {};
  view.own_write_seq = 1000;
  view.own_sendable = 1;
  view.peer_known = 1;
  view.peer_cookie_expected = 42;
  view.peer_cookie_before = 42;
  view.peer_cookie_after = 42;
  view.peer_receiving = 1;
  view.peer_low_water = 1;
  view.message_bytes = SHUNT_SMALL_MESSAGE;
  view.tcp_idle_seconds = SHUNT_TCP_IDLE_SECONDS - 1;
  view.peer_copied_seq = 1000;
  view.peer_unread = 65536 - SHUNT_SMALL_MESSAGE;
  view.peer_limit = 65536;
  return view;
}

struct Obstacle {
  const char* name;
  shunt_exit exit;
  void (*put_up)(shunt_gate_view* view);
};

// In the order of their priority.
const std::vector<Obstacle>& Obstacles() {
  static const std::vector<Obstacle>* const obstacles = new std::vector<Obstacle>{
      {"gate closed", SHUNT_EXIT_MSG_GATE_CLOSED, [](auto* view) { view->gate_closed = 1; }},
      {"shut down", SHUNT_EXIT_MSG_SHUT_DOWN, [](auto* view) { view->own_sendable = 0; }},
      {"workload watched", SHUNT_EXIT_MSG_WATCHED, [](auto* view) { view->watched = 1; }},
      {"own kTLS", SHUNT_EXIT_MSG_ULP, [](auto* view) { view->own_ulp = 1; }},
      {"no peer", SHUNT_EXIT_MSG_NO_PEER, [](auto* view) { view->peer_known = 0; }},
      {"peer was another socket", SHUNT_EXIT_MSG_PEER_CHANGED,
       [](auto* view) { view->peer_cookie_before = 43; }},
      {"peer became another socket", SHUNT_EXIT_MSG_PEER_CHANGED,
       [](auto* view) { view->peer_cookie_after = 43; }},
      {"peer does not receive", SHUNT_EXIT_MSG_PEER_CLOSED,
       [](auto* view) { view->peer_receiving = 0; }},
      {"peer's kTLS", SHUNT_EXIT_MSG_ULP, [](auto* view) { view->peer_ulp = 1; }},
      {"peer waits for more than a byte", SHUNT_EXIT_MSG_LOW_WATER,
       [](auto* view) { view->peer_low_water = 2; }},
      {"TCP bytes unread", SHUNT_EXIT_MSG_TCP_UNREAD, [](auto* view) { --view->peer_copied_seq; }},
      {"limit reached", SHUNT_EXIT_MSG_BACK_PRESSURE, [](auto* view) { ++view->peer_unread; }},
      {"memory pressure", SHUNT_EXIT_MSG_MEMORY_PRESSURE,
       [](auto* view) { view->memory_pressure = 1; }},
      {"TCP idle for long", SHUNT_EXIT_MSG_REFRESH, [](auto* view) { ++view->tcp_idle_seconds; }},
  };
  return *obstacles;
}

TEST(Gate, RedirectsWhenNothingStandsInTheWay) {
  const shunt_gate_view view = PassingView();
  EXPECT_EQ(shunt_gate(&view), SHUNT_EXIT_REDIRECTED);
}

TEST(Gate, EachObstacleAloneHasItsExit) {
  for (const Obstacle& obstacle : Obstacles()) {
    shunt_gate_view view = PassingView();
    obstacle.put_up(&view);
    EXPECT_EQ(shunt_gate(&view), obstacle.exit) << obstacle.name;
  }
}

// The reason that is counted is the first that applies: of two connections in
// the same state, both are counted alike.
TEST(Gate, OfAnySetOfObstaclesTheFirstCounts) {
  const std::vector<Obstacle>& obstacles = Obstacles();
  for (unsigned set = 1; set < 1U << obstacles.size(); ++set) {
    shunt_gate_view view = PassingView();
    std::string names;
    for (size_t i = 0; i < obstacles.size(); ++i) {
      if ((set >> i & 1) == 0) continue;
      obstacles[i].put_up(&view);
      names += std::string(obstacles[i].name) + "; ";
    }
    EXPECT_EQ(shunt_gate(&view), obstacles[__builtin_ctz(set)].exit) << names;
  }
}

TEST(Gate, ComparesSequencesAcrossTheWrap) {
  struct {
    uint32_t write_seq;
    uint32_t copied_seq;
    shunt_exit exit;
  } const cases[] = {
      {0, 0, SHUNT_EXIT_REDIRECTED},
      {UINT32_MAX, UINT32_MAX, SHUNT_EXIT_REDIRECTED},
      {0, UINT32_MAX, SHUNT_EXIT_MSG_TCP_UNREAD},        // one byte unread, write_seq wrapped
      {99, UINT32_MAX - 99, SHUNT_EXIT_MSG_TCP_UNREAD},  // the unread bytes span the wrap
      {0x80000000, 0, SHUNT_EXIT_MSG_TCP_UNREAD},        // neither before nor after
      {UINT32_MAX, 0, SHUNT_EXIT_MSG_TCP_UNREAD},        // FIN read: copied_seq is ahead
  };
  for (const auto& test : cases) {
    shunt_gate_view view = PassingView();
    view.own_write_seq = test.write_seq;
    view.peer_copied_seq = test.copied_seq;
    EXPECT_EQ(shunt_gate(&view), test.exit) << test.write_seq << " " << test.copied_seq;
  }
}

TEST(Gate, RefreshesWithASmallMessageAndAtLastWithAny) {
  struct {
    uint32_t idle_seconds;
    uint32_t bytes;
    shunt_exit exit;
  } const cases[] = {
      {0, 1, SHUNT_EXIT_REDIRECTED},
      {SHUNT_TCP_IDLE_SECONDS - 1, 1, SHUNT_EXIT_REDIRECTED},
      {SHUNT_TCP_IDLE_SECONDS, SHUNT_SMALL_MESSAGE, SHUNT_EXIT_MSG_REFRESH},
      {SHUNT_TCP_IDLE_SECONDS, SHUNT_SMALL_MESSAGE + 1, SHUNT_EXIT_REDIRECTED},
      {SHUNT_TCP_IDLE_LIMIT - 1, 65536, SHUNT_EXIT_REDIRECTED},
      {SHUNT_TCP_IDLE_LIMIT, 65536, SHUNT_EXIT_MSG_REFRESH},
  };
  for (const auto& test : cases) {
    shunt_gate_view view = PassingView();
    view.peer_unread = 0;
    view.tcp_idle_seconds = test.idle_seconds;
    view.message_bytes = test.bytes;
    EXPECT_EQ(shunt_gate(&view), test.exit) << test.idle_seconds << " s, " << test.bytes;
  }
}

TEST(Gate, LimitIsWhatThePeerMayHold) {
  struct {
    uint32_t unread;
    uint32_t limit;
    shunt_exit exit;
  } const cases[] = {
      {0, 512, SHUNT_EXIT_REDIRECTED},
      {0, 511, SHUNT_EXIT_MSG_BACK_PRESSURE},  // the message itself is too large
      {0, 0, SHUNT_EXIT_MSG_BACK_PRESSURE},
      {1, 1, SHUNT_EXIT_MSG_BACK_PRESSURE},
      {UINT32_MAX, 6291456, SHUNT_EXIT_MSG_BACK_PRESSURE},  // unread, but who knows how much
      {0x80000000, 0x7fffffff, SHUNT_EXIT_MSG_BACK_PRESSURE},
  };
  for (const auto& test : cases) {
    shunt_gate_view view = PassingView();
    view.peer_unread = test.unread;
    view.peer_limit = test.limit;
    EXPECT_EQ(shunt_gate(&view), test.exit) << test.unread << " of " << test.limit;
  }
}

// The cookie of a socket that nobody has asked for one is 0, and so is that of
// an empty view: two that are equal and not the expected one are no proof.
TEST(Gate, EqualCookiesOfAnotherSocketDoNotPass) {
  shunt_gate_view view = PassingView();
  view.peer_cookie_before = view.peer_cookie_after = 0;
  EXPECT_EQ(shunt_gate(&view), SHUNT_EXIT_MSG_PEER_CHANGED);
}

// ---- reasons to leave ------------------------------------------------------

TEST(ReasonToLeave, EachExitHasItsOwn) {
  struct {
    shunt_exit exit;
    shunt_exit reason;
    shunt_exit reason_if_fionread_misses;
  } const cases[] = {
      {SHUNT_EXIT_REDIRECTED, SHUNT_EXIT_COUNT, SHUNT_EXIT_COUNT},
      {SHUNT_EXIT_MSG_GATE_CLOSED, SHUNT_EXIT_COUNT, SHUNT_EXIT_COUNT},
      {SHUNT_EXIT_MSG_WATCHED, SHUNT_EXIT_COUNT, SHUNT_EXIT_COUNT},
      {SHUNT_EXIT_MSG_PEER_CLOSED, SHUNT_EXIT_COUNT, SHUNT_EXIT_COUNT},
      {SHUNT_EXIT_MSG_LOW_WATER, SHUNT_EXIT_LEAVING_HAZARD, SHUNT_EXIT_LEAVING_HAZARD},
      {SHUNT_EXIT_MSG_ULP, SHUNT_EXIT_LEAVING_HAZARD, SHUNT_EXIT_LEAVING_HAZARD},
      {SHUNT_EXIT_MSG_BACK_PRESSURE, SHUNT_EXIT_LEAVING_BACK_PRESSURE,
       SHUNT_EXIT_LEAVING_BACK_PRESSURE},
      {SHUNT_EXIT_MSG_NO_PEER, SHUNT_EXIT_COUNT, SHUNT_EXIT_LEAVING_MIXED},
      {SHUNT_EXIT_MSG_TCP_UNREAD, SHUNT_EXIT_COUNT, SHUNT_EXIT_LEAVING_MIXED},
      {SHUNT_EXIT_MSG_MEMORY_PRESSURE, SHUNT_EXIT_COUNT, SHUNT_EXIT_LEAVING_MIXED},
      {SHUNT_EXIT_MSG_REFRESH, SHUNT_EXIT_COUNT, SHUNT_EXIT_LEAVING_MIXED},
  };
  for (const auto& test : cases) {
    uint32_t score = 0;
    EXPECT_EQ(shunt_reason_to_leave(test.exit, /*turned=*/1, /*may_mix=*/1, &score), test.reason)
        << test.exit;
    EXPECT_EQ(shunt_reason_to_leave(test.exit, 1, 0, &score), test.reason_if_fionread_misses)
        << test.exit;
  }
}

// After how many messages a pattern of `burst` messages per turn leaves; 0: never.
unsigned LeavesAfter(unsigned burst) {
  uint32_t score = 0;
  for (unsigned message = 0; message < 100'000; ++message) {
    if (shunt_reason_to_leave(SHUNT_EXIT_REDIRECTED, message % burst == 0, 1, &score) !=
        SHUNT_EXIT_COUNT) {
      return message + 1;
    }
  }
  return 0;
}

TEST(ReasonToLeave, AStreamLeavesAndADialogueStays) {
  EXPECT_EQ(LeavesAfter(1'000'000), SHUNT_ONE_WAY_LIMIT + 1);
  for (unsigned burst = 1; burst <= SHUNT_TURN_CREDIT + 1; ++burst) {
    EXPECT_EQ(LeavesAfter(burst), 0u) << burst;
  }
  for (unsigned burst = SHUNT_TURN_CREDIT + 2; burst <= 64; ++burst) {
    EXPECT_NE(LeavesAfter(burst), 0u) << burst;
  }
}

// ---- leaving ---------------------------------------------------------------

shunt_leave_view LeavingView() { return {1, 1, 1, 0, 1, SHUNT_RESTING_REFERENCES, 0}; }

TEST(MayLeave, NeedsBothGatesClosedAndAnEmptyQueue) {
  shunt_leave_view view = LeavingView();
  EXPECT_EQ(shunt_may_leave(&view), SHUNT_LEAVE);
  for (uint32_t shunt_leave_view::*condition :
       {&shunt_leave_view::own_gate_closed, &shunt_leave_view::peer_gate_closed,
        &shunt_leave_view::queue_empty}) {
    for (uint32_t in_no_call = 0; in_no_call <= 1; ++in_no_call) {
      view = LeavingView();
      view.sender_in_no_call = in_no_call;
      view.*condition = 0;
      EXPECT_EQ(shunt_may_leave(&view), SHUNT_STAY);
    }
  }
}

TEST(MayLeave, WhatItMakesOfReferences) {
  struct {
    uint32_t in_no_call;
    uint32_t shows;
    int32_t references;
    int32_t timers;
    shunt_leave verdict;
  } const cases[] = {
      {1, 0, 9, 0, SHUNT_LEAVE},  // nobody is there who could hold one
      {0, 0, 2, 0, SHUNT_STAY},   // one who has passed may not show yet
      {0, 1, 2, 0, SHUNT_LEAVE}, {0, 1, 3, 0, SHUNT_STAY}, {0, 1, 3, 1, SHUNT_LEAVE_IF_QUIET},
      {0, 1, 4, 1, SHUNT_STAY},  {0, 0, 3, 1, SHUNT_STAY},
  };
  for (const auto& test : cases) {
    shunt_leave_view view = LeavingView();
    view.sender_in_no_call = test.in_no_call;
    view.sender_shows = test.shows;
    view.references = test.references;
    view.timers = test.timers;
    EXPECT_EQ(shunt_may_leave(&view), test.verdict) << test.references << " " << test.timers;
  }
}

}  // namespace
}  // namespace shunt

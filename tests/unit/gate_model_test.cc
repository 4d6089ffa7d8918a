// SPDX-License-Identifier: Apache-2.0
// The gate and the leave rule hold their promises in every interleaving of the
// model, and the model notices when any part of them is missing.
#include "tests/unit/gate_model.h"

#include <cstdio>
#include <ostream>
#include <string>

#include <gtest/gtest.h>

#include "tests/unit/state_explorer.h"

namespace shunt {
namespace {

struct Result {
  Exploration exploration;
  GateModel::Coverage coverage;
};

Result Explore(const GateModelOptions& options) {
  GateModel model(options);
  Result result;
  result.exploration = StateExplorer<GateModel>(&model).Run();
  result.coverage = model.coverage();
  return result;
}

template <typename Case>
std::string CaseName(const testing::TestParamInfo<Case>& of) {
  return of.param.name;
}

// ---- every property holds --------------------------------------------------

struct Scenario {
  const char* name;
  GateModelOptions options;
  size_t states_at_least;  // so that the exploration cannot shrink unnoticed
  uint64_t exits;          // that the gate must have come to
};

constexpr uint64_t Exits() { return 0; }
template <typename... More>
constexpr uint64_t Exits(enum shunt_exit exit, More... more) {
  return uint64_t{1} << exit | Exits(more...);
}

std::string Names(uint64_t exits) {
  static constexpr const char* kNames[] = {
#define SHUNT_REASON(name, reason, text) reason,
      SHUNT_EXITS(SHUNT_REASON)
#undef SHUNT_REASON
  };
  std::string names;
  for (unsigned exit = 0; exit < SHUNT_EXIT_COUNT; ++exit) {
    if (exits >> exit & 1) names += std::string(kNames[exit]) + " ";
  }
  return names;
}

constexpr uint64_t kCommonExits =
    Exits(SHUNT_EXIT_REDIRECTED, SHUNT_EXIT_MSG_NO_PEER, SHUNT_EXIT_MSG_TCP_UNREAD);
constexpr uint64_t kLeavingExits =
    kCommonExits | Exits(SHUNT_EXIT_MSG_GATE_CLOSED, SHUNT_EXIT_MSG_REDIRECT_FAILED);

GateModelOptions Options(unsigned by_client, unsigned by_server) {
  GateModelOptions options;
  options.messages[SHUNT_CLIENT] = by_client;
  options.messages[SHUNT_SERVER] = by_server;
  return options;
}

GateModelOptions Without(GateModelOptions options, bool GateModelOptions::*part) {
  options.*part = false;
  return options;
}

GateModelOptions With(GateModelOptions options, bool GateModelOptions::*part) {
  options.*part = true;
  return options;
}

GateModelOptions WithLimit(GateModelOptions options, unsigned bytes) {
  options.limit_bytes = bytes;
  return options;
}

GateModelOptions WithTimers(GateModelOptions options, Timers timers) {
  options.timers = timers;
  return options;
}

constexpr auto kClosing = &GateModelOptions::may_close;
constexpr auto kShuttingDown = &GateModelOptions::may_shut_down;
constexpr auto kLeaving = &GateModelOptions::agent_leaves;
constexpr auto kAlone = &GateModelOptions::leaves_alone;

void PrintTo(const Scenario& scenario, std::ostream* out) { *out << scenario.name; }

class GateModelHolds : public testing::TestWithParam<Scenario> {};

TEST_P(GateModelHolds, InEveryReachableState) {
  const Scenario& scenario = GetParam();
  const auto [exploration, coverage] = Explore(scenario.options);
  printf("%zu states, %zu steps\n", exploration.states, exploration.steps);
  EXPECT_EQ(exploration.violation, "") << exploration.trace;
  EXPECT_GE(exploration.states, scenario.states_at_least);

  EXPECT_EQ(Names(scenario.exits & ~coverage.exits), "") << "exits that the gate did not come to";
  if (scenario.options.agent_leaves) {
    EXPECT_GT(coverage.keys_deleted, 0u);
    EXPECT_GT(coverage.looks_refused_for_reference, 0u);
    EXPECT_GT(coverage.looks_refused_for_queue, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, GateModelHolds,
    testing::Values(
        Scenario{"BothEndsSendAndLeave", Options(3, 2), 420'000, kLeavingExits},
        Scenario{"QueueHoldsSeveralMessages", WithLimit(Options(3, 2), 5), 620'000, kLeavingExits},
        Scenario{"LongOneWayStream", WithLimit(Options(4, 1), 3), 310'000,
                 kLeavingExits | Exits(SHUNT_EXIT_MSG_BACK_PRESSURE)},
        Scenario{"LeavesAlone",
                 With(Without(Options(3, 2), &GateModelOptions::stops_enrolment), kAlone),
                 1'370'000, kLeavingExits},
        Scenario{
            "LeavesAloneAndCloses",
            With(With(Without(Options(1, 1), &GateModelOptions::stops_enrolment), kAlone),
                 kClosing),
            900'000,
            Exits(SHUNT_EXIT_REDIRECTED, SHUNT_EXIT_MSG_GATE_CLOSED, SHUNT_EXIT_MSG_PEER_CLOSED)},
        Scenario{"LeavesWhileTimersRun",
                 WithTimers(Options(2, 1), Timers::kNoTwoLooksInARowDisturbed), 1'330'000,
                 kLeavingExits},
        Scenario{
            "ShutsDownWhileLeaving", With(Options(1, 1), kShuttingDown), 860'000,
            Exits(SHUNT_EXIT_REDIRECTED, SHUNT_EXIT_MSG_GATE_CLOSED, SHUNT_EXIT_MSG_SHUT_DOWN)},
        Scenario{"ClosesWhileLeaving", With(With(Options(2, 0), kShuttingDown), kClosing),
                 1'920'000,
                 kLeavingExits | Exits(SHUNT_EXIT_MSG_PEER_CLOSED, SHUNT_EXIT_MSG_PEER_CHANGED)},
        Scenario{
            "ShutsDownAndCloses",
            Without(With(With(WithLimit(Options(3, 3), 3), kShuttingDown), kClosing), kLeaving),
            590'000,
            kCommonExits | Exits(SHUNT_EXIT_MSG_SHUT_DOWN, SHUNT_EXIT_MSG_PEER_CLOSED,
                                 SHUNT_EXIT_MSG_PEER_CHANGED, SHUNT_EXIT_MSG_BACK_PRESSURE)}),
    CaseName<Scenario>);

// ---- and each part is needed -----------------------------------------------

enum shunt_exit GateWithoutOrder(const struct shunt_gate_view* view) {
  struct shunt_gate_view changed = *view;
  changed.peer_copied_seq = changed.own_write_seq;
  return shunt_gate(&changed);
}

enum shunt_exit GateWithoutLimit(const struct shunt_gate_view* view) {
  struct shunt_gate_view changed = *view;
  changed.peer_unread = 0;
  return shunt_gate(&changed);
}

enum shunt_exit GateWithoutOwnState(const struct shunt_gate_view* view) {
  struct shunt_gate_view changed = *view;
  changed.own_sendable = 1;
  return shunt_gate(&changed);
}

enum shunt_exit GateThatNeverCloses(const struct shunt_gate_view* view) {
  struct shunt_gate_view changed = *view;
  changed.gate_closed = 0;
  return shunt_gate(&changed);
}

enum shunt_leave LeaveWithoutReferences(const struct shunt_leave_view* view) {
  struct shunt_leave_view changed = *view;
  changed.references = SHUNT_RESTING_REFERENCES;
  return shunt_may_leave(&changed);
}

enum shunt_leave LeaveWithoutQueue(const struct shunt_leave_view* view) {
  struct shunt_leave_view changed = *view;
  changed.queue_empty = 1;
  return shunt_may_leave(&changed);
}

enum shunt_leave LeaveWithoutPeerGate(const struct shunt_leave_view* view) {
  struct shunt_leave_view changed = *view;
  changed.peer_gate_closed = 1;
  return shunt_may_leave(&changed);
}

enum shunt_leave LeaveNever(const struct shunt_leave_view*) { return SHUNT_STAY; }

GateModelOptions WithGate(GateModelOptions options,
                          enum shunt_exit (*gate)(const struct shunt_gate_view*)) {
  options.gate = gate;
  return options;
}

GateModelOptions WithLeave(GateModelOptions options,
                           enum shunt_leave (*may_leave)(const struct shunt_leave_view*)) {
  options.may_leave = may_leave;
  return options;
}

GateModelOptions WithLooks(GateModelOptions options, unsigned looks) {
  options.quiet_looks = looks;
  return options;
}

GateModelOptions WithRule(GateModelOptions options, InFlightRule rule) {
  options.in_flight_rule = rule;
  return options;
}

struct Mutation {
  const char* name;
  GateModelOptions options;
  const char* violation;  // how it begins
};

void PrintTo(const Mutation& mutation, std::ostream* out) { *out << mutation.name; }

class GateModelNotices : public testing::TestWithParam<Mutation> {};

TEST_P(GateModelNotices, WhatIsBroken) {
  const Exploration exploration = Explore(GetParam().options).exploration;
  printf("after %zu states: %s\n%s", exploration.states, exploration.violation.c_str(),
         exploration.trace.c_str());
  EXPECT_EQ(exploration.violation.rfind(GetParam().violation, 0), 0u)
      << "found: " << exploration.violation;
}

constexpr char kOrder[] = "order: ";
constexpr char kLoss[] = "loss: ";
constexpr char kEpipe[] = "a send fails with EPIPE";
constexpr char kBound[] = "bound: ";
constexpr char kAfterShutDown[] = "a send after SHUT_WR";
constexpr char kStuck[] = "stuck: ";

INSTANTIATE_TEST_SUITE_P(
    Gate, GateModelNotices,
    testing::Values(
        Mutation{"NoComparisonOfSequences", WithGate(Options(2, 0), GateWithoutOrder), kOrder},
        Mutation{"NoLimit", WithGate(WithLimit(Options(4, 0), 3), GateWithoutLimit), kBound},
        Mutation{"NoLookAtOwnState",
                 WithGate(With(Options(1, 0), kShuttingDown), GateWithoutOwnState), kAfterShutDown},
        Mutation{"NoLookAtTheGate", WithGate(Options(2, 0), GateThatNeverCloses), kEpipe}),
    CaseName<Mutation>);

INSTANTIATE_TEST_SUITE_P(
    Leaving, GateModelNotices,
    testing::Values(
        Mutation{"NoLookAtReferences", WithLeave(Options(1, 0), LeaveWithoutReferences), kEpipe},
        Mutation{"NoLookAtTheQueue", WithLeave(Options(1, 0), LeaveWithoutQueue), kLoss},
        Mutation{"PeerGateLeftOpen",
                 WithLeave(Without(Options(1, 1), &GateModelOptions::closes_both_gates),
                           LeaveWithoutPeerGate),
                 kEpipe},
        Mutation{"NoGracePeriod", Without(Options(1, 0), &GateModelOptions::awaits_grace_period),
                 kEpipe},
        Mutation{"NoLookAtTheSendersLock",
                 Without(With(Options(1, 0), kAlone), &GateModelOptions::looks_at_the_senders_lock),
                 kEpipe},
        Mutation{"EnrolmentGoesOn", Without(Options(1, 1), &GateModelOptions::stops_enrolment),
                 kEpipe},
        Mutation{
            "QueueReadBeforeReferences",
            WithLooks(With(Options(1, 0), &GateModelOptions::reads_queue_before_references), 1),
            kLoss},
        Mutation{"TimersCountedOnce",
                 WithRule(WithTimers(Options(1, 0), Timers::kNoTwoLooksInARowDisturbed),
                          InFlightRule::kDiscountTimersBefore),
                 kEpipe},
        Mutation{"OneLook",
                 WithLooks(WithTimers(Options(1, 0), Timers::kNoTwoLooksInARowDisturbed), 1),
                 kEpipe},
        Mutation{"NeverAllowed", WithLeave(Options(1, 0), LeaveNever), kStuck}),
    CaseName<Mutation>);

INSTANTIATE_TEST_SUITE_P(Kernel, GateModelNotices,
                         testing::Values(Mutation{
                             "TcpQueueReadFirst",
                             Without(WithLimit(Options(2, 0), 3),
                                     &GateModelOptions::psock_queue_is_read_first),
                             kOrder}),
                         CaseName<Mutation>);

// Outside the promise: what must be kept out by other means, or is known to be
// possible. Should one of these begin to hold, its hazard is gone.
INSTANTIATE_TEST_SUITE_P(
    Known, GateModelNotices,
    testing::Values(
        // The reader took the TCP bytes and waits for more inside tcp_recvmsg().
        // What is redirected meanwhile it does not see, ...
        Mutation{"WaitAllMissesRedirectedBytes",
                 Without(With(Options(2, 0), &GateModelOptions::reads_wait_for_all), kLeaving),
                 kStuck},
        // ... and what falls back to TCP after that it returns too early.
        Mutation{"WaitAllReorders",
                 With(WithLimit(Options(3, 0), 3), &GateModelOptions::reads_wait_for_all), kOrder},
        // A redirect drops the sender's lock before it queues, so FIN overtakes it.
        Mutation{"ShutdownInAnotherThreadOvertakesASend",
                 With(With(Options(1, 0), kShuttingDown),
                      &GateModelOptions::may_shut_down_while_sending),
                 kLoss},
        // Two looks in a row, each within the few instructions of a timer that is
        // being armed, while one message stays between gate and queue.
        Mutation{"TwoDisturbedLooksInARow", WithTimers(Options(1, 0), Timers::kAnyTime), kEpipe}),
    CaseName<Mutation>);

// A rule that needs no luck with timers, nor a second look.
TEST(GateModel, PeerInNoCallIsExact) {
  const Exploration exploration =
      Explore(WithLooks(WithRule(WithTimers(Options(2, 1), Timers::kAnyTime),
                                 InFlightRule::kPeerIsInNoCall),
                        1))
          .exploration;
  EXPECT_EQ(exploration.violation, "") << exploration.trace;
}

}  // namespace
}  // namespace shunt

// SPDX-License-Identifier: Apache-2.0
// One connection under Shunt's portable engine, cut into the steps that are
// atomic in the kernel: two programs that send, receive, shut down and close;
// TCP with a wire and a window; the server's late enrolment; an agent that makes
// the pair leave and may die in between. Decisions are taken by bpf/gate.h.
//
// Each program has one thread that writes and one that reads. So what a program
// writes is numbered, and any set of its messages waiting in one place (psock
// queue, wire, TCP queue) is read lowest number first: a bit mask is a queue.
//
// What the gate cannot see is off unless asked for: a reader that stays inside
// plain tcp_recvmsg() (MSG_WAITALL, SO_RCVLOWAT, several readers), and shutdown()
// from another thread in the middle of a send. Left out: several writers, whose
// messages have no order of their own.
#ifndef SHUNT_TESTS_UNIT_GATE_MODEL_H_
#define SHUNT_TESTS_UNIT_GATE_MODEL_H_

#include <cstdint>
#include <cstring>
#include <string>

extern "C" {
#include "bpf/gate.h"
}

namespace shunt {

inline constexpr unsigned kMessageBytes = 2;

// How shunt_leave_pair() tells whether a redirect to an end is in flight: its sender
// holds a reference on that end's socket, but so does each armed timer.
enum class InFlightRule {
  kDiscountTimersBefore,  // those armed before the reference count is read
  kDiscountTimersBeforeAndAfter,
  // None; but no call at all may be on at the peer, or no timer armed here:
  // tcp_bpf_sendmsg() holds its own psock from before the gate until after the
  // queue.
  kPeerIsInNoCall,
};

// When timers are armed. Between being armed and taking its reference (two
// steps in sk_reset_timer()), and when one ends and is armed again, a timer can
// make a look of shunt_leave_pair() at its end count one reference too few. Such a
// look is called disturbed.
enum class Timers {
  kNever,
  kNoTwoLooksInARowDisturbed,
  kAnyTime,
};

// What is explored. The defaults are what bpf/ and agent/datapath do.
struct GateModelOptions {
  // The programs.
  unsigned messages[2] = {2, 2};  // sent by client, by server; at most 4
  unsigned limit_bytes = 2;
  bool may_shut_down = false;
  bool may_close = false;
  bool reads_wait_for_all = false;  // MSG_WAITALL, for all that will be sent
  bool may_shut_down_while_sending = false;

  // The kernel.
  bool psock_queue_is_read_first = true;  // commit e7a5f1f1cd00
  Timers timers = Timers::kNever;

  // The agent and bpf/.
  bool agent_leaves = true;
  bool stops_enrolment = true;
  bool closes_both_gates = true;
  bool awaits_grace_period = true;
  // shunt_leave_pair(), for a pair that is told to leave by a program: nothing is
  // awaited and enrolment goes on. Closing a gate is seen at once by all (every
  // CPU was interrupted), but who passed before may not have taken its reference.
  bool leaves_alone = false;
  bool looks_at_the_senders_lock = true;
  bool reads_queue_before_references = false;
  unsigned quiet_looks = 2;  // 1 or 2; the real rule wants SHUNT_QUIET_LOOKS
  InFlightRule in_flight_rule = InFlightRule::kDiscountTimersBeforeAndAfter;
  enum shunt_exit (*gate)(const struct shunt_gate_view*) = shunt_gate;
  enum shunt_leave (*may_leave)(const struct shunt_leave_view*) = shunt_may_leave;
};

enum class StepKind : uint8_t {
  kSendBegins,      // sendmsg: own lock taken, own state and gate read
  kSendIsDecided,   // the peer is read, shunt_gate(), TCP or a reference on the peer
  kRedirectPins,    // own lock gone; sk_psock_get() of the peer
  kRedirectQueues,  // the peer's lock taken, queued, all put
  kWireDelivers,    // a segment reaches this end's TCP queue
  kReadsQueue,      // recvmsg returns redirected bytes
  kChoosesTcp,      // recvmsg saw TCP bytes only, goes to tcp_recvmsg()
  kReadsTcp,        // tcp_recvmsg() returns
  kShutsDown,
  kCloses,
  kReachesTcpClose,
  kJoinLooksUp,
  kJoinEntersEnd,
  kJoinEntersSocket,
  kJoinFails,
  kTimerArms,
  kTimerTakesReference,
  kTimerStops,
  kTimerDropsReference,
  kAgentStarts,  // for the end whose bucket the iterator sees first
  kAgentSteps,
  kAgentDies,
};

class GateModel {
 public:
  struct Step {
    StepKind kind : 7;
    uint8_t end : 1;
  };

  // One socket and the stream that arrives at it.
  struct End {
    // Sending.
    uint64_t begun : 3;
    uint64_t phase : 2;  // SendPhase
    uint64_t saw_gate_closed : 1;
    uint64_t knows_peer : 1;
    uint64_t written_to_tcp : 3;  // write_seq, in messages
    uint64_t shut_down : 1;
    uint64_t tried_after_shut_down : 1;
    uint64_t failed : 1;  // EPIPE; sends no more
    uint64_t closed : 1;

    // Enrolment.
    uint64_t join : 2;    // JoinPhase
    uint64_t entry : 1;   // in the map `ends`
    uint64_t member : 1;  // in the map `sockets`, hence has a psock
    uint64_t gate_closed : 1;
    uint64_t told_to_leave : 1;  // in the map `ends`

    // Receiving; bit i stands for message i, bit kFin for the peer's FIN.
    uint64_t queue : 4;  // psock
    uint64_t wire : 5;
    uint64_t tcp : 5;
    uint64_t received : 3;
    uint64_t read_from_tcp : 3;  // copied_seq, in messages
    uint64_t saw_end : 1;
    uint64_t in_tcp_recvmsg : 1;

    uint64_t timer_armed : 1;
    uint64_t timer_referenced : 1;
    uint64_t quiet_looks : 1;
    uint64_t last_look_disturbed : 1;  // and quiet
    uint64_t is_ready : 1;             // to leave, with the other end
  };

  struct Agent {
    uint64_t phase : 4;  // AgentPhase
    uint64_t first : 1;  // the end it visits first
    uint64_t second_visit : 1;
    uint64_t enrolment_stopped : 1;
    // Inside a program when the grace period began.
    uint64_t awaits_sender : 2;  // mask of ends
    uint64_t awaits_join : 1;
    // Read so far of the end it visits.
    uint64_t own_gate_closed : 1;
    uint64_t peer_gate_closed : 1;
    uint64_t timers_before : 1;
    uint64_t references : 3;
    uint64_t timers_after : 1;
    uint64_t peer_in_no_call : 1;
    uint64_t peer_is_unlocked : 1;
    uint64_t queue_empty : 1;
    uint64_t look_disturbed : 1;
  };

  struct State {
    End end[2];
    Agent agent;

    bool operator==(const State& other) const { return memcmp(this, &other, sizeof(*this)) == 0; }
    uint64_t Hash() const;
  };

  // What the exploration has come across, so that no test passes emptily.
  struct Coverage {
    uint64_t exits = 0;  // mask of enum shunt_exit that the gate returned
    unsigned keys_deleted = 0;
    unsigned looks_refused_for_reference = 0;
    unsigned looks_refused_for_queue = 0;
  };

  explicit GateModel(const GateModelOptions& options) : options_(options) {}

  State Initial() const;
  template <typename Sink>
  void ForEachSuccessor(const State& from, Sink sink);
  bool IsGoal(const State& state) const;
  static std::string Describe(const State& from, Step step);

  const Coverage& coverage() const { return coverage_; }

 private:
  enum SendPhase { kNotSending, kInGate, kInFlight, kPinned };
  enum JoinPhase { kNotJoined, kLookedUp, kEntered, kHandshakeOver };
  enum AgentPhase {
    kAbsent,
    kAwaitsJoins,
    kClosesGate,
    kBeginsGracePeriod,
    kInGracePeriod,
    kReadsGates,
    kReadsTimers,
    kReadsReferences,
    kReadsTimersAgain,
    kReadsQueueOfMember,
    kDeletesKey,
  };
  static constexpr unsigned kClient = SHUNT_CLIENT, kServer = SHUNT_SERVER, kFin = 4;
  static_assert(sizeof(End) == 8 && sizeof(Agent) == 8, "a state is compared by its bytes");

  // What a step does: null if it may, else the property it violates.
  using Violation = const char*;

  bool IsEnabled(const State& state, Step step) const;
  Violation Apply(State* state, Step step);
  bool AgentIsEnabled(const State& state) const;
  Violation ApplyAgent(State* state);
  Violation DecideSend(State* state, unsigned self);
  Violation EndVisit(State* state, bool is_quiet);
  Violation Check(const State& state) const;
  bool IsSettled(const State& state) const;
  bool MayBeDisturbed(const End& visited) const;
  int AccountedTimers(const Agent& agent) const;
  bool MayTouchTimer(const State& state, unsigned self) const;

  static unsigned Visited(const Agent& agent) { return agent.first ^ agent.second_visit; }
  static bool JoinIsUnderWay(const State& state);
  static void SendByTcp(End* self, End* peer);
  static Violation DeleteKey(End* self);
  static unsigned UnreadBytes(const End& end);
  static unsigned TakeLowest(unsigned mask) { return __builtin_ctz(mask); }

  const GateModelOptions options_;
  Coverage coverage_;
};

template <typename Sink>
void GateModel::ForEachSuccessor(const State& from, Sink sink) {
  for (uint8_t kind = 0; kind <= static_cast<uint8_t>(StepKind::kAgentDies); ++kind) {
    for (uint8_t end = 0; end < 2; ++end) {
      const Step step{static_cast<StepKind>(kind), end};
      if (!IsEnabled(from, step)) continue;
      State next = from;
      Violation violation = Apply(&next, step);
      if (violation == nullptr) violation = Check(next);
      sink(step, next, violation);
    }
  }
}

}  // namespace shunt

#endif  // SHUNT_TESTS_UNIT_GATE_MODEL_H_

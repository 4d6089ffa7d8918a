// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/gate_model.h"

#include <string>

namespace shunt {
namespace {

// A first sequence number that wraps after two messages.
constexpr uint32_t kFirstSequence = -2 * kMessageBytes;
constexpr uint64_t kCookie = 7, kCookieOfAnotherSocket = 8;
constexpr int kRestingReferences = SHUNT_RESTING_REFERENCES;

bool IsReferencing(uint64_t send_phase) { return send_phase >= 2; }

}  // namespace

uint64_t GateModel::State::Hash() const {
  uint64_t words[3];
  static_assert(sizeof(words) == sizeof(*this));
  memcpy(words, this, sizeof(words));
  uint64_t hash = 0;
  for (uint64_t word : words) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return hash;
}

// The client is enrolled; its server has been announced and is yet to join.
GateModel::State GateModel::Initial() const {
  State state;
  memset(&state, 0, sizeof(state));
  state.end[kClient].join = kHandshakeOver;
  state.end[kClient].entry = 1;
  state.end[kClient].member = 1;
  return state;
}

unsigned GateModel::UnreadBytes(const End& end) {
  return kMessageBytes *
         (__builtin_popcount(end.queue) + __builtin_popcount(end.tcp & ~(1U << kFin)));
}

// Timers are of interest only to a look at their end, so they run only then.
bool GateModel::MayTouchTimer(const State& state, unsigned self) const {
  const Agent& agent = state.agent;
  return options_.timers != Timers::kNever && agent.phase >= kReadsTimers &&
         agent.phase <= kReadsTimersAgain && Visited(agent) == self;
}

bool GateModel::AgentIsEnabled(const State& state) const {
  const Agent& agent = state.agent;
  const End& visited = state.end[Visited(agent)];
  switch (agent.phase) {
    case kAbsent:
      return false;
    case kAwaitsJoins:
    case kInGracePeriod:
      return agent.awaits_sender == 0 && !agent.awaits_join;
    case kReadsTimers:
      return !visited.timer_armed || visited.timer_referenced || MayBeDisturbed(visited);
    default:
      return true;
  }
}

bool GateModel::MayBeDisturbed(const End& visited) const {
  return options_.timers == Timers::kAnyTime || !visited.last_look_disturbed;
}

bool GateModel::IsEnabled(const State& state, Step step) const {
  const End& self = state.end[step.end];
  const End& peer = state.end[step.end ^ 1];
  const bool is_open = self.join == kHandshakeOver && !self.closed;
  switch (step.kind) {
    case StepKind::kSendBegins:
      return is_open && self.phase == kNotSending && !self.failed &&
             (self.shut_down ? !self.tried_after_shut_down
                             : self.begun < options_.messages[step.end]);
    case StepKind::kSendIsDecided:
      return self.phase == kInGate;
    case StepKind::kRedirectPins:
      return self.phase == kInFlight;
    case StepKind::kRedirectQueues:
      return self.phase == kPinned;
    case StepKind::kWireDelivers:
      return self.wire != 0 && (self.closed || TakeLowest(self.wire) == kFin ||
                                UnreadBytes(self) < options_.limit_bytes);
    case StepKind::kReadsQueue:
      return is_open && !self.in_tcp_recvmsg && self.queue != 0 &&
             (options_.psock_queue_is_read_first || self.tcp == 0);
    case StepKind::kChoosesTcp:
      return is_open && !self.in_tcp_recvmsg && self.tcp != 0 &&
             (self.queue == 0 || !options_.psock_queue_is_read_first);
    case StepKind::kReadsTcp:
      return self.in_tcp_recvmsg && self.tcp != 0;
    case StepKind::kShutsDown:
      return options_.may_shut_down && is_open && !self.shut_down &&
             (self.phase == kNotSending ||
              (self.phase != kInGate && options_.may_shut_down_while_sending));
    case StepKind::kCloses:
      return options_.may_close && is_open && self.phase == kNotSending && !self.in_tcp_recvmsg;
    case StepKind::kReachesTcpClose:
      return self.closed && self.entry;
    case StepKind::kJoinLooksUp:
      return self.join == kNotJoined;
    case StepKind::kJoinEntersEnd:
      return self.join == kLookedUp;
    case StepKind::kJoinEntersSocket:
    case StepKind::kJoinFails:
      return self.join == kEntered;
    case StepKind::kTimerArms:
      return MayTouchTimer(state, step.end) && !self.timer_armed && !self.timer_referenced &&
             (state.agent.phase == kReadsTimers || MayBeDisturbed(self));
    case StepKind::kTimerTakesReference:
      return MayTouchTimer(state, step.end) && self.timer_armed && !self.timer_referenced;
    case StepKind::kTimerStops:
      return MayTouchTimer(state, step.end) && self.timer_armed && self.timer_referenced;
    case StepKind::kTimerDropsReference:
      return MayTouchTimer(state, step.end) && !self.timer_armed && self.timer_referenced;
    case StepKind::kAgentStarts:
      return options_.agent_leaves && state.agent.phase == kAbsent && (self.member || peer.member);
    case StepKind::kAgentSteps:
      return step.end == 0 && AgentIsEnabled(state);
    case StepKind::kAgentDies:
      // A visit to one end is one run of a program, which its death cannot cut.
      return step.end == 0 && state.agent.phase != kAbsent && state.agent.phase <= kReadsGates;
  }
  return false;
}

// tcp_sendmsg(): EPIPE after SHUT_WR, else always room in the send buffer.
void GateModel::SendByTcp(End* self, End* peer) {
  self->phase = kNotSending;
  if (self->shut_down) return;
  peer->wire |= 1U << (self->begun - 1);
  ++self->written_to_tcp;
}

GateModel::Violation GateModel::DecideSend(State* state, unsigned self_role) {
  End& self = state->end[self_role];
  End& peer = state->end[self_role ^ 1];
  const uint64_t cookie = peer.closed && !peer.entry ? kCookieOfAnotherSocket : kCookie;
  const struct shunt_gate_view view = {
      /*own_write_seq=*/static_cast<uint32_t>(kFirstSequence + kMessageBytes * self.written_to_tcp),
      /*own_sendable=*/!self.shut_down,
      /*gate_closed=*/static_cast<uint32_t>(self.saw_gate_closed),
      /*watched=*/0,
      /*own_ulp=*/0,
      /*message_bytes=*/kMessageBytes,
      /*tcp_idle_seconds=*/0,
      /*peer_known=*/static_cast<uint32_t>(self.knows_peer),
      /*peer_cookie_expected=*/kCookie,
      /*peer_cookie_before=*/cookie,
      /*peer_cookie_after=*/cookie,
      /*peer_receiving=*/!peer.closed,
      /*peer_ulp=*/0,
      /*peer_low_water=*/1,
      /*peer_copied_seq=*/
      static_cast<uint32_t>(kFirstSequence + kMessageBytes * peer.read_from_tcp),
      /*peer_unread=*/UnreadBytes(peer),
      /*peer_limit=*/options_.limit_bytes,
      /*memory_pressure=*/0,
  };
  const enum shunt_exit exit = options_.gate(&view);
  coverage_.exits |= uint64_t{1} << exit;
  state->agent.awaits_sender &= ~(1U << self_role);
  self.saw_gate_closed = 0;
  // bpf_msg_redirect_hash() looks the peer up, and takes the reference.
  if (exit != SHUNT_EXIT_REDIRECTED || !peer.member) {
    if (exit == SHUNT_EXIT_REDIRECTED) {
      coverage_.exits |= uint64_t{1} << SHUNT_EXIT_MSG_REDIRECT_FAILED;
    }
    SendByTcp(&self, &peer);
    return nullptr;
  }
  if (self.shut_down) return "a send after SHUT_WR lets bytes through";
  self.phase = kInFlight;
  return nullptr;
}

// Not by close(): that throws unread bytes away on TCP too.
GateModel::Violation GateModel::DeleteKey(End* self) {
  if (self->queue != 0) return "loss: a key is deleted whose queue is not empty";
  self->member = 0;
  self->entry = 0;
  return nullptr;
}

GateModel::Violation GateModel::Apply(State* state, Step step) {
  End& self = state->end[step.end];
  End& peer = state->end[step.end ^ 1];
  Agent& agent = state->agent;
  switch (step.kind) {
    case StepKind::kSendBegins:
      if (self.shut_down) {
        self.tried_after_shut_down = 1;
      } else {
        ++self.begun;
      }
      if (!self.member) {
        SendByTcp(&self, &peer);
        return nullptr;
      }
      self.phase = kInGate;
      if (!self.gate_closed && !self.knows_peer && peer.entry) {
        self.knows_peer = 1;
        self.gate_closed = peer.told_to_leave;
      }
      self.saw_gate_closed = self.gate_closed;
      return nullptr;
    case StepKind::kSendIsDecided:
      return DecideSend(state, step.end);
    case StepKind::kRedirectPins:
      if (peer.member) {
        self.phase = kPinned;
        return nullptr;
      }
      self.phase = kNotSending;
      self.failed = 1;
      return peer.closed ? nullptr : "a send fails with EPIPE though the peer did not close";
    case StepKind::kRedirectQueues:
      self.phase = kNotSending;
      if (peer.member) {
        peer.queue |= 1U << (self.begun - 1);
        return nullptr;
      }
      self.failed = 1;
      return peer.closed ? nullptr : "loss: a message is queued to a psock that is gone";

    case StepKind::kWireDelivers: {
      const unsigned segment = 1U << TakeLowest(self.wire);
      self.wire &= ~segment;
      if (!self.closed) self.tcp |= segment;
      return nullptr;
    }
    case StepKind::kReadsQueue: {
      const unsigned message = TakeLowest(self.queue);
      self.queue &= ~(1U << message);
      if (message != self.received) return "order: redirected bytes overtake bytes sent before";
      ++self.received;
      return self.saw_end ? "order: bytes after the end of the stream" : nullptr;
    }
    case StepKind::kChoosesTcp:
      self.in_tcp_recvmsg = 1;
      return nullptr;
    case StepKind::kReadsTcp: {
      const unsigned message = TakeLowest(self.tcp);
      self.in_tcp_recvmsg = options_.reads_wait_for_all && message != kFin &&
                            self.received + 1U < options_.messages[step.end ^ 1];
      self.tcp &= ~(1U << message);
      if (message == kFin) {
        self.saw_end = 1;
        return self.received == peer.begun ? nullptr : "loss: the stream ends early";
      }
      if (message != self.received) return "order: TCP bytes overtake bytes sent before";
      ++self.received;
      ++self.read_from_tcp;
      return self.saw_end ? "order: bytes after the end of the stream" : nullptr;
    }

    case StepKind::kCloses:
      self.closed = 1;
      self.member = 0;
      self.queue = 0;
      self.tcp = 0;
      [[fallthrough]];
    case StepKind::kShutsDown:
      if (!self.shut_down) peer.wire |= 1U << kFin;
      self.shut_down = 1;
      return nullptr;
    case StepKind::kReachesTcpClose:
      self.entry = 0;
      self.gate_closed = 1;
      return nullptr;

    case StepKind::kJoinLooksUp:
      if (peer.entry && !agent.enrolment_stopped) {
        self.join = kLookedUp;
        return nullptr;
      }
      self.join = kHandshakeOver;
      return peer.entry ? DeleteKey(&peer) : nullptr;
    case StepKind::kJoinEntersEnd:
      self.join = kEntered;
      self.entry = 1;
      return nullptr;
    case StepKind::kJoinEntersSocket:
      self.join = kHandshakeOver;
      self.member = 1;
      agent.awaits_join = 0;
      return nullptr;
    case StepKind::kJoinFails:
      self.join = kHandshakeOver;
      self.entry = 0;
      agent.awaits_join = 0;
      return DeleteKey(&peer);

    case StepKind::kTimerArms:
      self.timer_armed = 1;
      if (agent.phase != kReadsTimers) agent.look_disturbed = 1;
      return nullptr;
    case StepKind::kTimerTakesReference:
      self.timer_referenced = 1;
      return nullptr;
    case StepKind::kTimerStops:
      self.timer_armed = 0;
      return nullptr;
    case StepKind::kTimerDropsReference:
      self.timer_referenced = 0;
      return nullptr;

    case StepKind::kAgentStarts:
      agent.first = step.end;
      if (options_.leaves_alone) {
        // begin_leaving() of a member; then the agent's program.
        for (End& end : state->end) end.told_to_leave = end.entry;
        if (self.member) self.gate_closed = 1;
        agent.phase = kReadsGates;
        return nullptr;
      }
      if (options_.stops_enrolment) agent.enrolment_stopped = 1;
      agent.awaits_join = JoinIsUnderWay(*state);
      agent.phase = kAwaitsJoins;
      return nullptr;
    case StepKind::kAgentSteps:
      return ApplyAgent(state);
    case StepKind::kAgentDies: {
      const uint64_t enrolment_stopped = agent.enrolment_stopped;
      memset(&agent, 0, sizeof(agent));
      agent.enrolment_stopped = enrolment_stopped;
      return nullptr;
    }
  }
  return nullptr;
}

bool GateModel::JoinIsUnderWay(const State& state) {
  const End& server = state.end[kServer];
  return server.join == kLookedUp || server.join == kEntered;
}

int GateModel::AccountedTimers(const Agent& agent) const {
  switch (options_.in_flight_rule) {
    case InFlightRule::kDiscountTimersBefore:
      return agent.timers_before;
    case InFlightRule::kDiscountTimersBeforeAndAfter:
      return agent.timers_before && agent.timers_after;
    case InFlightRule::kPeerIsInNoCall:
      return 0;
  }
  return 0;
}

GateModel::Violation GateModel::ApplyAgent(State* state) {
  Agent& agent = state->agent;
  End& self = state->end[Visited(agent)];
  const End& peer = state->end[Visited(agent) ^ 1];
  switch (agent.phase) {
    // BpfDatapath::Retire()
    case kAwaitsJoins:
      agent.phase = kClosesGate;
      return nullptr;
    case kClosesGate:
      if (self.member && (options_.closes_both_gates || !agent.second_visit)) self.gate_closed = 1;
      if (agent.second_visit) {
        agent.phase = options_.awaits_grace_period ? kBeginsGracePeriod : kReadsGates;
      }
      agent.second_visit ^= 1;
      return nullptr;
    case kBeginsGracePeriod:
      for (unsigned end = 0; end < 2; ++end) {
        if (state->end[end].phase == kInGate) agent.awaits_sender |= 1U << end;
      }
      agent.awaits_join = JoinIsUnderWay(*state);
      agent.phase = kInGracePeriod;
      return nullptr;
    case kInGracePeriod:
      agent.phase = kReadsGates;
      return nullptr;

    // From here on to EndVisit(): shunt_let_go()
    case kReadsGates:
      if (options_.leaves_alone && self.member && !self.gate_closed) {
        self.gate_closed = 1;  // and is not judged by before the next run
        return EndVisit(state, false);
      }
      if (!self.member || !self.gate_closed) return EndVisit(state, false);
      if (self.is_ready) {
        agent.phase = kDeletesKey;
        return nullptr;
      }
      agent.own_gate_closed = self.gate_closed;
      agent.peer_gate_closed = !peer.entry || peer.gate_closed;
      if (options_.reads_queue_before_references) agent.queue_empty = self.queue == 0;
      agent.phase = kReadsTimers;
      return nullptr;
    case kReadsTimers:
      agent.peer_is_unlocked = peer.entry && peer.phase != kInGate;
      agent.timers_before = self.timer_armed;
      agent.look_disturbed = self.timer_armed && !self.timer_referenced;
      agent.phase = kReadsReferences;
      return nullptr;
    case kReadsReferences:
      agent.references = kRestingReferences + self.timer_referenced + IsReferencing(peer.phase);
      agent.peer_in_no_call = peer.entry && peer.member && peer.phase == kNotSending;
      agent.phase = kReadsTimersAgain;
      return nullptr;
    case kReadsTimersAgain:
      agent.timers_after = self.timer_armed;
      // Not looked at any more.
      self.timer_armed = self.timer_referenced = 0;
      agent.phase = kReadsQueueOfMember;
      return nullptr;
    case kReadsQueueOfMember: {
      if (!options_.reads_queue_before_references) agent.queue_empty = self.queue == 0;
      const struct shunt_leave_view view = {
          /*own_gate_closed=*/static_cast<uint32_t>(agent.own_gate_closed),
          /*peer_gate_closed=*/static_cast<uint32_t>(agent.peer_gate_closed),
          /*queue_empty=*/static_cast<uint32_t>(agent.queue_empty),
          /*sender_in_no_call=*/options_.in_flight_rule == InFlightRule::kPeerIsInNoCall &&
              agent.peer_in_no_call,
          // Of a peer that is gone the real rule awaits a grace period.
          /*sender_shows=*/!options_.leaves_alone || !options_.looks_at_the_senders_lock ||
              agent.peer_is_unlocked || !peer.entry,
          /*references=*/static_cast<int32_t>(agent.references),
          /*timers=*/AccountedTimers(agent),
      };
      const enum shunt_leave verdict = options_.may_leave(&view);
      const bool is_quiet = verdict != SHUNT_STAY;
      if (verdict == SHUNT_LEAVE) {
        agent.phase = kDeletesKey;
        return nullptr;
      }
      if (is_quiet && self.quiet_looks + 1U >= options_.quiet_looks) {
        agent.phase = kDeletesKey;
        return nullptr;
      }
      coverage_.looks_refused_for_queue += !view.queue_empty;
      coverage_.looks_refused_for_reference +=
          view.references > SHUNT_RESTING_REFERENCES + view.timers;
      return EndVisit(state, is_quiet);
    }
    case kDeletesKey:
      if (options_.leaves_alone) {
        self.is_ready = 1;
        if (peer.member && !peer.is_ready) return EndVisit(state, false);
        for (End* end : {&self, &state->end[Visited(agent) ^ 1]}) {
          end->is_ready = 0;
          if (!end->member) continue;
          ++coverage_.keys_deleted;
          if (const Violation violation = DeleteKey(end)) return violation;
        }
        return EndVisit(state, false);
      }
      ++coverage_.keys_deleted;
      // close() may have been quicker.
      if (self.member) {
        if (const Violation violation = DeleteKey(&self)) return violation;
      }
      return EndVisit(state, false);
    default:
      return nullptr;
  }
}

// On to the other end, for as long as there are any. Forgets what was read, so
// that states which differ in nothing else are one.
GateModel::Violation GateModel::EndVisit(State* state, bool is_quiet) {
  Agent& agent = state->agent;
  End& self = state->end[Visited(agent)];
  self.quiet_looks = is_quiet;
  self.last_look_disturbed = is_quiet && agent.look_disturbed;
  Agent next;
  memset(&next, 0, sizeof(next));
  next.enrolment_stopped = agent.enrolment_stopped;
  if (state->end[kClient].member || state->end[kServer].member) {
    next.phase = kReadsGates;
    next.first = agent.first;
    next.second_visit = agent.second_visit ^ 1;
  }
  agent = next;
  return nullptr;
}

bool GateModel::IsSettled(const State& state) const {
  for (const End& end : state.end) {
    if (end.phase != kNotSending || end.join != kHandshakeOver) return false;
    if (end.wire != 0 || end.queue != 0 || end.tcp != 0) return false;
  }
  return true;
}

// Everything sent, everything read, and nothing of Shunt left behind.
bool GateModel::IsGoal(const State& state) const {
  if (!IsSettled(state) || state.agent.phase != kAbsent) return false;
  for (unsigned role = 0; role < 2; ++role) {
    const End& end = state.end[role];
    if (!end.shut_down && !end.failed && end.begun < options_.messages[role]) return false;
    if (options_.agent_leaves && (end.member || end.entry)) return false;
  }
  return true;
}

GateModel::Violation GateModel::Check(const State& state) const {
  for (unsigned role = 0; role < 2; ++role) {
    const End& end = state.end[role];
    if (kMessageBytes * __builtin_popcount(end.queue) > options_.limit_bytes + kMessageBytes) {
      return "bound: more than the limit and one message is unread";
    }
    if (IsSettled(state) && !end.closed && end.received != state.end[role ^ 1].begun) {
      return "loss: all is drained and not all has been received";
    }
  }
  return nullptr;
}

std::string GateModel::Describe(const State& from, Step step) {
  static constexpr const char* kSteps[] = {
      "begins a send: takes its own lock, reads its own state and gate",
      "runs the gate on the peer: by TCP, or takes a reference on the peer",
      "has redirected: its own lock is gone, takes the peer's psock",
      "has redirected: queues to the peer's psock",
      "gets a segment from the wire into its TCP queue",
      "reads from its psock queue",
      "finds TCP bytes only, enters tcp_recvmsg()",
      "reads from its TCP queue",
      "shuts down sending",
      "closes",
      "reaches TCP_CLOSE",
      "joins: looks its peer up",
      "joins: enters the map ends",
      "joins: enters the map sockets",
      "fails to enter the map sockets; its peer is released",
      "arms a timer",
      "takes the reference of the timer it has armed",
      "stops a timer",
      "drops the reference of the timer it has stopped",
  };
  static constexpr const char* kAgentSteps[] = {
      "",
      "has seen the joins under way end",
      "closes the gate",
      "begins a grace period",
      "ends the grace period",
      "looks: reads the gates",
      "looks: counts timers",
      "looks: reads the reference count",
      "looks: counts timers again",
      "looks: reads the queue",
      "deletes the key",
  };
  const std::string of_client = "client", of_server = "server";
  const std::string& end = step.end == kClient ? of_client : of_server;
  const std::string& visited = Visited(from.agent) == kClient ? of_client : of_server;
  switch (step.kind) {
    case StepKind::kAgentStarts:
      return "  agent  stops enrolment; will visit the " + end + "'s end first";
    case StepKind::kAgentSteps:
      return "  agent  (" + visited + "'s end) " + kAgentSteps[from.agent.phase];
    case StepKind::kAgentDies:
      return "  agent  dies";
    default:
      return "  " + end + " " + kSteps[static_cast<int>(step.kind)];
  }
}

}  // namespace shunt

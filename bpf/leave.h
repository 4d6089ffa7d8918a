/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Leaving: the agent's programs. Iterators find the pairs of a pod and close their
 * gates; shunt_leave_pair() lets one pair go.
 */
#ifndef SHUNT_BPF_LEAVE_H
#define SHUNT_BPF_LEAVE_H

#include "gate.h"
#include "socket.h"

/* The sockhash's. */
#define RESTING_PSOCK_REFERENCES 1

/* What a look finds. In memory, not on the stack, so that the verifier does not
 * follow every combination of values, which takes it half a second. One run at a
 * time: the agent's. */
static struct shunt_leave_view look;

/* The other end of a leaving end. Its address is good only if the cookie is the
 * same before and after; otherwise nothing is known. */
static __always_inline void look_at_other_end(const struct shunt_end *end)
{
	struct sock *sk = (void *)end->tcp_sock;
	struct sk_psock *psock = psock_of(sk);
	__u64 before = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	/* Is no thread in its sendmsg (nor recvmsg)? */
	look.sender_in_no_call = psock && BPF_CORE_READ(psock, refcnt.refs.counter) ==
						  RESTING_PSOCK_REFERENCES;
	/* Does no thread hold its socket lock? */
	look.sender_shows = !BPF_CORE_READ(sk, sk_lock.owned);
	/* Does it send no more? */
	look.peer_gate_closed = (BPF_CORE_READ(sk, sk_shutdown) & SEND_SHUTDOWN) != 0;
	__u64 after = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	barrier();
	if (before != end->socket_cookie || after != end->socket_cookie)
		look = (struct shunt_leave_view){};
}

/* Both ends' gates were closed, and then a grace period was awaited. */
volatile __u32 grace_passed = 0;

/* Held by the program that looks, until bpf_sk_release(). */
#define OWN_REFERENCES 1

/* May this member leave? */
static __always_inline bool may_leave_now(struct sock *sk, struct shunt_socket_state *state)
{
	struct shunt_end_key peer_key = shunt_end_key_peer(state->self);
	struct shunt_end *peer = bpf_map_lookup_elem(&ends, &peer_key);
	look = (struct shunt_leave_view){};
	if (peer)
		look_at_other_end(peer);

	/* In this order: see shunt_may_leave(). */
	__s32 timers_before = armed_timers(sk);
	__s32 references = BPF_CORE_READ(sk, __sk_common.skc_refcnt.refs.counter);
	__s32 timers_after = armed_timers(sk);
	look.own_gate_closed = state->gate_closed;
	if (!peer || peer->gate_closed)
		look.peer_gate_closed = 1;
	look.queue_empty = queue_is_empty(sk);
	look.sender_shows |= grace_passed;
	look.references = references - OWN_REFERENCES;
	look.timers = timers_before < timers_after ? timers_before : timers_after;
	barrier();
	switch (shunt_may_leave(&look)) {
	case SHUNT_LEAVE:
		return true;
	case SHUNT_LEAVE_IF_QUIET:
		/* Locked by a program, that may stand between arming a timer and
		 * taking its reference: says nothing. */
		if (!BPF_CORE_READ(sk, sk_lock.owned))
			state->quiet_looks++;
		return state->quiet_looks >= SHUNT_QUIET_LOOKS;
	default:
		/* Not back to zero: a packet on its way in holds a reference too. With
		 * a message in flight hardly any look is quiet. */
		if (state->quiet_looks)
			state->quiet_looks--;
		return false;
	}
}

static __always_inline void let_go(struct shunt_socket_state *state, __u16 local_port,
				   __u16 remote_port)
{
	struct shunt_end_key self = state->self;
	bpf_map_delete_elem(&sockets, &self);
	if (state->joined)
		forget(state, SHUNT_EXIT_LEFT_DRAINED, local_port, remote_port);
}

/* ---- one pair ------------------------------------------------------------ */

/* Which pair: the key of either end. Set by the agent before a run. */
struct shunt_end_key leaving_key = {};

/* Closes the gate of this end of the pair if it is open; a gate that was closed
 * in this run is not judged by in the same run: first every CPU must have seen it.
 * Takes a reference that the caller releases; null if it is no member. */
static __always_inline struct bpf_sock *hold_member(const struct shunt_end_key *key,
						    bool *closed_now)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, key);
	if (!sk)
		return 0;
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	struct shunt_end *end = bpf_map_lookup_elem(&ends, key);
	if (!state)
		return sk;
	if (!state->gate_closed || (end && !end->gate_closed))
		*closed_now = true;
	state->gate_closed = 1;
	if (end)
		end->gate_closed = 1;
	return sk;
}

/* What was found once stays true: nothing can be queued any more. */
static __always_inline bool is_ready(struct bpf_sock *sk)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!state || !tp)
		return false;
	if (!state->ready && may_leave_now((struct sock *)tp, state))
		state->ready = 1;
	return state->ready;
}

static __always_inline void let_member_go(struct bpf_sock *sk, const struct shunt_end_key *key)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	struct shunt_end *end = bpf_map_lookup_elem(&ends, key);
	if (state)
		let_go(state, end ? end->local_port : 0, end ? end->remote_port : 0);
}

/*
 * Run by the agent (BPF_PROG_TEST_RUN). Both ends leave in one run: an end's
 * entry in `ends` is what the other is judged by. Returns how many are members
 * after it; the gates of those are closed, and if SHUNT_GATE_CLOSED_NOW is set,
 * one was closed in this run.
 */
SEC("tc")
int shunt_leave_pair(struct __sk_buff *skb)
{
	struct shunt_end_key client_key = leaving_key, server_key = leaving_key;
	bool closed_now = false;
	client_key.role = SHUNT_CLIENT;
	server_key.role = SHUNT_SERVER;
	struct bpf_sock *client = hold_member(&client_key, &closed_now);
	struct bpf_sock *server = hold_member(&server_key, &closed_now);
	int members = (client != 0) + (server != 0);
	if (!closed_now) {
		bool client_is_ready = !client || is_ready(client);
		bool server_is_ready = !server || is_ready(server);
		if (client_is_ready && server_is_ready) {
			if (client)
				let_member_go(client, &client_key);
			if (server)
				let_member_go(server, &server_key);
			members = 0;
		}
	}
	if (client)
		bpf_sk_release(client);
	if (server)
		bpf_sk_release(server);
	return closed_now ? members | SHUNT_GATE_CLOSED_NOW : members;
}

/* Run by the agent on every CPU in turn: what a CPU did before is then visible
 * to all, and what it does after sees what was written before. */
SEC("raw_tp")
int shunt_interrupt(void *ctx)
{
	return 0;
}

/* ---- all of a pod --------------------------------------------------------- */

/* Set by the agent before a run: the pod to act on, 0 for every pod; and what
 * shunt_close_gates leaves open: server ports that this policy lists. */
volatile __u32 target_pod = 0;
struct shunt_policy keep = {};

static __always_inline void put_record(struct bpf_iter__sockmap *ctx, struct sock *sk,
				       const struct shunt_socket_state *state,
				       const struct shunt_end *end)
{
	struct shunt_end_record record = {
		.key = state->self,
		.end = *end,
		.redirected_bytes = state->redirected_bytes,
		.unread_bytes = queue_is_empty(sk) ?
					0 :
					unread_of(sk, sk->sk_backlog.rmem_alloc.counter),
		.state = sk->__sk_common.skc_state,
	};
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
}

static __always_inline struct shunt_socket_state *targeted(struct sock *sk)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	if (!state || (target_pod && state->pod != target_pod))
		return 0;
	return state;
}

SEC("iter/sockmap")
int shunt_list_ends(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	struct shunt_socket_state *state = sk ? targeted(sk) : 0;
	struct shunt_end *end = state ? bpf_map_lookup_elem(&ends, &state->self) : 0;
	if (end)
		put_record(ctx, sk, state, end);
	return 0;
}

/* Run again until nothing can join under an older policy any more. Before
 * shunt_leave_pair every CPU is to be interrupted. */
SEC("iter/sockmap")
int shunt_close_gates(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	struct shunt_socket_state *state = sk ? targeted(sk) : 0;
	if (!state)
		return 0;
	struct shunt_end_key self = state->self;
	struct shunt_end *end = bpf_map_lookup_elem(&ends, &self);
	struct shunt_workload_key key = workload_of(state);
	struct shunt_workload *workload = bpf_map_lookup_elem(&workloads, &key);
	/* If it was told to leave, the event may have been lost. */
	bool told = (end && end->leaving) || (state->watched == SHUNT_IS_WATCHED && workload &&
					      workload->state == SHUNT_WORKLOAD_HAZARD);
	if (!told && shunt_policy_lists(&keep, state->server_port))
		return 0;
	state->gate_closed = 1;
	if (end) {
		end->leaving = 1; /* so that a peer yet to join closes its gate, too */
		end->gate_closed = 1;
	}
	return 0;
}

#endif /* SHUNT_BPF_LEAVE_H */

/* SPDX-License-Identifier: GPL-2.0-only */
/* What the programs see of a socket, and what they know of an enrolled one. */
#ifndef SHUNT_BPF_SOCKET_H
#define SHUNT_BPF_SOCKET_H

#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "emit.h"
#include "flow.h"

#define RCV_SHUTDOWN 1
#define SEND_SHUTDOWN 2
#define SHUTDOWN_MASK 3

#define NANOSECONDS 1000000000ULL

#define SOL_SOCKET 1
#define SOL_TCP 6

/* Measured by the agent before load: redirected bytes are charged to
 * sk_rmem_alloc (kernel commit d888b7af7c14 and back-ports). Without that the
 * only bound is "one message at a time". */
const volatile __u8 rmem_is_charged = 1;

/* Measured too: FIONREAD of an enrolled socket counts what came by TCP. Not so
 * between kernel commits 929e30f93125 and 04af4efde58a. */
const volatile __u8 fionread_counts_tcp = 1;

/* The kernel takes the programs of watch.h. If not, new workloads are trusted. */
const volatile __u8 can_watch = 0;

static __always_inline struct sk_psock *psock_of(struct sock *sk)
{
	/* SK_USER_DATA_* flags live in the low bits of the pointer. */
	return (void *)((__u64)BPF_CORE_READ(sk, sk_user_data) & ~7ULL);
}

static __always_inline bool queue_is_empty(struct sock *sk)
{
	struct sk_psock *psock = psock_of(sk);
	if (!psock)
		return true;
	return (__u64)BPF_CORE_READ(psock, ingress_msg.next) ==
	       (__u64)psock + bpf_core_field_offset(psock->ingress_msg);
}

static __always_inline __s32 armed_timers(struct sock *sk)
{
	struct inet_connection_sock *icsk = (void *)sk;
	return (BPF_CORE_READ(sk, sk_timer.entry.pprev) != 0) +
	       (BPF_CORE_READ(icsk, icsk_retransmit_timer.entry.pprev) != 0) +
	       (BPF_CORE_READ(icsk, icsk_delack_timer.entry.pprev) != 0);
}

/* Bytes that a socket holds unread, of which `charged` by its sk_rmem_alloc. */
static __always_inline __u32 unread_of(struct sock *sk, int charged)
{
	if (!rmem_is_charged)
		return queue_is_empty(sk) ? 0 : ~0U;
	return charged < 0 ? 0 : charged;
}

static __always_inline bool has_flag(struct sock *sk, int flag)
{
	return BPF_CORE_READ(sk, __sk_common.skc_flags) & (1UL << flag);
}

static __always_inline struct shunt_workload_key
workload_of(const struct shunt_socket_state *state)
{
	struct shunt_workload_key key = { .pod = state->pod, .port = state->server_port };
	return key;
}

static __always_inline void count_pod(__u32 pod, __u32 made, __u32 ended, __u64 bytes,
				      __u32 refused)
{
	struct shunt_pod_totals *totals = bpf_map_lookup_elem(&pod_totals, &pod);
	if (!totals) {
		struct shunt_pod_totals none = {};
		bpf_map_update_elem(&pod_totals, &pod, &none, BPF_NOEXIST);
		totals = bpf_map_lookup_elem(&pod_totals, &pod);
		if (!totals)
			return;
	}
	totals->pairs_made += made;
	totals->pairs_ended += ended;
	totals->redirected_bytes += bytes;
	totals->refused += refused;
}

static __always_inline void release_turn(const struct shunt_socket_state *state)
{
	__u32 place = state->turn;
	struct shunt_turn *turn = bpf_map_lookup_elem(&turns, &place);
	if (turn && turn->tag == state->self.client_next)
		turn->tag = 0;
}

/* The end is not a member of the sockhash any more. */
static __always_inline void forget(struct shunt_socket_state *state, __u32 reason,
				   __u16 local_port, __u16 remote_port)
{
	struct shunt_event event = {
		.kind = SHUNT_EVENT_LEFT,
		.reason = reason,
		.key = state->self,
		.redirected_bytes = state->redirected_bytes,
		.pod = state->pod,
		.local_port = local_port,
		.remote_port = remote_port,
		.port = state->server_port,
	};
	state->joined = 0;
	state->gate_closed = 1;
	if (state->self.role == SHUNT_SERVER)
		release_turn(state);
	bpf_map_delete_elem(&ends, &event.key);
	count_exit(reason);
	count_pod(event.pod, 0, event.key.role == SHUNT_SERVER, event.redirected_bytes, 0);
	emit_event(&event, false);
}

/*
 * The pair of this end is to leave: nothing is handed over by this end from now
 * on, nor by the other once the agent has closed its gate too, which it does
 * when it gets the event. If it does not (no agent, event lost), both ends stay
 * in order and nothing is lost; the next agent finds the mark in `ends`.
 */
static __always_inline void begin_leaving(struct shunt_socket_state *state, __u32 reason,
					  __u32 hazards, __u16 local_port, __u16 remote_port)
{
	struct shunt_event event = {
		.kind = SHUNT_EVENT_LEAVING,
		.reason = reason,
		.key = state->self,
		.pod = state->pod,
		.local_port = local_port,
		.remote_port = remote_port,
		.hazards = hazards,
		.port = state->server_port,
	};
	struct shunt_end_key peer_key = shunt_end_key_peer(event.key);
	struct shunt_end *end;

	if (state->gate_closed)
		return;
	state->gate_closed = 1;
	end = bpf_map_lookup_elem(&ends, &event.key);
	if (end) {
		end->leaving = 1;
		end->gate_closed = 1;
	}
	end = bpf_map_lookup_elem(&ends, &peer_key);
	if (end)
		end->leaving = 1;
	count_exit(reason);
	emit_event(&event, true);
}

#endif /* SHUNT_BPF_SOCKET_H */

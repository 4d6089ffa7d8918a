/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The gate: may this message be handed to the peer's socket, or must it go by
 * TCP? Pure: a view of both sockets in, an exit out. tests/unit explores it
 * over all interleavings of send, receive, fall back, leave and close.
 *
 * Why it keeps the order. A receiver reads its psock queue before its TCP
 * queue (kernel commit e7a5f1f1cd00). So a redirected byte overtakes any
 * unread byte that went by TCP before it, and nothing else can be overtaken:
 * - going by TCP after a redirect is always in order;
 * - redirecting is in order exactly when nothing sent by TCP is unread, which
 *   is peer_copied_seq == own_write_seq. own_write_seq cannot move meanwhile:
 *   the program runs under the sender's socket lock.
 *
 * Why it bounds memory. The kernel lets a redirect grow the peer's queue
 * without end. Here a message is refused that would make the peer hold more
 * than peer_limit unread bytes; TCP's own back-pressure then does the rest.
 *
 * Why it goes by TCP now and then. conntrack forgets a connection on which it
 * sees no packet for nf_conntrack_tcp_timeout_established (5 days; many nodes
 * set a day). Behind REDIRECT the FIN would then not be translated and the
 * peer never see the end. One message per SHUNT_TCP_IDLE_SECONDS prevents it.
 */
#ifndef SHUNT_BPF_GATE_H
#define SHUNT_BPF_GATE_H

#include "kmod/uapi/shunt.h"

#ifndef SHUNT_INLINE
#define SHUNT_INLINE static inline __attribute__((always_inline))
#endif

#define SHUNT_TCP_IDLE_SECONDS 1800 /* a small message is sent by TCP after this */
#define SHUNT_TCP_IDLE_LIMIT (2 * SHUNT_TCP_IDLE_SECONDS) /* any message */
#define SHUNT_SMALL_MESSAGE 512 /* bytes */

struct shunt_gate_view {
	/* The sender, under its own socket lock: exact. */
	__u32 own_write_seq;
	__u32 own_sendable; /* ESTABLISHED or CLOSE_WAIT, SHUT_WR not done */
	__u32 gate_closed; /* this pair is leaving */
	__u32 watched; /* its workload is new: nothing is redirected yet */
	__u32 own_ulp; /* kTLS turns messages into records, after this program */
	__u32 message_bytes;
	__u32 tcp_idle_seconds; /* since a message of mine went by TCP */

	/*
	 * The peer, read without its lock. Its slab is SLAB_TYPESAFE_BY_RCU:
	 * the memory stays a TCP socket, but may become another connection's.
	 * Equal cookies before and after prove that all between is of one.
	 */
	__u32 peer_known;
	__u64 peer_cookie_expected;
	__u64 peer_cookie_before;
	__u64 peer_cookie_after;
	__u32 peer_receiving; /* can take data, receiving side not shut */
	__u32 peer_ulp; /* kTLS: what is not a record would be taken for plain text */
	__s32 peer_low_water; /* SO_RCVLOWAT, which psock ignores and TCP honours */
	__u32 peer_copied_seq; /* next byte of mine that it will read by TCP */
	__u32 peer_unread; /* bytes it holds unread */
	__u32 peer_limit; /* bytes it may hold: its receive buffer */
	__u32 memory_pressure; /* the node's TCP memory is short: a redirect could
				* fail with ENOMEM where TCP would wait */
};

SHUNT_INLINE enum shunt_exit shunt_gate(const struct shunt_gate_view *view)
{
	if (view->gate_closed)
		return SHUNT_EXIT_MSG_GATE_CLOSED;
	if (!view->own_sendable)
		return SHUNT_EXIT_MSG_SHUT_DOWN;
	if (view->watched)
		return SHUNT_EXIT_MSG_WATCHED;
	if (view->own_ulp)
		return SHUNT_EXIT_MSG_ULP;
	if (!view->peer_known)
		return SHUNT_EXIT_MSG_NO_PEER;
	if (view->peer_cookie_before != view->peer_cookie_expected ||
	    view->peer_cookie_after != view->peer_cookie_expected)
		return SHUNT_EXIT_MSG_PEER_CHANGED;
	if (!view->peer_receiving)
		return SHUNT_EXIT_MSG_PEER_CLOSED;
	if (view->peer_ulp)
		return SHUNT_EXIT_MSG_ULP;
	if (view->peer_low_water > 1)
		return SHUNT_EXIT_MSG_LOW_WATER;
	if (view->peer_copied_seq != view->own_write_seq)
		return SHUNT_EXIT_MSG_TCP_UNREAD;
	if (view->peer_unread >= view->peer_limit ||
	    view->message_bytes > view->peer_limit - view->peer_unread)
		return SHUNT_EXIT_MSG_BACK_PRESSURE;
	if (view->memory_pressure)
		return SHUNT_EXIT_MSG_MEMORY_PRESSURE;
	if (view->tcp_idle_seconds >= SHUNT_TCP_IDLE_LIMIT ||
	    (view->tcp_idle_seconds >= SHUNT_TCP_IDLE_SECONDS &&
	     view->message_bytes <= SHUNT_SMALL_MESSAGE))
		return SHUNT_EXIT_MSG_REFRESH;
	return SHUNT_EXIT_REDIRECTED;
}

/*
 * Should the pair leave, after this message? A turn is a message that follows
 * one of the other end; without turns the reader drains in batches, and TCP,
 * which coalesces, is quicker (0.62 of its throughput on one CPU, measured).
 * Each message without a turn counts one, each turn takes SHUNT_TURN_CREDIT off.
 */
#define SHUNT_ONE_WAY_LIMIT 256
#define SHUNT_TURN_CREDIT 4

/* may_mix: redirected bytes may follow bytes that went by TCP. `score` is the
 * sender's. SHUNT_EXIT_COUNT: the pair stays. */
SHUNT_INLINE enum shunt_exit shunt_reason_to_leave(enum shunt_exit exit, int turned,
						   int may_mix, __u32 *score)
{
	switch (exit) {
	case SHUNT_EXIT_MSG_LOW_WATER:
	case SHUNT_EXIT_MSG_ULP:
		return SHUNT_EXIT_LEAVING_HAZARD;
	case SHUNT_EXIT_MSG_BACK_PRESSURE:
		return SHUNT_EXIT_LEAVING_BACK_PRESSURE;
	case SHUNT_EXIT_MSG_NO_PEER:
	case SHUNT_EXIT_MSG_TCP_UNREAD:
	case SHUNT_EXIT_MSG_MEMORY_PRESSURE:
	case SHUNT_EXIT_MSG_REFRESH:
		/* Kernel commit 929e30f93125: the reader of an enrolled socket that
		 * asks FIONREAD is not told of bytes that came by TCP. */
		if (!may_mix)
			return SHUNT_EXIT_LEAVING_MIXED;
		break;
	case SHUNT_EXIT_REDIRECTED:
		break;
	default: /* leaves already, is over, or is being watched */
		return SHUNT_EXIT_COUNT;
	}
	if (turned) {
		*score = *score > SHUNT_TURN_CREDIT ? *score - SHUNT_TURN_CREDIT : 0;
		return SHUNT_EXIT_COUNT;
	}
	return ++*score < SHUNT_ONE_WAY_LIMIT ? SHUNT_EXIT_COUNT : SHUNT_EXIT_LEAVING_STREAM;
}

/*
 * May an enrolled end's key be deleted without losing a byte? Deleting it
 * frees what its psock queue holds, and makes a sender that has passed the
 * gate but not yet queued its message fail with EPIPE. So: no end can pass the
 * gate towards it any more, nobody is between gate and queue, and nothing is
 * unread.
 *
 * Nobody can pass: both gates were closed, and then every CPU was interrupted
 * or a grace period awaited, so that who reads a gate from now on sees it closed.
 *
 * In flight is seen by what its sender holds: its own psock, from before the
 * gate until after the queue (tcp_bpf_sendmsg); its own socket lock, from before
 * the gate until it has taken a reference on the receiver's socket
 * (sk_psock_msg_verdict), and this until after the queue. So none is in flight
 * - exactly: if the sender's psock has only the map's reference (it is in no
 *   call); or if, in this order, the sender's socket is not locked (or a grace
 *   period has passed: the program and the taking of the reference are one RCU
 *   section) and this socket has only its own and its psock's reference;
 * - very probably: if this socket has no more than those and one per armed
 *   timer. sk_reset_timer() arms first and takes the reference after, so a look
 *   in between counts one too few; SHUNT_QUIET_LOOKS more of such looks are
 *   needed than of others, at different times, with this socket not locked by a
 *   program.
 *   Needed where a reader is blocked at the other end and a timer is on here:
 *   both exact signs are absent for as long as that lasts.
 * The references must be read before the queue: a message that is queued after
 * the look at the queue must have been in flight at the look at references.
 */
#define SHUNT_QUIET_LOOKS 32

/* The socket's own reference and the psock's. */
#define SHUNT_RESTING_REFERENCES 2

struct shunt_leave_view {
	__u32 own_gate_closed;
	__u32 peer_gate_closed; /* or the peer is not enrolled any more */
	__u32 queue_empty;
	__u32 sender_in_no_call; /* the other end's psock is at rest */
	__u32 sender_shows; /* a message that has passed the gate has its reference */
	__s32 references; /* sk_refcnt */
	__s32 timers; /* armed ones */
};

enum shunt_leave {
	SHUNT_STAY = 0,
	SHUNT_LEAVE = 1,
	SHUNT_LEAVE_IF_QUIET = 2, /* if so again and again: SHUNT_QUIET_LOOKS */
};

SHUNT_INLINE enum shunt_leave shunt_may_leave(const struct shunt_leave_view *view)
{
	if (!view->own_gate_closed || !view->peer_gate_closed || !view->queue_empty)
		return SHUNT_STAY;
	if (view->sender_in_no_call)
		return SHUNT_LEAVE;
	if (!view->sender_shows)
		return SHUNT_STAY;
	if (view->references <= SHUNT_RESTING_REFERENCES)
		return SHUNT_LEAVE;
	return view->references <= SHUNT_RESTING_REFERENCES + view->timers ? SHUNT_LEAVE_IF_QUIET :
									      SHUNT_STAY;
}

#endif /* SHUNT_BPF_GATE_H */

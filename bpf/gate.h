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
	if (!view->peer_known)
		return SHUNT_EXIT_MSG_NO_PEER;
	if (view->peer_cookie_before != view->peer_cookie_expected ||
	    view->peer_cookie_after != view->peer_cookie_expected)
		return SHUNT_EXIT_MSG_PEER_CHANGED;
	if (!view->peer_receiving)
		return SHUNT_EXIT_MSG_PEER_CLOSED;
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
 * May an enrolled end's key be deleted without losing a byte? Deleting it
 * frees what its psock queue holds, and makes a sender that has passed the
 * gate but not yet queued its message fail with EPIPE. So: no end can pass the
 * gate towards it any more, nobody is between gate and queue, and nothing is
 * unread.
 *
 * In flight is seen by two references that its sender holds from before the
 * gate until after the queue: on its own psock (tcp_bpf_sendmsg), and from the
 * gate on on the receiver's socket (sk_psock_msg_verdict). So none is in flight
 * - exactly: if the other end's psock has only the map's reference (its sender
 *   is in no call), or this socket has only its own and its psock's;
 * - very probably: if this socket has no more than those and one per armed
 *   timer. sk_reset_timer() arms first and takes the reference after, so a look
 *   in between counts one too few; such looks must come SHUNT_QUIET_LOOKS times
 *   in a row, milliseconds apart. Needed where a reader is blocked at the other
 *   end and this end has keepalive on: both exact signs are absent for ever.
 * The references must be read before the queue: a message that is queued after
 * the look at the queue must have been in flight at the look at references.
 */
#define SHUNT_QUIET_LOOKS 32

struct shunt_leave_view {
	__u32 own_gate_closed;
	__u32 peer_gate_closed; /* or the peer is not enrolled any more */
	__u32 queue_empty;
	__s32 references; /* sk_refcnt */
	__s32 accounted; /* those that are no message in flight */
};

SHUNT_INLINE int shunt_may_leave(const struct shunt_leave_view *view)
{
	return view->own_gate_closed && view->peer_gate_closed && view->queue_empty &&
	       view->references <= view->accounted;
}

#endif /* SHUNT_BPF_GATE_H */

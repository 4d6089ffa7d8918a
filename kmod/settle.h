/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Settling: ring bytes become a segment of the receive queue, as if TCP had
 * just delivered them. Done before anything but a plain recv looks at the
 * receiver, and before TCP itself sends anything for the sender.
 *
 * Here too is the arithmetic that keeps both TCP states true: each byte is
 * counted once where it is sent and once where it is taken.
 */
#ifndef SHUNT_SETTLE_H
#define SHUNT_SETTLE_H

#include "pair.h"

/* n bytes of sk are sent, and acknowledged unless TCP still waits for an ACK. Own lock. */
void shunt_note_sent(struct sock *sk, u32 n);

/* n bytes have been taken from sk's ring. Own lock, or slock while nobody owns sk. */
void shunt_note_received(struct sock *sk, u32 n);

/*
 * Settles what is in end's ring now; with the ring sealed, all that will ever
 * be. lock_sock of end held; may sleep, cannot fail.
 */
void shunt_settle(struct shunt_half *half);

/*
 * Before TCP may send for end: its peer's ring is settled, or will be by its
 * backlog before it sees the first segment that TCP sends from now on. Also
 * takes over the window that the peer offers. lock_sock of end held; may sleep.
 */
void shunt_settle_peer(struct shunt_half *half);

/* Settles end's ring from outside; no locks held, process context. */
void shunt_settle_stale(struct shunt_half *half);

/* sk_backlog_rcv of an attached end. */
int shunt_backlog_rcv(struct sock *sk, struct sk_buff *skb);

#endif

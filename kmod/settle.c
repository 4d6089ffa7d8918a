// SPDX-License-Identifier: GPL-2.0-only
#include <linux/skbuff.h>
#include <net/tcp.h>

#include "debug.h"
#include "settle.h"

/*
 * A segment built here is told from those of the network by its protocol until
 * it is settled: in a backlog it is an order to settle, with its pages ready.
 */
#define ORDER_PROTOCOL htons(0x5348)

/* Up to this size a segment is one allocation, as TCP's own small ones are. */
#define LINEAR_BYTES 1024u

static bool is_order(const struct sk_buff *skb)
{
	return skb->protocol == ORDER_PROTOCOL && !skb->dev;
}

void shunt_note_sent(struct sock *sk, u32 n)
{
	struct tcp_sock *tp = tcp_sk(sk);
	u32 end = tp->write_seq + n;
	u32 edge = tcp_wnd_end(tp);

	lockdep_assert(lockdep_sock_is_held(sk));
	WRITE_ONCE(tp->write_seq, end);
	WRITE_ONCE(tp->snd_nxt, end);
	tp->pushed_seq = end;
	if (tcp_rtx_queue_empty(sk)) {
		/* No ACK will come for these bytes, so they are acknowledged
		 * here. An urgent pointer that is left behind snd_una would
		 * put the sender into urgent mode once 2 GiB have passed.
		 */
		if (!SHUNT_MUTANT(11) && tp->snd_up == tp->snd_una)
			tp->snd_up = end;
		tp->snd_una = end;
		tp->bytes_acked += n;
	}
	/* snd_wnd counts from snd_una, which may lag while the ACK of earlier
	 * segments is outstanding. Counted from write_seq it would put the
	 * window's end before snd_nxt, and both ends would reject each
	 * other's ACKs for ever.
	 */
	if (before(edge, end))
		edge = end;
	tp->snd_wnd = edge - (SHUNT_MUTANT(9) ? tp->write_seq : tp->snd_una);
	tp->bytes_sent += n;
	tp->lsndtime = tcp_jiffies32;
	tp->rcv_tstamp = tcp_jiffies32;
	SHUNT_ASSERT(!before(tcp_wnd_end(tp), tp->snd_nxt));
}

void shunt_note_received(struct sock *sk, u32 n)
{
	struct tcp_sock *tp = tcp_sk(sk);

	/* Left behind, snd_wl1 would be "after" every segment once 2 GiB have
	 * passed, and no window update would count again.
	 */
	if (!SHUNT_MUTANT(11))
		tp->snd_wl1 = tp->rcv_nxt;
	WRITE_ONCE(tp->rcv_nxt, tp->rcv_nxt + n);
	tp->rcv_wup = tp->rcv_nxt;
	tp->bytes_received += n;
	inet_csk(sk)->icsk_ack.lrcvtime = tcp_jiffies32;
}

/*
 * Room for n bytes, at most a ring's worth. Process context, cannot fail: the
 * allocations are single pages, and there is no way back for a call that has
 * promised TCP's behaviour.
 */
static struct sk_buff *order_alloc(u32 n)
{
	const gfp_t gfp = GFP_KERNEL | __GFP_NOFAIL;
	struct sk_buff *skb = alloc_skb(n <= LINEAR_BYTES ? n : 0, gfp);
	int i;

	BUILD_BUG_ON(SHUNT_RING_SIZE > MAX_SKB_FRAGS * PAGE_SIZE);
	if (n <= LINEAR_BYTES) {
		skb_put(skb, n);
	} else {
		for (i = 0; i * PAGE_SIZE < n; i++)
			skb_fill_page_desc(skb, i, alloc_page(gfp), 0,
					   min_t(u32, PAGE_SIZE, n - i * PAGE_SIZE));
		skb->len = n;
		skb->data_len = n;
		skb->truesize += i * PAGE_SIZE;
	}
	skb->protocol = ORDER_PROTOCOL;
	/* Pages of the emergency reserve would make the backlog refuse it. */
	skb->pfmemalloc = 0;
	return skb;
}

/* Shrinks an order to n bytes, giving back whole pages that it does not need. */
static void order_trim(struct sk_buff *skb, u32 n)
{
	if (n == skb->len)
		return;
	pskb_trim(skb, n);
	/* Trimming may or may not have moved the rest into the head and counted anew. */
	skb->truesize = SKB_TRUESIZE(skb_end_offset(skb)) + skb_shinfo(skb)->nr_frags * PAGE_SIZE;
}

/*
 * Settles as much of the ring as the order has room for, which takes over the
 * order. Own lock, or slock while nobody owns sk. Bytes are announced to
 * sleepers once: by the sender if the reader looks at the ring, else here, for
 * an edge-triggered epoll would report them twice.
 */
static void order_execute(struct shunt_half *half, struct sk_buff *skb, bool announce)
{
	struct sock *sk = half->sk;
	struct tcp_sock *tp = tcp_sk(sk);
	u32 n = min(shunt_ring_used(&half->rx), skb->len);
	u32 edge, window;
	int space;

	lockdep_assert(lockdep_sock_is_held(sk));
	if (!n) {
		kfree_skb(skb);
		return;
	}
	order_trim(skb, n);
	shunt_ring_peek_skb(&half->rx, skb, n);
	skb->protocol = sk->sk_family == AF_INET6 ? htons(ETH_P_IPV6) : htons(ETH_P_IP);
	skb->ip_summed = CHECKSUM_UNNECESSARY;
	memset(TCP_SKB_CB(skb), 0, sizeof(*TCP_SKB_CB(skb)));
	TCP_SKB_CB(skb)->seq = tp->rcv_nxt;
	TCP_SKB_CB(skb)->end_seq = tp->rcv_nxt + n;
	TCP_SKB_CB(skb)->tcp_flags = TCPHDR_ACK | TCPHDR_PSH;

	/* Under memory pressure the charge is only noted (sk_forward_alloc
	 * goes negative until the bytes are read): a ring's worth at most, and
	 * these bytes have been acknowledged, so they cannot be refused.
	 */
	sk_rmem_schedule(sk, skb, skb->truesize);

	/* The window follows the receive buffer as TCP's would, but its right
	 * edge never moves left (I3). The writes are ordered for
	 * shunt_settle_peer(), which may look while sk is owned: it must never
	 * see an edge that was not offered.
	 */
	edge = tp->rcv_wup + tp->rcv_wnd;
	space = tcp_space(sk);
	window = space > 0 ? round_down((u32)space, 1U << tp->rx_opt.rcv_wscale) : 0;
	if (before(tp->rcv_nxt + n + window, edge))
		window = max_t(int, edge - (tp->rcv_nxt + n), 0);
	WRITE_ONCE(tp->rcv_wnd, window);
	smp_wmb();
	shunt_note_received(sk, n);

	__skb_queue_tail(&sk->sk_receive_queue, skb);
	skb_set_owner_r(skb, sk);
	shunt_ring_consume(&half->rx, n);
	shunt_count(SETTLED);
	if (announce && tcp_epollin_ready(sk, READ_ONCE(sk->sk_rcvlowat)))
		READ_ONCE(sk->sk_data_ready)(sk);
}

void shunt_settle(struct shunt_half *half)
{
	u32 n = shunt_ring_used(&half->rx);

	SHUNT_ASSERT(sock_owned_by_user_nocheck(half->sk));
	if (n)
		order_execute(half, order_alloc(n), !half->reads_ring);
}

/*
 * Settles target's ring under its slock, or through its backlog if a task owns
 * it. The order goes to the backlog only while the ring holds bytes: a target
 * that has detached is sealed and empty, so it never gets one (it flushes its
 * backlog after it emptied the ring, and the slock orders the two).
 */
static void settle_from_outside(struct shunt_half *target, bool announce)
{
	struct sock *sk = target->sk;
	struct sk_buff *order;
	u32 n = shunt_ring_used(&target->rx);

	if (!n)
		return;
	order = order_alloc(n);
	local_bh_disable();
	bh_lock_sock_nested(sk);
	if (!sock_owned_by_user(sk))
		order_execute(target, order, announce || !target->reads_ring);
	else if (!shunt_ring_used(&target->rx) || sk_add_backlog(sk, order, INT_MAX))
		kfree_skb(order);
	bh_unlock_sock(sk);
	local_bh_enable();
}

void shunt_settle_peer(struct shunt_half *half)
{
	struct tcp_sock *tp = tcp_sk(half->sk);
	const struct tcp_sock *peer = tcp_sk(half->peer->sk);
	u32 edge;

	SHUNT_ASSERT(sock_owned_by_user_nocheck(half->sk));
	if (!half->armed)
		return;
	settle_from_outside(half->peer, false);
	/* The peer may be owned, so this may be old; an old edge is a valid one. */
	edge = READ_ONCE(peer->rcv_wup);
	smp_rmb();
	edge += READ_ONCE(peer->rcv_wnd);
	if (before(edge, tp->snd_nxt))
		edge = tp->snd_nxt;
	tp->snd_wnd = edge - (SHUNT_MUTANT(9) ? tp->write_seq : tp->snd_una);
}

void shunt_settle_stale(struct shunt_half *half)
{
	/* A second announcement is worth it here: a task that slept in TCP's
	 * recv since before the pair was joined may be the only reader left.
	 */
	settle_from_outside(half, true);
}

int shunt_backlog_rcv(struct sock *sk, struct sk_buff *skb)
{
	/* Owned by the task that runs its backlog, so this is current. */
	struct shunt_half *half = shunt_half_of(sk);

	if (is_order(skb)) {
		order_execute(half, skb, !half->reads_ring);
		return 0;
	}
	return half->base_backlog_rcv(sk, skb);
}

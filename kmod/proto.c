// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an attached socket does with each call. The rule: a plain send or recv
 * goes by the ring; everything else is TCP's, after settling. Every function
 * here begins with enter() and ends with leave(), so that unloading can wait.
 */
#include <linux/delay.h>
#include <linux/net.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/splice.h>
#include <linux/version.h>
#include <net/busy_poll.h>
#include <net/tcp.h>

#include "debug.h"
#include "pair.h"
#include "proto.h"
#include "settle.h"

/* With flags other than these a call is TCP's. */
#define PLAIN_SEND (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_EOR)
#define PLAIN_RECV (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC | MSG_CMSG_COMPAT)

/*
 * How long a blocking sender waits for the reader before it settles a full
 * ring: long enough for a reader on the same CPU to get its turn.
 */
#define ROOM_WAIT (msecs_to_jiffies(4) + 1)

enum { V4, V6, FAMILIES };

static struct {
	struct proto *base_proto; /* NULL: the family is off */
	const struct proto_ops *base_ops;
	struct proto proto;
	struct proto_ops ops;
} families[FAMILIES];

/* Calls inside this module, one increment and one decrement each. */
static DEFINE_PER_CPU(long, calls);

static void enter(void)
{
	this_cpu_inc(calls);
}

static void leave(void)
{
	this_cpu_dec(calls);
}

/* v4-mapped sockets are AF_INET6, and so is their protocol. */
static unsigned int family_of(const struct sock *sk)
{
	return sk->sk_family == AF_INET6 && !SHUNT_MUTANT(1) ? V6 : V4;
}

bool shunt_proto_is_base(const struct sock *sk)
{
	unsigned int family = sk->sk_family == AF_INET6 ? V6 : V4;

	return families[family].base_proto && sk->sk_prot == families[family].base_proto &&
	       (!sk->sk_socket || sk->sk_socket->ops == families[family].base_ops);
}

struct proto *shunt_proto_of(const struct sock *sk)
{
	return &families[family_of(sk)].proto;
}

const struct proto_ops *shunt_ops_of(const struct sock *sk)
{
	return &families[family_of(sk)].ops;
}

bool shunt_proto_is_ours(const struct proto *proto)
{
	return proto == &families[V4].proto || proto == &families[V6].proto;
}

/* Locks sk and returns its end; NULL if it has left since the call began. */
static struct shunt_half *lock_half(struct sock *sk)
{
	struct shunt_half *half;

	lock_sock(sk);
	half = shunt_half_of(sk);
	if (half)
		shunt_half_open(half);
	return half;
}

/*
 * A call that would block has found its end detached and has done nothing yet.
 * It must not sleep on plain TCP with a return address in this module, perhaps
 * for hours. So the system call starts again, from user space, on plain TCP:
 * the same way the freezer and ptrace interrupt a call without its noticing.
 * False for callers that are not system calls; those go on inside.
 */
static bool restart(int *ret)
{
	if (current->flags & (PF_KTHREAD | PF_IO_WORKER))
		return false;
	set_thread_flag(TIF_SIGPENDING);
	*ret = -ERESTARTNOINTR;
	shunt_count(RESTARTED);
	return true;
}

/* --- sending --- */

/*
 * Opens the direction end → peer: from here on the ring continues where TCP's
 * delivery ended, and only a send by TCP on this very socket can change that,
 * so the fast path need not look again. Own lock.
 */
static bool arm(struct shunt_half *half)
{
	struct sock *sk = half->sk, *peer = half->peer->sk;
	struct tcp_sock *pt = tcp_sk(peer);
	bool ok;

	lockdep_assert(lockdep_sock_is_held(sk));
	/* A pacing rate and a socket filter are promises about segments. */
	if (READ_ONCE(sk->sk_max_pacing_rate) != ~0UL || half->tcp_senders)
		return false;
	local_bh_disable();
	bh_lock_sock_nested(peer);
	ok = !sock_owned_by_user(peer) && peer->sk_state == TCP_ESTABLISHED &&
	     !(peer->sk_shutdown & RCV_SHUTDOWN) && !rcu_access_pointer(peer->sk_filter) &&
	     shunt_half_open(half->peer) && !shunt_ring_sealed(&half->peer->rx) &&
	     pt->rcv_nxt == tcp_sk(sk)->write_seq && RB_EMPTY_ROOT(&pt->out_of_order_queue);
	if (ok) {
		/* Nobody owns it, so no order to settle is pending: empty. */
		SHUNT_ASSERT(!shunt_ring_used(&half->peer->rx));
		/* Count the window from rcv_nxt, as the ring moves both. */
		pt->rcv_wnd = tcp_receive_window(pt);
		pt->rcv_wup = pt->rcv_nxt;
	}
	bh_unlock_sock(peer);
	local_bh_enable();
	if (ok)
		shunt_count(ARMED);
	return ok;
}

/*
 * Room in the peer's ring. Never beyond the window that the peer has offered,
 * so that an ACK we send while bytes are unsettled is in its window.
 */
static u32 room(const struct shunt_half *half)
{
	u32 limit = min(SHUNT_RING_SIZE, READ_ONCE(tcp_sk(half->peer->sk)->rcv_wnd));
	u32 used = shunt_ring_used(&half->peer->rx);

	return limit > used ? limit - used : 0;
}

static bool sender_may_block(const struct sock *sk, const struct msghdr *msg)
{
	return !(msg->msg_flags & MSG_DONTWAIT) && sk->sk_socket && sk->sk_socket->file &&
	       !(sk->sk_socket->file->f_flags & O_NONBLOCK);
}

/* Own lock, dropped while asleep: the end may be detached afterwards. */
static void wait_for_room(struct shunt_half *half)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	struct sock *sk = half->sk;
	long timeout = ROOM_WAIT;

	shunt_count(WAITED);
	add_wait_queue(sk_sleep(sk), &wait);
	WRITE_ONCE(half->waits_for_room, true);
	smp_mb(); /* pairs with take_from_ring(): it sees us, or we see its room */
	sk_wait_event(sk, &timeout,
		      room(half) || sk->sk_err || (sk->sk_shutdown & SEND_SHUTDOWN) ||
		      shunt_ring_sealed(&half->peer->rx), &wait);
	WRITE_ONCE(half->waits_for_room, false);
	remove_wait_queue(sk_sleep(sk), &wait);
}

/*
 * Why the next byte cannot go by the ring, or SENT if it can. Own lock; looks
 * at the peer without its lock, where an old answer is a valid one: had the
 * call come a moment earlier, it would have got it.
 */
static enum shunt_kmod_exit obstacle(struct shunt_half *half, const struct msghdr *msg)
{
	const struct sock *sk = half->sk, *peer = half->peer->sk;
	const struct tcp_sock *tp = tcp_sk(sk);

	if (sk->sk_state != TCP_ESTABLISHED || (sk->sk_shutdown & SEND_SHUTDOWN) || sk->sk_err)
		return SHUNT_KMOD_EXIT_TCP_STATE;
	if ((msg->msg_flags & ~PLAIN_SEND) || msg->msg_controllen ||
	    (READ_ONCE(sk->sk_tsflags) & SOF_TIMESTAMPING_TX_RECORD_MASK))
		return SHUNT_KMOD_EXIT_TCP_FLAGS;
	if (tcp_send_head(sk) || tp->snd_nxt != tp->write_seq)
		return SHUNT_KMOD_EXIT_TCP_UNSENT;
	if (READ_ONCE(peer->sk_state) != TCP_ESTABLISHED ||
	    (READ_ONCE(peer->sk_shutdown) & RCV_SHUTDOWN))
		return SHUNT_KMOD_EXIT_TCP_PEER;
	if (shunt_ring_sealed(&half->peer->rx))
		return SHUNT_KMOD_EXIT_TCP_SEALED;
	if (!half->armed && !(half->armed = arm(half)))
		return SHUNT_KMOD_EXIT_TCP_UNARMED;
	return SHUNT_KMOD_EXIT_SENT;
}

/*
 * Sends by the ring until msg is empty, or as far as it goes. Own lock. Says
 * in *why what TCP must do the rest for (SENT: nothing is left, or -EFAULT).
 * The caller holds a reference to the pair: the end may be detached inside.
 */
static int send_by_ring(struct shunt_half *half, struct msghdr *msg, enum shunt_kmod_exit *why)
{
	struct shunt_half *peer = half->peer;
	struct sock *sk = half->sk;
	bool waited = false;
	int sent = 0;
	u32 n;

	while (msg_data_left(msg)) {
		if (!half->attached)
			*why = SHUNT_KMOD_EXIT_TCP_SEALED;
		else
			*why = obstacle(half, msg);
		if (*why != SHUNT_KMOD_EXIT_SENT)
			return sent;
		n = min_t(size_t, msg_data_left(msg), room(half));
		if (!n) {
			if (!waited && sender_may_block(sk, msg)) {
				waited = true;
				wait_for_room(half);
				continue;
			}
			/* As much may lie unread as TCP would let lie. */
			*why = SHUNT_KMOD_EXIT_TCP_FULL;
			if (atomic_read(&peer->sk->sk_rmem_alloc) >= READ_ONCE(peer->sk->sk_rcvbuf))
				return sent;
			shunt_settle_peer(half);
			if (!room(half))
				return sent;
			waited = false;
			continue;
		}
		if (!shunt_ring_stage(&peer->rx, &msg->msg_iter, n)) {
			*why = SHUNT_KMOD_EXIT_SENT;
			return sent ?: -EFAULT;
		}
		if (!shunt_ring_publish(&peer->rx, n)) {
			iov_iter_revert(&msg->msg_iter, n);
			*why = SHUNT_KMOD_EXIT_TCP_SEALED;
			return sent;
		}
		shunt_note_sent(sk, n);
		WRITE_ONCE(half->sent_bytes, half->sent_bytes + n);
		shunt_count(SENT);
		sent += n;
		waited = false;
		/* Until a recv has come by the ring, the reader may be a task
		 * that slept in TCP's recv when the pair was joined.
		 */
		if (READ_ONCE(peer->reads_ring))
			READ_ONCE(peer->sk->sk_data_ready)(peer->sk);
		else
			shunt_settle_peer(half);
	}
	*why = SHUNT_KMOD_EXIT_SENT;
	return sent;
}

static int shunt_sendmsg(struct sock *sk, struct msghdr *msg, size_t size)
{
	enum shunt_kmod_exit why;
	struct shunt_half *half;
	int sent, ret;

	enter();
	half = lock_half(sk);
	if (!half) {
		release_sock(sk);
		if ((msg->msg_flags & MSG_DONTWAIT) || !restart(&ret))
			ret = READ_ONCE(sk->sk_prot)->sendmsg(sk, msg, size);
		goto out;
	}
	shunt_pair_get(half->pair);
	sent = ret = send_by_ring(half, msg, &why);
	if (why != SHUNT_KMOD_EXIT_SENT) {
		this_cpu_inc(shunt_counters.value[why]);
		if (half->attached) {
			shunt_settle_peer(half);
			half->armed = false;
		}
		/* It may sleep and drop the lock in mid-message, so nobody may
		 * arm meanwhile. It sleeps inside this module, which unloading
		 * waits for: part of the message is gone already, and no other
		 * than this call can send the rest.
		 */
		half->tcp_senders++;
		ret = tcp_sendmsg_locked(sk, msg, msg_data_left(msg));
		half->tcp_senders--;
		if (sent)
			ret = sent + max(ret, 0);
	}
	shunt_pair_put(half->pair);
	release_sock(sk);
out:
	leave();
	return ret;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
static int shunt_sendpage(struct sock *sk, struct page *page, int offset, size_t size, int flags)
{
	struct shunt_half *half;
	int ret;

	enter();
	half = lock_half(sk);
	if (half) {
		shunt_count(TCP_FLAGS);
		shunt_pair_get(half->pair);
		shunt_settle_peer(half);
		half->armed = false;
		half->tcp_senders++;
		ret = tcp_sendpage_locked(sk, page, offset, size, flags);
		half->tcp_senders--;
		shunt_pair_put(half->pair);
		release_sock(sk);
	} else {
		release_sock(sk);
		ret = READ_ONCE(sk->sk_prot)->sendpage(sk, page, offset, size, flags);
	}
	leave();
	return ret;
}
#endif

/* --- receiving --- */

/* Would TCP's recv return at once with this low-water mark? Own lock. */
static bool tcp_is_ready(const struct sock *sk, int target)
{
	return tcp_epollin_ready(sk, target) || sk->sk_err ||
	       (sk->sk_shutdown & RCV_SHUTDOWN) || sk->sk_state == TCP_CLOSE ||
	       sock_flag(sk, SOCK_DONE);
}

/*
 * Sleeps until ready is true of the socket, or its end is detached. Own lock,
 * dropped while asleep; the caller holds a reference to the pair. Returns 0 to
 * look again, or the error to return.
 */
#define sleep_on_half(half, timeout, ready)                                               \
({                                                                                      \
	DEFINE_WAIT_FUNC(wait_, woken_wake_function);                                   \
	struct sock *sk_ = (half)->sk;                                                   \
	int error_ = 0;                                                                 \
											\
	if (!*(timeout)) {                                                              \
		error_ = -EAGAIN;                                                       \
	} else if (signal_pending(current)) {                                           \
		error_ = sock_intr_errno(*(timeout));                                   \
	} else {                                                                        \
		add_wait_queue(sk_sleep(sk_), &wait_);                                  \
		sk_set_bit(SOCKWQ_ASYNC_WAITDATA, sk_);                                 \
		smp_mb(); /* the bit before the look, as sk_wait_data() does */         \
		error_ = sk_wait_event(sk_, timeout, (ready) || !(half)->attached, &wait_);\
		error_ = min(error_, 0);                                                \
		sk_clear_bit(SOCKWQ_ASYNC_WAITDATA, sk_);                               \
		remove_wait_queue(sk_sleep(sk_), &wait_);                               \
	}                                                                               \
	error_;                                                                         \
})

/*
 * A window in which the receiver is plain TCP: its ring is sealed and empty.
 * Own lock for both halves; the lock may be dropped between them, and the end
 * may be detached by the time it closes.
 */
static void tcp_window_open(struct shunt_half *half)
{
	shunt_pair_get(half->pair);
	shunt_ring_seal(&half->rx);
	shunt_settle(half);
}

static void tcp_window_close(struct shunt_half *half)
{
	shunt_ring_unseal(&half->rx);
	shunt_pair_put(half->pair);
}

/*
 * recv by TCP. lock_sock held on entry, released on return. TCP is asked only
 * once it can answer, so that the task sleeps in this module's loop and not in
 * TCP's, where detaching could not reach it.
 */
static int recv_by_tcp(struct shunt_half *half, struct msghdr *msg, size_t len, int flags,
		       int *addr_len)
{
	struct sock *sk = half->sk;
	struct proto *base = half->base_proto;
	long timeout = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	bool waits_for_all = (flags & MSG_WAITALL) && !(flags & MSG_PEEK);
	int total = 0, ret;

	tcp_window_open(half);
	/* These two never wait. */
	if (flags & (MSG_OOB | MSG_ERRQUEUE))
		timeout = 0;
	for (;;) {
		int target = sock_rcvlowat(sk, flags & MSG_WAITALL, len - total);

		while (timeout && half->attached && !tcp_is_ready(sk, target)) {
			ret = sleep_on_half(half, &timeout, tcp_is_ready(sk, target));
			if (ret)
				goto out;
		}
		if (!half->attached && timeout && !total && restart(&ret))
			goto out;
		release_sock(sk);
		/* Once detached there is nobody to wake us, so TCP waits. */
		ret = base->recvmsg(sk, msg, len - total,
				    READ_ONCE(half->attached) ? flags | MSG_DONTWAIT : flags,
				    addr_len);
		lock_sock(sk);
		if (ret == -EAGAIN && timeout && len)
			continue; /* another task was faster */
		if (ret <= 0)
			goto out;
		total += ret;
		ret = 0;
		if (!waits_for_all || total == len || !timeout)
			goto out;
	}
out:
	tcp_window_close(half);
	release_sock(sk);
	return total ?: ret;
}

/* Takes up to len bytes from a ring that is not empty. Own lock. */
static int take_from_ring(struct shunt_half *half, struct msghdr *msg, size_t len)
{
	struct sock *sk = half->sk;
	struct tcp_sock *tp = tcp_sk(sk);
	u32 n = min_t(size_t, shunt_ring_used(&half->rx), len);

	SHUNT_ASSERT(tp->copied_seq == tp->rcv_nxt);
	if (!shunt_ring_peek_iter(&half->rx, &msg->msg_iter, n))
		return -EFAULT;
	shunt_note_received(sk, n);
	WRITE_ONCE(tp->copied_seq, tp->copied_seq + n);
	/* These bytes say nothing about the size that the receive buffer needs. */
	tp->rcvq_space.seq += n;
	shunt_ring_consume(&half->rx, n);
	smp_mb(); /* pairs with wait_for_room() */
	if (READ_ONCE(half->peer->waits_for_room))
		shunt_wake(half->peer->sk);
	return n;
}

/* Spins within the socket's own busy-poll budget. No lock; the pair is referenced. */
static void busy_wait(const struct shunt_half *half)
{
#ifdef CONFIG_NET_RX_BUSY_POLL
	const struct sock *sk = half->sk;
	u64 until = local_clock() + (u64)READ_ONCE(sk->sk_ll_usec) * NSEC_PER_USEC;

	while (!shunt_ring_used(&half->rx) && READ_ONCE(half->attached) &&
	       skb_queue_empty_lockless(&sk->sk_receive_queue) && !READ_ONCE(sk->sk_err) &&
	       !(READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN) && local_clock() < until &&
	       !need_resched() && !signal_pending(current))
		cpu_relax();
#endif
}

static bool may_busy_wait(const struct sock *sk)
{
#ifdef CONFIG_NET_RX_BUSY_POLL
	return READ_ONCE(sk->sk_ll_usec);
#else
	return false;
#endif
}

/* What TCP holds comes before what the ring holds. Own lock. */
static bool tcp_holds_bytes(const struct sock *sk)
{
	return tcp_sk(sk)->copied_seq != tcp_sk(sk)->rcv_nxt;
}

/* TCP has something to say that no ring carries. Own lock. */
static bool tcp_has_news(const struct sock *sk)
{
	return sk->sk_err || sk->sk_state != TCP_ESTABLISHED ||
	       (sk->sk_shutdown & RCV_SHUTDOWN) || sock_flag(sk, SOCK_DONE);
}

/* A plain recv. lock_sock held on entry, released on return. */
static int recv_by_ring(struct shunt_half *half, struct msghdr *msg, size_t len, int flags,
			int *addr_len)
{
	struct sock *sk = half->sk;
	long timeout = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	bool spun = !may_busy_wait(sk);
	int ret;

	shunt_pair_get(half->pair);
	WRITE_ONCE(half->reads_ring, true);
	for (;;) {
		if (!half->attached) {
			if (timeout && restart(&ret))
				break;
			release_sock(sk);
			ret = READ_ONCE(sk->sk_prot)->recvmsg(sk, msg, len, flags, addr_len);
			goto unlocked;
		}
		if (tcp_holds_bytes(sk)) {
			/* One recv sees what TCP and the ring hold as one. */
			if (tcp_sk(sk)->rcv_nxt - tcp_sk(sk)->copied_seq < len)
				shunt_settle(half);
			release_sock(sk);
			ret = half->base_proto->recvmsg(sk, msg, len, flags | MSG_DONTWAIT,
						       addr_len);
			if (ret != -EAGAIN || !timeout)
				goto unlocked;
			lock_sock(sk); /* another task was faster, or urgent data */
			continue;
		}
		if (shunt_ring_used(&half->rx)) {
			ret = take_from_ring(half, msg, len);
			break;
		}
		if (tcp_has_news(sk)) {
			ret = recv_by_tcp(half, msg, len, flags, addr_len);
			goto unlocked;
		}
		if (!spun && timeout) {
			spun = true;
			release_sock(sk);
			busy_wait(half);
			lock_sock(sk);
			continue;
		}
		ret = sleep_on_half(half, &timeout,
				   shunt_ring_used(&half->rx) || tcp_holds_bytes(sk) ||
				   tcp_has_news(sk));
		if (ret)
			break;
	}
	release_sock(sk);
unlocked:
	shunt_pair_put(half->pair);
	return ret;
}

static int shunt_recvmsg(struct sock *sk, struct msghdr *msg, size_t len, int flags, int *addr_len)
{
	struct shunt_half *half;
	int ret;

	enter();
	half = lock_half(sk);
	if (!half) {
		release_sock(sk);
		if ((flags & MSG_DONTWAIT) || !restart(&ret))
			ret = READ_ONCE(sk->sk_prot)->recvmsg(sk, msg, len, flags, addr_len);
	} else if ((flags & ~PLAIN_RECV) || !len || half->low_water_sealed ||
		   tcp_sk(sk)->recvmsg_inq) {
		ret = recv_by_tcp(half, msg, len, flags, addr_len);
	} else {
		ret = recv_by_ring(half, msg, len, flags, addr_len);
	}
	leave();
	return ret;
}

static ssize_t shunt_splice_read(struct socket *sock, loff_t *position,
				 struct pipe_inode_info *pipe, size_t len, unsigned int flags)
{
	struct sock *sk = sock->sk;
	struct shunt_half *half;
	long timeout;
	int ret = 0;

	enter();
	half = lock_half(sk);
	if (!half) {
		release_sock(sk);
		ret = READ_ONCE(sock->ops)->splice_read(sock, position, pipe, len, flags);
		goto out;
	}
	tcp_window_open(half);
	timeout = sock_rcvtimeo(sk, sock->file->f_flags & O_NONBLOCK);
	while (timeout && half->attached && !tcp_is_ready(sk, 1) && !ret)
		ret = sleep_on_half(half, &timeout, tcp_is_ready(sk, 1));
	if (!ret && (half->attached || !timeout || !restart(&ret))) {
		release_sock(sk);
		ret = half->base_ops->splice_read(sock, position, pipe, len, flags);
		lock_sock(sk);
	}
	tcp_window_close(half);
	release_sock(sk);
out:
	leave();
	return ret;
}

/* poll: whether the ring makes the socket readable. No lock. */
static bool shunt_is_readable(struct sock *sk)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct shunt_half *half;
	bool readable = false;
	u32 used;

	enter();
	rcu_read_lock();
	half = shunt_half_of(sk);
	used = half ? shunt_ring_used(&half->rx) : 0;
	if (used)
		readable = used + READ_ONCE(tp->rcv_nxt) - READ_ONCE(tp->copied_seq) >=
			   sock_rcvlowat(sk, 0, INT_MAX);
	rcu_read_unlock();
	leave();
	return readable;
}

/* --- looking and setting --- */

static void settle_now(struct sock *sk)
{
	struct shunt_half *half = lock_half(sk);

	if (half)
		shunt_settle(half);
	release_sock(sk);
}

/*
 * The protocol under an end, or what the socket has become without one. A ULP
 * on top calls down, never up: half_release() says how one can be there.
 */
static const struct proto *proto_below(struct sock *sk)
{
	const struct proto *proto = READ_ONCE(sk->sk_prot);

	return shunt_proto_is_ours(proto) || inet_csk_has_ulp(sk) ?
	       families[family_of(sk)].base_proto : proto;
}

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
typedef unsigned long shunt_ioctl_arg;
#else
typedef int *shunt_ioctl_arg;
#endif

static int shunt_ioctl(struct sock *sk, int cmd, shunt_ioctl_arg arg)
{
	int ret;

	enter();
	settle_now(sk);
	ret = proto_below(sk)->ioctl(sk, cmd, arg);
	leave();
	return ret;
}

static int shunt_getsockopt(struct sock *sk, int level, int name, char __user *value,
			    int __user *len)
{
	int ret;

	enter();
	if (level == SOL_TCP)
		settle_now(sk);
	ret = proto_below(sk)->getsockopt(sk, level, name, value, len);
	leave();
	return ret;
}

/* Options that change what the socket is, or that take its queues apart. */
static bool option_needs_tcp(int level, int name)
{
	if (level == SOL_TCP)
		return (name == TCP_ULP && !SHUNT_MUTANT(8)) || name == TCP_REPAIR ||
		       name == TCP_MD5SIG || name == TCP_MD5SIG_EXT;
	return level == SOL_IPV6 && name == IPV6_ADDRFORM;
}

static int shunt_setsockopt(struct sock *sk, int level, int name, sockptr_t value,
			    unsigned int len)
{
	struct shunt_half *half;
	int ret;

	enter();
	if (option_needs_tcp(level, name)) {
		half = lock_half(sk);
		if (half)
			shunt_half_detach(half, SHUNT_KMOD_EXIT_LEFT_OPTION);
		release_sock(sk);
	}
	ret = proto_below(sk)->setsockopt(sk, level, name, value, len);
	leave();
	return ret;
}

/*
 * SO_RCVLOWAT above one: the reader is TCP's for good. sk is locked, but
 * perhaps by a BPF program that cannot sleep, so what lies in the ring is left
 * to poll (which counts it), to the next recv and to the sweeper.
 */
static int shunt_set_rcvlowat(struct sock *sk, int value)
{
	struct shunt_half *half;
	int ret;

	enter();
	half = shunt_half_of(sk);
	if (half && (value > 1) != half->low_water_sealed) {
		half->low_water_sealed = value > 1;
		if (value > 1)
			shunt_ring_seal(&half->rx);
		else
			shunt_ring_unseal(&half->rx);
	}
	ret = families[family_of(sk)].base_ops->set_rcvlowat(sk, value);
	leave();
	return ret;
}

/* --- leaving --- */

/* lock_sock held. */
static void shunt_shutdown(struct sock *sk, int how)
{
	struct shunt_half *half;

	enter();
	half = shunt_half_of(sk);
	if (half && (how & SEND_SHUTDOWN)) {
		shunt_settle_peer(half);
		half->armed = false;
	}
	proto_below(sk)->shutdown(sk, how);
	leave();
}

static void shunt_close(struct sock *sk, long timeout)
{
	struct shunt_half *half;

	enter();
	half = lock_half(sk);
	if (half)
		shunt_half_detach(half, SHUNT_KMOD_EXIT_LEFT_CLOSED);
	release_sock(sk);
	READ_ONCE(sk->sk_prot)->close(sk, timeout);
	leave();
}

/*
 * connect(AF_UNSPEC), lock_sock held. The only way by which a socket that has
 * been ESTABLISHED can become so again, so no end outlives its connection.
 */
static int shunt_disconnect(struct sock *sk, int flags)
{
	struct shunt_half *half;
	int ret;

	enter();
	half = shunt_half_of(sk);
	if (half && !SHUNT_MUTANT(4))
		shunt_half_detach(half, SHUNT_KMOD_EXIT_LEFT_DISCONNECTED);
	ret = proto_below(sk)->disconnect(sk, flags);
	leave();
	return ret;
}

/*
 * The socket is destroyed, under its slock. Two kinds get here attached: one
 * that nobody accepted, whose listener has closed; and one that was joined
 * between close()'s fetching TCP's function and its taking the lock. The peer
 * of the latter may find the FIN ahead of bytes in its ring: TCP sends the FIN
 * again, and by then they are settled.
 */
static void shunt_destroy(struct sock *sk)
{
	struct shunt_half *half;

	enter();
	half = shunt_half_of(sk);
	if (half)
		shunt_half_abandon(half);
	proto_below(sk)->destroy(sk);
	leave();
}

/* SOCK_DESTROY: the reset it sends is a real segment, so the peer's ring settles first. */
static int shunt_diag_destroy(struct sock *sk, int error)
{
	struct shunt_half *half;
	int ret;

	enter();
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	if (has_current_bpf_ctx()) /* holds the lock, and may not sleep */
		goto out;
#endif
	half = lock_half(sk);
	if (half)
		shunt_half_detach(half, SHUNT_KMOD_EXIT_LEFT_DISCONNECTED);
	release_sock(sk);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
out:
#endif
	ret = proto_below(sk)->diag_destroy(sk, error);
	leave();
	return ret;
}

/* --- life of the copies --- */

/* The base of a family is what a fresh socket of it has. */
static int family_init(unsigned int family, int domain)
{
	struct socket *sock;
	struct proto *proto;
	int error = sock_create_kern(&init_net, domain, SOCK_STREAM, IPPROTO_TCP, &sock);

	if (error)
		return error;
	families[family].base_proto = sock->sk->sk_prot;
	families[family].base_ops = sock->ops;
	sock_release(sock);

	families[family].ops = *families[family].base_ops;
	families[family].ops.splice_read = shunt_splice_read;
	families[family].ops.set_rcvlowat = shunt_set_rcvlowat;

	proto = &families[family].proto;
	*proto = *families[family].base_proto;
	proto->sendmsg = shunt_sendmsg;
	proto->recvmsg = shunt_recvmsg;
	proto->sock_is_readable = shunt_is_readable;
	proto->ioctl = shunt_ioctl;
	proto->getsockopt = shunt_getsockopt;
	proto->setsockopt = shunt_setsockopt;
	proto->shutdown = shunt_shutdown;
	proto->close = shunt_close;
	proto->disconnect = shunt_disconnect;
	proto->destroy = shunt_destroy;
	proto->diag_destroy = shunt_diag_destroy;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
	proto->sendpage = shunt_sendpage;
#endif
	return 0;
}

int __init shunt_proto_init(void)
{
	int error = family_init(V4, AF_INET);

	if (!error)
		error = family_init(V6, AF_INET6);
	return error == -EAFNOSUPPORT ? 0 : error;
}

void shunt_proto_wait_for_calls(void)
{
	unsigned int waits = 0;
	long inside;
	int cpu;

	/* A task may have fetched our protocol before its end was detached and
	 * not have entered yet. It does not sleep in between, so after this
	 * every such task has entered, and the sum below can only fall.
	 */
	synchronize_rcu_tasks();
	for (;;) {
		inside = 0;
		for_each_possible_cpu(cpu)
			inside += READ_ONCE(per_cpu(calls, cpu));
		if (!inside)
			break;
		if (++waits % 1000 == 0)
			pr_warn("unloading waits for %ld calls in flight: senders that are blocked in mid-message, until their peers read or they are killed\n",
				inside);
		msleep(10);
	}
	/* A task that has left enter()..leave() has yet to return. */
	synchronize_rcu_tasks();
}

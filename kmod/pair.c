// SPDX-License-Identifier: GPL-2.0-only
#include <linux/delay.h>
#include <linux/hash.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <net/mptcp.h>
#include <net/tcp.h>

#include "conntrack.h"
#include "debug.h"
#include "pair.h"
#include "proto.h"
#include "settle.h"

#define BUCKET_BITS 10

/* How often a join asks again while bytes are on the way, and how long it waits. */
#define JOIN_ATTEMPTS 20
#define JOIN_PAUSE_US 50

/*
 * Bytes that lie in a ring for longer are settled, reader or not. TCP's timers
 * count in seconds, so no keepalive probe, and nobody who reads socket state
 * from outside (ss), finds bytes older than this unsettled.
 */
#define SWEEP_INTERVAL (HZ / 4)

struct bucket {
	spinlock_t lock; /* the list, and node of each pair in it */
	struct hlist_head pairs;
};

static struct bucket table[1 << BUCKET_BITS];
static atomic64_t last_id;
static struct workqueue_struct *split_queue;

static void sweep(struct work_struct *work);
static DECLARE_DELAYED_WORK(sweeper, sweep);

static struct bucket *bucket_of(u64 id)
{
	return &table[hash_64(id, BUCKET_BITS)];
}

/* --- references --- */

static void pair_free_rcu(struct rcu_head *rcu)
{
	struct shunt_pair *pair = container_of(rcu, struct shunt_pair, rcu);
	int i;

	for (i = 0; i < 2; i++) {
		SHUNT_ASSERT(!pair->halves[i].attached);
		if (pair->halves[i].sk)
			sock_put(pair->halves[i].sk);
		shunt_ring_free(&pair->halves[i].rx);
	}
	shunt_owner_put(pair->owner);
	kfree(pair);
}

void shunt_pair_get(struct shunt_pair *pair)
{
	refcount_inc(&pair->references);
}

void shunt_pair_put(struct shunt_pair *pair)
{
	if (refcount_dec_and_test(&pair->references))
		call_rcu(&pair->rcu, pair_free_rcu);
}

void shunt_owner_put(struct shunt_owner *owner)
{
	if (refcount_dec_and_test(&owner->references))
		kfree(owner);
}

/* --- the table --- */

static void pair_link(struct shunt_pair *pair)
{
	struct bucket *bucket = bucket_of(pair->id);

	shunt_pair_get(pair);
	atomic_inc(&pair->owner->pairs);
	spin_lock_bh(&bucket->lock);
	hlist_add_head_rcu(&pair->node, &bucket->pairs);
	spin_unlock_bh(&bucket->lock);
}

/*
 * First phase of removal, entered by whoever is first: either end's close, an
 * unpair, the owner. From here on nobody finds the pair; those who found it
 * before hold a reference, or look under rcu_read_lock().
 */
static void pair_unlink(struct shunt_pair *pair)
{
	struct bucket *bucket = bucket_of(pair->id);
	bool linked;

	if (!SHUNT_MUTANT(3))
		spin_lock_bh(&bucket->lock);
	lockdep_assert_held(&bucket->lock);
	SHUNT_ASSERT(spin_is_locked(&bucket->lock));
	linked = !hlist_unhashed(&pair->node);
	if (linked)
		hlist_del_init_rcu(&pair->node);
	if (!SHUNT_MUTANT(3))
		spin_unlock_bh(&bucket->lock);
	if (!linked)
		return;
	atomic_dec(&pair->owner->pairs);
	shunt_pair_put(pair);
}

/* A referenced pair after the given position in bucket order, or NULL. */
static struct shunt_pair *pair_next(u64 *cursor)
{
	u32 index = *cursor >> 32;
	u32 skip = (u32)*cursor;
	struct shunt_pair *pair;

	rcu_read_lock();
	for (; index < ARRAY_SIZE(table); index++, skip = 0) {
		u32 seen = 0;

		hlist_for_each_entry_rcu(pair, &table[index].pairs, node) {
			if (seen++ < skip || !refcount_inc_not_zero(&pair->references))
				continue;
			rcu_read_unlock();
			*cursor = (u64)index << 32 | seen;
			return pair;
		}
	}
	rcu_read_unlock();
	*cursor = (u64)ARRAY_SIZE(table) << 32;
	return NULL;
}

static struct shunt_pair *pair_find(u64 id)
{
	struct shunt_pair *pair;

	rcu_read_lock();
	hlist_for_each_entry_rcu(pair, &bucket_of(id)->pairs, node) {
		if (pair->id == id && refcount_inc_not_zero(&pair->references)) {
			rcu_read_unlock();
			return pair;
		}
	}
	rcu_read_unlock();
	return NULL;
}

u32 shunt_pair_list(u64 *cursor, struct shunt_kmod_record *records, u32 count)
{
	struct shunt_pair *pair;
	u32 filled = 0;

	while (filled < count && (pair = pair_next(cursor))) {
		const struct shunt_half *client = &pair->halves[SHUNT_CLIENT];
		const struct shunt_half *server = &pair->halves[SHUNT_SERVER];

		records[filled++] = (struct shunt_kmod_record){
			.pair_id = pair->id,
			.netns_cookie = pair->netns_cookie,
			.client_cookie = client->cookie,
			.server_cookie = server->cookie,
			.client_sent_bytes = READ_ONCE(client->sent_bytes),
			.server_sent_bytes = READ_ONCE(server->sent_bytes),
			.kept = READ_ONCE(pair->owner->closed),
		};
		shunt_pair_put(pair);
	}
	return filled;
}

/* --- ends --- */

struct shunt_half *shunt_half_of(const struct sock *sk)
{
	void *data = rcu_dereference_check(__sk_user_data(sk), lockdep_sock_is_held(sk));
	struct shunt_half *half = (void *)((uintptr_t)data & SK_USER_DATA_PTRMASK);

	/* Detaching restores sk_prot before it clears sk_user_data, which may
	 * then become another's: what was read is ours only if the protocol
	 * was ours still, afterwards.
	 */
	smp_rmb();
	return shunt_proto_is_ours(READ_ONCE(sk->sk_prot)) ? half : NULL;
}

void shunt_wake(struct sock *sk)
{
	struct socket_wq *wq;

	rcu_read_lock();
	wq = rcu_dereference(sk->sk_wq);
	if (skwq_has_sleeper(wq))
		wake_up_interruptible_all(&wq->wait);
	rcu_read_unlock();
}

bool shunt_half_open(struct shunt_half *half)
{
	struct sock *sk = half->sk;

	lockdep_assert(lockdep_sock_is_held(sk));
	if (half->base_ops)
		return true;
	if (!half->attached || !sk->sk_socket)
		return false;
	half->base_ops = sk->sk_socket->ops;
	WRITE_ONCE(sk->sk_socket->ops, shunt_ops_of(sk));
	/* SO_RCVLOWAT set so far has not come by our hook. */
	half->low_water_sealed = sk->sk_rcvlowat > 1;
	if (!half->low_water_sealed)
		shunt_ring_unseal(&half->rx);
	return true;
}

/* Own lock, or slock while nobody owns sk. Cannot fail: check_half() came first. */
static void half_attach(struct shunt_half *half)
{
	struct sock *sk = half->sk;

	lockdep_assert(lockdep_sock_is_held(sk));
	shunt_pair_get(half->pair);
	half->base_proto = sk->sk_prot;
	half->base_backlog_rcv = sk->sk_backlog_rcv;
	half->attached = true;
	write_lock_bh(&sk->sk_callback_lock);
	rcu_assign_sk_user_data(sk, half);
	write_unlock_bh(&sk->sk_callback_lock);
	sk->sk_backlog_rcv = shunt_backlog_rcv;
	/* Pairs with shunt_half_of(): whoever finds our protocol finds the end. */
	smp_wmb();
	WRITE_ONCE(sk->sk_prot, shunt_proto_of(sk));
	SHUNT_ASSERT(shunt_proto_of(sk)->backlog_rcv == half->base_proto->backlog_rcv);
	shunt_half_open(half);
}

/* The last step of leaving: the socket is not ours any more. Lock as for leaving. */
static void half_release(struct shunt_half *half, enum shunt_kmod_exit how)
{
	struct shunt_pair *pair = half->pair;
	struct sock *sk = half->sk;

	this_cpu_inc(shunt_counters.value[how]);
	SHUNT_ASSERT(!shunt_ring_used(&half->rx));
	if (half->base_ops && sk->sk_socket)
		WRITE_ONCE(sk->sk_socket->ops, half->base_ops);
	sk->sk_backlog_rcv = half->base_backlog_rcv;
	if (likely(shunt_proto_is_ours(sk->sk_prot))) {
		WRITE_ONCE(sk->sk_prot, SHUNT_MUTANT(1) ? &tcp_prot : half->base_proto);
	} else {
		/* A setsockopt(TCP_ULP) had fetched TCP's setsockopt before the
		 * socket was joined, and the ULP has wrapped our protocol and
		 * kept its address. That cannot be taken back, so the module stays.
		 */
		pr_warn("a ULP raced with pairing: the module cannot be unloaded any more\n");
		__module_get(THIS_MODULE);
	}
	smp_wmb(); /* pairs with shunt_half_of() */
	write_lock_bh(&sk->sk_callback_lock);
	rcu_assign_sk_user_data(sk, NULL);
	write_unlock_bh(&sk->sk_callback_lock);

	/* Tasks that sleep in our calls go over to TCP's. */
	shunt_wake(sk);

	pair_unlink(pair);
	if (!test_and_set_bit(0, &pair->split_queued)) {
		shunt_pair_get(pair);
		queue_work(split_queue, &pair->split);
	}
	shunt_pair_put(pair);
}

void shunt_half_detach(struct shunt_half *half, enum shunt_kmod_exit how)
{
	lockdep_assert(lockdep_sock_is_held(half->sk));
	if (!half->attached)
		return;
	WRITE_ONCE(half->attached, false);

	/* Sealed for good: from here on the peer cannot give us a byte. */
	shunt_ring_seal(&half->rx);
	shunt_settle(half);
	shunt_settle_peer(half);
	half->armed = false;
	/* Orders to settle sit in the backlog until our backlog_rcv takes them;
	 * with the ring empty no new one can come.
	 */
	sk_flush_backlog(half->sk);
	half_release(half, how);
}

void shunt_half_abandon(struct shunt_half *half)
{
	lockdep_assert(lockdep_sock_is_held(half->sk));
	WRITE_ONCE(half->attached, false);
	shunt_ring_seal(&half->rx);
	shunt_ring_consume(&half->rx, shunt_ring_used(&half->rx));
	half->armed = false;
	half_release(half, SHUNT_KMOD_EXIT_LEFT_CLOSED);
}

static void pair_split(struct shunt_pair *pair)
{
	int i;

	for (i = 0; i < 2; i++) {
		struct sock *sk = pair->halves[i].sk;

		lock_sock(sk);
		shunt_half_detach(&pair->halves[i], SHUNT_KMOD_EXIT_LEFT_SPLIT);
		release_sock(sk);
	}
}

static void pair_split_work(struct work_struct *work)
{
	struct shunt_pair *pair = container_of(work, struct shunt_pair, split);

	pair_split(pair);
	shunt_pair_put(pair);
}

int shunt_pair_unpair(u64 id)
{
	struct shunt_pair *pair = pair_find(id);

	if (!pair)
		return -ESRCH;
	pair_split(pair);
	shunt_pair_put(pair);
	return 0;
}

void shunt_pair_split_all(const struct shunt_owner *owner)
{
	struct shunt_pair *pair;
	u64 cursor = 0;

	/* A split shortens its bucket and shifts those behind it, so the walk
	 * starts over until it finds none.
	 */
	while ((pair = pair_next(&cursor))) {
		if (!owner || pair->owner == owner) {
			pair_split(pair);
			cursor = cursor & ~(u64)U32_MAX;
		}
		shunt_pair_put(pair);
	}
}

/* --- joining --- */

static int refuse(enum shunt_kmod_exit why, int error)
{
	this_cpu_inc(shunt_counters.value[why]);
	return error;
}

static bool state_is_refused(const struct sock *sk)
{
	if (SHUNT_MUTANT(2) || (SHUNT_MUTANT(6) && sk->sk_state == TCP_LISTEN))
		return false;
	return sk->sk_state != TCP_ESTABLISHED || sk->sk_shutdown;
}

/* Is this socket plain TCP and nobody else's? Own lock, or slock while nobody owns it. */
static int check_half(struct sock *sk)
{
	lockdep_assert(lockdep_sock_is_held(sk));
	if (!SHUNT_MUTANT(7) && state_is_refused(sk))
		return refuse(SHUNT_KMOD_EXIT_REFUSED_STATE, -EOPNOTSUPP);
	if (shunt_half_of(sk))
		return refuse(SHUNT_KMOD_EXIT_REFUSED_TWICE, -EALREADY);
	if (!shunt_proto_is_base(sk) || rcu_access_pointer(sk->sk_user_data) ||
	    inet_csk_has_ulp(sk) || sk_is_mptcp(sk))
		return refuse(SHUNT_KMOD_EXIT_REFUSED_OTHER_OWNER, -EBUSY);
	if (tcp_sk(sk)->repair)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_REPAIR, -EPERM);
	return 0;
}

/*
 * Are these the two ends of one connection? Proven while nothing is on the way
 * in either direction: then each has received exactly what the other has sent.
 * Both sockets are locked.
 */
static int check_sequences(const struct sock *one, const struct sock *other)
{
	const struct tcp_sock *a = tcp_sk(one), *b = tcp_sk(other);

	if (SHUNT_MUTANT(2) || SHUNT_MUTANT(6) || SHUNT_MUTANT(7))
		return 0;
	if (a->snd_nxt == a->write_seq && b->rcv_nxt == a->write_seq &&
	    b->snd_nxt == b->write_seq && a->rcv_nxt == b->write_seq &&
	    RB_EMPTY_ROOT(&a->out_of_order_queue) && RB_EMPTY_ROOT(&b->out_of_order_queue))
		return 0;
	if (a->snd_una == a->write_seq && b->snd_una == b->write_seq)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_STRANGERS, -EPROTO);
	return refuse(SHUNT_KMOD_EXIT_REFUSED_IN_FLIGHT, -EAGAIN);
}

/* One attempt. -EAGAIN: bytes on the way, or a task is inside the server. */
static int try_join(struct shunt_pair *pair)
{
	struct shunt_half *client = &pair->halves[SHUNT_CLIENT];
	struct shunt_half *server = &pair->halves[SHUNT_SERVER];
	int error;

	lock_sock(client->sk);
	local_bh_disable();
	bh_lock_sock_nested(server->sk);
	error = check_half(client->sk);
	if (!error)
		error = check_half(server->sk);
	if (!error && sock_owned_by_user(server->sk))
		error = refuse(SHUNT_KMOD_EXIT_REFUSED_IN_FLIGHT, -EAGAIN);
	if (!error)
		error = check_sequences(client->sk, server->sk);
	if (!error) {
		half_attach(client);
		half_attach(server);
	}
	bh_unlock_sock(server->sk);
	local_bh_enable();
	release_sock(client->sk);
	return error;
}

static struct shunt_pair *pair_alloc(struct shunt_owner *owner, u64 netns_cookie)
{
	struct shunt_pair *pair = kzalloc(sizeof(*pair), GFP_KERNEL);
	int i, error = 0;

	if (!pair)
		return NULL;
	for (i = 0; i < 2; i++) {
		pair->halves[i].pair = pair;
		pair->halves[i].peer = &pair->halves[!i];
		error = shunt_ring_init(&pair->halves[i].rx) ?: error;
	}
	if (error) {
		for (i = 0; i < 2; i++)
			shunt_ring_free(&pair->halves[i].rx);
		kfree(pair);
		return NULL;
	}
	pair->id = atomic64_inc_return(&last_id);
	pair->netns_cookie = netns_cookie;
	pair->owner = owner;
	refcount_inc(&owner->references);
	refcount_set(&pair->references, 1);
	INIT_WORK(&pair->split, pair_split_work);
	return pair;
}

int shunt_pair_join(struct shunt_owner *owner, u64 netns_cookie, struct sock *client,
		    struct sock *server, u64 *id)
{
	struct sock *sks[2] = { client, server };
	struct shunt_pair *pair;
	int i, error;

	if (client == server)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_SAME, -ELOOP);
	if (atomic_read(&owner->pairs) >= SHUNT_MAX_PAIRS_PER_OWNER)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_LIMIT, -EDQUOT);
	if (SHUNT_MUTANT(7) && (state_is_refused(client) || state_is_refused(server)))
		return refuse(SHUNT_KMOD_EXIT_REFUSED_STATE, -EOPNOTSUPP);
	pair = pair_alloc(owner, netns_cookie);
	if (!pair)
		return refuse(SHUNT_KMOD_EXIT_REFUSED_MEMORY, -ENOMEM);
	for (i = 0; i < 2; i++) {
		sock_hold(sks[i]);
		pair->halves[i].sk = sks[i];
		pair->halves[i].cookie = atomic64_read(&sks[i]->sk_cookie);
	}
	/* Before the first byte can cross; harmless if the pair is refused. */
	shunt_conntrack_be_liberal(client);

	/* In the table first: an end that leaves at once unlinks the pair. */
	pair_link(pair);
	for (i = 0; i < JOIN_ATTEMPTS; i++) {
		if (i)
			usleep_range(JOIN_PAUSE_US, 2 * JOIN_PAUSE_US);
		error = try_join(pair);
		if (error != -EAGAIN)
			break;
	}
	if (error) {
		pair_unlink(pair);
	} else {
		shunt_count(PAIRED);
		*id = pair->id;
		queue_delayed_work(split_queue, &sweeper, SWEEP_INTERVAL);
	}
	shunt_pair_put(pair);
	return error;
}

/* --- the sweeper --- */

/* Settles a ring whose reader has not moved since the last sweep. */
static void sweep_half(struct shunt_half *half)
{
	u32 tail = READ_ONCE(half->rx.tail);

	if (shunt_ring_used(&half->rx) && tail == half->swept_tail)
		shunt_settle_stale(half);
	half->swept_tail = tail;
}

static void sweep(struct work_struct *work)
{
	struct shunt_pair *pair;
	bool any = false;
	u64 cursor = 0;

	while ((pair = pair_next(&cursor))) {
		sweep_half(&pair->halves[SHUNT_CLIENT]);
		sweep_half(&pair->halves[SHUNT_SERVER]);
		shunt_pair_put(pair);
		any = true;
		cond_resched();
	}
	if (any)
		queue_delayed_work(split_queue, &sweeper, SWEEP_INTERVAL);
}

int __init shunt_pair_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(table); i++) {
		spin_lock_init(&table[i].lock);
		INIT_HLIST_HEAD(&table[i].pairs);
	}
	split_queue = alloc_workqueue("shunt", WQ_UNBOUND, 0);
	return split_queue ? 0 : -ENOMEM;
}

void shunt_pair_exit(void)
{
	cancel_delayed_work_sync(&sweeper);
	destroy_workqueue(split_queue); /* runs the splits that are queued */
	rcu_barrier(); /* pair_free_rcu() is in this module */
}

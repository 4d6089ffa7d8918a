/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A pair: the two sockets of one connection, and a ring for each direction.
 *
 * Locks, outer to inner; a line may be taken while those above it are held:
 *   lock_sock of one end    guards what struct shunt_half marks "own lock"
 *   slock of its peer       the same fields of the peer, while nobody owns it
 *   bucket lock             membership in the table
 * Never two lock_socks at once: the two ends of a connection may be driven by
 * two tasks in opposite directions.
 *
 * References to a pair, each dropped where it is named:
 *   the table                         shunt_pair_unlink()
 *   one for each attached end         half_release()
 *   a call that sleeps without lock   the end of that call
 *   a queued split                    its work item
 * The last one frees the pair, and with it its references to both sockets and
 * its owner, after an RCU grace period: poll and the table's readers look at
 * pairs under rcu_read_lock() alone.
 */
#ifndef SHUNT_PAIR_H
#define SHUNT_PAIR_H

#include <linux/refcount.h>
#include <linux/workqueue.h>
#include <net/sock.h>

#include "counters.h"
#include "ring.h"

struct shunt_pair;

struct shunt_half {
	/* Constant for the life of the pair. */
	struct sock *sk; /* referenced by the pair */
	struct shunt_half *peer;
	struct shunt_pair *pair;
	u64 cookie;
	struct proto *base_proto;
	int (*base_backlog_rcv)(struct sock *sk, struct sk_buff *skb);

	struct shunt_ring rx; /* bytes for sk; written by the peer */

	/* Own lock: of sk. */
	const struct proto_ops *base_ops; /* NULL until a struct socket exists */
	bool attached;
	bool armed; /* what we put in the peer's ring follows what TCP has delivered */
	bool low_water_sealed; /* SO_RCVLOWAT > 1 keeps rx sealed */
	int tcp_senders; /* tasks of ours inside tcp_sendmsg_locked() */
	u64 sent_bytes;

	/* Own lock to write, anybody may look. */
	bool reads_ring; /* a recv has come by the ring; else nobody may ever look there */
	bool waits_for_room;

	u32 swept_tail; /* the sweeper's alone */
};

struct shunt_owner {
	refcount_t references; /* its open file, and each pair */
	atomic_t pairs;
	u32 policy; /* enum shunt_owner_policy */
	bool closed;
};

struct shunt_pair {
	struct shunt_half halves[2]; /* enum shunt_role */
	u64 id;
	u64 netns_cookie;
	struct shunt_owner *owner;
	struct hlist_node node; /* bucket lock */
	refcount_t references;
	unsigned long split_queued;
	struct work_struct split;
	struct rcu_head rcu;
};

int shunt_pair_init(void);
void shunt_pair_exit(void); /* no pair may be left: shunt_pair_split_all() first */

/*
 * Joins two sockets, to which the caller holds references; all or nothing.
 * Process context, no locks held. Errors as in uapi/shunt.h, counted.
 */
int shunt_pair_join(struct shunt_owner *owner, u64 netns_cookie, struct sock *client,
		    struct sock *server, u64 *id);

void shunt_pair_get(struct shunt_pair *pair);
void shunt_pair_put(struct shunt_pair *pair);

/* Back to TCP at once; process context, no locks held. -ESRCH: no such pair. */
int shunt_pair_unpair(u64 id);

/* Splits those of an owner, or all for NULL; done when it returns. */
void shunt_pair_split_all(const struct shunt_owner *owner);

/* Fills up to count records from *cursor on and moves it. Returns how many. */
u32 shunt_pair_list(u64 *cursor, struct shunt_kmod_record *records, u32 count);

/*
 * The end that sk is now, or NULL. Under sk's lock it stays so until the lock
 * is released; under rcu_read_lock() alone only the memory is safe.
 */
struct shunt_half *shunt_half_of(const struct sock *sk);

/*
 * Makes an end that was paired before accept() usable, once its struct socket
 * exists. Own lock, or own slock while nobody owns sk. False: not yet.
 */
bool shunt_half_open(struct shunt_half *half);

/*
 * Puts an end back on plain TCP: every byte for it is in its receive queue,
 * every byte from it in its peer's, before this returns. lock_sock held,
 * process context. The other end follows by a work item.
 */
void shunt_half_detach(struct shunt_half *half, enum shunt_kmod_exit how);

/* The same for a socket that is being destroyed: nobody can read what it has. slock held. */
void shunt_half_abandon(struct shunt_half *half);

/* Wakes the tasks that sleep on sk, without saying that anything happened. */
void shunt_wake(struct sock *sk);

void shunt_owner_put(struct shunt_owner *owner);

#endif

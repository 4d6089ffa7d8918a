// SPDX-License-Identifier: GPL-2.0-only
#include <linux/module.h>
#include <net/netfilter/nf_conntrack.h>
#include <net/netfilter/nf_conntrack_core.h>
#include <net/netfilter/nf_conntrack_zones.h>

#include "conntrack.h"
#include "debug.h"

#if IS_ENABLED(CONFIG_NF_CONNTRACK)

/* The original direction's tuple is the one the client sees: before NAT. */
static void client_tuple(const struct sock *sk, struct nf_conntrack_tuple *tuple)
{
	const struct inet_sock *inet = inet_sk(sk);

	memset(tuple, 0, sizeof(*tuple));
	tuple->src.u.tcp.port = inet->inet_sport;
	tuple->dst.u.tcp.port = inet->inet_dport;
	tuple->dst.protonum = IPPROTO_TCP;
	tuple->dst.dir = IP_CT_DIR_ORIGINAL;
#if IS_ENABLED(CONFIG_IPV6)
	if (sk->sk_family == AF_INET6 && !ipv6_addr_v4mapped(&sk->sk_v6_daddr)) {
		tuple->src.l3num = AF_INET6;
		tuple->src.u3.in6 = sk->sk_v6_rcv_saddr;
		tuple->dst.u3.in6 = sk->sk_v6_daddr;
		return;
	}
#endif
	tuple->src.l3num = AF_INET;
	tuple->src.u3.ip = inet->inet_saddr;
	tuple->dst.u3.ip = inet->inet_daddr;
}

void shunt_conntrack_be_liberal(const struct sock *client)
{
	const struct nf_conntrack_zone zone = {
		.id = NF_CT_DEFAULT_ZONE_ID,
		.dir = NF_CT_DEFAULT_ZONE_DIR,
	};
	/* By name, so that the module loads where nf_conntrack does not exist;
	 * where it is absent now nothing is tracked.
	 */
	typeof(nf_conntrack_find_get) *find_get = symbol_get(nf_conntrack_find_get);
	struct nf_conntrack_tuple_hash *found;
	struct nf_conntrack_tuple tuple;
	struct nf_conn *entry;

	if (!find_get)
		return;
	client_tuple(client, &tuple);
	rcu_read_lock();
	found = find_get(sock_net(client), &zone, &tuple);
	rcu_read_unlock();
	if (found) {
		entry = nf_ct_tuplehash_to_ctrack(found);
		spin_lock_bh(&entry->lock);
		if (!SHUNT_MUTANT(10)) {
			entry->proto.tcp.seen[0].flags |= IP_CT_TCP_FLAG_BE_LIBERAL;
			entry->proto.tcp.seen[1].flags |= IP_CT_TCP_FLAG_BE_LIBERAL;
		}
		spin_unlock_bh(&entry->lock);
		nf_conntrack_put(&entry->ct_general);
	}
	symbol_put(nf_conntrack_find_get);
}

#else

void shunt_conntrack_be_liberal(const struct sock *client)
{
}

#endif

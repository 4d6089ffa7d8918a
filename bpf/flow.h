/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which connections: naming the ends and matching the policy. Pure, so that
 * the same lines run in the kernel and in tests/unit.
 */
#ifndef SHUNT_BPF_FLOW_H
#define SHUNT_BPF_FLOW_H

#include "kmod/uapi/shunt.h"

#ifndef SHUNT_INLINE
#define SHUNT_INLINE static inline __attribute__((always_inline))
#endif

/*
 * At ACTIVE_ESTABLISHED the client's (snd_nxt, rcv_nxt) equals the server's
 * (rcv_nxt, snd_nxt) at PASSIVE_ESTABLISHED, unless TCP Fast Open put data
 * into the SYN; then the keys differ and the two ends never meet.
 */
SHUNT_INLINE struct shunt_end_key shunt_end_key_make(__u64 netns_cookie, enum shunt_role role,
						     __u32 snd_nxt, __u32 rcv_nxt)
{
	struct shunt_end_key key = {
		.netns_cookie = netns_cookie,
		.client_next = role == SHUNT_CLIENT ? snd_nxt : rcv_nxt,
		.server_next = role == SHUNT_CLIENT ? rcv_nxt : snd_nxt,
		.role = role,
		.zero = 0,
	};
	return key;
}

/* The other end's name. */
SHUNT_INLINE struct shunt_end_key shunt_end_key_peer(struct shunt_end_key key)
{
	key.role = key.role == SHUNT_CLIENT ? SHUNT_SERVER : SHUNT_CLIENT;
	return key;
}

/* Is this server port (host byte order) to be enrolled? */
SHUNT_INLINE int shunt_policy_lists(const struct shunt_policy *policy, __u32 port)
{
	if (policy->mode != SHUNT_MODE_ENROL)
		return 0;
	for (int i = 0; i < SHUNT_MAX_PORT_RANGES; i++) {
		if ((__u32)i >= policy->range_count)
			return 0;
		if (port >= policy->ranges[i].first && port <= policy->ranges[i].last)
			return 1;
	}
	return 0;
}

#endif /* SHUNT_BPF_FLOW_H */

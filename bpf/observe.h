/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Observing (--dry-run): the same questions are asked of each connection as when
 * it is to be enrolled, and the answer is counted. No socket enters the sockhash
 * and no callback or option of it is changed; it only carries a state, so that
 * watch.h knows it.
 *
 * One verdict for each connection to a listed port, at its server's ESTABLISHED.
 * The maps are made only for an agent that observes.
 */
#ifndef SHUNT_BPF_OBSERVE_H
#define SHUNT_BPF_OBSERVE_H

#include "emit.h"

/* Set by the agent before load. In other agents all of this is dead code, which the
 * verifier removes. */
const volatile __u8 observes = 0;

/* Clients whose server has yet to become ESTABLISHED: why they could not be
 * enrolled, or SHUNT_EXIT_COUNT. LRU: who is evicted counts as SERVER_ALONE. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct shunt_end_key);
	__type(value, __u32);
} observed_clients SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct shunt_verdict_key);
	__type(value, __u64);
} observed_verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__type(key, __u32); /* shunt_policy.pod */
	__type(value, struct shunt_observed_receives);
} observed_receives SEC(".maps");

static __always_inline void count_verdict(__u32 pod, __u32 verdict)
{
	struct shunt_verdict_key key = { .pod = pod, .verdict = verdict };
	__u64 none = 0;
	__u64 *count = bpf_map_lookup_elem(&observed_verdicts, &key);
	if (!count) {
		bpf_map_update_elem(&observed_verdicts, &key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&observed_verdicts, &key);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void count_observed_receive(__u32 pod, __u64 bytes)
{
	struct shunt_observed_receives none = {};
	struct shunt_observed_receives *seen = bpf_map_lookup_elem(&observed_receives, &pod);
	if (!seen) {
		bpf_map_update_elem(&observed_receives, &pod, &none, BPF_NOEXIST);
		seen = bpf_map_lookup_elem(&observed_receives, &pod);
	}
	if (seen) {
		__sync_fetch_and_add(&seen->receives, 1);
		__sync_fetch_and_add(&seen->bytes, bytes);
	}
}

#endif /* SHUNT_BPF_OBSERVE_H */

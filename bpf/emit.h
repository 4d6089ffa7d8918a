/* SPDX-License-Identifier: GPL-2.0-only */
/* How the programs tell what they did: a counter for every exit, an event for
 * every pair made, left or refused. */
#ifndef SHUNT_BPF_EMIT_H
#define SHUNT_BPF_EMIT_H

#include "maps.h"

/* Wake the agent once this much waits; it also looks once a second. */
#define SHUNT_EVENTS_WAKE_BYTES (64 * 1024)

static __always_inline void count_exit(__u32 exit)
{
	__u64 *counter = bpf_map_lookup_elem(&exits, &exit);
	if (counter)
		(*counter)++;
}

static __always_inline void count_redirected(__u64 bytes)
{
	__u32 zero = 0;
	__u64 *counter = bpf_map_lookup_elem(&redirected_bytes, &zero);
	if (counter)
		*counter += bytes;
}

static __always_inline void emit_event(__u32 kind, __u32 reason, const struct shunt_end_key *key,
				       __u32 pod, __u16 local_port, __u16 remote_port,
				       __u64 bytes)
{
	struct shunt_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_exit(SHUNT_EXIT_EVENT_LOST);
		return;
	}
	event->kind = kind;
	event->reason = reason;
	event->key = *key;
	event->redirected_bytes = bytes;
	event->pod = pod;
	event->local_port = local_port;
	event->remote_port = remote_port;
	__u64 waiting = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	bpf_ringbuf_submit(event, waiting >= SHUNT_EVENTS_WAKE_BYTES ? BPF_RB_FORCE_WAKEUP
								     : BPF_RB_NO_WAKEUP);
}

#endif /* SHUNT_BPF_EMIT_H */

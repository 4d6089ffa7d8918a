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

/* Reports what `event` says. Urgent: the agent acts on it within milliseconds. */
static __always_inline void emit_event(const struct shunt_event *event, bool urgent)
{
	if (bpf_ringbuf_output(&events, (void *)event, sizeof(*event),
			       urgent || bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >=
						 SHUNT_EVENTS_WAKE_BYTES ?
				       BPF_RB_FORCE_WAKEUP :
				       BPF_RB_NO_WAKEUP))
		count_exit(SHUNT_EXIT_EVENT_LOST);
}

#endif /* SHUNT_BPF_EMIT_H */

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What bpf/probe.bpf.c and agent/probe say to each other. Lives only while a
 * probe run lasts: nothing here is pinned.
 */
#ifndef SHUNT_BPF_PROBE_H
#define SHUNT_BPF_PROBE_H

#include <linux/types.h>

/* Per socket under test, in socket storage; written by the agent through the
 * socket's descriptor, answered by the programs. */
struct probe_socket {
	/* Orders. Sockets are keyed in the sockhash by their SO_COOKIE. */
	__u64 peer_key; /* where messages go */
	__u32 redirect; /* 0: leave messages to TCP */
	__u32 let_go; /* 1: the iterator deletes this socket's key */
	__u32 mind_shutdown; /* 1: redirect nothing after shutdown(SHUT_WR), as the engine does */
	__u32 slow; /* 1: dawdle between the decision to redirect and its execution */
	/* Answers of the sk_msg program. */
	__u64 own_key; /* cookie read from kernel memory, through a plain address */
	__u64 netns_cookie;
	__u32 write_seq;
	__u32 messages; /* runs of the program for this socket */
	__u32 redirected; /* of these, handed to the peer */
	__u32 zero;
};

/* One record of the iterators: a member of the sockhash. */
struct probe_member {
	__u64 key;
	__u32 redirected; /* 0 from the iterator without socket storage */
	__u32 deleted; /* 1: its key has been deleted by this run */
};

#endif /* SHUNT_BPF_PROBE_H */

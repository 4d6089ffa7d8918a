/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * All state of Shunt in the kernel. Every map is pinned by its name under
 * <bpffs>/v1/maps and outlives the agent. Sizes marked "agent" are set between
 * open and load from --max-pairs.
 */
#ifndef SHUNT_BPF_MAPS_H
#define SHUNT_BPF_MAPS_H

#include <bpf/bpf_helpers.h>

#include "kmod/uapi/shunt.h"

enum shunt_watch {
	SHUNT_NOT_WATCHED = 0,
	SHUNT_IS_WATCHED = 1, /* its workload was new when it joined, and may still be */
	SHUNT_WAS_WATCHED = 2, /* and what went by TCP meanwhile is not all read yet */
};

/* What an enrolled socket knows of itself and its peer; lives and dies with it.
 * Part of the ABI too: the next agent's programs read it. */
struct shunt_socket_state {
	struct shunt_end_key self;
	__u64 peer_tcp_sock; /* 0: not looked up yet */
	__u64 peer_cookie;
	__u64 redirected_bytes;
	__u64 last_tcp_ns; /* when a message of this end last went by TCP, or it joined */
	__u32 pod;
	__u32 server_port; /* host byte order */
	__u32 joined; /* its key is in the sockhash */
	__u32 gate_closed;
	__u32 quiet_looks; /* looks at which it probably could leave, less others */
	__u32 watched; /* enum shunt_watch */
	__u32 turn; /* in `turns`; the client learns it with its peer */
	__u32 one_way; /* see shunt_reason_to_leave() */
	__u32 rescue; /* keepalive is ours, see rescue() */
	__u32 user_keepalive; /* what the program had set */
	__u32 user_keepalive_time; /* jiffies; 0: never set */
	__u32 ready; /* to leave, as soon as the other end is too */
	__u64 half_closes; /* only ever added to: a barrier, see on_half_close() */
};

/* The sockets themselves. Only a socket's own sock_ops run inserts it. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 131072); /* agent */
	__type(key, struct shunt_end_key);
	__type(value, __u64);
} sockets SEC(".maps");

/* Their descriptions: how an end finds its peer. Same keys as sockets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072); /* agent */
	__type(key, struct shunt_end_key);
	__type(value, struct shunt_end);
} ends SEC(".maps");

/*
 * Handshakes under way at listed listeners: server's key to workload. Written
 * before the SYN-ACK leaves, so a client knows at ESTABLISHED whether an
 * enrolled server answers it from this very network namespace. LRU: a SYN
 * flood evicts, and who is evicted stays on TCP.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct shunt_end_key);
	__type(value, struct shunt_workload_key);
} announced SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct shunt_socket_state);
} socket_state SEC(".maps");

/*
 * Who of a pair sent last. An array, since that is one instruction to find; a
 * pair takes a free place when it is made. Who finds another pair's tag, or got
 * no place, does not know whose turn it is.
 */
#define SHUNT_TURNS 131072 /* a power of two */
#define SHUNT_NO_TURN SHUNT_TURNS

struct shunt_turn {
	__u32 tag; /* client_next of the pair, 0: free */
	__u32 role; /* enum shunt_role */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SHUNT_TURNS);
	__type(key, __u32);
	__type(value, struct shunt_turn);
} turns SEC(".maps");

/* What has been learnt of each port of each pod. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct shunt_workload_key);
	__type(value, struct shunt_workload);
} workloads SEC(".maps");

/* Sockets of workloads that are being watched, by kernel address: how a system
 * call that names a descriptor is told to be one of theirs. */
struct shunt_watched {
	__u64 socket_cookie;
	struct shunt_workload_key workload;
	__u32 blocking_reader; /* the last thread that did, by its id */
	__u32 blocking_writer;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct shunt_watched);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64); /* cgroup id */
	__type(value, struct shunt_policy);
} policy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SHUNT_EXIT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} exits SEC(".maps");

/* Bytes handed over, all pods, by CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} redirected_bytes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__type(key, __u32); /* shunt_policy.pod */
	__type(value, struct shunt_pod_totals);
} pod_totals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct shunt_meta);
} meta SEC(".maps");

/*
 * No program reads it. An update of a map of maps returns only after an RCU
 * grace period (maybe_wait_bpf_programs(), kernel commit 1ae80cf31938): how the
 * agent waits until every program that saw an old policy or an open gate is
 * through.
 */
struct grace_token {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} grace_token SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct grace_token);
} grace SEC(".maps") = { .values = { [0] = &grace_token } };

#endif /* SHUNT_BPF_MAPS_H */

/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR Apache-2.0 */
/*
 * The one header that crosses the kernel line: what Shunt's BPF programs, its
 * kernel module and its agent say to each other. Plain C, fixed-width types,
 * explicit padding that is always zero, native byte order.
 *
 * Every struct here is map content that outlives the process that wrote it
 * (pins survive the agent). A change of any layout or meaning is a new
 * SHUNT_ABI_VERSION; an agent refuses pins of another version.
 */
#ifndef SHUNT_UAPI_SHUNT_H
#define SHUNT_UAPI_SHUNT_H

#include <linux/types.h>

#define SHUNT_ABI_VERSION 2

/* Port ranges of one pod, after excludes have been cut out of them. */
#define SHUNT_MAX_PORT_RANGES 32

enum shunt_role {
	SHUNT_CLIENT = 0, /* the end that called connect() */
	SHUNT_SERVER = 1, /* the end that accept() returned */
};

/*
 * The name of one end of one connection: the handshake fingerprint (RFC 9293
 * initial sequence numbers plus one, as both ends see them when the connection
 * becomes ESTABLISHED) within one network namespace. Addresses take no part,
 * so NAT between the two ends does not matter, and two pods whose addresses
 * are equal never meet. Sequence numbers are in host byte order.
 */
struct shunt_end_key {
	__u64 netns_cookie;
	__u32 client_next;
	__u32 server_next;
	__u32 role; /* enum shunt_role */
	__u32 zero;
};

/* What is known of an end while it is enrolled. */
struct shunt_end {
	__u64 tcp_sock; /* kernel address; only ever re-read, never followed blindly */
	__u64 socket_cookie; /* SO_COOKIE of that socket */
	__u64 joined_ns; /* CLOCK_MONOTONIC */
	__u32 pod; /* shunt_policy.pod */
	__u32 uid; /* owner of the socket, in the initial user namespace */
	__u16 local_port; /* host byte order */
	__u16 remote_port; /* host byte order; before NAT on the client's side */
	__u16 family; /* AF_INET or AF_INET6; v4-mapped is AF_INET6 */
	__u16 gate_closed; /* 1 once this end hands nothing over any more */
	__u32 turn; /* where the pair's turns are kept; the server's end knows */
	__u32 leaving; /* 1 once the pair has been told to leave */
};

enum shunt_mode {
	SHUNT_MODE_OFF = 0, /* nothing new is enrolled */
	SHUNT_MODE_ENROL = 1,
};

struct shunt_port_range {
	__u16 first; /* host byte order, inclusive */
	__u16 last;
};

/* Per attached cgroup: the pod's policy, in cgroup storage. */
struct shunt_policy {
	__u32 pod; /* small id allotted by the agent, never reused while pinned */
	__u32 mode; /* enum shunt_mode */
	__u32 range_count; /* at most SHUNT_MAX_PORT_RANGES */
	__u32 zero;
	struct shunt_port_range ranges[SHUNT_MAX_PORT_RANGES];
};

/*
 * Every exit of every program, one per-CPU counter each. X(NAME, "reason",
 * "what it means"); the reason is what logs, metrics and shuntctl print.
 * Any change is a new ABI version: the counters are pinned under these numbers.
 */
#define SHUNT_EXITS(X)                                                            \
	/* sock_ops: a handshake seen at its listener */                          \
	X(ANNOUNCED, "announced", "SYN for a listed port")                        \
	X(ANNOUNCE_FAILED, "announce_failed", "announcement could not be kept")   \
	/* sock_ops: the client's end at ACTIVE_ESTABLISHED */                    \
	X(CLIENT_JOINED, "client_joined", "client enrolled, waits for its server")\
	X(CLIENT_UNANNOUNCED, "client_unannounced",                               \
	  "no listed server in this network namespace answered")                  \
	/* sock_ops: the server's end at PASSIVE_ESTABLISHED */                   \
	X(PAIR_MADE, "pair_made", "both ends enrolled")                           \
	X(SERVER_UNLISTED, "server_unlisted", "port is not in the pod's policy")  \
	X(SERVER_ALONE, "server_alone", "the client is not enrolled: remote or plain")\
	X(ORPHAN_RELEASED, "orphan_released",                                     \
	  "client enrolled, its server could not join; client is plain TCP again")\
	/* sock_ops: why an end was refused */                                    \
	X(REFUSED_FAST_OPEN, "fast_open", "TCP Fast Open: data came with the SYN")\
	X(REFUSED_STATE, "not_established", "socket is not in the state of a new connection")\
	X(REFUSED_MPTCP, "mptcp", "subflow of a Multipath TCP connection")        \
	X(REFUSED_MAP_FULL, "map_full", "no room for another end")                \
	X(REFUSED_OTHER_OWNER, "other_owner",                                     \
	  "socket has a ULP or belongs to another sockmap")                       \
	X(REFUSED_DUPLICATE, "duplicate", "its fingerprint is taken")             \
	X(REFUSED_HAZARD, "hazard_known",                                         \
	  "programs at this port use what a redirected socket cannot do")         \
	X(REFUSED_OPTION, "socket_option",                                        \
	  "socket has an option set that a redirected socket ignores")            \
	X(REFUSED_ERROR, "enrol_error", "the kernel refused for another cause")   \
	/* sock_ops: how an enrolled end went away */                             \
	X(LEFT_CLOSED, "left_closed", "connection over")                          \
	X(LEFT_DISCONNECTED, "left_disconnected", "connect(AF_UNSPEC)")           \
	X(LEFT_HALF_CLOSED, "left_half_closed", "shutdown(SHUT_WR) with nothing unread")\
	X(LEFT_REUSED, "left_reused", "socket connects or listens anew")          \
	/* sk_msg, hooks: why a pair was told to leave */                         \
	X(LEAVING_STREAM, "stream", "sends much and hears little back: TCP is faster") \
	X(LEAVING_BACK_PRESSURE, "reader_is_slow", "reader fell a receive buffer behind")\
	X(LEAVING_MIXED, "fionread",                                              \
	  "went by TCP once, and FIONREAD of this kernel would not count that")   \
	X(LEAVING_HAZARD, "hazard", "a program did what a redirected socket cannot do")\
	/* tracepoints: a new workload */                                         \
	X(WORKLOAD_NEW, "workload_new", "first connection to this port of the pod")\
	X(WORKLOAD_UNSEEN, "workload_unseen", "a new workload sends and nobody watches") \
	X(WORKLOAD_CLEAN, "workload_clean", "watched, and nothing found against it")\
	X(WORKLOAD_HAZARD, "workload_hazard", "watched, and will stay on TCP")    \
	/* sk_msg: one per message handed to sendmsg */                           \
	X(REDIRECTED, "redirected", "handed to the peer's socket")                \
	X(MSG_NO_STATE, "no_state", "socket has no Shunt state")                  \
	X(MSG_GATE_CLOSED, "gate_closed", "pair is leaving")                      \
	X(MSG_WATCHED, "watched", "its workload is new and is being watched")     \
	X(MSG_ULP, "ulp", "one end has a ULP (kTLS)")                             \
	X(MSG_NO_PEER, "no_peer", "the other end is not enrolled (yet)")          \
	X(MSG_SHUT_DOWN, "shut_down", "sender has shut down or is not connected") \
	X(MSG_PEER_CHANGED, "peer_changed", "peer's socket is another one now")   \
	X(MSG_PEER_CLOSED, "peer_closed", "peer has shut down one side or both")   \
	X(MSG_LOW_WATER, "rcvlowat", "peer waits for more than a byte (SO_RCVLOWAT)")\
	X(MSG_TCP_UNREAD, "tcp_unread", "bytes sent by TCP are still unread")     \
	X(MSG_BACK_PRESSURE, "back_pressure", "peer holds a receive buffer's worth unread")\
	X(MSG_MEMORY_PRESSURE, "memory_pressure", "TCP memory of the node is short")\
	X(MSG_REFRESH, "refresh", "keeps conntrack from forgetting an active connection")\
	X(MSG_REDIRECT_FAILED, "redirect_failed", "peer left between check and redirect")\
	/* iterators of the agent */                                              \
	X(LEFT_DRAINED, "left_drained", "end left the map with nothing unread")   \
	/* sock_ops: unread TCP bytes that FIONREAD does not show */              \
	X(RESCUE_ARMED, "rescue_armed", "reader will be woken until it has read its TCP bytes")\
	X(RESCUE_WOKE, "rescue_woke", "reader was woken for unread TCP bytes")    \
	X(EVENT_LOST, "event_lost", "ring buffer was full")

enum shunt_exit {
#define SHUNT_EXIT_ENUM(name, reason, text) SHUNT_EXIT_##name,
	SHUNT_EXITS(SHUNT_EXIT_ENUM)
#undef SHUNT_EXIT_ENUM
	SHUNT_EXIT_COUNT
};

/* Per pod: what its finished connections did. Live ones are in the iterator. */
struct shunt_pod_totals {
	__u64 pairs_made;
	__u64 pairs_ended;
	__u64 redirected_bytes; /* of ended connections */
	__u64 refused;
};

enum shunt_event_kind {
	SHUNT_EVENT_PAIR_MADE = 0,
	SHUNT_EVENT_LEFT = 1,
	SHUNT_EVENT_REFUSED = 2,
	SHUNT_EVENT_LEAVING = 3, /* the pair is to be let go, now */
	SHUNT_EVENT_WORKLOAD = 4, /* a workload is new, clean or a hazard */
};

/*
 * What a program may do to a socket that a redirected one does otherwise than
 * TCP. Bits. X(NAME, bit, "name", "what it means").
 */
#define SHUNT_HAZARDS(X)                                                          \
	X(SPLICE, 0, "splice", "splice() from or to the socket")                  \
	X(WAITALL, 1, "msg_waitall", "recv(MSG_WAITALL)")                         \
	X(TRUNC, 2, "msg_trunc", "recv(MSG_TRUNC)")                               \
	X(OOB, 3, "msg_oob", "MSG_OOB")                                           \
	X(ZEROCOPY, 4, "zerocopy", "SO_ZEROCOPY or MSG_ZEROCOPY")                 \
	X(LOW_WATER, 5, "so_rcvlowat", "SO_RCVLOWAT above 1")                     \
	X(ULP, 6, "tcp_ulp", "TCP_ULP (kTLS)")                                    \
	X(FIONREAD, 7, "fionread", "FIONREAD, on a kernel where it does not count TCP bytes") \
	X(INQ, 8, "tcp_inq", "TCP_INQ")                                           \
	X(PEEK_OFF, 9, "so_peek_off", "SO_PEEK_OFF")                              \
	X(REPAIR, 10, "tcp_repair", "TCP_REPAIR")                                 \
	X(TIMESTAMPS, 11, "so_timestamping", "receive or send timestamps")        \
	X(TWO_THREADS, 12, "two_threads", "blocking receives in one thread and sends in another")

enum shunt_hazard {
#define SHUNT_HAZARD_ENUM(name, bit, word, text) SHUNT_HAZARD_##name = 1u << bit,
	SHUNT_HAZARDS(SHUNT_HAZARD_ENUM)
#undef SHUNT_HAZARD_ENUM
};

/* A workload: the programs at the two ends of a server port of a pod. */
struct shunt_workload_key {
	__u32 pod; /* shunt_policy.pod */
	__u32 port; /* the server's, host byte order */
};

enum shunt_workload_state {
	SHUNT_WORKLOAD_WATCHED = 0, /* enrolled, but its messages still go by TCP */
	SHUNT_WORKLOAD_CLEAN = 1,
	SHUNT_WORKLOAD_HAZARD = 2, /* not enrolled */
};

#define SHUNT_COMM_LEN 16

struct shunt_workload {
	__u32 state; /* enum shunt_workload_state */
	__u32 hazards; /* enum shunt_hazard, or-ed */
	__u32 receives[2]; /* seen while watched, by enum shunt_role */
	char comm[2][SHUNT_COMM_LEN]; /* name of the task that received, by role */
};

/* One ring-buffer record. */
struct shunt_event {
	__u32 kind; /* enum shunt_event_kind */
	__u32 reason; /* enum shunt_exit */
	struct shunt_end_key key;
	__u64 redirected_bytes; /* sent by this end, for LEFT */
	__u32 pod;
	__u16 local_port;
	__u16 remote_port;
	__u32 hazards; /* of a WORKLOAD, or for LEAVING_HAZARD */
	__u32 port; /* the server's, if the kernel side knew */
};

/* One record of the end iterator: a member of the sockhash, as it stands. */
struct shunt_end_record {
	struct shunt_end_key key;
	struct shunt_end end;
	__u64 redirected_bytes; /* sent by this end */
	__u32 unread_bytes; /* redirected to this end, not read yet */
	__u16 state; /* TCP state */
	__u16 drained; /* 1: this record says that the end has left the map */
};

/* Single-entry array that marks a pin directory. */
struct shunt_meta {
	__u32 abi_version;
	__u32 next_pod; /* the next pod id to allot */
	__u32 watching; /* 1 while the tracepoints are attached */
	__u32 zero;
};

#endif /* SHUNT_UAPI_SHUNT_H */

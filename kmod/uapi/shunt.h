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
	SHUNT_EVENT_OBSERVED = 5, /* --dry-run: the verdict on a connection */
};

/*
 * What would have become of a connection to a listed port: SHUNT_EXIT_PAIR_MADE,
 * it would be accelerated; or the exit that says why it would stay on TCP. Never
 * pinned: an agent that observes leaves nothing behind.
 */
struct shunt_verdict_key {
	__u32 pod; /* shunt_policy.pod */
	__u32 verdict; /* enum shunt_exit */
};

/* What the watched sockets of an observed pod received. */
struct shunt_observed_receives {
	__u64 receives;
	__u64 bytes;
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
	X(TWO_THREADS, 12, "two_threads", "blocking receives in one thread and sends in another") \
	X(FILTER, 13, "socket_filter", "a filter on the socket")

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
	__u16 zero;
};

/* In what shunt_leave_pair() returns, beside the number of ends that are members:
 * a gate was closed in this run, so every CPU is to be interrupted before the next. */
#define SHUNT_GATE_CLOSED_NOW 4

/* Single-entry array that marks a pin directory. */
struct shunt_meta {
	__u32 abi_version;
	__u32 next_pod; /* the next pod id to allot */
	__u32 watching; /* 1 while the tracepoints are attached */
	__u32 zero;
};

/*
 * /dev/shunt: the module's engine. Mode 0600, and CAP_NET_ADMIN of the initial
 * user namespace at open. One open file is one owner: the pairs it made follow
 * its policy when it closes (also by SIGKILL).
 *
 * Every refusal has its own errno and its own counter, and changes nothing:
 *   ENOTTY           unknown command or wrong size of its argument
 *   EPROTONOSUPPORT  abi_version is not the module's
 *   EINVAL           unknown flag, or padding that is not zero
 *   EAFNOSUPPORT     family is not AF_INET or AF_INET6, or IPv6 is off
 *   ENONET           no network namespace has that cookie
 *   ENOENT           no TCP socket has that tuple there
 *   ESTALE           the socket of that tuple has another cookie
 *   ELOOP            both ends name one socket
 *   EOPNOTSUPP       not ESTABLISHED, or shut down
 *   EALREADY         an end is paired
 *   EBUSY            an end has a ULP, sits in a sockmap, or is not plain TCP
 *   EPERM            repair mode (pairing), or no CAP_NET_ADMIN (open)
 *   EAGAIN           bytes are on the way, so the ends cannot be compared: ask again
 *   EPROTO           nothing is on the way and the sequences disagree: not two
 *                    ends of one connection
 *   EDQUOT           this owner has SHUNT_MAX_PAIRS_PER_OWNER pairs
 *   ESRCH            (unpair) no pair has that id
 */
#ifndef __bpf__
#include <linux/ioctl.h>

#define SHUNT_KMOD_ABI_VERSION 1
#define SHUNT_MAX_PAIRS_PER_OWNER 65536

/* One end as it sees itself. v4-mapped addresses are AF_INET6. */
struct shunt_kmod_end {
	__u8 local_address[16]; /* AF_INET: the first four bytes; the rest zero */
	__u8 remote_address[16]; /* before NAT on the client's side */
	__u16 local_port; /* host byte order */
	__u16 remote_port; /* host byte order */
	__u16 family;
	__u16 zero;
	__u64 socket_cookie; /* SO_COOKIE */
};

struct shunt_kmod_pair {
	__u32 abi_version;
	__u32 flags; /* zero */
	__u64 netns_cookie; /* SO_NETNS_COOKIE of both ends */
	struct shunt_kmod_end client;
	struct shunt_kmod_end server;
	__u64 pair_id; /* out; never reused */
};

/* What happens to an owner's pairs when its file closes. */
enum shunt_owner_policy {
	SHUNT_OWNER_RELEASE = 0, /* they go back to TCP: the default */
	SHUNT_OWNER_KEEP = 1, /* they stay; any owner may list and unpair them */
};

/* One live pair. Bytes are those that crossed without TCP, per direction. */
struct shunt_kmod_record {
	__u64 pair_id;
	__u64 netns_cookie;
	__u64 client_cookie;
	__u64 server_cookie;
	__u64 client_sent_bytes;
	__u64 server_sent_bytes;
	__u32 kept; /* 1: its owner has closed */
	__u32 zero;
};

/*
 * Start with cursor 0 and hand back the one returned; count 0 is the end. A
 * pair that comes or goes meanwhile may be missed or seen twice.
 */
struct shunt_kmod_list {
	__u64 cursor;
	__u64 records; /* address of struct shunt_kmod_record[count] */
	__u32 count; /* in: room, at most 1024; out: filled */
	__u32 zero;
};

/*
 * Every exit of the module, one counter each. X(NAME, "reason", "what it
 * means"); appended to only, so that an older agent reads a prefix.
 */
#define SHUNT_KMOD_EXITS(X)                                                       \
	/* pairing */                                                             \
	X(PAIRED, "paired", "both ends joined")                                   \
	X(REFUSED_VERSION, "version", "request of another ABI version")           \
	X(REFUSED_ARGUMENT, "argument", "unknown flag, padding or family")        \
	X(REFUSED_NETNS, "netns", "no such network namespace")                    \
	X(REFUSED_NO_SOCKET, "no_socket", "no TCP socket has that tuple")         \
	X(REFUSED_COOKIE, "cookie", "tuple belongs to another socket by now")     \
	X(REFUSED_SAME, "same_end", "both ends are one socket")                   \
	X(REFUSED_STATE, "state", "not ESTABLISHED, or shut down")                \
	X(REFUSED_TWICE, "twice", "an end is paired already")                     \
	X(REFUSED_OTHER_OWNER, "other_owner", "ULP, sockmap, MPTCP or changed protocol")\
	X(REFUSED_REPAIR, "repair", "socket is being repaired")                   \
	X(REFUSED_IN_FLIGHT, "in_flight", "bytes on the way: ask again")          \
	X(REFUSED_STRANGERS, "strangers", "sequences disagree")                   \
	X(REFUSED_LIMIT, "limit", "owner has as many pairs as it may")            \
	X(REFUSED_MEMORY, "memory", "no memory for the rings")                    \
	/* one per sendmsg */                                                     \
	X(SENT, "sent", "placed in the peer's ring")                              \
	X(TCP_STATE, "tcp_state", "sender is shut down, failed or not ESTABLISHED")\
	X(TCP_FLAGS, "tcp_flags", "flag or control message that only TCP knows")  \
	X(TCP_UNSENT, "tcp_unsent", "TCP has bytes to send first")                \
	X(TCP_PEER, "tcp_peer", "peer is shut down or gone")                      \
	X(TCP_UNARMED, "tcp_unarmed", "peer has not taken all that TCP sent")     \
	X(TCP_SEALED, "tcp_sealed", "peer is inside a call that only TCP knows")  \
	X(TCP_FULL, "tcp_full", "peer holds a receive buffer's worth unread")     \
	/* ring */                                                                \
	X(ARMED, "armed", "direction checked and opened")                         \
	X(SETTLED, "settled", "ring bytes became a segment of the receive queue") \
	X(WAITED, "waited", "sender waited for room in the ring")                 \
	/* how an end left */                                                     \
	X(LEFT_CLOSED, "left_closed", "close()")                                  \
	X(LEFT_DISCONNECTED, "left_disconnected", "connect(AF_UNSPEC) or abort")  \
	X(LEFT_OPTION, "left_option", "TCP_ULP, TCP_REPAIR, TCP_MD5SIG or IPV6_ADDRFORM")\
	X(LEFT_SPLIT, "left_split", "unpaired: by request, owner, peer or unload")\
	X(RESTARTED, "restarted", "blocked call restarted on plain TCP")

enum shunt_kmod_exit {
#define SHUNT_KMOD_EXIT_ENUM(name, reason, text) SHUNT_KMOD_EXIT_##name,
	SHUNT_KMOD_EXITS(SHUNT_KMOD_EXIT_ENUM)
#undef SHUNT_KMOD_EXIT_ENUM
	SHUNT_KMOD_EXIT_COUNT
};

struct shunt_kmod_counters {
	__u64 values; /* address of __u64[count] */
	__u32 count; /* in: room; out: how many the module has */
	__u32 zero;
};

#define SHUNT_IOC_VERSION _IOR(0xA7, 0, __u32)
#define SHUNT_IOC_PAIR _IOWR(0xA7, 1, struct shunt_kmod_pair)
#define SHUNT_IOC_UNPAIR _IOW(0xA7, 2, __u64)
#define SHUNT_IOC_LIST _IOWR(0xA7, 3, struct shunt_kmod_list)
#define SHUNT_IOC_COUNTERS _IOWR(0xA7, 4, struct shunt_kmod_counters)
#define SHUNT_IOC_POLICY _IOW(0xA7, 5, __u32) /* enum shunt_owner_policy */
#endif /* !__bpf__ */

#endif /* SHUNT_UAPI_SHUNT_H */

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hazards: what a program may do to a TCP socket that a redirected one does
 * otherwise (docs/hazards.md).
 *
 * A workload, the programs at the two ends of a server port, is watched when it
 * is new: its pairs are enrolled, but every message goes by TCP, where all of
 * this works, until both ends have been seen to receive a few times. Only while
 * there is such a workload are the tracepoints attached: they cost every system
 * call of the node. Socket options are seen for ever, by a hook of the pod's own.
 */
#ifndef SHUNT_BPF_WATCH_H
#define SHUNT_BPF_WATCH_H

#include "observe.h"
#include "socket.h"

#include <bpf/bpf_tracing.h>

/* A workload is clean after so many receives at each end, or in all: more than a
 * TLS handshake needs, after which a program may ask for kTLS. */
#define SHUNT_WATCHED_RECEIVES 8
#define SHUNT_WATCHED_RECEIVES_IN_ALL 32

#define MSG_OOB 1
#define MSG_PEEK 2
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define MSG_ZEROCOPY 0x4000000

#define SO_KEEPALIVE 9
#define SO_RCVLOWAT 18
#define SO_ATTACH_FILTER 26
#define SO_TIMESTAMP_OLD 29
#define SO_TIMESTAMPNS_OLD 35
#define SO_TIMESTAMPING_OLD 37
#define SO_PEEK_OFF 42
#define SO_ATTACH_BPF 50
#define SO_ZEROCOPY 60
#define SO_TIMESTAMP_NEW 63
#define SO_TIMESTAMPNS_NEW 64
#define SO_TIMESTAMPING_NEW 65
#define TCP_KEEPIDLE 4
#define TCP_REPAIR 19
#define TCP_ULP 31
#define TCP_INQ 36

/* System calls, and which of their arguments is the descriptor. */
#if defined(__TARGET_ARCH_x86)
enum { NR_READ = 0, NR_WRITE = 1, NR_IOCTL = 16, NR_READV = 19, NR_WRITEV = 20, NR_SENDTO = 44,
       NR_RECVFROM = 45, NR_SENDMSG = 46, NR_RECVMSG = 47, NR_SPLICE = 275 };
#elif defined(__TARGET_ARCH_arm64)
enum { NR_IOCTL = 29, NR_READ = 63, NR_WRITE = 64, NR_READV = 65, NR_WRITEV = 66, NR_SPLICE = 76,
       NR_SENDTO = 206, NR_RECVFROM = 207, NR_SENDMSG = 211, NR_RECVMSG = 212 };
#else
#error "system call numbers of this architecture are missing"
#endif
#define FIONREAD 0x541b
#define O_NONBLOCK 04000

static __always_inline void report_workload(const struct shunt_workload_key *key, __u32 reason,
					    __u32 hazards, bool urgent)
{
	struct shunt_event event = {
		.kind = SHUNT_EVENT_WORKLOAD,
		.reason = reason,
		.pod = key->pod,
		.hazards = hazards,
		.port = key->port,
	};
	count_exit(reason);
	emit_event(&event, urgent);
}

/* What is known of a workload that a connection belongs to; it is new if nothing
 * is. Null: no room, and then it is not enrolled. */
static __always_inline struct shunt_workload *know_workload(const struct shunt_workload_key *key)
{
	struct shunt_workload *workload = bpf_map_lookup_elem(&workloads, key);
	if (workload)
		return workload;
	struct shunt_workload fresh = {
		.state = can_watch ? SHUNT_WORKLOAD_WATCHED : SHUNT_WORKLOAD_CLEAN,
	};
	if (!bpf_map_update_elem(&workloads, key, &fresh, BPF_NOEXIST))
		report_workload(key, SHUNT_EXIT_WORKLOAD_NEW, 0, true);
	return bpf_map_lookup_elem(&workloads, key);
}

/* A new workload sends: if nobody watches, asks the agent to, once a second. */
static __u64 asked_ns;

static __always_inline void ask_to_watch(const struct shunt_workload_key *key, __u64 now_ns)
{
	__u32 zero = 0;
	struct shunt_meta *node = bpf_map_lookup_elem(&meta, &zero);
	if (!node || node->watching || now_ns - asked_ns < NANOSECONDS)
		return;
	asked_ns = now_ns;
	report_workload(key, SHUNT_EXIT_WORKLOAD_UNSEEN, 0, true);
}

/* The next connection of this workload is not enrolled. */
static __always_inline void remember_hazard(const struct shunt_workload_key *key, __u32 hazard)
{
	struct shunt_workload *workload = bpf_map_lookup_elem(&workloads, key);
	if (!workload || (workload->hazards & hazard))
		return;
	__sync_fetch_and_or(&workload->hazards, hazard);
	workload->state = SHUNT_WORKLOAD_HAZARD;
	report_workload(key, SHUNT_EXIT_WORKLOAD_HAZARD, hazard, true);
}

static __always_inline void note_hazard(struct shunt_socket_state *state, __u32 hazard)
{
	struct shunt_workload_key key = workload_of(state);
	remember_hazard(&key, hazard);
	if (state->joined)
		begin_leaving(state, SHUNT_EXIT_LEAVING_HAZARD, hazard, 0, 0);
}

/* ---- socket options ------------------------------------------------------- */

static __always_inline __u32 hazard_of_option(const struct bpf_sockopt *call)
{
	int *value = call->optval;
	bool is_set = value && (void *)(value + 1) <= call->optval_end && *value != 0;
	if (call->level == SOL_TCP) {
		switch (call->optname) {
		case TCP_ULP:
			return SHUNT_HAZARD_ULP;
		case TCP_REPAIR:
			return is_set ? SHUNT_HAZARD_REPAIR : 0;
		case TCP_INQ:
			return is_set ? SHUNT_HAZARD_INQ : 0;
		}
		return 0;
	}
	if (call->level != SOL_SOCKET)
		return 0;
	if (call->optname == SO_ATTACH_FILTER || call->optname == SO_ATTACH_BPF)
		return SHUNT_HAZARD_FILTER;
	if (!is_set)
		return 0;
	switch (call->optname) {
	case SO_RCVLOWAT:
		return *value > 1 ? SHUNT_HAZARD_LOW_WATER : 0;
	case SO_ZEROCOPY:
		return SHUNT_HAZARD_ZEROCOPY;
	case SO_PEEK_OFF:
		return *value >= 0 ? SHUNT_HAZARD_PEEK_OFF : 0;
	case SO_TIMESTAMP_OLD:
	case SO_TIMESTAMPNS_OLD:
	case SO_TIMESTAMPING_OLD:
	case SO_TIMESTAMP_NEW:
	case SO_TIMESTAMPNS_NEW:
	case SO_TIMESTAMPING_NEW:
		return SHUNT_HAZARD_TIMESTAMPS;
	}
	return 0;
}

/* Before the kernel handles setsockopt() of a process of the pod. Never refuses. */
SEC("cgroup/setsockopt")
int shunt_setsockopt(struct bpf_sockopt *call)
{
	__u32 hazard = hazard_of_option(call);
	/* The program's own setting is not to be put back over, see rescue(). */
	bool keepalive = (call->level == SOL_SOCKET && call->optname == SO_KEEPALIVE) ||
			 (call->level == SOL_TCP && call->optname == TCP_KEEPIDLE);
	struct bpf_sock *sk = call->sk;
	if ((hazard || keepalive) && sk) {
		struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
		if (state && keepalive)
			state->rescue = 0;
		if (state && hazard)
			note_hazard(state, hazard);
	}
	return 1;
}

/* ---- tracepoints, while a workload is new --------------------------------- */

/* HAProxy splices only what is large, so eight receives do not show it, and a
 * splice() that finds nothing waits for ever. "haproxy" in one word of a comm. */
#define COMM_HAPROXY 0x0079786f72706168ULL

static __always_inline bool splices_now_and_then(const struct shunt_workload *workload)
{
	return *(__u64 *)workload->comm[SHUNT_CLIENT] == COMM_HAPROXY ||
	       *(__u64 *)workload->comm[SHUNT_SERVER] == COMM_HAPROXY;
}

static __always_inline void note_receive(struct shunt_socket_state *state)
{
	struct shunt_workload_key key = workload_of(state);
	struct shunt_workload *workload = bpf_map_lookup_elem(&workloads, &key);
	if (!workload || workload->state != SHUNT_WORKLOAD_WATCHED)
		return;
	__u32 role = state->self.role & 1;
	if (__sync_fetch_and_add(&workload->receives[role], 1) == 0)
		bpf_get_current_comm(workload->comm[role], SHUNT_COMM_LEN);
	if (splices_now_and_then(workload)) {
		remember_hazard(&key, SHUNT_HAZARD_SPLICE);
		return;
	}
	__u32 at_client = workload->receives[SHUNT_CLIENT];
	__u32 at_server = workload->receives[SHUNT_SERVER];
	if ((at_client < SHUNT_WATCHED_RECEIVES || at_server < SHUNT_WATCHED_RECEIVES) &&
	    at_client + at_server < SHUNT_WATCHED_RECEIVES_IN_ALL)
		return;
	if (__sync_val_compare_and_swap(&workload->state, SHUNT_WORKLOAD_WATCHED,
					SHUNT_WORKLOAD_CLEAN) == SHUNT_WORKLOAD_WATCHED)
		report_workload(&key, SHUNT_EXIT_WORKLOAD_CLEAN, 0, false);
}

/* Kernel 6.3 (6e6eda44b939): at the end of every receive. */
SEC("tp_btf/sock_recv_length")
int BPF_PROG(shunt_sock_recv_length, struct sock *sk, int result, int flags)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	if (!state || state->watched != SHUNT_IS_WATCHED)
		return 0;
	if (flags & MSG_WAITALL)
		note_hazard(state, SHUNT_HAZARD_WAITALL);
	if (flags & MSG_TRUNC)
		note_hazard(state, SHUNT_HAZARD_TRUNC);
	if (flags & MSG_OOB)
		note_hazard(state, SHUNT_HAZARD_OOB);
	if (result > 0 && !(flags & MSG_PEEK)) {
		if (observes)
			count_observed_receive(state->pod, result);
		note_receive(state);
	}
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(shunt_sock_send_length, struct sock *sk, int result, int flags)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	if (!state || state->watched != SHUNT_IS_WATCHED)
		return 0;
	if (flags & MSG_OOB)
		note_hazard(state, SHUNT_HAZARD_OOB);
	if (flags & MSG_ZEROCOPY)
		note_hazard(state, SHUNT_HAZARD_ZEROCOPY);
	return 0;
}

/* The file behind a descriptor of this task, or 0. */
static __always_inline struct file *file_behind(unsigned int fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file *file = 0;
	if (table && fd < BPF_CORE_READ(table, max_fds)) {
		struct file **files = BPF_CORE_READ(table, fd);
		bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	}
	return file;
}

/* If it is a socket (then that points back at the file) and watched. Its state
 * cannot be reached from here: the program of its next message finds the verdict,
 * the agent the event. */
static __always_inline struct shunt_watched *watch_of(struct file *file)
{
	struct socket *socket = file ? BPF_CORE_READ(file, private_data) : 0;
	if (!socket || BPF_CORE_READ(socket, file) != file)
		return 0;
	struct sock *sk = BPF_CORE_READ(socket, sk);
	__u64 address = (__u64)sk;
	struct shunt_watched *watch = bpf_map_lookup_elem(&watched, &address);
	if (!watch ||
	    watch->socket_cookie != (__u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter))
		return 0;
	return watch;
}

static __always_inline void note_call(unsigned int fd, __u32 hazard)
{
	struct shunt_watched *watch = watch_of(file_behind(fd));
	if (watch)
		remember_hazard(&watch->workload, hazard);
}

/* A thread that is blocked in recv() on an enrolled socket returns with EAGAIN when
 * another one's blocked send() gets room: tcp_msg_wait_data() waits once. */
static __always_inline void note_blocking(unsigned int fd, bool reads, unsigned int flags)
{
	struct file *file = file_behind(fd);
	struct shunt_watched *watch = watch_of(file);
	if (!watch || (flags & MSG_DONTWAIT) || (BPF_CORE_READ(file, f_flags) & O_NONBLOCK))
		return;
	__u32 thread = (__u32)bpf_get_current_pid_tgid();
	if (reads)
		watch->blocking_reader = thread;
	else
		watch->blocking_writer = thread;
	if (watch->blocking_reader && watch->blocking_writer &&
	    watch->blocking_reader != watch->blocking_writer)
		remember_hazard(&watch->workload, SHUNT_HAZARD_TWO_THREADS);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(shunt_sys_enter, struct pt_regs *registers, long call)
{
	unsigned int fd = CALL_ARGUMENT_1(registers);
	switch (call) {
	case NR_READ:
	case NR_READV:
		note_blocking(fd, true, 0);
		break;
	case NR_RECVFROM:
		note_blocking(fd, true, CALL_ARGUMENT_4(registers));
		break;
	case NR_RECVMSG:
		note_blocking(fd, true, CALL_ARGUMENT_3(registers));
		break;
	case NR_WRITE:
	case NR_WRITEV:
		note_blocking(fd, false, 0);
		break;
	case NR_SENDTO:
		note_blocking(fd, false, CALL_ARGUMENT_4(registers));
		break;
	case NR_SENDMSG:
		note_blocking(fd, false, CALL_ARGUMENT_3(registers));
		break;
	case NR_SPLICE:
		note_call(fd, SHUNT_HAZARD_SPLICE);
		note_call(CALL_ARGUMENT_3(registers), SHUNT_HAZARD_SPLICE);
		break;
	case NR_IOCTL:
		if (!fionread_counts_tcp && CALL_ARGUMENT_2(registers) == FIONREAD)
			note_call(fd, SHUNT_HAZARD_FIONREAD);
		break;
	}
	return 0;
}

#endif /* SHUNT_BPF_WATCH_H */

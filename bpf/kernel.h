/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The few kernel types that Shunt looks into, by CO-RE: libbpf relocates every
 * access to the running kernel's layout, so members here need only carry the
 * right name and type. Not a vmlinux.h: a reader sees at a glance what the
 * programs depend on.
 */
#ifndef SHUNT_BPF_KERNEL_H
#define SHUNT_BPF_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__s64 counter;
} atomic64_t;

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

struct list_head {
	struct list_head *next, *prev;
};

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct timer_list {
	struct hlist_node entry;
};

struct proto {
	unsigned long *memory_pressure;
};

struct sock_common {
	unsigned char skc_state;
	unsigned short skc_num; /* local port */
	struct proto *skc_prot;
	unsigned long skc_flags;
	atomic64_t skc_cookie;
	refcount_t skc_refcnt;
};

typedef struct {
	unsigned int val;
} kuid_t;

struct kernfs_node {
	__u64 id;
};

struct cgroup_subsys_state {
	struct cgroup_subsys_state *parent;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

typedef struct {
	int owned;
} socket_lock_t;

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	int sk_rcvlowat;
	unsigned char sk_shutdown;
	int sk_err;
	void *sk_user_data;
	kuid_t sk_uid;
	__u16 sk_protocol;
	struct sock_cgroup_data sk_cgrp_data;
	struct timer_list sk_timer;
};

struct inet_sock {
	struct sock sk;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	void *icsk_ulp_ops;
	struct timer_list icsk_retransmit_timer;
	struct timer_list icsk_delack_timer;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 rcv_nxt;
	unsigned int keepalive_time;
	bool is_mptcp;
	void *fastopen_rsk;
};

struct tcp_request_sock {
	__u32 rcv_isn;
	__u32 snt_isn;
};

struct bpf_sock_ops_kern {
	struct sock *sk;
};

struct sk_psock {
	struct list_head ingress_msg;
	refcount_t refcnt;
};

/* A task's descriptors, to find the socket behind the one a system call names. */
struct socket {
	struct sock *sk;
	struct file *file;
};

struct file {
	void *private_data;
	unsigned int f_flags;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct {
	struct files_struct *files;
};

/* The arguments of a system call. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long di, si, dx, r10;
};
#define CALL_ARGUMENT_1(registers) ((registers)->di)
#define CALL_ARGUMENT_2(registers) ((registers)->si)
#define CALL_ARGUMENT_3(registers) ((registers)->dx)
#define CALL_ARGUMENT_4(registers) ((registers)->r10)
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
};
#define CALL_ARGUMENT_1(registers) ((registers)->regs[0])
#define CALL_ARGUMENT_2(registers) ((registers)->regs[1])
#define CALL_ARGUMENT_3(registers) ((registers)->regs[2])
#define CALL_ARGUMENT_4(registers) ((registers)->regs[3])
#endif

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct file *file;
};

struct bpf_iter__sockmap {
	struct bpf_iter_meta *meta;
	void *map;
	void *key;
	struct sock *sk;
};

#pragma clang attribute pop

#endif /* SHUNT_BPF_KERNEL_H */

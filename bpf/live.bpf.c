// SPDX-License-Identifier: GPL-2.0-only
/*
 * Connections of a pod that Shunt did not see begin. They stay on TCP: a reader may
 * be inside plain tcp_recvmsg() already, and would not see what is redirected.
 *
 * An object of its own, since a kernel that does not take it can still accelerate.
 */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "flow.h"
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

#define IPPROTO_TCP 6
#define MAX_CGROUP_DEPTH 32

/* Set by the agent before a run: the pod. */
volatile __u64 target_cgroup = 0; /* its id */
struct shunt_policy target_policy = {};

/* Was the socket made in the target's cgroup, or in one below it? */
static __always_inline bool is_of_target(struct sock *sk)
{
	struct cgroup *cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);
	for (int i = 0; i < MAX_CGROUP_DEPTH && cgroup; i++) {
		if (BPF_CORE_READ(cgroup, kn, id) == target_cgroup)
			return true;
		struct cgroup_subsys_state *parent = BPF_CORE_READ(cgroup, self.parent);
		if (!parent)
			return false;
		cgroup = (void *)((__u64)parent - bpf_core_field_offset(cgroup->self));
	}
	return false;
}

/* Writes the address of each such socket, as often as there are descriptors of it.
 * Sees the processes of the caller's pid namespace. */
SEC("iter/task_file")
int shunt_live_sockets(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *socket = file ? bpf_sock_from_file(file) : 0;
	struct sock *sk = socket ? socket->sk : 0;
	if (!sk || sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state != BPF_TCP_ESTABLISHED)
		return 0;
	if (!shunt_policy_lists(&target_policy, sk->__sk_common.skc_num) || !is_of_target(sk))
		return 0;
	if (bpf_sk_storage_get(&socket_state, sk, 0, 0))
		return 0;
	__u64 address = (__u64)sk;
	bpf_seq_write(ctx->meta->seq, &address, sizeof(address));
	return 0;
}

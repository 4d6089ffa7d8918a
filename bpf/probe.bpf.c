// SPDX-License-Identifier: GPL-2.0-only
/*
 * The instrument of agent/probe: redirects without any gate, so that what the
 * kernel's sockhash does by itself can be seen on real sockets. Uses every
 * kernel feature that shunt.bpf.c needs, in the same way, so that a kernel or
 * a container that cannot run the engine refuses this object first.
 */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "probe.h"

char LICENSE[] SEC("license") = "GPL";

#define AF_INET 2
#define AF_INET6 10
#define SEND_SHUTDOWN 2

/* Some 100 us: what another thread does meanwhile meets a message on its way. */
#define SLOW_TURNS 3000

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1024);
	__type(key, __u64); /* SO_COOKIE */
	__type(value, __u64);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct probe_socket);
} probe_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, __u64);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} records SEC(".maps");

SEC("sk_msg")
int probe_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct probe_socket *self = sk ? bpf_sk_storage_get(&probe_sockets, sk, 0, 0) : 0;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!self || !tp)
		return SK_PASS;

	/* A number from here on, as the engine keeps its peer's address. */
	__u64 address = (__u64)tp;
	barrier_var(address);
	self->own_key = BPF_CORE_READ((struct sock *)address, __sk_common.skc_cookie.counter);
	self->netns_cookie = bpf_get_netns_cookie(msg);
	self->write_seq = tp->write_seq;
	self->messages++;
	/* The helper's answer decides nothing: with no such key it sets no
	 * target, and SK_PASS then means TCP. */
	__u64 peer = self->peer_key;
	if (self->mind_shutdown &&
	    (BPF_CORE_READ((struct sock *)address, sk_shutdown) & SEND_SHUTDOWN))
		return SK_PASS;
	if (self->redirect &&
	    bpf_msg_redirect_hash(msg, &members, &peer, BPF_F_INGRESS) == SK_PASS)
		self->redirected++;
	if (self->slow) {
		for (int i = 0; i < SLOW_TURNS; i++)
			bpf_ktime_get_ns();
	}
	return SK_PASS;
}

/* Loaded, never attached: that it loads is what is to be known. */
SEC("sockops")
int probe_sock_ops(struct bpf_sock_ops *ops)
{
	if (ops->family != AF_INET && ops->family != AF_INET6)
		return 1;
	struct bpf_sock *sk = ops->sk;
	__u64 *policy = bpf_get_local_storage(&policies, 0);
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!sk || !tp || !*policy)
		return 1;

	struct probe_socket *self =
		bpf_sk_storage_get(&probe_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!self)
		return 1;
	__u64 key = bpf_get_socket_cookie(ops);
	self->netns_cookie = bpf_get_netns_cookie(ops);
	self->write_seq = tp->write_seq;
	__u64 *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (record) {
		*record = key;
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (bpf_sock_hash_update(ops, &members, &key, BPF_NOEXIST))
		bpf_map_delete_elem(&members, &key);
	return 1;
}

static __always_inline void put_member(struct bpf_iter__sockmap *ctx, __u64 key, __u32 redirected,
				       __u32 deleted)
{
	struct probe_member member = {
		.key = key,
		.redirected = redirected,
		.deleted = deleted,
	};
	bpf_seq_write(ctx->meta->seq, &member, sizeof(member));
}

SEC("iter/sockmap")
int probe_list(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	if (sk)
		put_member(ctx, sk->__sk_common.skc_cookie.counter, 0, 0);
	return 0;
}

SEC("iter/sockmap")
int probe_let_go(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	struct probe_socket *self = sk ? bpf_sk_storage_get(&probe_sockets, sk, 0, 0) : 0;
	if (!self)
		return 0;
	__u64 key = sk->__sk_common.skc_cookie.counter;
	__u32 deleted = self->let_go && !bpf_map_delete_elem(&members, &key);
	put_member(ctx, key, self->redirected, deleted);
	return 0;
}

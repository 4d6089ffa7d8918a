// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shunt's portable engine.
 *
 * A connection's life here:
 *   SYN at a listed listener         announce(): server's key, before the SYN-ACK
 *   client ESTABLISHED               join_client(): only if announced
 *   server ESTABLISHED               join_server(): only if its client joined
 *   each sendmsg of either end       shunt_msg(): the gate, then redirect or TCP
 *   TCP_CLOSE, connect, listen       leave()
 * Everything that is in doubt returns SK_PASS (plain TCP) and is counted.
 */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define SHUNT_INLINE static __always_inline
#include "emit.h"
#include "flow.h"
#include "gate.h"
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

#define AF_INET 2
#define AF_INET6 10
#define RCV_SHUTDOWN 1
#define SEND_SHUTDOWN 2
#define SHUTDOWN_MASK 3
#define NANOSECONDS 1000000000ULL
#define E2BIG 7
#define EBUSY 16
#define EEXIST 17
#define EINVAL 22

/* Measured by the agent before load: redirected bytes are charged to
 * sk_rmem_alloc (kernel commit d888b7af7c14 and back-ports). Without that the
 * only bound is "one message at a time". */
const volatile bool rmem_is_charged = true;

/* Kernel 6.2 (a35b9af4ec2c). */
extern void *bpf_rdonly_cast(const void *object, __u32 btf_id) __ksym;

static __always_inline void count_pod(__u32 pod, __u32 made, __u32 ended, __u64 bytes,
				      __u32 refused)
{
	struct shunt_pod_totals *totals = bpf_map_lookup_elem(&pod_totals, &pod);
	if (!totals) {
		struct shunt_pod_totals none = {};
		bpf_map_update_elem(&pod_totals, &pod, &none, BPF_NOEXIST);
		totals = bpf_map_lookup_elem(&pod_totals, &pod);
		if (!totals)
			return;
	}
	totals->pairs_made += made;
	totals->pairs_ended += ended;
	totals->redirected_bytes += bytes;
	totals->refused += refused;
}

static __always_inline void refuse(struct bpf_sock_ops *ops, __u32 pod, __u32 reason,
				   const struct shunt_end_key *key)
{
	count_exit(reason);
	count_pod(pod, 0, 0, 0, 1);
	emit_event(SHUNT_EVENT_REFUSED, reason, key, pod, ops->local_port,
		   bpf_ntohl(ops->remote_port), 0);
}

/* ---- what can be seen of a socket ----------------------------------------- */

static __always_inline struct sk_psock *psock_of(struct sock *sk)
{
	/* SK_USER_DATA_* flags live in the low bits of the pointer. */
	return (void *)((__u64)BPF_CORE_READ(sk, sk_user_data) & ~7ULL);
}

static __always_inline bool queue_is_empty(struct sock *sk)
{
	struct sk_psock *psock = psock_of(sk);
	if (!psock)
		return true;
	return (__u64)BPF_CORE_READ(psock, ingress_msg.next) ==
	       (__u64)psock + bpf_core_field_offset(psock->ingress_msg);
}

static __always_inline __s32 armed_timers(struct sock *sk)
{
	struct inet_connection_sock *icsk = (void *)sk;
	return (BPF_CORE_READ(sk, sk_timer.entry.pprev) != 0) +
	       (BPF_CORE_READ(icsk, icsk_retransmit_timer.entry.pprev) != 0) +
	       (BPF_CORE_READ(icsk, icsk_delack_timer.entry.pprev) != 0);
}

/* The socket's own reference and the psock's. */
#define RESTING_REFERENCES 2

/* ---- sock_ops: a SYN at a listener ------------------------------------- */

/*
 * Runs with a request_sock in ctx->sk, which the verifier shows us only as
 * null. Both initial sequence numbers are set by then: tcp_conn_request() sets
 * snt_isn right before tcp_openreq_init_rwin() calls us, on every kernel since
 * 4.13. Under SYN cookies there is no listener attached and we are not called.
 */
static __always_inline void announce(struct bpf_sock_ops *ops, const struct shunt_policy *pod)
{
	if (ops->is_fullsock || !shunt_policy_lists(pod, ops->local_port))
		return;

	struct tcp_request_sock *request = (void *)BPF_CORE_READ((struct bpf_sock_ops_kern *)ops, sk);
	__u32 rcv_isn = BPF_CORE_READ(request, rcv_isn);
	__u32 snt_isn = BPF_CORE_READ(request, snt_isn);
	struct shunt_end_key key = shunt_end_key_make(bpf_get_netns_cookie(ops), SHUNT_SERVER,
						      snt_isn + 1, rcv_isn + 1);
	__u32 id = pod->pod;
	if (bpf_map_update_elem(&announced, &key, &id, BPF_ANY)) {
		count_exit(SHUNT_EXIT_ANNOUNCE_FAILED);
		return;
	}
	count_exit(SHUNT_EXIT_ANNOUNCED);
}

/* ---- sock_ops: joining --------------------------------------------------- */

static __always_inline __u32 refusal_of(long error)
{
	switch (error) {
	case -E2BIG:
		return SHUNT_EXIT_REFUSED_MAP_FULL;
	case -EBUSY: /* sk_user_data or another sockmap's program */
	case -EINVAL: /* ULP */
		return SHUNT_EXIT_REFUSED_OTHER_OWNER;
	case -EEXIST:
		return SHUNT_EXIT_REFUSED_DUPLICATE;
	default:
		return SHUNT_EXIT_REFUSED_ERROR;
	}
}

/* Puts the socket of this call into the maps; SHUNT_EXIT_COUNT on success, else
 * the reason, and then no trace is left. */
static __always_inline __u32 join(struct bpf_sock_ops *ops, struct bpf_sock *sk,
				  struct shunt_end_key *key, __u32 pod)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return SHUNT_EXIT_REFUSED_ERROR;
	/* A Fast Open child is called before its handshake is complete. Any other
	 * server is still in SYN_RECV here, and ESTABLISHED a few lines later in
	 * tcp_rcv_state_process(), under the same socket lock. */
	if (tp->fastopen_rsk)
		return SHUNT_EXIT_REFUSED_FAST_OPEN;
	if (sk->state != (key->role == SHUNT_CLIENT ? BPF_TCP_ESTABLISHED : BPF_TCP_SYN_RECV))
		return SHUNT_EXIT_REFUSED_STATE;
	struct sock *kernel_sk = (struct sock *)tp;
	if (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp)
		return SHUNT_EXIT_REFUSED_MPTCP;
	if (kernel_sk->sk_user_data)
		return SHUNT_EXIT_REFUSED_OTHER_OWNER;

	struct shunt_socket_state *state =
		bpf_sk_storage_get(&socket_state, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return SHUNT_EXIT_REFUSED_ERROR;
	struct shunt_end end = {
		.tcp_sock = (__u64)tp,
		.socket_cookie = bpf_get_socket_cookie(ops),
		.joined_ns = bpf_ktime_get_coarse_ns(),
		.pod = pod,
		.uid = kernel_sk->sk_uid.val,
		.local_port = ops->local_port,
		.remote_port = bpf_ntohl(ops->remote_port),
		.family = ops->family,
	};
	long error = bpf_map_update_elem(&ends, key, &end, BPF_NOEXIST);
	if (error)
		return refusal_of(error);

	/* All before the insert: from then on the sk_msg program may run. */
	*state = (struct shunt_socket_state){
		.self = *key,
		.last_tcp_ns = end.joined_ns,
		.pod = pod,
		.joined = 1,
	};
	error = bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags |
						       BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!error)
		error = bpf_sock_hash_update(ops, &sockets, key, BPF_NOEXIST);
	if (error) {
		state->joined = 0;
		bpf_map_delete_elem(&ends, key);
		return refusal_of(error);
	}
	return SHUNT_EXIT_COUNT;
}

static __always_inline void join_client(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct shunt_end_key key = shunt_end_key_make(bpf_get_netns_cookie(ops), SHUNT_CLIENT,
						      ops->snd_nxt, ops->rcv_nxt);
	struct shunt_end_key server = shunt_end_key_peer(key);
	__u32 *pod = bpf_map_lookup_elem(&announced, &server);
	if (!pod) {
		count_exit(SHUNT_EXIT_CLIENT_UNANNOUNCED);
		return;
	}
	__u32 id = *pod;
	__u32 refusal = join(ops, sk, &key, id);
	if (refusal != SHUNT_EXIT_COUNT) {
		refuse(ops, id, refusal, &key);
		return;
	}
	count_exit(SHUNT_EXIT_CLIENT_JOINED);
}

static __always_inline void join_server(struct bpf_sock_ops *ops, struct bpf_sock *sk,
					const struct shunt_policy *pod)
{
	struct shunt_end_key key = shunt_end_key_make(bpf_get_netns_cookie(ops), SHUNT_SERVER,
						      ops->snd_nxt, ops->rcv_nxt);
	struct shunt_end_key client = shunt_end_key_peer(key);
	__u32 refusal;

	bpf_map_delete_elem(&announced, &key);
	struct shunt_end *end = bpf_map_lookup_elem(&ends, &client);
	if (!end) {
		struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
		if (!shunt_policy_lists(pod, ops->local_port))
			count_exit(SHUNT_EXIT_SERVER_UNLISTED);
		else if (tp && tp->fastopen_rsk)
			count_exit(SHUNT_EXIT_REFUSED_FAST_OPEN);
		else
			count_exit(SHUNT_EXIT_SERVER_ALONE);
		return;
	}
	__u32 id = end->pod;
	if (!shunt_policy_lists(pod, ops->local_port))
		refusal = SHUNT_EXIT_SERVER_UNLISTED; /* policy changed since the SYN */
	else
		refusal = join(ops, sk, &key, id);
	if (refusal == SHUNT_EXIT_COUNT) {
		count_exit(SHUNT_EXIT_PAIR_MADE);
		count_pod(id, 1, 0, 0, 0);
		emit_event(SHUNT_EVENT_PAIR_MADE, SHUNT_EXIT_PAIR_MADE, &key, id, ops->local_port,
			   bpf_ntohl(ops->remote_port), 0);
		return;
	}
	refuse(ops, id, refusal, &key);

	/*
	 * The client is an orphan. No server ever joined under this fingerprint,
	 * so nothing was ever redirected to it: its queue is empty and its key
	 * may go. The server has not sent a byte yet either.
	 */
	bpf_map_delete_elem(&sockets, &client);
	bpf_map_delete_elem(&ends, &client);
	count_exit(SHUNT_EXIT_ORPHAN_RELEASED);
}

/* ---- sock_ops: leaving --------------------------------------------------- */

static __always_inline void forget(struct bpf_sock_ops *ops, struct shunt_socket_state *state,
				   __u32 reason)
{
	struct shunt_end_key key = state->self;
	state->joined = 0;
	state->gate_closed = 1;
	bpf_map_delete_elem(&ends, &key);
	count_exit(reason);
	count_pod(state->pod, 0, key.role == SHUNT_SERVER, state->redirected_bytes, 0);
	emit_event(SHUNT_EVENT_LEFT, reason, &key, state->pod, ops->local_port,
		   bpf_ntohl(ops->remote_port), state->redirected_bytes);
}

/*
 * The socket reached TCP_CLOSE. Its key stays unless the program itself threw
 * the connection away with connect(AF_UNSPEC): after a reset, a timeout or a
 * late ACK the unread bytes are still readable on TCP, and must be here.
 * tcp_disconnect() is the one caller that comes without sk_err and without
 * both directions shut (tcp_reset, tcp_write_err, tcp_abort set sk_err first,
 * tcp_close shuts both first). On TCP it purges the receive queue.
 */
static __always_inline void on_close(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	if (!state || !state->joined)
		return;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct sock *kernel_sk = (struct sock *)tp;
	if (tp && !kernel_sk->sk_err && (kernel_sk->sk_shutdown & SHUTDOWN_MASK) != SHUTDOWN_MASK) {
		struct shunt_end_key key = state->self;
		bpf_map_delete_elem(&sockets, &key);
		forget(ops, state, SHUNT_EXIT_LEFT_DISCONNECTED);
		return;
	}
	forget(ops, state, SHUNT_EXIT_LEFT_CLOSED);
}

/*
 * The socket will send no more (shutdown(SHUT_WR)) but may read on. It leaves
 * now if that is free of loss, because a blocked reader of a psock does not
 * survive the wake-up that the ACK of its FIN causes: tcp_msg_wait_data() waits
 * once, and recv() would return EAGAIN.
 *
 * Free of loss: nothing is queued, and nobody is between the gate and the queue.
 * inet_shutdown() has stored SEND_SHUTDOWN before this runs, and that closes the
 * peer's gate; the atomic add is the barrier between that store and the loads
 * here. Whoever passed before holds a reference. The socket is locked, so its
 * timers do not move meanwhile and the count is exact.
 */
static __always_inline void on_half_close(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!state || !state->joined || !tp)
		return;
	struct sock *kernel_sk = (struct sock *)tp;
	if (kernel_sk->sk_shutdown & RCV_SHUTDOWN)
		return; /* close(): the kernel has taken the key out */
	__sync_fetch_and_add(&state->half_closes, 1);
	if (!queue_is_empty(kernel_sk) ||
	    kernel_sk->__sk_common.skc_refcnt.refs.counter >
		    RESTING_REFERENCES + armed_timers(kernel_sk))
		return;
	struct shunt_end_key key = state->self;
	bpf_map_delete_elem(&sockets, &key);
	forget(ops, state, SHUNT_EXIT_LEFT_HALF_CLOSED);
}

/*
 * The socket starts another life by connect() or listen(). If it is still in
 * the map (closed by a reset, then disconnected: no transition, so on_close did
 * not see it), bytes of the former stream would be read in the new one. Since
 * kernel 5.16 sockmap does not remove it by itself.
 */
static __always_inline void on_reuse(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	if (!state)
		return;
	struct shunt_end_key key = state->self;
	bpf_map_delete_elem(&sockets, &key);
	if (state->joined)
		forget(ops, state, SHUNT_EXIT_LEFT_REUSED);
}

SEC("sockops")
int shunt_sock_ops(struct bpf_sock_ops *ops)
{
	if (ops->family != AF_INET && ops->family != AF_INET6)
		return 1;
	struct shunt_policy *pod = bpf_get_local_storage(&policy, 0);
	struct bpf_sock *sk;

	switch (ops->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		announce(ops, pod);
		return 1;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		sk = ops->sk;
		if (sk)
			join_client(ops, sk);
		return 1;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sk = ops->sk;
		if (sk)
			join_server(ops, sk, pod);
		return 1;
	case BPF_SOCK_OPS_STATE_CB:
		sk = ops->sk;
		if (sk && ops->args[1] == BPF_TCP_CLOSE)
			on_close(ops, sk);
		else if (sk && (ops->args[1] == BPF_TCP_FIN_WAIT1 ||
				ops->args[1] == BPF_TCP_LAST_ACK))
			on_half_close(ops, sk);
		return 1;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		sk = ops->sk;
		if (sk)
			on_reuse(ops, sk);
		return 1;
	}
	return 1;
}

/* ---- sk_msg: the data path ----------------------------------------------- */

/* Bytes that a socket holds unread, of which `charged` by its sk_rmem_alloc. */
static __always_inline __u32 unread_of(struct sock *sk, int charged)
{
	if (!rmem_is_charged)
		return queue_is_empty(sk) ? 0 : ~0U;
	return charged < 0 ? 0 : charged;
}

/* One load, here and now: neither moved nor merged by the compiler. */
#define LOAD_ONCE(place) (*(volatile typeof(place) *)&(place))

/* Looks at the peer by direct loads; a fault reads as zero. A peer that has shut
 * down its sending side counts as not receiving: it leaves, see on_half_close(). */
static __always_inline void look_directly(struct shunt_gate_view *view, __u64 peer_tcp_sock)
{
	struct tcp_sock *tp = bpf_rdonly_cast((void *)peer_tcp_sock,
					      bpf_core_type_id_kernel(struct tcp_sock));
	struct sock *sk = (struct sock *)tp;
	view->peer_cookie_before = LOAD_ONCE(sk->__sk_common.skc_cookie.counter);
	view->peer_receiving =
		LOAD_ONCE(sk->__sk_common.skc_state) == BPF_TCP_ESTABLISHED &&
		!LOAD_ONCE(sk->sk_shutdown);
	view->peer_low_water = LOAD_ONCE(sk->sk_rcvlowat);
	view->peer_copied_seq = LOAD_ONCE(tp->copied_seq);
	view->peer_unread = unread_of(sk, LOAD_ONCE(sk->sk_backlog.rmem_alloc.counter));
	view->peer_limit = LOAD_ONCE(sk->sk_rcvbuf);
	view->peer_cookie_after = LOAD_ONCE(sk->__sk_common.skc_cookie.counter);
}

/* The same by probe reads. */
static __always_inline void look_by_probe(struct shunt_gate_view *view, __u64 peer_tcp_sock)
{
	struct tcp_sock *tp = (void *)peer_tcp_sock;
	struct sock *sk = (struct sock *)tp;
	view->peer_cookie_before = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	view->peer_receiving =
		BPF_CORE_READ(sk, __sk_common.skc_state) == BPF_TCP_ESTABLISHED &&
		!BPF_CORE_READ(sk, sk_shutdown);
	view->peer_low_water = BPF_CORE_READ(sk, sk_rcvlowat);
	view->peer_copied_seq = BPF_CORE_READ(tp, copied_seq);
	view->peer_unread = unread_of(sk, BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter));
	view->peer_limit = BPF_CORE_READ(sk, sk_rcvbuf);
	view->peer_cookie_after = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

static __always_inline int pass_or_redirect(struct sk_msg_md *msg, const bool direct)
{
	struct bpf_sock *sk = msg->sk;
	struct shunt_socket_state *state = sk ? bpf_sk_storage_get(&socket_state, sk, 0, 0) : 0;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!state || !tp) {
		count_exit(SHUNT_EXIT_MSG_NO_STATE);
		return SK_PASS;
	}

	struct shunt_end_key peer_key = shunt_end_key_peer(state->self);
	if (!state->peer_tcp_sock && !state->gate_closed) {
		struct shunt_end *end = bpf_map_lookup_elem(&ends, &peer_key);
		if (end) {
			state->peer_cookie = end->socket_cookie;
			state->peer_tcp_sock = end->tcp_sock;
		}
	}

	struct sock *own = (struct sock *)tp;
	__u64 now_ns = bpf_ktime_get_coarse_ns();
	struct shunt_gate_view view = {
		.own_write_seq = tp->write_seq,
		.own_sendable = (sk->state == BPF_TCP_ESTABLISHED ||
				 sk->state == BPF_TCP_CLOSE_WAIT) &&
				!(own->sk_shutdown & SEND_SHUTDOWN),
		.gate_closed = state->gate_closed,
		.message_bytes = msg->size,
		.tcp_idle_seconds = (now_ns - state->last_tcp_ns) / NANOSECONDS,
		.peer_known = state->peer_tcp_sock != 0,
		.peer_cookie_expected = state->peer_cookie,
		.memory_pressure = *own->__sk_common.skc_prot->memory_pressure != 0,
	};
	if (view.peer_known && !view.gate_closed) {
		if (direct)
			look_directly(&view, state->peer_tcp_sock);
		else
			look_by_probe(&view, state->peer_tcp_sock);
	}
	__u32 exit = shunt_gate(&view);
	if (exit == SHUNT_EXIT_REDIRECTED &&
	    bpf_msg_redirect_hash(msg, &sockets, &peer_key, BPF_F_INGRESS) != SK_PASS)
		exit = SHUNT_EXIT_MSG_REDIRECT_FAILED;
	count_exit(exit);
	if (exit == SHUNT_EXIT_REDIRECTED) {
		state->redirected_bytes += msg->size;
		count_redirected(msg->size);
	} else {
		state->last_tcp_ns = now_ns;
	}
	return SK_PASS;
}

/* The agent loads the first of these two that the kernel takes. Direct loads
 * save a tenth of the round trip of a small message. */
SEC("sk_msg")
int shunt_msg_direct(struct sk_msg_md *msg)
{
	return pass_or_redirect(msg, true);
}

SEC("sk_msg")
int shunt_msg_probe(struct sk_msg_md *msg)
{
	return pass_or_redirect(msg, false);
}

/* ---- iter/sockmap: the agent looks at and lets go of members ------------- */

/* Set by the agent before a run: the pod to act on, 0 for every pod; and what
 * shunt_close_gates leaves open: server ports that this policy lists. */
volatile __u32 target_pod = 0;
struct shunt_policy keep = {};

static __always_inline void put_record(struct bpf_iter__sockmap *ctx, struct sock *sk,
				       const struct shunt_socket_state *state,
				       const struct shunt_end *end, bool drained)
{
	struct shunt_end_record record = {
		.key = state->self,
		.end = *end,
		.redirected_bytes = state->redirected_bytes,
		.unread_bytes = queue_is_empty(sk) ?
					0 :
					unread_of(sk, sk->sk_backlog.rmem_alloc.counter),
		.state = sk->__sk_common.skc_state,
		.drained = drained,
	};
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
}

static __always_inline struct shunt_socket_state *targeted(struct sock *sk)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	if (!state || (target_pod && state->pod != target_pod))
		return 0;
	return state;
}

SEC("iter/sockmap")
int shunt_list_ends(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	struct shunt_socket_state *state = sk ? targeted(sk) : 0;
	struct shunt_end *end = state ? bpf_map_lookup_elem(&ends, &state->self) : 0;
	if (end)
		put_record(ctx, sk, state, end, false);
	return 0;
}

/* From the end of this run plus one RCU grace period on, nothing passes a gate
 * that it closed. Enrolment of such ends must have been stopped before. */
SEC("iter/sockmap")
int shunt_close_gates(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	struct shunt_socket_state *state = sk ? targeted(sk) : 0;
	if (!state)
		return 0;
	struct shunt_end_key self = state->self;
	struct shunt_end_key peer = shunt_end_key_peer(self);
	struct shunt_end *end = bpf_map_lookup_elem(&ends, &self);
	struct shunt_end *server =
		self.role == SHUNT_SERVER ? end : bpf_map_lookup_elem(&ends, &peer);
	if (server && shunt_policy_lists(&keep, server->local_port))
		return 0;
	/* Its server is about to join, or not, under the same policy. */
	if (!server && keep.mode == SHUNT_MODE_ENROL)
		return 0;
	state->gate_closed = 1;
	if (end)
		end->gate_closed = 1;
	return 0;
}

/* The sockhash's. */
#define RESTING_PSOCK_REFERENCES 1

/* What the other end of a leaving end is doing. Its address is good only if the
 * cookie is the same before and after; otherwise nothing is known: both false. */
struct other_end {
	bool in_no_call; /* no thread is in its sendmsg (nor recvmsg) */
	bool sends_no_more;
};

static __always_inline struct other_end look_at_other_end(const struct shunt_end *end)
{
	struct sock *sk = (void *)end->tcp_sock;
	struct sk_psock *psock = psock_of(sk);
	__u64 before = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	struct other_end seen = {
		.in_no_call = psock && BPF_CORE_READ(psock, refcnt.refs.counter) ==
					       RESTING_PSOCK_REFERENCES,
		.sends_no_more = BPF_CORE_READ(sk, sk_shutdown) & SEND_SHUTDOWN,
	};
	__u64 after = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (before != end->socket_cookie || after != end->socket_cookie)
		seen = (struct other_end){};
	return seen;
}

/* Of the targeted ends whose gate is closed: deletes the key of each that may
 * leave. Records all of them. */
SEC("iter/sockmap")
int shunt_let_go(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	struct shunt_socket_state *state = sk ? targeted(sk) : 0;
	if (!state || !state->gate_closed)
		return 0;
	struct shunt_end_key self = state->self;
	struct shunt_end_key peer_key = shunt_end_key_peer(self);
	struct shunt_end *end = bpf_map_lookup_elem(&ends, &self);
	struct shunt_end *peer = bpf_map_lookup_elem(&ends, &peer_key);
	struct other_end other = {};
	if (peer)
		other = look_at_other_end(peer);

	/* In this order: see shunt_may_leave(). */
	__s32 timers_before = armed_timers(sk);
	__s32 references = BPF_CORE_READ(sk, __sk_common.skc_refcnt.refs.counter);
	__s32 timers_after = armed_timers(sk);
	struct shunt_leave_view view = {
		.own_gate_closed = state->gate_closed,
		.peer_gate_closed = !peer || peer->gate_closed || other.sends_no_more,
		.queue_empty = queue_is_empty(sk),
		.references = references,
		.accounted = other.in_no_call ? references : RESTING_REFERENCES,
	};
	bool leaves = shunt_may_leave(&view);
	if (!leaves) {
		view.accounted = RESTING_REFERENCES +
				 (timers_before < timers_after ? timers_before : timers_after);
		state->quiet_looks = shunt_may_leave(&view) ? state->quiet_looks + 1 : 0;
		leaves = state->quiet_looks >= SHUNT_QUIET_LOOKS;
	}
	if (!leaves) {
		if (end)
			put_record(ctx, sk, state, end, false);
		return 0;
	}
	bpf_map_delete_elem(&sockets, &self);
	if (state->joined) {
		state->joined = 0;
		count_exit(SHUNT_EXIT_LEFT_DRAINED);
		count_pod(state->pod, 0, self.role == SHUNT_SERVER, state->redirected_bytes, 0);
	}
	if (end)
		put_record(ctx, sk, state, end, true);
	bpf_map_delete_elem(&ends, &self);
	return 0;
}

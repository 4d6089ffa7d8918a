// SPDX-License-Identifier: GPL-2.0-only
/*
 * Shunt's portable engine.
 *
 * A connection's life here:
 *   SYN at a listed listener         announce(): server's key, before the SYN-ACK
 *   client ESTABLISHED               join_client(): only if announced
 *   server ESTABLISHED               join_server(): only if its client joined
 *   each sendmsg of either end       shunt_msg(): the gate, then redirect or TCP
 *   a stream, a slow reader, a hazard   begin_leaving(): back to TCP, see leave.h
 *   TCP_CLOSE, connect, listen       its key goes
 * What a new workload does is looked at first: watch.h.
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
#include "leave.h"
#include "maps.h"
#include "observe.h"
#include "socket.h"
#include "watch.h"

char LICENSE[] SEC("license") = "GPL";

#define AF_INET 2
#define AF_INET6 10
#define E2BIG 7
#define EBUSY 16
#define EEXIST 17
#define EINVAL 22

/* Tests load two generations of these programs at once, told apart by their tags:
 * one instruction more. */
#ifdef SHUNT_GENERATION
#define MARK_GENERATION() asm volatile("" : : "r"((__u64)SHUNT_GENERATION))
#else
#define MARK_GENERATION()
#endif

extern unsigned long CONFIG_HZ __kconfig;

/* Kernel 6.2 (a35b9af4ec2c). */
extern void *bpf_rdonly_cast(const void *object, __u32 btf_id) __ksym;

enum sock_flags { SOCK_KEEPOPEN, SOCK_RCVTSTAMP, SOCK_ZEROCOPY, SOCK_TIMESTAMPING_RX_SOFTWARE };

static __always_inline void refuse(struct bpf_sock_ops *ops, __u32 pod, __u32 reason,
				   const struct shunt_end_key *key, __u32 port)
{
	struct shunt_event event = {
		.kind = SHUNT_EVENT_REFUSED,
		.reason = reason,
		.key = *key,
		.pod = pod,
		.local_port = ops->local_port,
		.remote_port = bpf_ntohl(ops->remote_port),
		.port = port,
	};
	count_exit(reason);
	count_pod(pod, 0, 0, 0, 1);
	emit_event(&event, false);
}

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
	struct shunt_workload_key workload = { .pod = pod->pod, .port = ops->local_port };
	struct shunt_workload *known = know_workload(&workload);
	if (!known || (known->state == SHUNT_WORKLOAD_HAZARD && !observes)) {
		count_exit(SHUNT_EXIT_REFUSED_HAZARD);
		count_pod(pod->pod, 0, 0, 0, 1);
		return;
	}

	struct tcp_request_sock *request = (void *)BPF_CORE_READ((struct bpf_sock_ops_kern *)ops, sk);
	__u32 rcv_isn = BPF_CORE_READ(request, rcv_isn);
	__u32 snt_isn = BPF_CORE_READ(request, snt_isn);
	struct shunt_end_key key = shunt_end_key_make(bpf_get_netns_cookie(ops), SHUNT_SERVER,
						      snt_isn + 1, rcv_isn + 1);
	if (bpf_map_update_elem(&announced, &key, &workload, BPF_ANY)) {
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

/* Set before the handshake was over, perhaps on the listener. */
static __always_inline bool has_unkept_option(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_rcvlowat) > 1 ||
	       has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY)) ||
	       has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_RCVTSTAMP)) ||
	       has_flag(sk, bpf_core_enum_value(enum sock_flags, SOCK_TIMESTAMPING_RX_SOFTWARE));
}

/* A free place for the turns of a new pair, or SHUNT_NO_TURN. */
static __always_inline __u32 take_turn(const struct shunt_end_key *key)
{
	__u32 hash = key->client_next * 0x9e3779b1u ^ key->server_next;
	for (__u32 i = 0; i < 8; i++) {
		__u32 place = (hash + i) & (SHUNT_TURNS - 1);
		struct shunt_turn *turn = bpf_map_lookup_elem(&turns, &place);
		if (turn && __sync_val_compare_and_swap(&turn->tag, 0, key->client_next) == 0)
			return place;
	}
	return SHUNT_NO_TURN;
}

/* Why this socket, as it is now, cannot be enrolled; SHUNT_EXIT_COUNT if it can. */
static __always_inline __u32 refusal_of_socket(struct bpf_sock *sk, struct tcp_sock *tp, __u32 role)
{
	/* A Fast Open child is called before its handshake is complete. Any other
	 * server is still in SYN_RECV here, and ESTABLISHED a few lines later in
	 * tcp_rcv_state_process(), under the same socket lock. */
	if (tp->fastopen_rsk)
		return SHUNT_EXIT_REFUSED_FAST_OPEN;
	if (sk->state != (role == SHUNT_CLIENT ? BPF_TCP_ESTABLISHED : BPF_TCP_SYN_RECV))
		return SHUNT_EXIT_REFUSED_STATE;
	struct sock *kernel_sk = (struct sock *)tp;
	if (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp)
		return SHUNT_EXIT_REFUSED_MPTCP;
	if (kernel_sk->sk_user_data)
		return SHUNT_EXIT_REFUSED_OTHER_OWNER;
	if (has_unkept_option(kernel_sk))
		return SHUNT_EXIT_REFUSED_OPTION;
	return SHUNT_EXIT_COUNT;
}

static __always_inline void watch_socket(__u64 tcp_sock, __u64 cookie,
					 const struct shunt_workload_key *workload)
{
	struct shunt_watched watch = {
		.socket_cookie = cookie,
		.workload = *workload,
	};
	bpf_map_update_elem(&watched, &tcp_sock, &watch, BPF_ANY);
}

/* Puts the socket of this call into the maps; SHUNT_EXIT_COUNT on success, else
 * the reason, and then no trace is left. */
static __always_inline __u32 join(struct bpf_sock_ops *ops, struct bpf_sock *sk,
				  struct shunt_end_key *key,
				  const struct shunt_workload_key *workload, __u32 turn)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return SHUNT_EXIT_REFUSED_ERROR;
	struct sock *kernel_sk = (struct sock *)tp;
	__u32 refusal = refusal_of_socket(sk, tp, key->role);
	if (refusal != SHUNT_EXIT_COUNT)
		return refusal;
	struct shunt_workload *known = know_workload(workload);
	if (!known)
		return SHUNT_EXIT_REFUSED_ERROR;

	struct shunt_socket_state *state =
		bpf_sk_storage_get(&socket_state, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return SHUNT_EXIT_REFUSED_ERROR;
	struct shunt_end end = {
		.tcp_sock = (__u64)tp,
		.socket_cookie = bpf_get_socket_cookie(ops),
		.joined_ns = bpf_ktime_get_coarse_ns(),
		.pod = workload->pod,
		.uid = kernel_sk->sk_uid.val,
		.local_port = ops->local_port,
		.remote_port = bpf_ntohl(ops->remote_port),
		.family = ops->family,
		.turn = turn,
	};
	long error = bpf_map_update_elem(&ends, key, &end, BPF_NOEXIST);
	if (error)
		return refusal_of(error);

	/* All before the insert: from then on the sk_msg program may run. */
	*state = (struct shunt_socket_state){
		.self = *key,
		.last_tcp_ns = end.joined_ns,
		.pod = workload->pod,
		.server_port = workload->port,
		.joined = 1,
		.watched = known->state == SHUNT_WORKLOAD_WATCHED ? SHUNT_IS_WATCHED :
								    SHUNT_NOT_WATCHED,
		.turn = turn,
	};
	if (state->watched)
		watch_socket(end.tcp_sock, end.socket_cookie, workload);
	error = bpf_sock_ops_cb_flags_set(
		ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG |
			     (fionread_counts_tcp ? 0 : BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG));
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
	struct shunt_workload_key *found = bpf_map_lookup_elem(&announced, &server);
	if (!found) {
		count_exit(SHUNT_EXIT_CLIENT_UNANNOUNCED);
		return;
	}
	struct shunt_workload_key workload = *found;
	__u32 refusal = join(ops, sk, &key, &workload, SHUNT_NO_TURN);
	if (refusal != SHUNT_EXIT_COUNT) {
		refuse(ops, workload.pod, refusal, &key, workload.port);
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
	struct shunt_workload_key workload = { .pod = end->pod, .port = ops->local_port };
	__u32 turn = take_turn(&key);
	if (!shunt_policy_lists(pod, ops->local_port))
		refusal = SHUNT_EXIT_SERVER_UNLISTED; /* policy changed since the SYN */
	else
		refusal = join(ops, sk, &key, &workload, turn);
	if (refusal == SHUNT_EXIT_COUNT) {
		struct shunt_event event = {
			.kind = SHUNT_EVENT_PAIR_MADE,
			.reason = SHUNT_EXIT_PAIR_MADE,
			.key = key,
			.pod = workload.pod,
			.local_port = ops->local_port,
			.remote_port = bpf_ntohl(ops->remote_port),
			.port = workload.port,
		};
		count_exit(SHUNT_EXIT_PAIR_MADE);
		count_pod(workload.pod, 1, 0, 0, 0);
		emit_event(&event, false);
		return;
	}
	struct shunt_turn *place = bpf_map_lookup_elem(&turns, &turn);
	if (place)
		place->tag = 0;
	refuse(ops, workload.pod, refusal, &key, workload.port);

	/*
	 * The client is an orphan. No server ever joined under this fingerprint,
	 * so nothing was ever redirected to it: its queue is empty and its key
	 * may go. The server has not sent a byte yet either.
	 */
	bpf_map_delete_elem(&sockets, &client);
	bpf_map_delete_elem(&ends, &client);
	count_exit(SHUNT_EXIT_ORPHAN_RELEASED);
}

/* ---- sock_ops: observing -------------------------------------------------- */

/* What join() would say of the socket. If that is yes, watch.h sees it from now on. */
static __always_inline __u32 observe_end(struct bpf_sock_ops *ops, struct bpf_sock *sk,
					 const struct shunt_end_key *key,
					 const struct shunt_workload_key *workload)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return SHUNT_EXIT_REFUSED_ERROR;
	__u32 refusal = refusal_of_socket(sk, tp, key->role);
	if (refusal != SHUNT_EXIT_COUNT)
		return refusal;
	struct shunt_workload *known = know_workload(workload);
	struct shunt_socket_state *state =
		bpf_sk_storage_get(&socket_state, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known || !state)
		return SHUNT_EXIT_REFUSED_ERROR;
	*state = (struct shunt_socket_state){
		.self = *key,
		.pod = workload->pod,
		.server_port = workload->port,
		.gate_closed = 1,
		.watched = SHUNT_IS_WATCHED,
		.turn = SHUNT_NO_TURN,
	};
	watch_socket((__u64)tp, bpf_get_socket_cookie(ops), workload);
	return known->state == SHUNT_WORKLOAD_HAZARD ? SHUNT_EXIT_REFUSED_HAZARD : SHUNT_EXIT_COUNT;
}

static __always_inline void observe_client(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct shunt_end_key key = shunt_end_key_make(bpf_get_netns_cookie(ops), SHUNT_CLIENT,
						      ops->snd_nxt, ops->rcv_nxt);
	struct shunt_end_key server = shunt_end_key_peer(key);
	struct shunt_workload_key *found = bpf_map_lookup_elem(&announced, &server);
	if (!found)
		return;
	struct shunt_workload_key workload = *found;
	__u32 verdict = observe_end(ops, sk, &key, &workload);
	bpf_map_update_elem(&observed_clients, &key, &verdict, BPF_ANY);
}

static __always_inline void observe_server(struct bpf_sock_ops *ops, struct bpf_sock *sk,
					   const struct shunt_policy *pod)
{
	struct shunt_end_key key = shunt_end_key_make(bpf_get_netns_cookie(ops), SHUNT_SERVER,
						      ops->snd_nxt, ops->rcv_nxt);
	struct shunt_end_key client = shunt_end_key_peer(key);
	struct shunt_workload_key workload = { .pod = pod->pod, .port = ops->local_port };
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	bpf_map_delete_elem(&announced, &key);
	if (!shunt_policy_lists(pod, ops->local_port) || !tp)
		return;
	__u32 *of_client = bpf_map_lookup_elem(&observed_clients, &client);
	__u32 verdict = tp->fastopen_rsk ? SHUNT_EXIT_REFUSED_FAST_OPEN :
		      of_client	         ? *of_client :
					   SHUNT_EXIT_SERVER_ALONE;
	bpf_map_delete_elem(&observed_clients, &client);
	if (verdict == SHUNT_EXIT_COUNT)
		verdict = observe_end(ops, sk, &key, &workload);
	if (verdict == SHUNT_EXIT_COUNT)
		verdict = SHUNT_EXIT_PAIR_MADE;
	count_verdict(pod->pod, verdict);
	struct shunt_event event = {
		.kind = SHUNT_EVENT_OBSERVED,
		.reason = verdict,
		.key = key,
		.pod = pod->pod,
		.local_port = ops->local_port,
		.remote_port = bpf_ntohl(ops->remote_port),
		.port = ops->local_port,
	};
	emit_event(&event, false);
}

/* ---- sock_ops: leaving --------------------------------------------------- */

static __always_inline void forget_here(struct bpf_sock_ops *ops,
					struct shunt_socket_state *state, __u32 reason)
{
	forget(state, reason, ops->local_port, bpf_ntohl(ops->remote_port));
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
		forget_here(ops, state, SHUNT_EXIT_LEFT_DISCONNECTED);
		return;
	}
	forget_here(ops, state, SHUNT_EXIT_LEFT_CLOSED);
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
		    SHUNT_RESTING_REFERENCES + armed_timers(kernel_sk))
		return;
	struct shunt_end_key key = state->self;
	bpf_map_delete_elem(&sockets, &key);
	forget_here(ops, state, SHUNT_EXIT_LEFT_HALF_CLOSED);
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
		forget_here(ops, state, SHUNT_EXIT_LEFT_REUSED);
}

/* ---- sock_ops: unread TCP bytes that FIONREAD does not show ---------------- */

#define RESCUE_SECONDS 1
#define DEFAULT_KEEPIDLE_SECONDS 7200

/*
 * On kernels where FIONREAD of an enrolled socket misses what came by TCP, an
 * edge-triggered reader that asks it (nginx, .NET) goes to sleep on unread bytes,
 * and nothing wakes it if the sender has no more to send. Such a pair leaves
 * (LEAVING_MIXED, LEAVING_BACK_PRESSURE); here its reader is woken for what it may
 * have missed until then, and once after.
 *
 * Called with the socket locked for every segment that this end sends, so also
 * for the ACK of what came by TCP: then this arms the socket's keepalive, whose
 * probe comes by here again a second later. SO_RCVLOWAT set to what it is ends
 * in tcp_data_ready(). The program's own keepalive is put back at the end.
 */
static __always_inline void rescue(struct bpf_sock_ops *ops, struct bpf_sock *sk)
{
	struct shunt_socket_state *state = bpf_sk_storage_get(&socket_state, sk, 0, 0);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!state || !tp || sk->state != BPF_TCP_ESTABLISHED)
		return;
	struct sock *kernel_sk = (struct sock *)tp;
	bool misses = tp->rcv_nxt != tp->copied_seq;
	int value;
	if (!state->rescue && !state->joined) {
		/* Plain again: no call for each segment any more. */
		bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags &
						       ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		return;
	}
	if (!state->rescue) {
		if (!misses)
			return;
		state->rescue = 1;
		state->user_keepalive =
			has_flag(kernel_sk, bpf_core_enum_value(enum sock_flags, SOCK_KEEPOPEN));
		state->user_keepalive_time = tp->keepalive_time;
		value = RESCUE_SECONDS;
		bpf_setsockopt(ops, SOL_TCP, TCP_KEEPIDLE, &value, sizeof(value));
		value = 1;
		bpf_setsockopt(ops, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof(value));
		count_exit(SHUNT_EXIT_RESCUE_ARMED);
		return;
	}
	/* While its workload is watched, asking FIONREAD would be seen. */
	if (misses && (state->gate_closed || state->watched != SHUNT_IS_WATCHED)) {
		value = kernel_sk->sk_rcvlowat;
		bpf_setsockopt(ops, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof(value));
		count_exit(SHUNT_EXIT_RESCUE_WOKE);
	}
	if (state->joined)
		return;
	state->rescue = 0;
	value = state->user_keepalive_time ? state->user_keepalive_time / CONFIG_HZ :
					     DEFAULT_KEEPIDLE_SECONDS;
	bpf_setsockopt(ops, SOL_TCP, TCP_KEEPIDLE, &value, sizeof(value));
	value = state->user_keepalive;
	bpf_setsockopt(ops, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof(value));
}

SEC("sockops")
int shunt_sock_ops(struct bpf_sock_ops *ops)
{
	MARK_GENERATION();
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
		if (sk && observes)
			observe_client(ops, sk);
		else if (sk)
			join_client(ops, sk);
		return 1;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sk = ops->sk;
		if (sk && observes)
			observe_server(ops, sk, pod);
		else if (sk)
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
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		sk = fionread_counts_tcp ? 0 : ops->sk;
		if (sk)
			rescue(ops, sk);
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
	view->peer_ulp = LOAD_ONCE(((struct inet_connection_sock *)tp)->icsk_ulp_ops) != 0;
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
	view->peer_ulp = BPF_CORE_READ((struct inet_connection_sock *)tp, icsk_ulp_ops) != 0;
	view->peer_low_water = BPF_CORE_READ(sk, sk_rcvlowat);
	view->peer_copied_seq = BPF_CORE_READ(tp, copied_seq);
	view->peer_unread = unread_of(sk, BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter));
	view->peer_limit = BPF_CORE_READ(sk, sk_rcvbuf);
	view->peer_cookie_after = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

/* The other end, once it has joined. If the pair has been told to leave before
 * this end had a gate to close, it is closed now. */
static __always_inline void meet_peer(struct shunt_socket_state *state,
				      const struct shunt_end_key *peer_key)
{
	struct shunt_end *end = bpf_map_lookup_elem(&ends, peer_key);
	if (!end)
		return;
	if (end->leaving)
		state->gate_closed = 1;
	if (state->self.role == SHUNT_CLIENT)
		state->turn = end->turn;
	state->peer_cookie = end->socket_cookie;
	state->peer_tcp_sock = end->tcp_sock;
}

/* Is the workload still to be watched? */
static __always_inline bool is_watched(struct shunt_socket_state *state, __u64 now_ns)
{
	struct shunt_workload_key key = workload_of(state);
	struct shunt_workload *workload = bpf_map_lookup_elem(&workloads, &key);
	if (workload && workload->state == SHUNT_WORKLOAD_CLEAN)
		state->watched = SHUNT_WAS_WATCHED;
	else if (workload && workload->state == SHUNT_WORKLOAD_WATCHED)
		ask_to_watch(&key, now_ns);
	return state->watched == SHUNT_IS_WATCHED;
}

/* Did the other end send since this end last did? */
static __always_inline bool take_my_turn(const struct shunt_socket_state *state,
					 const struct shunt_gate_view *view)
{
	__u32 place = state->turn;
	struct shunt_turn *turn = bpf_map_lookup_elem(&turns, &place);
	if (!turn || turn->tag != state->self.client_next)
		return !view->peer_unread;
	if (turn->role == state->self.role)
		return false;
	turn->role = state->self.role;
	return true;
}

static __always_inline int pass_or_redirect(struct sk_msg_md *msg, const bool direct)
{
	MARK_GENERATION();
	struct bpf_sock *sk = msg->sk;
	struct shunt_socket_state *state = sk ? bpf_sk_storage_get(&socket_state, sk, 0, 0) : 0;
	struct tcp_sock *tp = sk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!state || !tp) {
		count_exit(SHUNT_EXIT_MSG_NO_STATE);
		return SK_PASS;
	}

	struct shunt_end_key peer_key = shunt_end_key_peer(state->self);
	if (!state->peer_tcp_sock && !state->gate_closed)
		meet_peer(state, &peer_key);

	struct sock *own = (struct sock *)tp;
	__u64 now_ns = bpf_ktime_get_coarse_ns();
	struct shunt_gate_view view = {
		.own_write_seq = tp->write_seq,
		.own_sendable = (sk->state == BPF_TCP_ESTABLISHED ||
				 sk->state == BPF_TCP_CLOSE_WAIT) &&
				!(own->sk_shutdown & SEND_SHUTDOWN),
		.gate_closed = state->gate_closed,
		.watched = state->watched == SHUNT_IS_WATCHED && is_watched(state, now_ns),
		.own_ulp = ((struct inet_connection_sock *)tp)->icsk_ulp_ops != 0,
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
	bool mixes = fionread_counts_tcp || state->watched == SHUNT_WAS_WATCHED;
	__u32 reason =
		shunt_reason_to_leave(exit, take_my_turn(state, &view), mixes, &state->one_way);
	if (reason != SHUNT_EXIT_COUNT) {
		begin_leaving(state, reason, 0, msg->local_port, bpf_ntohl(msg->remote_port));
		if (exit == SHUNT_EXIT_REDIRECTED)
			exit = SHUNT_EXIT_MSG_GATE_CLOSED;
	}
	if (exit == SHUNT_EXIT_REDIRECTED &&
	    bpf_msg_redirect_hash(msg, &sockets, &peer_key, BPF_F_INGRESS) != SK_PASS)
		exit = SHUNT_EXIT_MSG_REDIRECT_FAILED;
	count_exit(exit);
	if (exit == SHUNT_EXIT_REDIRECTED) {
		state->watched = SHUNT_NOT_WATCHED;
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

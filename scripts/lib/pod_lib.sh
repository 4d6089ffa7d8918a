# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Pods without Kubernetes: a pod is a network namespace, a cgroup v2 directory
# and a veth pair to a bridge in a namespace of its own. All that a run makes is
# named <prefix>-<pid of the run>, so a later run can remove what a dead one left:
#
#   cgroup  <cgroup2>/<run>/{node,pod-a,...}   every process of the run is in one
#   netns   <run>-node (bridge), <run>-pod-a, ...
#   files   /run/<run>/
#
# The host's own interfaces, addresses, nft tables and pins are never touched.
# Sourced; the caller sets POD_RUN by pod_run_begin and ends with pod_run_end.
#
# Addresses are of the documentation ranges (RFC 5737) and exist only inside.

POD_NET=192.0.2
# shellcheck disable=SC2034 # for the caller
POD_SERVICE=198.51.100.10
POD_APP_UID=1000
POD_PROXY_UID=1337
POD_LIB=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# Debian's own: the first python3 in root's PATH may be out of reach of a pod's uid.
POD_PYTHON=/usr/bin/python3

pod_cgroup_root() {
	findmnt --noheadings --first-only --types cgroup2 --output TARGET
}

# ---- a run ---------------------------------------------------------------

# pod_run_begin PREFIX
pod_run_begin() {
	local root
	root=$(pod_cgroup_root) || {
		echo "no cgroup v2 is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified" >&2
		return 1
	}
	POD_RUN=$1-$$
	POD_DIR=/run/$POD_RUN
	POD_CGROUP=$root/$POD_RUN
	mkdir -m 755 "$POD_DIR" "$POD_CGROUP" "$POD_CGROUP/node"
	# A copy, since the checkout may be in a directory that only root may enter.
	install -m 644 "$POD_LIB/pod_check.py" "$POD_DIR"
	pod_make_bridge
}

pod_run_end() {
	pod_remove_run "$POD_RUN"
}

# Removes what runs of PREFIX left whose process is gone.
pod_sweep() {
	local prefix=$1 root name pid
	root=$(pod_cgroup_root) || return 0
	for name in $( (cd /run && ls -d "$prefix"-*; cd "$root" && ls -d "$prefix"-*) 2>/dev/null | sort -u); do
		pid=${name#"$prefix"-}
		[[ $pid =~ ^[0-9]+$ ]] || continue
		# A pid is reused sooner or later: alive means alive and a bash script.
		[[ $(cat "/proc/$pid/comm" 2>/dev/null) =~ ^(demo|bench|bash)$ ]] && continue
		echo "removing what run $name left"
		pod_remove_run "$name"
	done
}

# Idempotent; order matters: processes hold namespaces, links hold cgroups.
pod_remove_run() {
	local run=$1 root namespace mount
	root=$(pod_cgroup_root) || return 0
	pod_kill_cgroup "$root/$run"
	for mount in $(findmnt --list --noheadings --output TARGET | grep "^/run/$run/"); do
		umount "$mount"
	done
	for namespace in $(ip netns list | awk '{print $1}' | grep "^$run-"); do
		ip netns delete "$namespace"
	done
	if [[ -d $root/$run ]]; then
		find "$root/$run" -depth -type d -exec rmdir {} \;
	fi
	rm -rf --one-file-system "/run/${run:?}"
}

pod_kill_cgroup() {
	local cgroup=$1 tries
	[[ -d $cgroup ]] || return 0
	echo 1 >"$cgroup/cgroup.kill"
	for ((tries = 0; tries < 50; tries++)); do
		grep -q '^populated 0' "$cgroup/cgroup.events" && return 0
		sleep 0.1
	done
	echo "processes of $cgroup do not end" >&2
}

# ---- namespaces ------------------------------------------------------------

pod_netns() { echo "/run/netns/$POD_RUN-$1"; }
pod_dir() { echo "$POD_DIR/$1"; }

pod_make_bridge() {
	ip netns add "$POD_RUN-node"
	ip -n "$POD_RUN-node" link set lo up
	ip -n "$POD_RUN-node" link add pods type bridge
	ip -n "$POD_RUN-node" address add "$POD_NET.1/24" dev pods
	ip -n "$POD_RUN-node" link set pods up
}

# pod_make NAME HOST_NUMBER: the pod gets address $POD_NET.HOST_NUMBER
pod_make() {
	local pod=$1 number=$2 netns=$POD_RUN-$1
	mkdir "$POD_CGROUP/$pod"
	mkdir -m 755 "$(pod_dir "$pod")"
	ip netns add "$netns"
	# Both ends are born inside: nothing ever shows up on the host.
	ip -n "$POD_RUN-node" link add "$pod" type veth peer name eth0 netns "$netns"
	ip -n "$POD_RUN-node" link set "$pod" master pods up
	ip -n "$netns" link set lo up
	ip -n "$netns" address add "$POD_NET.$number/24" dev eth0
	ip -n "$netns" link set eth0 up
	ip -n "$netns" route add default via "$POD_NET.1"
	pod_redirect "$pod"
}

# What istio-init does: the app's outbound TCP goes to the sidecar.
pod_redirect() {
	nsenter --net="$(pod_netns "$1")" nft -f - <<-NFT
		table ip sidecar {
			chain output {
				type nat hook output priority -100;
				meta skuid $POD_PROXY_UID return
				ip daddr 127.0.0.0/8 return
				meta l4proto tcp redirect to :15001
			}
		}
	NFT
}

# ---- processes ---------------------------------------------------------------

# pod_exec NAME UID COMMAND...: in the pod's cgroup and network. Not by
# `ip netns exec`: that mounts a /sys without the cgroup tree.
pod_exec() {
	local pod=$1 uid=$2
	shift 2
	# shellcheck disable=SC2016
	sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' sh "$POD_CGROUP/$pod" \
		nsenter --net="$(pod_netns "$pod")" \
		setpriv --reuid="$uid" --regid="$uid" --clear-groups -- "$@"
}

# pod_start NAME UID LOG COMMAND...: as pod_exec, in the background and out of
# reach of the terminal's Ctrl-C: pod_run_end ends it.
pod_start() {
	local pod=$1 uid=$2 log=$3
	shift 3
	pod_exec "$pod" "$uid" setsid "$@" >>"$log" 2>&1 </dev/null &
	disown
}

# wait_until SECONDS WHAT COMMAND...
wait_until() {
	local seconds=$1 what=$2 end
	shift 2
	end=$((SECONDS + seconds))
	# A subshell, so that a trap that fires meanwhile still has its output.
	until ("$@") >/dev/null 2>&1; do
		if ((SECONDS > end)); then
			echo "gave up after $seconds s waiting until $what" >&2
			return 1
		fi
		sleep 0.1
	done
}

pod_listens() {
	nsenter --net="$(pod_netns "$1")" ss -Hltn "sport = :$2" | grep -q .
}

# No TCP connection of the pod is open (TIME_WAIT does not count).
pod_is_quiet() {
	[[ -z $(nsenter --net="$(pod_netns "$1")" ss -Htn exclude listening exclude time-wait) ]]
}

# ---- the app and its sidecar -------------------------------------------------

pod_www() { echo "$(pod_dir "$1")/app/www"; }

# pod_make_bodies NAME SIZE...: files named by size; other bytes in each pod.
pod_make_bodies() {
	local pod=$1 www
	www=$(pod_www "$pod")
	shift
	mkdir -p "$www"
	"$POD_PYTHON" - "$www" "$pod" "$@" <<-'PYTHON'
		import pathlib, random, sys
		www, pod, *sizes = sys.argv[1:]
		for size in sizes:
		    body = random.Random(pod + size).randbytes(int(size))
		    pathlib.Path(www, size).write_bytes(body)
	PYTHON
}

pod_start_app() {
	local pod=$1 dir
	dir=$(pod_dir "$pod")/app
	install -d -o "$POD_APP_UID" "$dir" "$dir/tmp"
	sed "s|@RUN@|$dir|" "$POD_LIB/pod_nginx.conf" >"$dir/nginx.conf"
	pod_start "$pod" "$POD_APP_UID" "$dir/output.log" nginx -e "$dir/nginx.log" -c "$dir/nginx.conf"
	wait_until 10 "nginx of $pod listens" pod_listens "$pod" 8080
}

# pod_start_sidecar NAME ENVOY_BINARY
pod_start_sidecar() {
	local pod=$1 envoy=$2 dir
	dir=$(pod_dir "$pod")/sidecar
	install -d -o "$POD_PROXY_UID" "$dir"
	sed "s|@RUN@|$dir|" "$POD_LIB/pod_envoy.yaml" >"$dir/envoy.yaml"
	pod_start "$pod" "$POD_PROXY_UID" "$dir/envoy.log" \
		"$envoy" -c "$dir/envoy.yaml" --concurrency 1 --disable-hot-restart --log-level error
	wait_until 20 "Envoy of $pod listens" pod_listens "$pod" 15001
}

# Envoy's admin interface: HTTP on this Unix socket.
pod_sidecar_admin() { echo "$(pod_dir "$1")/sidecar/admin.sock"; }

# pod_check NAME ADDRESS:PORT ARGUMENT...: bodies compared, as the pod's app
pod_check() {
	local pod=$1 address=$2
	shift 2
	pod_exec "$pod" "$POD_APP_UID" "$POD_PYTHON" "$POD_DIR/pod_check.py" --address "$address" \
		--bodies "$(pod_www "$pod")" "$@"
}

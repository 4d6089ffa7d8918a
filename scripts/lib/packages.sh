# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, by Debian package name. Sourced by the scripts.

BUILD_PACKAGES=(
  cmake ninja-build ccache pkg-config g++ git
  clang-16 clang-format-16 clang-tidy-16 lld bpftool
  libbpf-dev libelf-dev zlib1g-dev linux-libc-dev
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev
  libabsl-dev libyaml-cpp-dev libspdlog-dev nlohmann-json3-dev prometheus-cpp-dev libcli11-dev
  libgtest-dev libgmock-dev libbenchmark-dev
)
TEST_PACKAGES=(iproute2 iptables nftables procps util-linux python3)
BENCH_PACKAGES=(wrk nginx-light redis-server redis-tools haproxy curl python3-venv)

# What tests/programs drives, by command, since some have it from elsewhere. Go is
# needed by the build.
PROGRAMS=(
  nginx:nginx-light haproxy:haproxy redis-server:redis-server pg_lsclusters:postgresql
  node:nodejs go:golang-go javac:default-jdk-headless curl:curl
)

# need_programs: installs them; who cannot goes on, and those tests are skipped.
need_programs() {
  local entry packages=()
  for entry in "${PROGRAMS[@]}"; do
    command -v "${entry%%:*}" >/dev/null || packages+=("${entry#*:}")
  done
  [ ${#packages[@]} -eq 0 ] || need_packages "${packages[@]}" ||
    echo "== WARNING: tests of programs that are missing are skipped: ${packages[*]}" >&2
}

# need_packages NAME…: apt-get installs those that are not there; needs root then.
need_packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q '^install ok installed$' ||
      missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages: ${missing[*]}; run this as root, or: apt-get install ${missing[*]}" >&2
    return 2
  fi
  echo "== installing ${missing[*]}" >&2
  apt-get update -qq >&2 || true
  # nginx, redis and the like would start daemons on this machine: let them not.
  local policy=/usr/sbin/policy-rc.d made_policy=no
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made_policy=yes
  fi
  local status=0
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >&2 || status=$?
  [ $made_policy = yes ] && rm -f "$policy"
  return $status
}

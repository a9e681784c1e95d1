#!/usr/bin/env bash
# What the Kubernetes tests need beside scripts/setup.sh: a container runtime and CNI plugins.
set -euo pipefail

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'setup-k8s: %s\n' "$*" >&2; exit 1; }

PACKAGES=(containernetworking-plugins nftables iproute2 procps conntrack ethtool curl gcc libc6-dev)
installed() { dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# Docker's package has both; Debian's would push it out, and Docker with it.
installed containerd.io || PACKAGES+=(containerd runc)

missing=()
for p in "${PACKAGES[@]}"; do installed "$p" || missing+=("$p"); done
if ((${#missing[@]})); then
    [ "$(id -u)" = 0 ] || fail "not root, and these packages are missing: ${missing[*]}"
    say "system packages: ${missing[*]}"
    # Debian starts a package's service while installing it; the cluster starts its own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        install -m 755 /dev/stdin /usr/sbin/policy-rc.d <<<$'#!/bin/sh\nexit 101'
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-remove --no-install-recommends "${missing[@]}" >/dev/null
fi
need=1.26
hint="get it from https://go.dev/dl, and put its bin folder into PATH"
command -v go >/dev/null || fail "Go $need or newer is needed to build Kubernetes, and there is no go in PATH: $hint"
have=$(go env GOVERSION)
[ "$(printf '%s\n' "$need" "${have#go}" | sort -V | head -1)" = "$need" ] ||
    fail "Go $need or newer is needed to build Kubernetes, and this is $have: $hint"

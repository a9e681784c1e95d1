#!/usr/bin/env bash
# What the Kubernetes tests need beside scripts/setup.sh: a container runtime and CNI plugins.
set -euo pipefail

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'setup-k8s: %s\n' "$*" >&2; exit 1; }

PACKAGES=(containerd runc containernetworking-plugins nftables iproute2 procps conntrack ethtool curl gcc libc6-dev)

missing=()
for p in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if ((${#missing[@]})); then
    [ "$(id -u)" = 0 ] || fail "not root, and these packages are missing: ${missing[*]}"
    say "system packages: ${missing[*]}"
    # Debian starts a package's service while installing it; the cluster starts its own.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        install -m 755 /dev/stdin /usr/sbin/policy-rc.d <<<$'#!/bin/sh\nexit 101'
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v go >/dev/null || fail "Go 1.26 or newer is needed to build Kubernetes: no go in PATH"

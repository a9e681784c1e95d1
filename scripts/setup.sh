#!/usr/bin/env bash
# Everything a fresh Debian 12 machine needs: system packages, .venv, protos, the compiled relay.
# Safe to run again: each step is skipped when what it makes is already there and current.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

PACKAGES=(python3-venv python3-dev python3-bpfcc libbpf1 linux-headers-amd64 nftables iproute2
          tcpdump iperf3 wrk nginx-light curl nghttp2-client dnsmasq-base ethtool procps gcc libc6-dev libssl-dev)

missing=()
for p in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if ((${#missing[@]})); then
    [ "$(id -u)" = 0 ] || fail "not root, and these packages are missing: ${missing[*]}"
    say "system packages: ${missing[*]}"
    # Debian starts a package's service while installing it (nginx on port 80); none is wanted here.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        install -m 755 /dev/stdin /usr/sbin/policy-rc.d <<<$'#!/bin/sh\nexit 101'
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

stamp=.venv/.setup-stamp
want=$(cat pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat $stamp 2>/dev/null || true)" != "$want" ]; then
    say "python environment (.venv)"
    # Debian's interpreter: python3-bpfcc is built for it.
    [ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
    # Only bcc is taken from the system's packages, not everything beside it.
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/_debian"
    ln -sfn "$(/usr/bin/python3 -c 'import bcc, os; print(os.path.dirname(bcc.__file__))')" "$site/_debian/bcc"
    echo _debian >"$site/_debian.pth"
    .venv/bin/python -c 'import bcc' || fail "bcc does not import in .venv: is python3-bpfcc installed for $(/usr/bin/python3 --version)?"
    echo "$want" >$stamp
fi

if [ -x scripts/compile_relay.sh ]; then scripts/compile_relay.sh; fi
say "ready: .venv/bin/ambit --help"

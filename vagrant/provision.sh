#!/usr/bin/env bash
# Runs as root inside the VM: the same setup as any other machine, then proof that it works.
set -euo pipefail
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends make ca-certificates
cd /ambit
make setup
.venv/bin/python -m bpf features

#!/bin/sh
# Builds the CNI plugin: build.sh OUTPUT [GOARCH]. Static, without paths or times of this machine in it.
set -eu
out=$(realpath -m "${1:?usage: build.sh OUTPUT [GOARCH]}")
cd "$(dirname "$0")"
CGO_ENABLED=0 GOOS=linux GOARCH="${2:-$(go env GOARCH)}" GOFLAGS="-p=2 -mod=readonly" \
	go build -trimpath -buildvcs=false -ldflags "-s -w -buildid=" -o "$out" .

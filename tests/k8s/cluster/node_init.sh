#!/bin/bash
# node_init.sh NAME DISK CGROUP2 READY: PID 1 of a node, started in mount, UTS, PID, cgroup and network
# namespaces of its own. Its own are also: /run, /etc (at first a copy of the machine's), /opt, /var/lib,
# /var/log, /proc, bpffs, and its part of every hierarchy of control groups, which looks like the whole.
set -e
name=$1 disk=$2 cgroup2=$3 ready=$4
hostname "$name"
mount --make-rprivate /

mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
mount --bind "$disk/var-lib" /var/lib
mount --bind "$disk/var-log" /var/log
mount --bind "$disk/opt" /opt
mount --bind "$disk/etc" /etc
echo "$name" >/etc/hostname
: >/etc/resolv.conf
umount /sys/fs/bpf 2>/dev/null || true
mount -t bpf bpf /sys/fs/bpf

# cgroup2 first: where it is alone, its mount hides the others' glob.
mount --bind "$cgroup2" "${cgroup2%/*}"
for group in /sys/fs/cgroup/*/"${cgroup2##*/}"; do
    if [ -d "$group" ]; then mount --bind "$group" "${group%/*}"; fi
done
mkdir "${cgroup2%/*}/init.scope"
echo 0 >"${cgroup2%/*}/init.scope/cgroup.procs"

fake() {
    local file=$disk/fake/${1//\//_}
    echo "$2" >"$file"
    mount --bind "$file" "/proc/sys/$1"
}
# The kubelet sets these for the whole machine: it is shown the values it wants instead.
fake vm/overcommit_memory 1
fake vm/panic_on_oom 0
fake kernel/panic 10
fake kernel/panic_on_oops 1
# What tells boots and machines apart, here too.
fake kernel/random/boot_id "$(cat /proc/sys/kernel/random/uuid)"
if [ ! -e "$disk/machine-id" ]; then tr -d - </proc/sys/kernel/random/uuid >"$disk/machine-id"; fi
cp "$disk/machine-id" /etc/machine-id

# Mounts made by containers with Bidirectional propagation reach the node and back.
mount --make-rshared /
touch "$ready"
# An init reaps whatever loses its parent; bash does while it waits.
while :; do
    sleep infinity &
    wait $!
done

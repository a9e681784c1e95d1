#!/bin/bash
# node_init.sh NAME DISK CGROUP2 READY: make a node of the mount namespace it is started in, then hold it.
# What a node has of its own: /run, /etc (over the machine's), /opt, /var/lib, /var/log, bpffs, its cgroup2.
set -e
name=$1 disk=$2 cgroup2=$3 ready=$4
hostname "$name"
mount --make-rprivate /

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock
mount --bind "$disk/var-lib" /var/lib
mount --bind "$disk/var-log" /var/log
mount --bind "$disk/opt" /opt
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$disk/etc,workdir=$disk/etc-work" /etc
echo "$name" >/etc/hostname
: >/etc/resolv.conf
umount /sys/fs/bpf 2>/dev/null || true
mount -t bpf bpf /sys/fs/bpf
# The node's part of cgroup2 looks like a node's whole one.
mount --bind "$cgroup2" "${cgroup2%/*}"

# The kubelet sets these for the whole machine: it is shown the values it wants instead.
fake() {
    local file=$disk/fake/${1//\//_}
    echo "$2" >"$file"
    mount --bind "$file" "/proc/sys/$1"
}
fake vm/overcommit_memory 1
fake vm/panic_on_oom 0
fake kernel/panic 10
fake kernel/panic_on_oops 1

# Mounts made by containers with Bidirectional propagation reach the node and back.
mount --make-rshared /
touch "$ready"
exec sleep infinity

"""The kernel side of one node: capture pods, release them, and say what is captured.

Everything lives in the kernel under one folder of pins and outlives this process. An agent that is
stopped, killed or replaced leaves captured pods captured; the next one opens the same pins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PodCapture:
    """What the hooks know about one pod.

    `addresses`: the pod's own, IPv4 and IPv6, at most 8. `node_addresses`: where the node's
    probes come from, at most 8; they reach `probe_ports` (at most 16) without the proxy.
    """

    uid: str
    netns_cookie: int
    addresses: tuple[str, ...]
    node_addresses: tuple[str, ...]
    probe_ports: tuple[int, ...]


class Datapath:
    """One node's hooks, opened. Not thread-safe; several may be open on different pins."""

    @classmethod
    def open(cls, pins: Path, cgroup: Path, proxy_cgroup: Path) -> Datapath:
        """Load and attach, or take over what is pinned.

        `pins` is a folder of a bpf filesystem (mounted when absent). `cgroup` is the node's
        cgroup2 folder above pods, agent and proxy. Connections made by tasks in `proxy_cgroup`
        are never captured, and only they may set SO_REAL_SOURCE.
        Raises Unsupported naming the hook, the cause and the way out.
        """
        raise NotImplementedError

    def capture(self, pod: PodCapture, netns_fd: int, inbound_fd: int) -> None:
        """Capture a pod, or bring its entry up to date; idempotent.

        `netns_fd` is its network namespace, `inbound_fd` the [::]:15006 listener living there.
        Raises ConfigError when the pod does not fit (too many addresses, probe ports, pods).
        """
        raise NotImplementedError

    def release(self, uid: str) -> None:
        """Stop capturing a pod; what is connected stays connected. An unknown uid is fine."""
        raise NotImplementedError

    def captured(self) -> dict[str, PodCapture]:
        """Give every captured pod by uid, read from the pins."""
        raise NotImplementedError

    def counters(self) -> dict[str, int]:
        """Give the totals of events by name, e.g. `connect4_captured`."""
        raise NotImplementedError

    def pod_counters(self, uid: str) -> tuple[int, int]:
        """Give (outbound captured, inbound steered) of one pod; (0, 0) when it is unknown."""
        raise NotImplementedError

    def collect(self) -> int:
        """Drop what dead network namespaces left behind; give how many pods that were."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file descriptors; the pins, and so the captures, stay."""
        raise NotImplementedError

    @staticmethod
    def remove(pins: Path) -> None:
        """Detach every hook pinned there and remove the folder; a missing folder is fine."""
        raise NotImplementedError


def netns_cookie(netns_fd: int) -> int:
    """Give the kernel's cookie of a network namespace (SO_NETNS_COOKIE)."""
    raise NotImplementedError

"""The two ways of capturing a pod, behind one door."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from bpf.datapath import Datapath, PodCapture, netns_cookie
from mesh.ports import PROBE_PORT
from mesh.wire import zds
from node_agent import nft
from node_agent.sandbox import Sandbox, StepError
from node_agent.source import DesiredPod

EBPF: Final = "ebpf"
NFTABLES: Final = "nftables"
UNKNOWN: Final = "unknown"  # captured perhaps, by an agent that nobody can ask any more


class Redirect(Protocol):
    """One way. Every method may raise MeshError or OSError; all are idempotent."""

    @property
    def mode(self) -> str:
        """EBPF or NFTABLES."""

    @property
    def number(self) -> int:
        """The same as a Redirect of zds.proto."""

    def capture(self, pod: DesiredPod, sandbox: Sandbox) -> None:
        """Put the redirection in."""

    def release(self, uid: str, sandbox: Sandbox | None) -> None:
        """Redirect no new connection; those open go on. The pod may be unknown or half gone."""

    def clear(self, uid: str, sandbox: Sandbox | None) -> None:
        """Take out what release() left for the open connections."""

    def counters(self, uid: str, sandbox: Sandbox) -> tuple[int, int]:
        """Give how many connections were captured: (outbound, inbound)."""


def probe_sources(addresses: Iterable[str]) -> tuple[str, ...]:
    """Give the address this node would use toward each of a pod's addresses; nothing is sent."""
    found: list[str] = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.connect((address, PROBE_PORT))
            found.append(sock.getsockname()[0])
    return tuple(found)


class EbpfRedirect:
    """By the node's hooks: one map entry and one sk_lookup link for each pod."""

    mode: Final = EBPF
    number: Final = zds.REDIRECT_EBPF

    def __init__(self, datapath: Datapath, node_addresses: Sequence[str]) -> None:
        """`node_addresses`: where probes come from; none given, see probe_sources()."""
        self.datapath = datapath
        self._node_addresses = tuple(node_addresses)

    def capture(self, pod: DesiredPod, sandbox: Sandbox) -> None:
        """Put the pod's map entries and its link in; needs the 15006 listener."""
        listener = sandbox.listeners.get(zds.INBOUND_PLAIN)
        if listener is None:
            raise StepError("CaptureFailed", "no inbound listener to steer to")
        cookie = netns_cookie(sandbox.netns)
        known = self.datapath.captured().get(pod.uid)
        if known is not None and known.netns_cookie != cookie:
            self.datapath.release(pod.uid)  # an earlier sandbox of the same pod
        probers = self._node_addresses or probe_sources(pod.addresses)
        capture = PodCapture(pod.uid, cookie, pod.addresses, probers, pod.probe_ports)
        self.datapath.capture(capture, sandbox.netns, listener)

    def release(self, uid: str, sandbox: Sandbox | None) -> None:
        """Take them out."""
        self.datapath.release(uid)

    def clear(self, uid: str, sandbox: Sandbox | None) -> None:
        """Nothing is left: open connections need no hook."""

    def counters(self, uid: str, sandbox: Sandbox) -> tuple[int, int]:
        """Read the pod's counters."""
        return self.datapath.pod_counters(uid)


class NftRedirect:
    """By rules in the pod's own namespace."""

    mode: Final = NFTABLES
    number: Final = zds.REDIRECT_NFTABLES

    def __init__(self, node_addresses: Sequence[str]) -> None:
        """`node_addresses`: where probes come from; none given, see probe_sources()."""
        self._node_addresses = tuple(node_addresses)

    def capture(self, pod: DesiredPod, sandbox: Sandbox) -> None:
        """Install the rules."""
        probers = self._node_addresses or probe_sources(pod.addresses)
        nft.install(pod, sandbox.netns, probers)

    def release(self, uid: str, sandbox: Sandbox | None) -> None:
        """Leave only what open connections need. Rules of a dead namespace died with it."""
        if sandbox is not None:
            nft.drain(sandbox.netns)

    def clear(self, uid: str, sandbox: Sandbox | None) -> None:
        """Remove the rules."""
        if sandbox is not None:
            nft.remove(sandbox.netns)

    def counters(self, uid: str, sandbox: Sandbox) -> tuple[int, int]:
        """Read the rules' counters."""
        return nft.counters(sandbox.netns)

"""A pod's network namespace and the listening sockets the agent keeps in it.

The namespace is opened once and the descriptor kept: a path can come to mean another namespace, a
descriptor cannot. setns(2) is per thread; the agent's one thread goes in and comes back within one
call, so nothing else ever runs inside a pod.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh.errors import MeshError
from mesh.netns import enter
from mesh.ports import INBOUND_HBONE, INBOUND_PLAIN, OUTBOUND
from mesh.wire import zds
from node_agent import rtnl
from node_agent.source import DesiredPod

BACKLOG: Final = 4096  # the kernel's own ceiling (net.core.somaxconn) since 5.4
PORT_TAKEN: Final = "PortTaken"
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h


class StepError(MeshError):
    """A step towards capture failed; `reason` is the CamelCase word of the pod's condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Sandbox:
    """What the agent holds of one pod. listeners: role of zds.proto to descriptor.

    mode: how the pod is captured now ("" not at all), see node_agent/redirect.py.
    """

    uid: str
    netns: int
    listeners: dict[int, int] = field(default_factory=dict)
    mode: str = ""

    @property
    def inode(self) -> int:
        """Which namespace it is."""
        return os.fstat(self.netns).st_ino

    @property
    def fds(self) -> tuple[int, ...]:
        """Give the descriptors as ZDS sends them: netns first, then the listeners by role."""
        return (self.netns, *self.listeners.values())

    def close_listeners(self) -> None:
        """Close our copies of the listening sockets."""
        for fd in self.listeners.values():
            os.close(fd)
        self.listeners.clear()

    def close(self) -> None:
        """Close everything; the sandbox is not used after."""
        self.close_listeners()
        os.close(self.netns)


@contextmanager
def inside(netns: int) -> Iterator[None]:
    """Run the block in a network namespace, and be back whatever happens in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(netns)
        try:
            yield
        finally:
            enter(home)
    finally:
        os.close(home)


def open_netns(pod: DesiredPod) -> int:
    """Open a pod's namespace; StepError unless it is one and holds all of the pod's addresses."""
    if pod.problem:
        raise StepError("SandboxUnknown", pod.problem)
    fd = open_namespace(pod.netns)
    try:
        check_addresses(fd, pod.netns, pod.addresses)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_namespace(path: str) -> int:
    """Open a network namespace that is not the node's own; StepError says what else it is."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepError("NetnsGone", f"netns {path}: {error.strerror}") from error
    try:
        check_namespace(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_namespace(fd: int, path: str) -> None:
    """Raise StepError unless a descriptor is a network namespace, and not the node's own."""
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        # A path whose bind mount is gone is an ordinary empty file.
        raise StepError("NetnsGone", f"{path} is not a network namespace")
    if os.fstat(fd).st_ino == Path("/proc/self/ns/net").stat().st_ino:
        raise StepError("WrongNetns", f"{path} is the node's own network namespace")


def check_addresses(fd: int, path: str, addresses: Sequence[str]) -> None:
    """Raise StepError unless a namespace holds all of these addresses."""
    with inside(fd):
        held = rtnl.addresses()
    missing = [address for address in addresses if address not in held]
    if missing or not addresses:
        others = sorted(a for a in held if a not in ("127.0.0.1", "::1"))
        raise StepError(
            "WrongNetns",
            f"netns {path} does not hold {', '.join(missing) or 'any known address'} of this "
            f"pod (it holds {', '.join(others) or 'none'}): it may be another pod's",
        )


def same_netns(pod: DesiredPod, netns: int) -> bool:
    """Say whether the pod's path still means this namespace; a path that is gone says nothing."""
    try:
        found = Path(pod.netns).stat()
    except OSError:
        return True
    held = os.fstat(netns)
    return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)


def listen(netns: int) -> dict[int, int]:
    """Open a pod's listening sockets in its namespace: role to descriptor, non-blocking."""
    opened: dict[int, int] = {}
    try:
        with inside(netns):
            opened[zds.OUTBOUND_V4] = _listener(socket.AF_INET, "127.0.0.1", OUTBOUND)
            try:
                opened[zds.OUTBOUND_V6] = _listener(socket.AF_INET6, "::1", OUTBOUND)
            except OSError as error:
                # No IPv6 on the node, or switched off in this pod: nothing to capture there.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
            opened[zds.INBOUND_PLAIN] = _dual_listener(INBOUND_PLAIN)
            opened[zds.INBOUND_HBONE] = _dual_listener(INBOUND_HBONE)
    except BaseException as error:
        for fd in opened.values():
            os.close(fd)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise StepError(
                PORT_TAKEN,
                f"one of the ports {OUTBOUND}, {INBOUND_PLAIN}, {INBOUND_HBONE} is taken inside "
                "the pod; the application must not listen on them",
            ) from error
        raise
    return opened


def _dual_listener(port: int) -> int:
    try:
        return _listener(socket.AF_INET6, "::", port)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return _listener(socket.AF_INET, "0.0.0.0", port)


def _listener(family: int, address: str, port: int) -> int:
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only = 0 if address == "::" else 1
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        return sock.detach()

"""Getting a pod's listening sockets back from the proxy that serves it.

When agent and holder end together (their pod was deleted, the node's memory ran out) only the proxy
has the sockets. They are found by what the kernel shows of the pod's namespace, which cannot be
mistaken: the inodes of what listens there on the mesh's own addresses; and copied with
pidfd_getfd(2), which needs CAP_SYS_PTRACE. The proxy notices nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mesh.ports import INBOUND_HBONE, INBOUND_PLAIN, OUTBOUND
from mesh.wire import zds
from node_agent.sandbox import inside

_PIDFD_GETFD: Final = 438  # asm-generic/unistd.h, the same on every architecture
_LISTEN: Final = "0A"  # TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp prints it
_LOOPBACK4: Final = "0100007F"  # 127.0.0.1 as /proc/net/tcp prints it on a little-endian machine
_LOOPBACK6: Final = "00000000000000000000000001000000"
_ANY: Final = frozenset({"00000000", "0" * 32})
_NEEDED: Final = frozenset({zds.OUTBOUND_V4, zds.INBOUND_PLAIN, zds.INBOUND_HBONE})
_FRESH: Final = 1.0  # seconds in which a proxy's descriptors are not listed again
_libc = ctypes.CDLL(None, use_errno=True)


class Reclaimer:
    """Finds sockets among the descriptors of the processes that are named to it."""

    def __init__(self) -> None:
        self.processes: set[int] = set()  # of connected proxies
        self._listed: dict[int, tuple[int, int]] = {}  # socket inode -> process, descriptor
        self._listed_at = 0.0

    def reclaim(self, netns: int) -> dict[int, int]:
        """Give a pod's listeners, role to descriptor; {} when not all of them can be had."""
        wanted = listening(netns)
        if not wanted.keys() >= _NEEDED:
            return {}
        self._list()
        found: dict[int, int] = {}
        try:
            for role, inode in wanted.items():
                process, fd = self._listed[inode]
                found[role] = _copy(process, fd)
                if os.fstat(found[role]).st_ino != inode:
                    raise OSError("the descriptor is another socket's by now")
        except (KeyError, OSError):
            for fd in found.values():
                os.close(fd)
            return {}
        return found

    def _list(self) -> None:
        if time.monotonic() - self._listed_at < _FRESH:
            return
        self._listed = {
            inode: (process, fd) for process in self.processes for inode, fd in _sockets(process)
        }
        self._listed_at = time.monotonic()


def listening(netns: int) -> dict[int, int]:
    """Give the inodes of what listens in a namespace on the mesh's addresses, by role."""
    with inside(netns):
        net = Path("/proc/thread-self/net")
        rows = [*_listeners(net / "tcp"), *_listeners(net / "tcp6")]
    return read_table(rows)


def read_table(rows: Iterable[str]) -> dict[int, int]:
    """Read rows of /proc/net/tcp and tcp6."""
    found: dict[int, int] = {}
    for row in rows:
        fields = row.split()
        address, _, port = fields[1].partition(":")
        role = _role(address, int(port, 16))
        if role is not None:
            found[role] = int(fields[9])
    return found


def _role(address: str, port: int) -> int | None:
    if port == OUTBOUND:
        return {_LOOPBACK4: zds.OUTBOUND_V4, _LOOPBACK6: zds.OUTBOUND_V6}.get(address)
    if address in _ANY:
        return {INBOUND_PLAIN: zds.INBOUND_PLAIN, INBOUND_HBONE: zds.INBOUND_HBONE}.get(port)
    return None


def _listeners(table: Path) -> Iterator[str]:
    """Yield the rows of listening sockets; the kernel prints them before all others."""
    with contextlib.suppress(FileNotFoundError), table.open() as file:
        next(file, None)
        for row in file:
            if row.split()[3] != _LISTEN:
                return
            yield row


def _sockets(process: int) -> Iterator[tuple[int, int]]:
    """Yield (inode, descriptor) of a process's sockets."""
    folder = f"/proc/{process}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            kind, _, inode = os.readlink(f"{folder}/{name}").partition(":[")
            if kind == "socket":
                yield int(inode.rstrip("]")), int(name)


def _copy(process: int, fd: int) -> int:
    """Copy a descriptor out of another process."""
    pidfd = os.pidfd_open(process)
    try:
        copied: int = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if copied < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"pidfd_getfd: {os.strerror(code)}")
    finally:
        os.close(pidfd)
    os.set_inheritable(copied, False)
    with socket.socket(fileno=os.dup(copied)) as sock:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            os.close(copied)
            raise OSError("the descriptor is no listening socket")
    return copied

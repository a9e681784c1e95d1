"""The sockets of ZDS: accepts proxies, carries the hub's datagrams and their descriptors."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from mesh.errors import MeshError
from mesh.wire import zds

log = logging.getLogger(__name__)

ACCEPT_INTERVAL: Final = 0.2  # seconds; a proxy in a crash loop costs at most 5 connections/s
_BACKLOG: Final = 16
_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Listener(Protocol):
    """Who is told what arrives. Calls may lead back into send() and drop()."""

    def proxy_connected(self, pid: int) -> int:
        """A proxy connected, by this process: give it a number, or raise MeshError."""

    def proxy_received(self, number: int, data: bytes) -> None:
        """It sent a datagram."""

    def proxy_disconnected(self, number: int) -> None:
        """It is gone."""


class ZdsServer:
    """Listens on one unix SOCK_SEQPACKET path. All calls on the loop's thread."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self._path = path
        self._listener = listener
        self._sock: socket.socket | None = None
        self._proxies: dict[int, socket.socket] = {}
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Bind and listen. The path is replaced in one step: a proxy finds the old or the new."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        sock.bind(str(fresh))
        fresh.chmod(0o600)
        sock.listen(_BACKLOG)
        fresh.rename(self._path)
        self._sock = sock
        self._loop.add_reader(sock, self._accept)

    def send(self, number: int, request: zds.Request, fds: Sequence[int]) -> bool:
        """Send one request; False when the proxy can no longer be reached."""
        sock = self._proxies.get(number)
        if sock is None:
            return False
        try:
            socket.send_fds(sock, [zds.encode_request(request)], fds)
        except OSError as error:
            # With one request in flight its buffer cannot be full: the proxy has gone.
            log.info("proxy %d cannot be reached: %s", number, error)
            self.drop(number)
            return False
        return True

    def drop(self, number: int) -> None:
        """Close a proxy's connection."""
        sock = self._proxies.pop(number, None)
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()

    def close(self) -> None:
        """Close everything. The path stays, so that its next owner's proxies find it refused."""
        if self._pause:
            self._pause.cancel()
        for number in list(self._proxies):
            self.drop(number)
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        sock.setblocking(False)
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(ACCEPT_INTERVAL, self._resume)
        pid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0]
        try:
            number = self._listener.proxy_connected(pid)
        except (MeshError, OSError) as error:
            log.error("a proxy is not let in: %s", error)
            sock.close()
            return
        self._proxies[number] = sock
        self._loop.add_reader(sock, self._readable, number, sock)

    def _resume(self) -> None:
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._accept)

    def _readable(self, number: int, sock: socket.socket) -> None:
        try:
            data = sock.recv(zds.MAX_MESSAGE + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._listener.proxy_received(number, data)
        else:
            self.drop(number)
            self._listener.proxy_disconnected(number)

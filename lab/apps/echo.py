"""Servers that show what reached them, for looking at a path by hand and in tests.

8080  HTTP: who called as this server sees it, and the request's headers, as JSON
9000  TCP: sends back what it gets, until the end of the stream
9001  TCP: reads to the end of the stream, then says how much it was (needs half-close)
9002  TCP: reads a kilobyte every tenth of a second (a slow reader), then as 9001
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Final

from lab.apps.shop import HEALTH, PORT, DualStackServer, Json, JsonHandler

_CHUNK: Final = 1 << 16
_SLOW_CHUNK: Final = 1 << 10
_SLOW_PAUSE: Final = 0.1


def seen(connection: socket.socket) -> Json:
    """Both ends of a connection as this side sees them."""
    peer, local = connection.getpeername(), connection.getsockname()
    return {"peer": f"{plain(peer[0])}", "peer_port": peer[1], "local": plain(local[0])}


def plain(address: str) -> str:
    """Show an IPv4 address on a dual-stack socket as IPv4."""
    return address.removeprefix("::ffff:") if "." in address else address


class HttpEcho(JsonHandler):
    """Answers who asked."""

    def do_GET(self) -> None:
        """Say who called, and how."""
        if self.path == HEALTH:
            self.reply(200, {"ok": True})
            return
        self.reply(200, {**seen(self.connection), "path": self.path, "headers": dict(self.headers)})


def echo(connection: socket.socket) -> None:
    """Send back what comes."""
    while data := connection.recv(_CHUNK):
        connection.sendall(data)


def count(connection: socket.socket, chunk: int = _CHUNK, pause: float = 0.0) -> None:
    """Read to the end, then say how many bytes it was."""
    total = 0
    while data := connection.recv(chunk):
        total += len(data)
        time.sleep(pause)
    connection.sendall(b"%d\n" % total)


def slow(connection: socket.socket) -> None:
    """Read as slowly as to fill every buffer on the way."""
    count(connection, _SLOW_CHUNK, _SLOW_PAUSE)


MODES: Final[dict[int, Callable[[socket.socket], None]]] = {9000: echo, 9001: count, 9002: slow}


class TcpServer(socketserver.ThreadingTCPServer):
    """One mode on one port, IPv4 and IPv6."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, port: int, mode: Callable[[socket.socket], None]) -> None:
        """Listen on `port` and hand each connection to `mode`."""

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                mode(self.request)

        super().__init__(("::", port), Handler)

    def server_bind(self) -> None:
        """Take IPv4 too."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve() -> None:
    """Serve everything until killed."""
    for port, mode in MODES.items():
        threading.Thread(target=TcpServer(port, mode).serve_forever, daemon=True).start()
    DualStackServer(("::", PORT), HttpEcho).serve_forever()

"""Servers that show what reached them, for looking at a path: `python3 -m lab.apps.echo`.

8080  HTTP: who called as this server sees it, and the request's headers, as JSON
9000  TCP: sends back what it gets, until the end of the stream
9001  TCP: reads to the end of the stream, then says how many bytes it was (needs half-close)
9002  TCP: the same as a slow reader, a kilobyte every tenth of a second
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

HTTP_PORT: Final = 8080
_CHUNK: Final = 1 << 16
_SLOW_CHUNK: Final = 1 << 10
_SLOW_PAUSE: Final = 0.1


class Server(socketserver.ThreadingTCPServer):
    """Listens on IPv4 and IPv6, a thread for each connection."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self) -> None:
        """Take IPv4 too, whatever net.ipv6.bindv6only says."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class HttpEcho(BaseHTTPRequestHandler):
    """Answers who asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Say who called, and how."""
        answer = {**seen(self.connection), "path": self.path, "headers": dict(self.headers)}
        raw = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def seen(connection: socket.socket) -> dict[str, Any]:
    """Both ends of a connection as this side sees them."""
    peer, local = connection.getpeername(), connection.getsockname()
    return {"peer": plain(peer[0]), "peer_port": peer[1], "local": plain(local[0])}


def plain(address: str) -> str:
    """Show an IPv4 address on a dual-stack socket as IPv4."""
    return address.removeprefix("::ffff:") if "." in address else address


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
    """Read so slowly that every buffer on the way fills."""
    count(connection, _SLOW_CHUNK, _SLOW_PAUSE)


MODES: Final[dict[int, Callable[[socket.socket], None]]] = {9000: echo, 9001: count, 9002: slow}


def tcp_server(port: int, mode: Callable[[socket.socket], None]) -> Server:
    """Listen on `port` and hand each connection to `mode`."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            mode(self.request)

    return Server(("::", port), Handler)


def main() -> None:
    """Serve everything until killed."""
    for port, mode in MODES.items():
        threading.Thread(target=tcp_server(port, mode).serve_forever, daemon=True).start()
    Server(("::", HTTP_PORT), HttpEcho).serve_forever()


if __name__ == "__main__":
    main()

"""Servers that show what reached them, for looking at a path: `python3 -m lab.apps.echo`.

8080  HTTP: who called as this server sees it, and the request, as JSON. The query asks for more:
      status=503 (the answer's), delay=0.5 (seconds before it), flaky=2 with id=TEXT (503 for the
      first two requests of that id), bytes=1000 (of padding), only=v2 (servers of
      another version take no notice of the query). /count says how many there were
9000  TCP: sends back what it gets, until the end of the stream
9001  TCP: reads to the end of the stream, then says how many bytes it was (needs half-close)
9002  TCP: the same as a slow reader, a kilobyte every tenth of a second
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import parse_qsl

HTTP_PORT: Final = 8080
_CHUNK: Final = 1 << 16
_SLOW_CHUNK: Final = 1 << 10
_SLOW_PAUSE: Final = 0.1
_MAX_BODY: Final = 1 << 20
_MAX_NUMBER: Final = 1 << 20


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
    """Answers who asked, and what."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes
    version = ""  # of this server, as its command line says
    failures: Counter[str] = Counter()  # noqa: RUF012 (one for all requests)
    requests = 0  # but for /healthz and /count

    def _answer(self) -> None:
        """Say who called, and how."""
        length = self.headers.get("content-length") or "0"
        body = self.rfile.read(min(int(length), _MAX_BODY)) if length.isdigit() else b""
        asked = dict(parse_qsl(self.path.partition("?")[2]))
        answer = {
            **seen(self.connection),
            "pod": os.environ.get("POD_NAME", ""),
            "version": self.version,
            "method": self.command,
            "path": self.path,
            "headers": {n: ", ".join(self.headers.get_all(n, ())) for n in self.headers},
            "body": body.decode("utf-8", "replace"),
            "padding": "x" * number(asked, "bytes"),
        }
        if self.path == "/count":
            answer = {"requests": HttpEcho.requests}
        elif self.path != "/healthz":
            HttpEcho.requests += 1
        if asked.get("only", self.version) != self.version:
            asked = {}
        time.sleep(number(asked, "delay", float))
        raw = b"" if self.command == "HEAD" else json.dumps(answer).encode() + b"\n"
        self.send_response(self._status(asked))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _status(self, asked: Mapping[str, str]) -> int:
        ident = asked.get("id", "")
        if self.failures[ident] < number(asked, "flaky"):
            self.failures[ident] += 1
            return 503
        return number(asked, "status") or 200

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer


def number(asked: Mapping[str, str], name: str, of: Callable[[str], Any] = int) -> Any:
    """Read a number of the query; 0 where there is none."""
    try:
        return min(max(of(asked.get(name, "0")), 0), _MAX_NUMBER)
    except ValueError:
        return 0


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
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    p.add_argument("--version", default="", help="what this server calls itself in its answers")
    HttpEcho.version = p.parse_args().version
    for port, mode in MODES.items():
        threading.Thread(target=tcp_server(port, mode).serve_forever, daemon=True).start()
    Server(("::", HTTP_PORT), HttpEcho).serve_forever()


if __name__ == "__main__":
    main()

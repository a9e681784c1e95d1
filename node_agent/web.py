"""The agent's two small HTTP ports: a few pages, from threads, a bounded number at a time."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

_REQUEST_TIMEOUT: Final = 5.0  # seconds a client has to send its request
_AT_ONCE: Final = 16  # requests; pods can reach the port, and a thread costs memory


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    code: int = 200


Pages = Mapping[str, Callable[[], Page]]


def verdict(good: bool) -> Page:
    """Answer a health check."""
    return Page(b"ok\n") if good else Page(b"no\n", code=503)


class PageServer(ThreadingHTTPServer):
    """Serves until the process ends; what makes the pages must be safe to call from threads."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], pages: Pages) -> None:
        """Bind at once: OSError when the port is taken."""
        self.pages = pages
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        threading.Thread(target=self.serve_forever, name="web", daemon=True).start()

    def server_bind(self) -> None:
        """Bind without http.server's reverse look-up of the name, which waits for DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a request, if there is room."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_TIMEOUT
    server: PageServer

    def do_GET(self) -> None:
        pages = self.server.pages
        make = pages.get(self.path.partition("?")[0])
        try:
            page = make() if make else Page(f"try {', '.join(pages)}\n".encode(), code=404)
        except TimeoutError:
            page = Page(b"busy\n", code=503)
        self.send_response(page.code)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        self.wfile.write(page.body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes every few seconds are no news."""

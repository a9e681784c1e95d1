"""The agent's health port: /healthz, /readyz, and /status for `ambit status`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

_REQUEST_TIMEOUT: Final = 5.0  # seconds a client has to send its request

Health = Callable[[], bool]
Describe = Callable[[], dict[str, Any]]


class HealthServer:
    """Serves from threads; what it asks for must be safe to call from them."""

    def __init__(
        self, address: tuple[str, int], alive: Health, ready: Health, describe: Describe
    ) -> None:
        """Bind at once: OSError when the port is taken."""
        pages = {"/healthz": alive, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_TIMEOUT

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/status":
                    self._answer(200, "application/json", json.dumps(describe()).encode())
                elif path in pages:
                    good = pages[path]()
                    self._answer(200 if good else 503, "text/plain", b"ok\n" if good else b"no\n")
                else:
                    self._answer(404, "text/plain", b"try /status, /healthz, /readyz\n")

            def _answer(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Probes every few seconds are no news."""

        self._server = ThreadingHTTPServer(address, Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

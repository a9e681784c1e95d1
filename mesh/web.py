"""A very small HTTP/1.1 server for the admin, readiness and metrics pages. Not on the byte path.

One request per connection, without a body; what a client may cost is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from mesh.errors import BadInput, ConfigError

log = logging.getLogger(__name__)

_MAX_HEAD: Final = 8192
_TIMEOUT: Final = 10.0  # for a request to come, and again for its answer to be taken
_MAX_CONNECTIONS: Final = 64

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked: method, path, the first value of each query parameter, some headers."""

    method: str
    path: str
    query: Mapping[str, str]
    accept: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Page = Callable[[Request], Awaitable[Answer]]
Pages = Mapping[tuple[str, str], Page]  # (method, path)
# Answers what no page is for: the request's head, and the connection.
Otherwise = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def request_untrusted(head: bytes) -> Request:
    """Parse a request's head; raises BadInput."""
    try:
        lines = head.decode("ascii").split("\r\n")
        method, target, version = lines[0].split(" ")
        parts = urlsplit(target)
        pairs = parse_qs(parts.query, keep_blank_values=True, max_num_fields=20)
    except ValueError as e:
        raise BadInput(f"not an HTTP request: {e}"[:200]) from e
    if not version.startswith("HTTP/1."):
        raise BadInput(f"not HTTP/1: {version[:20]!r}")
    headers = {k.strip().lower(): v.strip() for k, _, v in (s.partition(":") for s in lines[1:])}
    query = {k: v[0] for k, v in pairs.items()}
    return Request(method, parts.path, query, headers.get("accept", ""))


async def answer(pages: Pages, head: bytes) -> Answer:
    """Find the page and ask it; every failure becomes an answer."""
    try:
        request = request_untrusted(head)
    except BadInput as e:
        return Answer(f"{e}\n".encode(), 400)
    method = "GET" if request.method == "HEAD" else request.method
    page = pages.get((method, request.path))
    if page is None:
        known = sorted({path for _, path in pages})
        if request.path in known:
            return Answer(f"{request.method} is not for {request.path}\n".encode(), 405)
        return Answer(f"no such page; there are: {' '.join(known)}\n".encode(), 404)
    try:
        return await page(request)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return Answer(b"internal error; see the log\n", 500)


def render(made: Answer, with_body: bool) -> bytes:
    """Build the response."""
    head = (
        f"HTTP/1.1 {made.status} {_REASONS.get(made.status, 'Unknown')}\r\n"
        f"content-type: {made.content_type}\r\n"
        f"content-length: {len(made.body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + (made.body if with_body else b"")


class WebServer:
    """Serves pages on one address; `otherwise` gets the requests that no page is for."""

    def __init__(
        self, address: tuple[str, int], pages: Pages, otherwise: Otherwise | None = None
    ) -> None:
        self._address = address
        self._pages = pages
        self._otherwise = otherwise
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; raises ConfigError when the address is taken."""
        host, port = self._address
        try:
            # Made here: what asyncio makes of "::" takes no IPv4.
            listener = socket.create_server(
                (host, port),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                reuse_port=True,
                dualstack_ipv6=host == "::",
            )
            self._server = await asyncio.start_server(self._serve, sock=listener, limit=_MAX_HEAD)
        except OSError as e:
            raise ConfigError(f"cannot listen on {host}:{port}: {e.strerror}") from e

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > _MAX_CONNECTIONS:
                return
            async with asyncio.timeout(_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
            if self._otherwise is not None and not self._known(head):
                await self._otherwise(head, reader, writer)
                return
            made = await answer(self._pages, head)
            writer.write(render(made, not head.startswith(b"HEAD ")))
            async with asyncio.timeout(_TIMEOUT):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who asks so gets nothing
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _known(self, head: bytes) -> bool:
        try:
            request = request_untrusted(head)
        except BadInput:
            return True  # its error is an answer
        return any(request.path == path for _, path in self._pages)

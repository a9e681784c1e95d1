"""Envoy's admin pages: asking them, and passing them on to the pod's loopback."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from mesh.errors import BadInput, Unavailable

_TIMEOUT: Final = 5.0
_MAX_BODY: Final = 256 << 20
_CHUNK: Final = 1 << 16


class EnvoyAdmin:
    """The pages on Envoy's unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def get(self, target: str, method: str = "GET", seconds: float = _TIMEOUT) -> bytes:
        """Ask for a page; raises Unavailable where Envoy does not answer 200."""
        head = f"{method} {target} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n"
        head += "content-length: 0\r\n\r\n"
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(head.encode())
                    raw = await _read_all(reader)
                finally:
                    writer.close()
        except (OSError, TimeoutError) as e:
            raise Unavailable(f"Envoy's admin page {target}: {e or 'no answer'}") from e
        try:
            status, body = response_untrusted(raw)
        except BadInput as e:
            raise Unavailable(f"Envoy's admin page {target}: {e}") from e
        if status != 200:
            raise Unavailable(f"Envoy's admin page {target}: {status} {body[:200]!r}")
        return body

    async def post(self, target: str) -> None:
        """Have Envoy do something; raises Unavailable."""
        await self.get(target, "POST")

    async def pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one request, whose head was read, and its response between a client and Envoy.

        Raises Unavailable before anything was sent to the client.
        """
        try:
            back, forth = await asyncio.open_unix_connection(str(self._socket))
        except OSError as e:
            raise Unavailable(f"Envoy does not run: {e}") from e
        try:
            forth.write(one_request(head))
            sending = asyncio.ensure_future(_copy(reader, forth))
            try:
                await _copy(back, writer)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            forth.close()


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    parts, size = [], 0
    while part := await reader.read(_CHUNK):
        size += len(part)
        if size > _MAX_BODY:
            raise OSError(f"more than {_MAX_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(_CHUNK):
            writer.write(part)
            await writer.drain()


def one_request(head: bytes) -> bytes:
    """Make a request's head say that it is the connection's last."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"keep-alive:"))]
    return b"\r\n".join([*kept, b"connection: close", b"", b""])


def response_untrusted(raw: bytes) -> tuple[int, bytes]:
    """Read a whole HTTP/1.1 response: status and body; raises BadInput."""
    head, end, body = raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ")
    if not end or len(words) < 2 or not words[1].isdigit():
        raise BadInput(f"not an HTTP response: {raw[:60]!r}")
    if any(line.lower().replace(b" ", b"") == b"transfer-encoding:chunked" for line in lines[1:]):
        body = _unchunked(body)
    return int(words[1][:9]), body


def _unchunked(raw: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = raw.find(b"\r\n", at)
        try:
            size = int(raw[at:end].partition(b";")[0], 16) if end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0:
            raise BadInput("the response's chunks are broken, or it was cut")
        if size == 0:
            return b"".join(parts)
        at = end + 2 + size + 2
        if at > len(raw):
            raise BadInput("the response was cut")
        parts.append(raw[end + 2 : at - 2])

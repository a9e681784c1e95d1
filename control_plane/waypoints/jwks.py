"""Fetches the keys of token issuers (jwksUri), so that waypoints need not.

Whoever may write a RequestAuthentication chooses the URI. So it is asked for once, without
redirects or credentials, at addresses that are not this machine or its neighbours (where clouds
keep their metadata), and of the answer nobody is told more than whether it is a JWKS.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

import urllib3

from waypoint.config.security.fetching import Fetching
from waypoint.config.security.jwks import MAX_JWKS, Jwks

log = logging.getLogger(__name__)

_AT_ONCE: Final = 4
_TIMEOUT: Final = urllib3.Timeout(connect=5, read=5)
_LONGEST: Final = 15.0  # seconds for a document in all: one that trickles in is no use


class _Refused(Exception):
    """A document is not fetched, and why."""


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _Refused(f"{host:.200} is not known") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
            raise _Refused(f"{host:.200} is {ip}: not fetched from there")
    return addresses


def _connect(url: SplitResult, address: str, port: int) -> urllib3.HTTPConnectionPool:
    # To the address that was looked at: a second look-up might give another one.
    if url.scheme == "http":
        return urllib3.HTTPConnectionPool(address, port, timeout=_TIMEOUT)
    return urllib3.HTTPSConnectionPool(
        address,
        port,
        timeout=_TIMEOUT,
        server_hostname=url.hostname,
        assert_hostname=url.hostname,
        cert_reqs="CERT_REQUIRED",
    )


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> str:
    if response.status != 200:
        raise _Refused(f"answered with status {response.status}")
    body = b""
    for chunk in response.stream(65536, decode_content=True):
        body += chunk
        if len(body) > MAX_JWKS:
            raise _Refused(f"larger than {MAX_JWKS >> 10} KiB")
        if time.monotonic() > deadline:
            raise _Refused(f"not complete after {_LONGEST:.0f} s")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise _Refused("not UTF-8 text") from None


def fetch(uri: str) -> Jwks:
    """Fetch one document; blocks for some seconds at most. What goes wrong is in the result."""
    try:
        url = urlsplit(uri)
        port = url.port or (443 if url.scheme == "https" else 80)
        host = url.hostname or ""
        address = _addresses(host, port)[0]
        pool = _connect(url, address, port)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        default = port == (443 if url.scheme == "https" else 80)
        name = f"[{host}]" if ":" in host else host
        headers = {"host": name if default else f"{name}:{port}", "accept": "application/json"}
        with contextlib.closing(pool):
            response = pool.request(
                "GET", target, headers=headers, redirect=False, retries=False, preload_content=False
            )
            try:
                return Jwks(text=_read(response, time.monotonic() + _LONGEST))
            finally:
                response.close()
    except _Refused as e:
        return Jwks(error=str(e))
    except urllib3.exceptions.SSLError as e:
        return Jwks(error=f"TLS: {e}"[:200])
    except (urllib3.exceptions.HTTPError, OSError) as e:
        return Jwks(error=f"no answer ({type(e).__name__})")
    except ValueError as e:
        return Jwks(error=f"not a URI that can be fetched: {e}"[:200])


class JwksFetcher:
    """Keeps what is wanted at hand; all calls from one event loop.

    `changed` is awaited with everything that is known, whenever fetching gave something else.
    """

    def __init__(
        self,
        changed: Callable[[Mapping[str, Jwks]], Awaitable[None]],
        get: Callable[[str], Jwks] | None = None,
    ) -> None:
        self._changed = changed
        self._get = get or fetch
        self._fetching = Fetching()
        self._wake = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()

    def want(self, uris: Iterable[str]) -> None:
        """Say which documents are wanted from now on."""
        self._fetching.want(uris, time.monotonic())
        self._wake.set()

    async def run(self) -> None:
        """Fetch until cancelled."""
        try:
            while True:
                self._wake.clear()
                now = time.monotonic()
                for uri in self._fetching.begin(now, _AT_ONCE - len(self._calls)):
                    call = asyncio.get_running_loop().create_task(self._one(uri))
                    self._calls.add(call)
                    call.add_done_callback(self._calls.discard)
                due = self._fetching.next_due()
                # With all calls under way, the end of one is what there is to wait for.
                pause = None if due is None or len(self._calls) >= _AT_ONCE else max(due - now, 0)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
        finally:
            for call in self._calls:
                call.cancel()

    async def _one(self, uri: str) -> None:
        result = await asyncio.to_thread(self._get, uri)
        if result.error:
            log.warning("jwksUri %s: %s", uri, result.error)
        changed = self._fetching.end(uri, result, time.monotonic())
        self._calls.discard(asyncio.current_task())
        self._wake.set()
        if changed:
            await self._changed(self._fetching.known())

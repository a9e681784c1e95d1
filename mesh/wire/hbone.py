"""HBONE: one TCP connection as one HTTP/2 CONNECT stream; its headers, both ways.

A request's header block is the part that is the same for every stream to one endpoint
(`request_prefix`, kept by the caller) and the part of this connection (`request_block`).
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

from mesh.errors import BadInput
from mesh.wire import headers as hp

OK: Final = 200
BAD_REQUEST: Final = 400
UNAUTHORIZED: Final = 401
UNAVAILABLE: Final = 503

STATUS_TEXT: Final = {
    OK: "OK",
    BAD_REQUEST: "Bad Request",
    UNAUTHORIZED: "Unauthorized",
    UNAVAILABLE: "Service Unavailable",
}

_METHOD_CONNECT: Final = hp.literal_known(hp.METHOD, b"CONNECT")
_PORTS: Final = 65_535


class BadConnect(BadInput):
    """A request that is no HBONE CONNECT: answered with `status`."""

    status: Final = BAD_REQUEST


def join(address: str, port: int) -> str:
    """Spell "ip:port", IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@lru_cache(maxsize=4096)
def split_untrusted(text: str) -> tuple[str, int]:
    """Read "ip:port" or "[ip]:port" in their canonical spelling. Raises BadInput."""
    host, colon, digits = text.rpartition(":")
    if not colon or not digits.isascii() or not digits.isdigit() or len(digits) > 5:
        raise BadInput(f"not an ip:port: {text[:80]!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise BadInput(f"not an IPv6 address: {text[:80]!r}")
    elif ":" in host:
        raise BadInput(f"an IPv6 address needs brackets: {text[:80]!r}")
    port = int(digits)
    if not 0 < port <= _PORTS:
        raise BadInput(f"no such port: {text[:80]!r}")
    if "%" in host:
        raise BadInput(f"an address with a zone: {text[:80]!r}")
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError as e:
        raise BadInput(f"not an IP address: {text[:80]!r}") from e


def request_prefix(authority: str, baggage: bytes) -> bytes:
    """Encode what all CONNECTs to one authority from one pod have in common."""
    block = _METHOD_CONNECT + hp.literal_known(hp.AUTHORITY, authority.encode())
    return block + hp.literal(b"baggage", baggage) if baggage else block


def request_block(
    prefix: bytes, client: tuple[str, int], host: str, trace: bytes, network: str = ""
) -> bytes:
    """Encode the rest of a CONNECT.

    client: the application's own address; host: the service it asked for, or ""; trace: 24 random
    bytes, the trace and span ids of `traceparent`; network: for the inner CONNECT of double HBONE.
    """
    forwarded = f'for="{join(client[0], client[1])}"'
    if host:
        forwarded += f";host={host}"
    ids = trace.hex()
    block = (
        prefix
        + hp.literal(b"forwarded", forwarded.encode())
        + hp.literal(b"traceparent", f"00-{ids[:32]}-{ids[32:48]}-00".encode())
    )
    return block + hp.literal(b"x-forwarded-network", network.encode()) if network else block


def response_block(status: int, baggage: bytes) -> bytes:
    """Encode the response to a CONNECT."""
    block = hp.status(status)
    return block + hp.literal(b"baggage", baggage) if baggage else block


class Connect:
    """A CONNECT request: where to, and what its sender says about itself."""

    def __init__(self, address: str, port: int, forwarded: bytes, baggage: bytes) -> None:
        self.address = address
        self.port = port
        self.forwarded = forwarded  # raw header, see `forwarded_port`
        self.baggage = baggage


def connect_untrusted(headers: list[tuple[bytes, bytes]]) -> Connect:
    """Read a request's headers. Raises BadConnect."""
    method = authority = forwarded = baggage = b""
    for name, value in headers:
        if name == b":method":
            method = value
        elif name == b":authority":
            authority = value
        elif name == b"forwarded":
            forwarded = value
        elif name == b"baggage":
            baggage = value
        elif name in (b":path", b":scheme", b":protocol"):
            raise BadConnect(f"{name.decode()} in a CONNECT")
    if method != b"CONNECT":
        raise BadConnect(f"method {method[:20].decode('latin-1')!r}, only CONNECT is served")
    try:
        address, port = split_untrusted(authority.decode("ascii"))
    except BadInput as e:
        raise BadConnect(f"authority: {e}") from e
    except UnicodeDecodeError as e:
        raise BadConnect("authority is not ASCII") from e
    return Connect(address, port, forwarded, baggage)


def forwarded_port(header: bytes, address: str) -> int:
    """Port of `forwarded: for="address:port"` when it names this address, else 0.

    The address itself is proved by the connection it came on; only the port is taken from here.
    """
    quick = b'for="%s:' % address.encode()  # as we and Istio's ztunnel write it, IPv4
    if header.startswith(quick):
        digits = header[len(quick) :].partition(b'"')[0]
        if digits.isdigit() and 0 < len(digits) <= 5 and int(digits) <= _PORTS:
            return int(digits)
    for part in header.split(b";"):
        key, _, value = part.strip().partition(b"=")
        if key.lower() != b"for":
            continue
        try:
            found, port = split_untrusted(value.strip(b'"').decode("ascii"))
        except (BadInput, UnicodeDecodeError):
            return 0
        return port if found == address else 0
    return 0


def status_untrusted(headers: list[tuple[bytes, bytes]]) -> int:
    """`:status` of a response, which the codec has seen to be three digits."""
    for name, value in headers:
        if name == b":status":
            return int(value)
    raise BadInput("a response without :status")

"""How a captured connection says where it wanted to go, and how the application gets to see from
whom it came: one class per way of redirecting (`Redirect` of mesh/pb/zds.proto).
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from typing import Final

from mesh.ports import SO_ORIGINAL_DST, SO_REAL_SOURCE

log = logging.getLogger("ambit.relay")

EBPF: Final = 1
NFTABLES: Final = 2

IP_TRANSPARENT: Final = 19  # linux/in.h
IPV6_TRANSPARENT: Final = 75  # linux/in6.h
IP_BIND_ADDRESS_NO_PORT: Final = 24

_IN: Final = struct.Struct("=H2s4s8x")  # struct sockaddr_in; port in network order
_IN6: Final = struct.Struct("=H2s4x16s4x")  # struct sockaddr_in6


def normal(address: str) -> str:
    """An IPv4 address that a dual-stack socket shows as IPv6, as IPv4."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def family_of(address: str) -> socket.AddressFamily:
    """Of an address in text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def sockaddr(address: str, port: int) -> bytes:
    """The C structure, as setsockopt takes it."""
    raw = socket.inet_pton(family_of(address), address)
    form = _IN if len(raw) == 4 else _IN6
    return form.pack(family_of(address), port.to_bytes(2, "big"), raw)


def read_original_dst(sock: socket.socket) -> tuple[str, int] | None:
    """SO_ORIGINAL_DST of an accepted socket: conntrack's answer or a hook's. None: not captured."""
    v6 = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    try:
        raw = sock.getsockopt(level, SO_ORIGINAL_DST, 28 if v6 else 16)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOPROTOOPT, errno.EOPNOTSUPP):
            return None
        raise
    if len(raw) == 16:
        _, port, ip4 = _IN.unpack(raw)
        return socket.inet_ntop(socket.AF_INET, ip4), int.from_bytes(port, "big")
    _, port, ip6 = _IN6.unpack(raw)
    return normal(socket.inet_ntop(socket.AF_INET6, ip6)), int.from_bytes(port, "big")


class Capture:
    """Steered by the eBPF hooks."""

    def __init__(self) -> None:
        self._warned = False

    def outbound(self, sock: socket.socket) -> tuple[str, int] | None:
        """Where a connection accepted on 15001 was going. Raises OSError."""
        return read_original_dst(sock)

    def inbound(self, sock: socket.socket) -> tuple[str, int] | None:
        """Where a connection accepted on 15006 was going: sk_lookup keeps the real address."""
        name = sock.getsockname()
        return normal(name[0]), name[1]

    def impersonate(self, sock: socket.socket, client: tuple[str, int]) -> None:
        """Before connecting to the application: let it see this client."""
        try:
            sock.setsockopt(socket.IPPROTO_IP, SO_REAL_SOURCE, sockaddr(client[0], client[1]))
        except OSError as e:
            self._warn(f"SO_REAL_SOURCE: {e.strerror}; is the node agent's sockopt hook attached?")

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("applications see this pod's own address as their client's: %s", why)


class NftCapture(Capture):
    """Steered by nftables REDIRECT inside the pod's namespace."""

    def inbound(self, sock: socket.socket) -> tuple[str, int] | None:
        """See Capture: conntrack knows."""
        if sock.family == socket.AF_INET6:
            peer = sock.getpeername()[0]
            if normal(peer) != peer:  # IPv4 on a dual-stack listener: conntrack has it as IPv4
                raw = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
                _, port, ip4 = _IN.unpack(raw)
                return socket.inet_ntop(socket.AF_INET, ip4), int.from_bytes(port, "big")
        return read_original_dst(sock)

    def impersonate(self, sock: socket.socket, client: tuple[str, int]) -> None:
        """See Capture: bind to the client's address; the port is the kernel's choice."""
        v6 = sock.family == socket.AF_INET6
        try:
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((client[0], 0))
        except OSError as e:
            self._warn(f"IP_TRANSPARENT: {e.strerror}; it needs CAP_NET_ADMIN")


CAPTURES: Final = {EBPF: Capture, NFTABLES: NftCapture}

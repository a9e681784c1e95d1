"""Let those who dial a dead Envoy wait for the next one, instead of being refused.

While no Envoy listens, a socket on its port does that drops everything that arrives (a filter of
the socket's own, no privilege needed). So nobody answers, a client's kernel sends its SYN again
after a second, and by then there is another Envoy, which binds beside this socket (SO_REUSEPORT).
Connections that Envoy had are not touched: they are reset with its end.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
from collections.abc import Sequence
from typing import Final

from mesh.env import Address

log = logging.getLogger(__name__)

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
_RET_K: Final = 0x06  # linux/bpf_common.h: BPF_RET | BPF_K


class Parking:
    """Sockets on these addresses, while they are wanted."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses
        self._sockets: list[socket.socket] = []

    @property
    def open(self) -> bool:
        """Whether callers are made to wait."""
        return bool(self._sockets)

    def park(self) -> None:
        """Make callers wait; where that cannot be they are refused, as without it."""
        if self._sockets:
            return
        for address in self._addresses:
            try:
                self._sockets.append(_deaf(address))
            except OSError as e:
                log.debug("callers of %s:%d cannot be made to wait: %s", *address, e)

    def release(self) -> None:
        """Leave them to Envoy."""
        for each in self._sockets:
            each.close()
        self._sockets.clear()


def _deaf(address: Address) -> socket.socket:
    """Listen on an address, and drop what comes; raises OSError."""
    v6 = ":" in address[0]
    made = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if v6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # One instruction: keep 0 bytes (struct sock_filter). Before listen: no SYN is heard.
        code = ctypes.create_string_buffer(struct.pack("=HBBI", _RET_K, 0, 0, 0))
        program = struct.pack("@HP", 1, ctypes.addressof(code))  # struct sock_fprog
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        made.bind(address)
        made.listen(1)
    except OSError:
        made.close()
        raise
    return made

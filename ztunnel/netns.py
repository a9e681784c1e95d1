"""Work inside a pod's network namespace: in a thread of its own, which ends with the work.

A thread that has entered a namespace is never used for anything else.
"""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Final

from mesh.netns import inside
from mesh.ports import INBOUND_HBONE, INBOUND_PLAIN, OUTBOUND
from mesh.wire import zds

_BACKLOG: Final = 4096


def open_listeners(netns: int) -> list[tuple[int, socket.socket]]:
    """Open a pod's listeners, for an agent that holds none: (role of ZDS, socket) each.

    SO_REUSEPORT lets the next ztunnel open its own before this one leaves. Without IPv6 in the
    namespace the others serve IPv4 alone. Raises OSError.
    """
    found: list[tuple[int, socket.socket]] = inside(netns, _listeners)
    return found


def _listeners() -> list[tuple[int, socket.socket]]:
    opened: list[tuple[int, socket.socket]] = []
    try:
        opened.append((zds.OUTBOUND_V4, _listen("0.0.0.0", OUTBOUND)))
        try:
            opened.append((zds.OUTBOUND_V6, _listen("::", OUTBOUND, v6only=True)))
            inbound = "::"
        except OSError:
            inbound = "0.0.0.0"
        opened.append((zds.INBOUND_PLAIN, _listen(inbound, INBOUND_PLAIN)))
        opened.append((zds.INBOUND_HBONE, _listen(inbound, INBOUND_HBONE)))
    except OSError:
        for _, sock in opened:
            sock.close()
        raise
    return opened


def _listen(address: str, port: int, v6only: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        sock.bind((address, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def addresses(netns: int) -> list[str]:
    """List the global unicast addresses of a namespace; raises OSError."""
    v4, v6 = inside(netns, lambda: (_proc("fib_trie"), _proc("if_inet6")))
    return [*_local_v4(v4), *_local_v6(v6)]


def _proc(name: str) -> str:
    path = Path(f"/proc/thread-self/net/{name}")
    return path.read_text() if path.exists() else ""  # no if_inet6: no IPv6


def _local_v4(fib_trie: str) -> list[str]:
    # Leaves are "|-- 10.0.0.5", and below each what is there: "/32 host LOCAL" is an address.
    found: dict[str, None] = {}
    last = ""
    for line in fib_trie.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "|--":
            last = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"] and not last.startswith("127."):
            found[last] = None
    return list(found)


def _local_v6(if_inet6: str) -> list[str]:
    # Each line: address in hexadecimal, interface index, prefix length, scope, flags, name.
    found = []
    for line in if_inet6.splitlines():
        words = line.split()
        if len(words) == 6 and words[3] == "00":  # global scope
            found.append(str(ipaddress.IPv6Address(int(words[0], 16))))
    return found

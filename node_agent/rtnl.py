"""The four things the agent asks rtnetlink(7), on a socket of the calling thread's netns.

By hand and not by pyroute2: importing that costs the agent 20 MB of resident memory on every node,
more than all of the agent's own state.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

# linux/netlink.h, linux/rtnetlink.h, linux/fib_rules.h
_NETLINK_ROUTE: Final = 0
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST: Final = 0x1
_ACK: Final = 0x4
_DUMP: Final = 0x300
_CREATE_EXCL: Final = 0x600
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RTA_OIF: Final = 4
_RTN_LOCAL: Final = 2
_RT_SCOPE_HOST: Final = 254
_RTPROT_STATIC: Final = 4
_FR_ACT_TO_TBL: Final = 1
_FRA_PRIORITY: Final = 6
_FRA_FWMARK: Final = 10
_FRA_FWMASK: Final = 16
_LO_INDEX: Final = 1  # in every network namespace

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length, type
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # also fib_rule_hdr, whose fields are alike


def addresses() -> set[str]:
    """Give every address of the netns, canonical text, both families."""
    found = set()
    request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for kind, body in _talk(_RTM_GETADDR, _DUMP, request):
        if kind != _RTM_NEWADDR:
            continue
        family = body[0]
        attributes = dict(_attributes(body[_IFADDRMSG.size :]))
        # On point-to-point links IFA_ADDRESS is the far end's and IFA_LOCAL ours.
        raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if raw and family in (socket.AF_INET, socket.AF_INET6):
            found.add(socket.inet_ntop(family, raw))
    return found


def set_mark_rule(family: int, mark: int, mask: int, table: int, present: bool) -> None:
    """Have packets with `mark` routed by `table` (`ip rule`), or no longer. Repeating is fine."""
    header = _RTMSG.pack(family, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
    attributes = (
        _attribute(_FRA_PRIORITY, table)
        + _attribute(_FRA_FWMARK, mark)
        + _attribute(_FRA_FWMASK, mask)
    )
    _change(_RTM_NEWRULE if present else _RTM_DELRULE, header + attributes, present)


def set_local_default(family: int, table: int, present: bool) -> None:
    """Have `table` take every destination for local (`local default dev lo`), or no longer."""
    header = _RTMSG.pack(family, 0, 0, 0, table, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    message = header + _attribute(_RTA_OIF, _LO_INDEX)
    _change(_RTM_NEWROUTE if present else _RTM_DELROUTE, message, present)


def _change(kind: int, message: bytes, present: bool) -> None:
    harmless = (errno.EEXIST,) if present else (errno.ENOENT, errno.ESRCH)
    try:
        for _ in _talk(kind, _ACK | (_CREATE_EXCL if present else 0), message):
            pass
    except OSError as error:
        if error.errno not in harmless:
            raise


def _talk(kind: int, flags: int, message: bytes) -> Iterator[tuple[int, bytes]]:
    """Send one request and yield (type, body) of what comes back, up to its end."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as sock:
        sock.settimeout(5)
        size = _HEADER.size + len(message)
        sock.send(_HEADER.pack(size, kind, _REQUEST | flags, 1, 0) + message)
        while True:
            data = sock.recv(1 << 16)
            while len(data) >= _HEADER.size:
                length, got, _, _, _ = _HEADER.unpack_from(data)
                body = data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]
                if got == _NLMSG_DONE:
                    return
                if got == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise OSError(code, f"rtnetlink: {os.strerror(code)}")
                    return
                yield got, body


def _attribute(kind: int, value: int) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, kind) + struct.pack("=I", value)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]

"""Keeps file descriptors while the node agent is away. Run as a script: holder.py SOCKET [linger].

A listening socket lives as long as a process holds it. This one holds them across the agent's
restarts, upgrades and crashes, and does nothing else, so that it never needs one itself: it
imports seven modules of the standard library and none of ours (python -I -S, 3 MB of its own).

With `linger` it does not end at once on SIGTERM while it holds something: in an upgrade the next
agent takes everything over from this holder into its own, then sends Q.

Protocol, one datagram each on a unix SOCK_SEQPACKET connection, root only:
    P key NUL label  + descriptors   put: replaces what was held under the key
    D key                            drop
    L                                list: one `K key NUL label` + descriptors for each, then `.`
    Q                                quit
Every request but L is answered `.`, or `E text`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import sys
import time

MAX_DATAGRAM = 2048
MAX_FDS = 16
MAX_KEYS = 10_000
TURN = 5.0  # seconds between looks at whether another holder has taken over
LINGER = 10.0  # seconds after SIGTERM

Held = dict[bytes, tuple[bytes, list[int]]]


def close_all(fds: list[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def answer(held: Held, conn: socket.socket, data: bytes, fds: list[int]) -> None:
    """Do what one request says."""
    verb, rest = data[:2], data[2:]
    if verb == b"P " and fds and (rest.split(b"\0")[0] in held or len(held) < MAX_KEYS):
        key, _, label = rest.partition(b"\0")
        close_all(held.pop(key, (b"", []))[1])
        held[key] = (label, fds)
        conn.send(b".")
        return
    close_all(fds)
    if verb == b"D ":
        close_all(held.pop(rest, (b"", []))[1])
        conn.send(b".")
    elif data == b"L":
        for key, (label, kept) in held.items():
            socket.send_fds(conn, [b"K " + key + b"\0" + label], kept)
        conn.send(b".")
    else:
        conn.send(b"E not a request")


def is_ours(path: str, inode: int) -> bool:
    """Say whether agents that look for a holder still find this one."""
    try:
        return os.stat(path).st_ino == inode
    except OSError:
        return False


def welcome(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    """Accept a connection of our own user; anyone else's is closed."""
    conn, _ = listener.accept()
    conn.settimeout(5)
    cred = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if struct.unpack("3i", cred)[1] == os.geteuid():
        selector.register(conn, selectors.EVENT_READ)
    else:
        conn.close()


class Ending:
    """When to end after SIGTERM."""

    def __init__(self) -> None:
        self.at = 0.0  # 0: not asked to

    def ask(self, *_: object) -> None:
        """Take the signal."""
        self.at = self.at or time.monotonic() + LINGER

    def due(self, held: Held) -> bool:
        """Say whether it is time; nothing is lost by a holder that holds nothing."""
        return bool(self.at) and (not held or time.monotonic() >= self.at)


def serve(listener: socket.socket, path: str, inode: int, ending: Ending) -> None:
    """Serve until told to quit, or until another holder has taken the path."""
    held: Held = {}
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    wake, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    selector.register(wake, selectors.EVENT_READ)
    while True:
        ready = selector.select(1.0 if ending.at else TURN)
        if ending.due(held) or (not ready and not is_ours(path, inode)):
            if is_ours(path, inode):
                os.unlink(path)
            return
        for key, _ in ready:
            if key.fileobj is listener:
                welcome(listener, selector)
                continue
            if key.fileobj is wake:
                wake.recv(64)
                continue
            assert isinstance(key.fileobj, socket.socket)
            conn, data = key.fileobj, b""
            with contextlib.suppress(OSError):
                data, fds, _, _ = socket.recv_fds(conn, MAX_DATAGRAM, MAX_FDS)
                if data == b"Q":
                    leave(held, conn, path, inode)
                    return
                if data:
                    answer(held, conn, data, fds)
            if not data:  # the agent went away: what it put stays
                selector.unregister(conn)
                conn.close()


def leave(held: Held, conn: socket.socket, path: str, inode: int) -> None:
    """Close everything, then say so."""
    for _, kept in held.values():
        close_all(kept)
    if is_ours(path, inode):
        os.unlink(path)
    conn.send(b".")


def main() -> None:
    """Bind the socket named on the command line and serve it."""
    path = sys.argv[1]
    os.umask(0o077)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(8)
    ending = Ending()
    if "linger" in sys.argv[2:]:
        signal.signal(signal.SIGTERM, ending.ask)
    else:
        # Ready: whoever started us waits for this pipe to end.
        sys.stdout.close()
        os.close(1)
    serve(listener, path, os.stat(path).st_ino, ending)


if __name__ == "__main__":
    main()

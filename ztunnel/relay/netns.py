"""Network namespaces: sockets are made in the one of their pod."""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNET: Final = 0x4000_0000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)


class NetNs:
    """A namespace by descriptor. Two with the same inode are the same."""

    _current: int = 0

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino

    def enter(self) -> None:
        """Move this thread there, unless it is there. Raises OSError."""
        if NetNs._current == self.inode:
            return
        if not NetNs._current:
            NetNs._current = os.stat("/proc/thread-self/ns/net").st_ino
            if NetNs._current == self.inode:
                return
        if _libc.setns(self.fd, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
        NetNs._current = self.inode

    def close(self) -> None:
        """Give the descriptor back; a thread that is there stays."""
        os.close(self.fd)

"""A folder watcher on inotify(7), by ctypes: no thread, no dependency, one file descriptor."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mesh.errors import Unsupported

# <sys/inotify.h>
IN_MODIFY: Final = 0x2
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ISDIR: Final = 0x40000000

_WANTED: Final = (
    IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
)
_EVENT: Final = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows


class Inotify:
    """Watches folders (not their subfolders)."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._add_watch = libc.inotify_add_watch
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise Unsupported(
                f"inotify_init1: {os.strerror(code)}; too many watchers on this machine? "
                "Raise fs.inotify.max_user_instances (sysctl)"
            )
        self._folders: dict[int, Path] = {}
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def add(self, folder: Path) -> bool:
        """Watch `folder`; False when it does not exist. Watching it twice is fine."""
        wd: int = self._add_watch(self._fd, os.fsencode(folder), ctypes.c_uint32(_WANTED))
        if wd < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise Unsupported(
                f"cannot watch {folder}: {os.strerror(code)}; "
                "raise fs.inotify.max_user_watches (sysctl)?"
            )
        self._folders[wd] = folder
        return True

    def wait(self, timeout: float) -> bool:
        """Block up to `timeout` seconds; True when read() has something."""
        return bool(self._poll.poll(max(0, int(timeout * 1000))))

    def read(self) -> Iterator[tuple[Path | None, int, str]]:
        """Yield (folder, event mask, name in it) of all waiting events; folder None: overflow."""
        while True:
            try:
                raw = os.read(self._fd, 65536)
            except BlockingIOError:
                return
            offset = 0
            while offset < len(raw):
                wd, mask, _, length = _EVENT.unpack_from(raw, offset)
                offset += _EVENT.size
                name = raw[offset : offset + length].rstrip(b"\0")
                offset += length
                yield self._folders.get(wd), mask, os.fsdecode(name)
                if mask & IN_IGNORED:
                    self._folders.pop(wd, None)

    def close(self) -> None:
        """Release the descriptor. Closing twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

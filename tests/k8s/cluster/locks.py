"""One at a time: a file that is locked while something is done, and gone after."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(file: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock across processes; the kernel frees it when its holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fd = _lock(file, say)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(fd)


def _lock(file: Path, say: Callable[[str], None]) -> int:
    while True:
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for whoever holds {file}")
            fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(file).st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)  # its last holder removed it: what we locked is nobody's any more

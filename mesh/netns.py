"""Network namespaces of Linux, by descriptor: setns(2) moves one thread, never a process."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

_CLONE_NEWNET: Final = 0x4000_0000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def enter(netns: int) -> None:
    """Move the calling thread into the namespace behind a descriptor; raises OSError."""
    if _libc.setns(netns, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"entering the network namespace: {os.strerror(code)}")


def inside(netns: int, work: Callable[[], T]) -> T:
    """Run `work` in the namespace, in a thread that ends with it; raises what it raises."""
    done: list[T] = []
    failed: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            enter(netns)
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter_and_work, name="netns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]

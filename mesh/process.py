"""What the mesh's long-running processes have in common."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import resource
from collections.abc import Callable, Coroutine
from typing import Any, Final

_M_ARENA_MAX: Final = -8  # malloc.h


def tune() -> None:
    """Keep memory in one arena, and allow as many descriptors as may be; children inherit that."""
    # Two or three threads that do little need no memory arenas of their own.
    with contextlib.suppress(AttributeError):  # glibc's alone
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def supervised(
    work: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]
) -> asyncio.Task[None]:
    """Run in the background; `failed` is told of the error that it ends with, if it does."""
    task = asyncio.ensure_future(work)

    def ended(done: asyncio.Task[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            failed(error)

    task.add_done_callback(ended)
    return task

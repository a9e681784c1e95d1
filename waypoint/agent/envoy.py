"""Envoy as a child: started, started again when it ends, ended with this process however that ends.

Its log goes straight to where ours goes: what it says when it crashes is not lost in a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_LEASH: Final = Path(__file__).with_name("leash.py")
_STEADY: Final = 10.0  # seconds after which an end is no quick one any more
_PAUSE_FIRST: Final = 0.2  # doubles; an Envoy that had run steadily is started again at once
_PAUSE_MOST: Final = 10.0
_POISONED: Final = 3  # quick ends in a row after which its configuration is suspected
_STOP: Final = 3.0  # seconds from SIGTERM to SIGKILL


class EnvoyProcess:
    """The child. `arguments`: its command line, asked for at each start.

    on_start: called before each start. on_end: called when it ended by itself. on_poison: called
    when that happens again and again.
    """

    def __init__(
        self,
        arguments: Callable[[], Sequence[str]],
        on_start: Callable[[], None],
        on_end: Callable[[], None],
        on_poison: Callable[[], None],
    ) -> None:
        self.starts = 0
        self.pid = 0  # 0 while it does not run
        self._arguments = arguments
        self._on_start = on_start
        self._on_end = on_end
        self._on_poison = on_poison
        self._child: asyncio.subprocess.Process | None = None

    @property
    def restarts(self) -> int:
        """How often it ended by itself and was started again."""
        return max(0, self.starts - 1)

    async def run(self) -> None:
        """Keep it running until cancelled; then it is ended."""
        quick = 0
        try:
            while True:
                started = time.monotonic()
                code = await self._once()
                self._on_end()
                lived = time.monotonic() - started
                quick = 0 if lived >= _STEADY else quick + 1
                if quick and quick % _POISONED == 0:
                    self._on_poison()
                pause = pause_after(quick)
                log.error("Envoy %s after %.1f s; again in %.1f s", _end(code), lived, pause)
                await asyncio.sleep(pause)
        finally:
            await self._stop()

    async def _once(self) -> int:
        self._on_start()
        self.starts += 1
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid())]
        # A session of its own: what is meant for us (a signal to the group) is not for it.
        self._child = await asyncio.create_subprocess_exec(
            *leash, *self._arguments(), stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        self.pid = self._child.pid
        log.info("Envoy started, pid %d", self.pid)
        try:
            return await self._child.wait()
        finally:
            self.pid = 0

    async def _stop(self) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), _STOP)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def pause_after(quick: int) -> float:
    """Choose the pause in seconds after so many quick ends in a row."""
    return min(_PAUSE_FIRST * 2.0 ** (quick - 1), _PAUSE_MOST) if quick else 0.0


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"

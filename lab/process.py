"""One supervised process: started, watched, started again, stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab import cgroups

log = logging.getLogger(__name__)

_LAUNCH_TURN: Final = 0.005  # seconds between two looks whether a launch is done
_STEADY: Final = 10.0  # seconds of life after which a crash is a new story
_FIRST_DELAY: Final = 0.25  # doubled with each crash that follows; the first restart is at once
_MAX_DELAY: Final = 15.0


@dataclass(slots=True)
class Process:
    """A process and its restarts. All calls come from one thread."""

    name: str
    argv: Callable[[], list[str]]
    log: Path
    sweep: Path | None = None  # control group to kill when the process has ended
    restart: Callable[[int], bool] = lambda code: True
    started_at: float = 0.0
    restarts: int = 0
    exit_code: int | None = None  # of the last run
    _child: subprocess.Popen[bytes] | None = None
    _due: float | None = 0.0  # when to start; None: never again
    _crashes: int = 0
    _asked: bool = False  # its end was asked for
    _started_fd: int = -1  # the launcher's word that the program itself runs

    @property
    def running(self) -> bool:
        """Whether it runs: the program itself, not only what starts it."""
        return self._child is not None and self._started_fd < 0

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid if self._child else None

    @property
    def due(self) -> float | None:
        """When it has to be looked at again, None when only its end matters."""
        if self._child is not None:
            return None if self._started_fd < 0 else time.monotonic() + _LAUNCH_TURN
        return self._due

    @property
    def ended(self) -> bool:
        """Whether it has ended for good."""
        return self._child is None and self._due is None

    def tick(self, now: float) -> bool:
        """Notice its end and start it when it is due; returns whether anything changed."""
        changed = False
        if self._child is not None and (code := self._child.poll()) is not None:
            self._ended(code, now)
            changed = True
        changed |= self._launched()
        if self._child is None and self._due is not None and now >= self._due:
            self._start(now)
            changed = True
        return changed

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, number)

    def bounce(self, kill: bool) -> None:
        """End it so that it is started again at once."""
        self._asked = True
        if self._child is None:
            self._due = 0.0
        self.send(signal.SIGKILL if kill else signal.SIGTERM)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it for good."""
        self._due, self.restart = None, lambda code: False
        self.send(number)

    def _start(self, now: float) -> None:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with self.log.open("ab") as out:
                self._child = subprocess.Popen(
                    self.argv(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=[write],
                    env={**os.environ, "LAB_STARTED_FD": str(write)},
                )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._started_fd = read
        self.started_at, self._due, self._asked = now, None, False
        log.info("%s: started, pid %d", self.name, self._child.pid)

    def _launched(self) -> bool:
        """Look whether the launcher has become the program; True when that is news."""
        if self._started_fd < 0:
            return False
        try:
            word = os.read(self._started_fd, 1)
        except BlockingIOError:
            return False
        if word and self._child is not None:
            return False  # it could not: its end follows
        os.close(self._started_fd)
        self._started_fd = -1
        return True

    def _ended(self, code: int, now: float) -> None:
        self._child, self.exit_code = None, code
        if self.sweep is not None:
            cgroups.kill(self.sweep)
        if not self.restart(code):
            self._due = None
            log.info("%s: ended with %d", self.name, code)
            return
        self.restarts += 1
        if self._asked or now - self.started_at > _STEADY:
            self._crashes = 0
        delay = 0.0
        if self._crashes:
            delay = min(_MAX_DELAY, _FIRST_DELAY * 2.0 ** (self._crashes - 1))
        self._crashes += not self._asked
        self._due = now + delay
        why = "as asked" if self._asked else f"exit code {code}"
        log.info("%s: ended (%s), again in %.2f s", self.name, why, delay)

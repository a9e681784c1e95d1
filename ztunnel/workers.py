"""The relay worker processes: started, watched, started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from mesh.errors import BadInput
from ztunnel.channel import Channel, ChannelClosed, ChannelFull

log = logging.getLogger(__name__)

_PAUSE_FIRST: Final = 0.1  # before the second of two quick starts; doubles
_PAUSE_MOST: Final = 5.0
_QUICK: Final = 5.0  # a worker that lived shorter failed to start


class Owner(Protocol):
    """Who the workers work for."""

    def worker_started(self, index: int) -> None:
        """A fresh worker: it knows nothing yet."""

    def worker_lost(self, index: int) -> None:
        """It died, and its connections with it; it is started again."""

    def worker_said(self, index: int, message: Any) -> None:
        """A message of ipc.py."""


class Worker:
    """One place in the pool, and the process that fills it now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self.pidfd = -1
        self.started = 0.0
        self.pause = 0.0
        self.timer: asyncio.TimerHandle | None = None


class WorkerPool:
    """N workers. Messages to a worker that is being started again are dropped: it gets all anew."""

    def __init__(self, count: int, owner: Owner, log_level: Callable[[], str]) -> None:
        self._owner = owner
        self._log_level = log_level
        self._workers = [Worker(i) for i in range(count)]
        self._loop = asyncio.get_running_loop()
        self._draining = False
        self._gone = asyncio.Event()

    def __len__(self) -> int:
        return len(self._workers)

    def shard(self, uid: str) -> int:
        """Give the worker that serves a pod."""
        return zlib.crc32(uid.encode()) % len(self._workers)

    def alive(self) -> list[int]:
        """Give the indexes of workers that run."""
        return [w.index for w in self._workers if w.channel is not None]

    def start(self) -> None:
        """Start all of them."""
        for worker in self._workers:
            self._spawn(worker)

    def send(self, index: int, message: object, fds: Iterable[int] = ()) -> None:
        """Send to one worker; one that does not read is killed and started again."""
        worker = self._workers[index]
        if worker.channel is None:
            return
        try:
            worker.channel.send(message, fds)
        except (ChannelClosed, ChannelFull) as e:
            self._kill(worker, str(e))
            return
        if worker.channel.pending:
            self._loop.add_writer(worker.channel.fileno(), self._writable, worker, worker.channel)

    def broadcast(self, message: object) -> None:
        """Send to all."""
        for worker in self._workers:
            self.send(worker.index, message)

    async def drain(self, message: object, seconds: float) -> None:
        """Tell all to finish, and end those that have not after `seconds`."""
        self._draining = True
        self.broadcast(message)
        try:
            async with asyncio.timeout(seconds):
                while self.alive():
                    self._gone.clear()
                    await self._gone.wait()
        except TimeoutError:
            log.warning("workers %s had not finished in time", self.alive())
        self.stop()

    def stop(self) -> None:
        """Kill what runs."""
        self._draining = True
        for worker in self._workers:
            if worker.timer is not None:
                worker.timer.cancel()
            self._kill(worker, "")

    # ---- one worker --------------------------------------------------------------------------

    def _spawn(self, worker: Worker) -> None:
        if self._draining:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            command = [sys.executable, "-m", "ztunnel.relay.worker", "--fd", str(theirs.fileno())]
            command += ["--log-level", self._log_level()]
            worker.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        except OSError as e:
            ours.close()
            log.error("worker %d cannot be started: %s", worker.index, e)
            self._later(worker)
            return
        finally:
            theirs.close()
        channel = worker.channel = Channel(ours)
        worker.started = time.monotonic()
        worker.pidfd = os.pidfd_open(worker.process.pid)
        self._loop.add_reader(channel.fileno(), self._readable, worker, channel)
        self._loop.add_reader(worker.pidfd, self._exited, worker)
        self._owner.worker_started(worker.index)

    def _readable(self, worker: Worker, channel: Channel) -> None:
        try:
            self._hear(worker, channel)
        except ChannelClosed:
            self._loop.remove_reader(channel.fileno())  # its exit will be seen
        except BadInput as e:
            self._loop.remove_reader(channel.fileno())
            self._kill(worker, f"it broke the channel's rules: {e}")

    def _hear(self, worker: Worker, channel: Channel) -> bool:
        """Pass on what has come; False when there was nothing."""
        messages = channel.receive()
        for message, fds in messages:
            for fd in fds:
                os.close(fd)
            self._owner.worker_said(worker.index, message)
        return bool(messages)

    def _writable(self, worker: Worker, channel: Channel) -> None:
        try:
            channel.flush()
        except ChannelClosed:
            self._loop.remove_writer(channel.fileno())
            return
        if not channel.pending:
            self._loop.remove_writer(channel.fileno())

    def _kill(self, worker: Worker, why: str) -> None:
        if worker.process is None:
            return
        if why:
            log.error("worker %d is killed: %s", worker.index, why)
        worker.process.send_signal(signal.SIGKILL)

    def _exited(self, worker: Worker) -> None:
        """Take note that the process has ended: what it said before is heard first."""
        channel, process = worker.channel, worker.process
        assert channel is not None
        assert process is not None
        self._loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        with contextlib.suppress(ChannelClosed, BadInput):
            while self._hear(worker, channel):
                pass
        self._loop.remove_reader(channel.fileno())
        self._loop.remove_writer(channel.fileno())
        channel.close()
        worker.channel = worker.process = None
        code = process.wait()
        self._gone.set()
        if self._draining:
            return
        log.error("worker %d (pid %d) ended with %s", worker.index, process.pid, _how(code))
        self._owner.worker_lost(worker.index)
        self._later(worker)

    def _later(self, worker: Worker) -> None:
        """Start again: at once, or after a pause when it does not live long."""
        if time.monotonic() - worker.started >= _QUICK:
            worker.pause = 0.0
        worker.timer = self._loop.call_later(worker.pause, self._respawn, worker)
        worker.pause = min(max(worker.pause * 2, _PAUSE_FIRST), _PAUSE_MOST)

    def _respawn(self, worker: Worker) -> None:
        if worker.process is None:
            self._spawn(worker)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"

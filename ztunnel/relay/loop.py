"""One epoll loop per worker process.

A turn: wait; hand every ready descriptor to its handler; then let each handler that asked for it
(`later`) work once, which is where a tunnel gathers all its streams' data into one encrypted
write; then close what was closed during the turn, so that a descriptor's number is never reused
within it. Descriptors are registered once, edge-triggered for both directions: a handler reads
until a short read or EAGAIN and remembers what it left.

Two buffers serve every connection of the worker: nothing keeps a view of them past its call.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from typing import Final

log = logging.getLogger("ambit.relay")

EPOLLIN: Final = 0x001
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010
EPOLLRDHUP: Final = 0x2000
EPOLLET: Final = 1 << 31
BOTH_WAYS: Final = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
END_EVENTS: Final = EPOLLERR | EPOLLHUP | EPOLLRDHUP  # nothing comes after what is there now
READ_EVENTS: Final = EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP

BUFFER: Final = 256 << 10  # bytes of each shared buffer
CIPHERTEXT: Final = 128 << 10  # bytes that are received at once
SLACK: Final = 17 << 10  # beside them: the part of a TLS record that came before
EVENTS: Final = 256  # per turn: bounds how long one turn can be
TICK: Final = 0.25  # seconds between two looks at deadlines and reports


class Handler:
    """What the loop calls."""

    def __init__(self) -> None:
        self.queued: bool = False  # in the list for the end of the turn
        self.deadline: float = 0.0  # loop time; 0: none

    def on_event(self, events: int) -> None:
        """Its descriptor is ready."""
        raise NotImplementedError

    def on_turn(self) -> None:
        """End of a turn in which `Loop.later` was called with it."""
        raise NotImplementedError

    def on_deadline(self) -> None:
        """`Loop.set_deadline` came due."""
        raise NotImplementedError

    def on_crash(self, error: BaseException) -> None:
        """One of the above raised what it should not: give up what this handler holds."""
        raise NotImplementedError


class Loop:
    """See the module's text."""

    def __init__(self) -> None:
        self.buf = bytearray(BUFFER)
        self.view = memoryview(self.buf)
        self.raw = bytearray(CIPHERTEXT + SLACK)
        self.raw_view = memoryview(self.raw)
        self.now: float = time.monotonic()
        self.stopped: bool = False
        self.tickers: list[Handler] = []  # on_deadline is called every TICK
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._late: list[Handler] = []
        self._closing: list[socket.socket] = []
        self._deadlines: dict[Handler, None] = {}
        self._next_tick: float = self.now + TICK

    def add(self, fd: int, handler: Handler, events: int = BOTH_WAYS) -> None:
        """Watch a descriptor until it is closed through `close` or taken back by `remove`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Watch it for other events."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self, sock: socket.socket, fd: int) -> None:
        """Close a socket at the end of the turn. Closing also takes it out of the epoll set."""
        self._handlers.pop(fd, None)
        self._closing.append(sock)

    def later(self, handler: Handler) -> None:
        """Call its on_turn once at the end of this turn (of the next one if called from there)."""
        if not handler.queued:
            handler.queued = True
            self._late.append(handler)

    def set_deadline(self, handler: Handler, seconds: float) -> None:
        """Call its on_deadline in so many seconds, to a quarter of a second. One per handler."""
        handler.deadline = self.now + seconds
        self._deadlines[handler] = None

    def clear_deadline(self, handler: Handler) -> None:
        """Forget its deadline."""
        if handler.deadline:
            handler.deadline = 0.0
            self._deadlines.pop(handler, None)

    @property
    def open_count(self) -> int:
        """How many descriptors are watched."""
        return len(self._handlers)

    def run(self) -> None:
        """Turn until `stopped`."""
        while not self.stopped:
            self.turn()

    def turn(self) -> None:
        """One turn."""
        wait = 0.0
        if not self._late:
            wait = max(self._next_tick - time.monotonic(), 0.0)
        ready = self._epoll.poll(wait, EVENTS)
        self.now = time.monotonic()
        self._dispatch(ready)
        if self._late:
            self._finish_turn()
        if self.now >= self._next_tick:
            self._tick()
        if self._closing:
            closing = self._closing
            self._closing = []
            for sock in closing:
                sock.close()

    def _dispatch(self, ready: list[tuple[int, int]]) -> None:
        handlers = self._handlers
        for fd, events in ready:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.on_event(events)
                except Exception as e:
                    self._crashed(handler, e)

    def _finish_turn(self) -> None:
        late = self._late
        self._late = []
        for handler in late:
            handler.queued = False
            try:
                handler.on_turn()
            except Exception as e:
                self._crashed(handler, e)

    def _tick(self) -> None:
        self._next_tick = self.now + TICK
        for handler in [h for h in self._deadlines if h.deadline <= self.now]:
            self.clear_deadline(handler)
            try:
                handler.on_deadline()
            except Exception as e:
                self._crashed(handler, e)
        for ticker in self.tickers:
            try:
                ticker.on_deadline()
            except Exception as e:
                self._crashed(ticker, e)

    def _crashed(self, handler: Handler, error: Exception) -> None:
        log.error("a connection failed inside the relay: %r", error, exc_info=error)
        try:
            handler.on_crash(error)
        except Exception as again:
            log.error("and could not be closed: %r", again, exc_info=again)

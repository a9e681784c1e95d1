"""A plain TCP relay: two legs, bytes copied through the worker's shared buffer.

Each side stops reading while the other holds anything unwritten, so that a connection holds at
most one chunk in each direction.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from ztunnel.relay.leg import CONNECT_TIMEOUT, Leg, error_text
from ztunnel.relay.loop import Loop
from ztunnel.relay.report import Flow, Reporter

CHUNK: Final = 128 << 10
ROUNDS: Final = 4  # chunks of one direction per turn; then others have theirs


class PipeLeg(Leg):
    """One side of a pipe."""

    def __init__(self, loop: Loop, sock: socket.socket, pipe: Pipe, app: bool) -> None:
        super().__init__(loop, sock)
        self.pipe = pipe
        self.app = app  # the application's side: what is read here counts as sent
        self.peer: PipeLeg = self

    def on_readable(self) -> None:
        """See Leg."""
        self.copy()

    def on_turn(self) -> None:
        """See Handler."""
        if not self.closed and self.readable:
            self.copy()

    def copy(self) -> None:
        """Move what is there, as long as the other side takes it."""
        peer = self.peer
        for _ in range(ROUNDS):
            if self.eof:
                return
            if peer.pending_size or peer.connecting:
                if self.failed:
                    self.pipe.broken(self, errno.ECONNRESET)
                return
            if not self._copy_chunk(peer):
                return
        self.loop.later(self)

    def _copy_chunk(self, peer: PipeLeg) -> bool:
        """Read once, write it. True: there may be more."""
        view = self.loop.view[:CHUNK]
        try:
            n = self.sock.recv_into(view)
        except BlockingIOError:
            self.readable = False
            return False
        except OSError as e:
            self.on_broken(e)
            return False
        if n == 0:
            self.eof = True
            peer.finish()
            return False
        if self.app:
            self.pipe.flow.sent += n
        else:
            self.pipe.flow.recv += n
        peer.write(view[:n])
        if n < CHUNK and not self.ending:
            self.readable = False
            return False
        return not self.closed

    def on_drained(self, n: int) -> None:
        """See Leg."""
        if not self.pending_size and self.peer.readable:
            self.loop.later(self.peer)

    def on_fin_sent(self) -> None:
        """See Leg."""
        self.pipe.maybe_done()

    def ends_with_fin(self) -> bool:
        """See Leg."""
        return self.eof and self.peer.fin_sent

    def on_connected(self) -> None:
        """See Leg."""
        self.pipe.on_connected()

    def on_connect_failed(self, code: int) -> None:
        """See Leg."""
        self.pipe.on_connect_failed(code)

    def on_broken(self, error: OSError) -> None:
        """See Leg."""
        self.pipe.broken(self, error.errno or 0)

    def abort(self, flag: str, error: str) -> None:
        """See Owner."""
        self.pipe.end(True, flag, error)

    def half_closed(self) -> bool:
        """See Owner."""
        return self.eof != self.peer.eof


class Pipe:
    """A connection between who connected (`near`) and where it goes (`far`)."""

    def __init__(
        self,
        loop: Loop,
        reporter: Reporter,
        flow: Flow,
        near: socket.socket,
        far: socket.socket,
        app_is_near: bool,
    ) -> None:
        self.loop = loop
        self.reporter = reporter
        self.flow = flow
        self.near = PipeLeg(loop, near, self, app_is_near)
        self.far = PipeLeg(loop, far, self, not app_is_near)
        self.near.peer = self.far
        self.far.peer = self.near
        self.done: bool = False
        flow.owner = self.near

    def start(self, address: tuple[str, int], early: list[bytes], eof: bool) -> None:
        """Connect `far`. `near` is accepted and nobody watches it yet.

        early, eof: what was already read of `near`, when an earlier endpoint failed.
        """
        for piece in early:
            self.far.pending.append(piece)
            self.far.pending_size += len(piece)
        self.far.fin = self.near.eof = eof
        code = self.far.connect(address)
        if code == 0:
            self.far.on_connected()
            self.far.settle()
        elif code != errno.EINPROGRESS:
            self.on_connect_failed(code)

    def on_connected(self) -> None:
        """The far end answered: relay."""
        self.reporter.opened(self.flow)
        self.loop.add(self.near.fd, self.near)

    def on_connect_failed(self, code: int) -> None:
        """The far end cannot be reached; outbound pipes try another endpoint first."""
        what = (
            f"no answer in {CONNECT_TIMEOUT:g} s" if code == errno.ETIMEDOUT else error_text(code)
        )
        self.end(True, "CONNECT", f"connection failed: {what}")

    def broken(self, leg: PipeLeg, code: int) -> None:
        """One side failed: so must the other see."""
        who = "application" if leg.app else "peer"
        self.end(True, "-", f"{error_text(code)} ({who})")

    def maybe_done(self) -> None:
        """Close when both directions are over."""
        if self.near.fin_sent and self.far.fin_sent:
            self.end(False)

    def end(self, reset: bool, flag: str = "-", error: str = "") -> None:
        """Close both sides and report."""
        if self.done:
            return
        self.done = True
        self.near.close(reset)
        self.far.close(reset)
        self.reporter.closed(self.flow, flag, error)

"""One HBONE connection, the part both ends share: streams, windows, liveness."""

from __future__ import annotations

import time
from typing import Final, cast

from mesh.wire.frames import NO_ERROR
from mesh.wire.h2 import Codec
from mesh.wire.sink import H2Stream
from ztunnel.relay.link import Link, LinkOwner
from ztunnel.relay.loop import Loop
from ztunnel.relay.stream import Stream

PING_EVERY: Final = 10.0
DEAD_AFTER: Final = 20.0
# What slow applications may keep waiting here before the window all streams share shrinks too.
# Below it one slow reader never slows its neighbours; above it memory is what counts.
HELD_LIMIT: Final = 32 << 20


class Tunnel(LinkOwner):
    """See the module's text."""

    def __init__(self, loop: Loop, link: Link, server: bool) -> None:
        self.loop = loop
        self.link = link
        self.codec = Codec(self, server)
        self.held: int = 0  # bytes waiting for slow applications
        self.owed: int = 0  # connection credit kept back meanwhile
        self.lost: bool = False
        self.last_ping: float = loop.now
        self.ping_out: bool = False
        self.last_budget: float = loop.now
        link.attach(self, self.codec)

    # ---- hooks of the codec ------------------------------------------------------------------

    def on_data(self, stream: H2Stream, data: memoryview) -> None:
        """See Sink."""
        s = cast(Stream, stream.user)
        size = len(data)
        s.flow.recv += size
        n = s.write(data)
        codec = self.codec
        if s.closed:
            codec.credit_connection(size)
            return
        if n:
            codec.credit_stream(stream, n)
        if n < size:
            self.held += size - n
        if self.held > HELD_LIMIT:
            self.owed += size
        else:
            codec.credit_connection(size)

    def on_end(self, stream: H2Stream) -> None:
        """See Sink."""
        cast(Stream, stream.user).finish()

    def on_reset(self, stream: H2Stream, code: int, by_peer: bool) -> None:
        """See Sink."""
        cast(Stream, stream.user).on_peer_reset(code, by_peer)

    def on_window(self, stream: H2Stream | None) -> None:
        """See Sink."""
        if stream is not None:
            cast(Stream, stream.user).on_window()
        else:
            for each in list(self.codec.streams.values()):
                cast(Stream, each.user).on_window()
        self.loop.later(self.link)

    def on_settings(self) -> None:
        """See Sink."""

    def on_goaway(self, last: int, code: int, debug: bytes) -> None:
        """See Sink."""

    def on_ping_ack(self, payload: bytes) -> None:
        """See Sink."""
        self.ping_out = False

    # ---- for streams -------------------------------------------------------------------------

    def drained(self, stream: H2Stream, n: int) -> None:
        """A slow application took bytes that waited."""
        self.codec.credit_stream(stream, n)
        self._released(n)

    def _released(self, n: int) -> None:
        self.held -= n
        if self.owed and self.held <= HELD_LIMIT:
            self.codec.credit_connection(self.owed)
            self.owed = 0
        if self.codec.out:
            self.loop.later(self.link)

    def forget(self, stream: Stream, held: int, code: int) -> None:
        """A stream's application side is closed; it held that much."""
        if self.lost:
            return
        self.codec.reset(stream.h2, code)
        if held:
            self._released(held)
        self.loop.later(self.link)
        self.on_stream_gone()

    def on_stream_gone(self) -> None:
        """One stream less."""

    # ---- life --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second or so: PING, and whether the peer still answers."""
        if not self.link.secure or self.lost:
            return
        now = self.loop.now
        if now - self.last_budget >= PING_EVERY:
            self.last_budget = now
            self.codec.tick()
        if self.ping_out and now - max(self.link.last_read, self.last_ping) >= DEAD_AFTER:
            self.link.fail("-", f"tunnel connection lost: no answer to PING in {DEAD_AFTER:g} s")
        elif not self.ping_out and now - self.last_ping >= PING_EVERY:
            self.last_ping = now
            self.ping_out = True
            self.codec.ping(int(time.monotonic_ns()).to_bytes(8, "big"))
            self.loop.later(self.link)

    def on_lost(self, flag: str, error: str) -> None:
        """See LinkOwner."""
        self.lost = True
        for each in list(self.codec.streams.values()):
            cast(Stream, each.user).on_tunnel_lost(flag, error)
        self.codec.streams.clear()

    def shut(self) -> None:
        """Say goodbye and close."""
        if not self.lost:
            if self.link.secure:
                self.codec.goaway(NO_ERROR)
            self.link.close_when_written()

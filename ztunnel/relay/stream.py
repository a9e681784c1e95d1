"""The application's socket of one HBONE stream."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from mesh.wire.frames import CANCEL, HEAD, error_name
from mesh.wire.h2 import Codec
from mesh.wire.sink import H2Stream
from ztunnel.relay.leg import Leg, error_text
from ztunnel.relay.loop import Loop
from ztunnel.relay.report import Flow, Reporter

if TYPE_CHECKING:
    from ztunnel.relay.link import Link
    from ztunnel.relay.tunnel import Tunnel


class Stream(Leg):
    """A leg whose other side is a stream of a tunnel; `ztunnel.relay.link` shows the data path."""

    def __init__(self, loop: Loop, sock: socket.socket, reporter: Reporter, flow: Flow) -> None:
        super().__init__(loop, sock)
        self.reporter = reporter
        self.flow = flow
        self.h2 = H2Stream(self)
        self.link: Link | None = None
        self.tunnel: Tunnel | None = None
        self.in_ready: bool = False  # queued in the link
        self.blocked: bool = False  # has something, but no window
        flow.owner = self

    def bind(self, tunnel: Tunnel, h2: H2Stream) -> None:
        """Belong to a stream of a tunnel."""
        self.tunnel = tunnel
        self.link = tunnel.link
        self.h2 = h2
        h2.user = self
        self.in_ready = False
        self.blocked = False

    # ---- application to tunnel ---------------------------------------------------------------

    def on_readable(self) -> None:
        """See Leg."""
        link = self.link
        if self.eof or link is None or self.blocked:
            if self.failed:
                self.on_broken(OSError(errno.ECONNRESET, "reset"))
        else:
            link.want(self)

    def take(self, view: memoryview) -> int:
        """Read what the application sent. Raises OSError."""
        return self.sock.recv_into(view)

    def fill(self, codec: Codec, buf: bytearray, view: memoryview, at: int, limit: int) -> int:
        """Put a DATA frame at buf[at] if there is something to put; returns where it ends."""
        h2 = self.h2
        if self.closed or self.eof or h2.local_ended or not self.readable:
            return at
        most = codec.room(h2)
        if most <= 0:
            self.blocked = True
            return at
        start = at + HEAD
        if most > limit - start:
            most = limit - start
        try:
            n = self.take(view[start : start + most])
        except BlockingIOError:
            self.readable = False
            return at
        except OSError as e:
            self.on_broken(e)
            return at
        if n == 0:
            self.eof = True
            codec.put_data_head(buf, at, h2, 0, True)
            self.maybe_done()
            return start
        codec.put_data_head(buf, at, h2, n, False)
        self.flow.sent += n
        if n == most or self.ending:
            link = self.link
            if link is not None:
                link.want(self)
        else:
            self.readable = False
        return start + n

    def on_window(self) -> None:
        """There is room again."""
        if self.blocked:
            self.blocked = False
            if self.link is not None:
                self.link.want(self)

    # ---- tunnel to application ---------------------------------------------------------------

    def on_drained(self, n: int) -> None:
        """See Leg."""
        tunnel = self.tunnel
        if tunnel is not None:
            tunnel.drained(self.h2, n)

    def on_fin_sent(self) -> None:
        """See Leg."""
        self.maybe_done()

    def ends_with_fin(self) -> bool:
        """See Leg."""
        return self.eof

    def on_broken(self, error: OSError) -> None:
        """See Leg: the application reset its connection, so reset the stream."""
        self.end(True, "-", f"{error_text(error.errno or 0)} (application)", CANCEL)

    def on_peer_reset(self, code: int, by_peer: bool) -> None:
        """The stream was reset by the other side, or by us because the other side broke it."""
        who = "peer" if by_peer else "us, for what the peer sent"
        self.end(True, "-", f"stream reset by {who}: {error_name(code)}", CANCEL)

    def on_tunnel_lost(self, flag: str, error: str) -> None:
        """The connection under it is gone."""
        self.end(True, flag, error, CANCEL)

    # ---- the end -----------------------------------------------------------------------------

    def maybe_done(self) -> None:
        """Close when both directions are over."""
        if self.fin_sent and self.eof:
            self.end(False, "-", "", CANCEL)

    def end(self, reset: bool, flag: str, error: str, code: int) -> None:
        """Close both sides and report; a stream that is not over is reset with `code`."""
        if self.closed:
            return
        held = self.pending_size
        self.close(reset)
        tunnel = self.tunnel
        if tunnel is not None:
            tunnel.forget(self, held, code)
        self.reporter.closed(self.flow, flag, error)
        # Stream and H2Stream refer to each other: parted here, they need no garbage collector.
        self.h2.user = None
        self.tunnel = None
        self.link = None

    def abort(self, flag: str, error: str) -> None:
        """See Owner."""
        self.end(True, flag, error, CANCEL)

    def half_closed(self) -> bool:
        """See Owner."""
        return self.eof != self.fin

    def on_turn(self) -> None:
        """See Handler. A stream is never queued by itself, its link is."""

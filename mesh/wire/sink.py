"""What `mesh.wire.h2` and its owner share: streams, and the hooks that frames end in."""

from __future__ import annotations

from mypy_extensions import mypyc_attr


class H2Stream:
    """One stream: its windows, and which halves are over. `user` is the relay's object."""

    def __init__(self, user: object) -> None:
        self.sid: int = 0
        self.user: object = user
        self.send_window: int = 0
        self.recv_window: int = 0
        self.debt: int = 0  # bytes passed on, not yet credited to the peer
        self.local_ended: bool = False
        self.remote_ended: bool = False
        self.answered: bool = False  # final response headers seen (client) or sent (server)
        self.gone: bool = False  # no longer of the connection


@mypyc_attr(allow_interpreted_subclasses=True)
class Sink:
    """What a codec tells its owner. Slices given to `on_data` are only valid during the call."""

    def on_request(self, stream: H2Stream, headers: list[tuple[bytes, bytes]], end: bool) -> None:
        """A client opened a stream (server only)."""
        raise NotImplementedError

    def on_response(self, stream: H2Stream, headers: list[tuple[bytes, bytes]], end: bool) -> None:
        """Final response headers (client only)."""
        raise NotImplementedError

    def on_data(self, stream: H2Stream, data: memoryview) -> None:
        """Payload bytes, at least one. Credit them when they have been passed on."""
        raise NotImplementedError

    def on_end(self, stream: H2Stream) -> None:
        """The peer will send no more on this stream."""
        raise NotImplementedError

    def on_reset(self, stream: H2Stream, code: int, by_peer: bool) -> None:
        """The stream is gone: RST_STREAM came, or the peer broke it and we sent one."""
        raise NotImplementedError

    def on_window(self, stream: H2Stream | None) -> None:
        """More may be sent on this stream; None: on any."""
        raise NotImplementedError

    def on_settings(self) -> None:
        """The peer's settings changed (max_streams of the codec, for one)."""
        raise NotImplementedError

    def on_goaway(self, last: int, code: int, debug: bytes) -> None:
        """The peer takes no new streams and has not seen those above `last`."""
        raise NotImplementedError

    def on_ping_ack(self, payload: bytes) -> None:
        """Answer to a ping of ours."""
        raise NotImplementedError

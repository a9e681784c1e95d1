"""Our codec and the h2 library as each other's peer, without sockets."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events

from mesh.wire import hbone
from mesh.wire.h2 import Codec
from mesh.wire.sink import H2Stream, Sink

Headers = list[tuple[bytes, bytes]]
BLOCK = hbone.request_block(
    hbone.request_prefix("10.244.1.5:8080", b"k8s.cluster.name=Kubernetes"),
    ("10.244.2.7", 40123),
    "shop.default.svc.cluster.local",
    bytes(range(24)),
)
CONNECT = [(":method", "CONNECT"), (":authority", "10.244.1.5:8080"), ("baggage", "a=b")]


class Log(Sink):
    """Remembers what the codec told, and credits what it was given unless `slow`."""

    def __init__(self) -> None:
        self.codec: Codec | None = None
        self.events: list[tuple[Any, ...]] = []
        self.data: dict[int, bytearray] = {}
        self.streams: list[H2Stream] = []
        self.accept = True
        self.slow = False

    def on_request(self, stream: H2Stream, headers: Headers, end: bool) -> None:
        self.streams.append(stream)
        self.events.append(("request", stream.sid, headers, end))
        if self.accept and self.codec:
            self.codec.respond(stream, hbone.response_block(200, b"x=y"), False)

    def on_response(self, stream: H2Stream, headers: Headers, end: bool) -> None:
        self.events.append(("response", stream.sid, headers, end))

    def on_data(self, stream: H2Stream, data: memoryview) -> None:
        self.data.setdefault(stream.sid, bytearray()).extend(data)
        if not self.slow and self.codec:
            self.codec.credit_stream(stream, len(data))
            self.codec.credit_connection(len(data))

    def on_end(self, stream: H2Stream) -> None:
        self.events.append(("end", stream.sid))

    def on_reset(self, stream: H2Stream, code: int, by_peer: bool) -> None:
        self.events.append(("reset", stream.sid, code, by_peer))

    def on_window(self, stream: H2Stream | None) -> None:
        self.events.append(("window", stream.sid if stream else 0))

    def on_settings(self) -> None:
        self.events.append(("settings",))

    def on_goaway(self, last: int, code: int, debug: bytes) -> None:
        self.events.append(("goaway", last, code, debug))

    def on_ping_ack(self, payload: bytes) -> None:
        self.events.append(("pong", payload))

    def kinds(self) -> list[str]:
        return [e[0] for e in self.events]


def ours(server: bool) -> tuple[Codec, Log]:
    log = Log()
    codec = Codec(log, server)
    log.codec = codec
    return codec, log


def library(client: bool) -> h2.connection.H2Connection:
    conn = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
    )
    conn.initiate_connection()
    return conn


def take(codec: Codec) -> bytes:
    out = bytes(codec.out)
    codec.out.clear()
    return out


def feed(codec: Codec, data: bytes, step: int = 0) -> None:
    """Give bytes to our codec, `step` at a time (0: whole)."""
    view = memoryview(data)
    for i in range(0, len(data), step or max(len(data), 1)):
        codec.feed_untrusted(view[i : i + (step or len(data))])


def settle(codec: Codec, other: h2.connection.H2Connection, step: int = 0) -> list[h2.events.Event]:
    """Exchange bytes until neither side has any; returns the library's events."""
    events: list[h2.events.Event] = []
    while True:
        out = take(codec)
        if out:
            events += other.receive_data(out)
        back = other.data_to_send()
        if back:
            feed(codec, back, step)
        if not out and not back:
            return events


def send_data(codec: Codec, stream: H2Stream, data: bytes, end: bool = False) -> bytes:
    """A DATA frame as the relay builds it."""
    buf = bytearray(9 + len(data))
    buf[9:] = data
    codec.put_data_head(buf, 0, stream, len(data), end)
    return bytes(buf)

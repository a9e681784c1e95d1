"""The part of HTTP/2 (RFC 9113) that HBONE needs, as bytes in and bytes out.

Theory of operation
-------------------
`Codec` is one connection's state: settings, windows, streams, and the frame reader. It touches no
socket and no clock. Bytes read go into `feed_untrusted`, which calls the hooks of a `Sink`; what
has to be written collects in `Codec.out`, except DATA: the relay writes a DATA frame's nine bytes
with `put_data_head` straight before a payload that the kernel has put in place, so that no payload
is copied here. DATA that arrives is handed on as it comes, in slices of the caller's buffer, never
gathered into whole frames; every other frame is small and bounded.

Who credits windows: the sink says what it has passed on (`credit_stream`, `credit_connection`);
the codec turns that into few WINDOW_UPDATEs.

What a peer can do to us is bounded: header blocks by size and by count of CONTINUATIONs, control
frames by a budget that `tick` refills, streams by max_concurrent_streams, data by windows.
An error of the whole connection is raised as `H2Error` with its wire code (the caller sends
`goaway(code)` and closes); an error of one stream is answered by RST_STREAM here and told to the
sink.

Errors: everything raised because of received bytes is an `H2Error`, a BadInput.
"""

from __future__ import annotations

import hpack

from mesh.wire.frames import (
    ACK,
    CLIENT_HEADER_LIST,
    COMPRESSION_ERROR,
    CONNECTION_WINDOW,
    CONTROL_BUDGET,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE,
    FRAME_SIZE_ERROR,
    GOAWAY,
    GOAWAY_STRUCT,
    HEAD_STRUCT,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW,
    OUT_LIMIT,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RESET_BUDGET,
    RST_STREAM,
    SERVER_HEADER_LIST,
    SERVER_STREAMS,
    SETTING_STRUCT,
    SETTINGS,
    STREAM_CLOSED,
    STREAM_WINDOW,
    U32_STRUCT,
    UNANSWERED_RESET_BUDGET,
    WINDOW_UPDATE,
    H2Error,
    frame,
    frame_head,
    u32,
)
from mesh.wire.headers import decode_literals
from mesh.wire.reader import FrameReader
from mesh.wire.sink import H2Stream, Sink


class Codec(FrameReader):
    """State of one HTTP/2 connection; see the module's text."""

    def __init__(self, sink: Sink, server: bool) -> None:
        super().__init__(server, SERVER_HEADER_LIST if server else CLIENT_HEADER_LIST)
        self.sink = sink
        self.server = server
        self.out = bytearray()  # frames to write, in order, before any DATA of this turn
        self.streams: dict[int, H2Stream] = {}
        self.send_window: int = DEFAULT_WINDOW
        self.recv_window: int = CONNECTION_WINDOW
        self.debt: int = 0
        self.peer_window: int = DEFAULT_WINDOW  # for new streams
        self.peer_frame: int = DEFAULT_FRAME_SIZE
        self.max_streams: int = SERVER_STREAMS if server else MAX_STREAM_ID
        self.goaway_sent: int = MAX_STREAM_ID + 1  # last-stream-id we told; beyond range: none
        self.goaway_seen: bool = False
        self.last_peer: int = 0  # highest stream the peer opened
        self.next_id: int = 2 if server else 1
        self._decoder = hpack.Decoder(SERVER_HEADER_LIST if server else CLIENT_HEADER_LIST)
        self._data: H2Stream | None = None  # whose; None: skip
        self._end: bool = False
        self._empty: bool = False
        self._control: int = 0
        self._resets: int = 0
        self._early_resets: int = 0
        self._hello()

    def _hello(self) -> None:
        settings = [
            (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (MAX_FRAME_SIZE, FRAME_SIZE),
            (MAX_HEADER_LIST_SIZE, self._header_limit),
        ]
        if self.server:
            settings.append((MAX_CONCURRENT_STREAMS, SERVER_STREAMS))
        else:
            settings.append((ENABLE_PUSH, 0))
            self.out += PREFACE
        self.out += frame(
            SETTINGS, 0, 0, b"".join([SETTING_STRUCT.pack(k, v) for k, v in settings])
        )
        self.out += frame(WINDOW_UPDATE, 0, 0, U32_STRUCT.pack(CONNECTION_WINDOW - DEFAULT_WINDOW))

    # ---- sending -----------------------------------------------------------------------------

    def open(self, stream: H2Stream, block: bytes) -> None:
        """Open a stream as client with an encoded header block (no bigger than 16 KiB)."""
        stream.sid = self.next_id
        self.next_id += 2
        stream.send_window = self.peer_window
        stream.recv_window = STREAM_WINDOW
        self.streams[stream.sid] = stream
        self.out += frame_head(len(block), HEADERS, END_HEADERS, stream.sid)
        self.out += block

    def respond(self, stream: H2Stream, block: bytes, end: bool) -> None:
        """Send response headers as server."""
        stream.answered = True
        self.out += frame_head(
            len(block), HEADERS, END_HEADERS | (END_STREAM if end else 0), stream.sid
        )
        self.out += block
        if end:
            self.ended(stream)

    def room(self, stream: H2Stream) -> int:
        """How many bytes the next DATA frame of this stream may carry; 0 or less: none now."""
        n = stream.send_window
        if self.send_window < n:
            n = self.send_window
        if self.peer_frame < n:
            n = self.peer_frame
        return n

    def put_data_head(
        self, buf: bytearray, at: int, stream: H2Stream, length: int, end: bool
    ) -> None:
        """Write a DATA frame's head before its payload at buf[at+9:], and count the payload.

        length: within `room`. end: nothing follows on this stream.
        """
        HEAD_STRUCT.pack_into(
            buf, at, length >> 8, length & 0xFF, DATA, END_STREAM if end else 0, stream.sid
        )
        stream.send_window -= length
        self.send_window -= length
        if end:
            self.ended(stream)

    def end(self, stream: H2Stream) -> None:
        """Queue an empty DATA frame with END_STREAM. Only when no DATA is to be written before."""
        self.out += frame_head(0, DATA, END_STREAM, stream.sid)
        self.ended(stream)

    def ended(self, stream: H2Stream) -> None:
        """Our half is over."""
        stream.local_ended = True
        if stream.remote_ended:
            self._drop(stream)

    def reset(self, stream: H2Stream, code: int) -> None:
        """Send RST_STREAM, unless the stream is over already."""
        if not stream.gone:
            self.out += frame(RST_STREAM, 0, stream.sid, U32_STRUCT.pack(code))
            self._drop(stream)

    def goaway(self, code: int, debug: str = "", last: int = -1) -> None:
        """Send GOAWAY; last: default what we have seen, MAX_STREAM_ID for a first warning."""
        if last < 0:
            last = self.last_peer
        self.goaway_sent = last
        self.out += frame(GOAWAY, 0, 0, GOAWAY_STRUCT.pack(last, code) + debug.encode()[:256])

    def ping(self, payload: bytes) -> None:
        """Send PING (8 bytes)."""
        self.out += frame(PING, 0, 0, payload)

    def credit_stream(self, stream: H2Stream, n: int) -> None:
        """N bytes of on_data were passed on: let the peer send as many again."""
        stream.debt += n
        if stream.debt >= STREAM_WINDOW // 4 and not stream.remote_ended and not stream.gone:
            stream.recv_window += stream.debt
            self.out += frame(WINDOW_UPDATE, 0, stream.sid, U32_STRUCT.pack(stream.debt))
            stream.debt = 0

    def credit_connection(self, n: int) -> None:
        """As credit_stream, for the window all streams share."""
        self.debt += n
        if self.debt >= CONNECTION_WINDOW // 4:
            self.recv_window += self.debt
            self.out += frame(WINDOW_UPDATE, 0, 0, U32_STRUCT.pack(self.debt))
            self.debt = 0

    def tick(self) -> None:
        """Refill the flood budgets; to be called every ten seconds or so."""
        self._control = 0
        self._resets = 0
        self._early_resets = 0

    def _drop(self, stream: H2Stream) -> None:
        stream.gone = True
        self.streams.pop(stream.sid, None)

    # ---- receiving ---------------------------------------------------------------------------

    def data_head(self, length: int, end: bool, sid: int) -> None:
        """See FrameReader."""
        if length > self.recv_window:
            raise H2Error(FLOW_CONTROL_ERROR, "DATA beyond the connection window")
        self.recv_window -= length
        stream = self.streams.get(sid)
        if stream is None:
            self._check_closed(sid, "DATA")
        elif stream.remote_ended:
            self._break(stream, STREAM_CLOSED)
            stream = None
        elif length > stream.recv_window:
            self._break(stream, FLOW_CONTROL_ERROR)
            stream = None
        else:
            stream.recv_window -= length
        self._data = stream
        self._end = end
        self._empty = not end

    def data_chunk(self, chunk: memoryview) -> None:
        """See FrameReader."""
        self._empty = False
        stream = self._data
        if stream is None or stream.gone:
            self.credit_connection(len(chunk))
        else:
            self.sink.on_data(stream, chunk)

    def data_padding(self, n: int) -> None:
        """See FrameReader."""
        self.credit_connection(n)
        if self._data is not None:
            self.credit_stream(self._data, n)

    def data_over(self) -> None:
        """See FrameReader."""
        stream = self._data
        self._data = None
        if self._empty:
            self.spend()  # neither payload nor end
        elif stream is not None and self._end and not stream.gone:
            self._remote_end(stream)

    def _remote_end(self, stream: H2Stream) -> None:
        stream.remote_ended = True
        if stream.local_ended:
            self._drop(stream)
        self.sink.on_end(stream)

    def spend(self) -> None:
        """See FrameReader."""
        self._control += 1
        if self._control > CONTROL_BUDGET or len(self.out) > OUT_LIMIT:
            raise H2Error(ENHANCE_YOUR_CALM, "too many control frames")

    def _check_closed(self, sid: int, what: str) -> None:
        """A frame for a stream we do not hold: fine if it was once open, else an error."""
        if sid == 0:
            raise H2Error(PROTOCOL_ERROR, f"{what} on stream 0")
        ours = (sid & 1) != self.server
        if sid >= self.next_id if ours else sid > self.last_peer:
            raise H2Error(PROTOCOL_ERROR, f"{what} on stream {sid}, which was never opened")

    def _break(self, stream: H2Stream, code: int) -> None:
        """The peer broke one stream."""
        self.reset(stream, code)
        self.sink.on_reset(stream, code, False)

    def dispatch(self, kind: int, flags: int, sid: int, payload: bytes) -> None:
        """See FrameReader."""
        if kind == WINDOW_UPDATE:
            self._on_window_update(sid, u32(payload, 0) & MAX_WINDOW)
        elif kind == RST_STREAM:
            self._on_rst(sid, u32(payload, 0))
        elif kind == SETTINGS:
            self._on_settings(flags, sid, payload)
        elif kind == PING:
            self._on_ping(flags, sid, payload)
        else:
            self._on_goaway(sid, payload)

    def _on_window_update(self, sid: int, n: int) -> None:
        if sid == 0:
            if n == 0:
                raise H2Error(PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.send_window += n
            if self.send_window > MAX_WINDOW:
                raise H2Error(FLOW_CONTROL_ERROR, "connection window over 2^31-1")
            self.sink.on_window(None)
            return
        stream = self.streams.get(sid)
        if stream is None:
            self._check_closed(sid, "WINDOW_UPDATE")
        elif n == 0:
            self._break(stream, PROTOCOL_ERROR)
        elif stream.send_window + n > MAX_WINDOW:
            self._break(stream, FLOW_CONTROL_ERROR)
        else:
            stream.send_window += n
            self.sink.on_window(stream)

    def _on_rst(self, sid: int, code: int) -> None:
        stream = self.streams.get(sid)
        self._resets += 1
        if stream is None:
            self._check_closed(sid, "RST_STREAM")
        else:
            if self.server and not stream.answered:
                self._early_resets += 1
            self._drop(stream)
            self.sink.on_reset(stream, code, True)
        if self._resets > RESET_BUDGET or self._early_resets > UNANSWERED_RESET_BUDGET:
            raise H2Error(ENHANCE_YOUR_CALM, "too many streams reset")

    def _on_settings(self, flags: int, sid: int, payload: bytes) -> None:
        if sid:
            raise H2Error(PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise H2Error(FRAME_SIZE_ERROR, "SETTINGS ack with content")
            if not self.settled:
                raise H2Error(PROTOCOL_ERROR, "the first frame is a SETTINGS ack")
            self.spend()
            return
        if len(payload) % 6:
            raise H2Error(FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        self.spend()
        self.settled = True
        for key, value in SETTING_STRUCT.iter_unpack(payload):
            self._apply(key, value)
        self.out += frame(SETTINGS, ACK, 0, b"")
        self.sink.on_settings()

    def _apply(self, key: int, value: int) -> None:
        if key == INITIAL_WINDOW_SIZE:
            self._apply_window(value)
        elif key == MAX_FRAME_SIZE:
            if not DEFAULT_FRAME_SIZE <= value < 1 << 24:
                raise H2Error(PROTOCOL_ERROR, f"max frame size {value}")
            self.peer_frame = value
        elif key == MAX_CONCURRENT_STREAMS:
            if not self.server:
                self.max_streams = value
        elif key == ENABLE_PUSH and (value > 1 or (value and not self.server)):
            raise H2Error(PROTOCOL_ERROR, f"ENABLE_PUSH {value}")

    def _apply_window(self, value: int) -> None:
        """The peer's initial window: also changes streams that are open, even below zero."""
        if value > MAX_WINDOW:
            raise H2Error(FLOW_CONTROL_ERROR, "initial window over 2^31-1")
        change = value - self.peer_window
        self.peer_window = value
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise H2Error(FLOW_CONTROL_ERROR, "a stream window over 2^31-1")
        if change > 0:
            self.sink.on_window(None)

    def _on_ping(self, flags: int, sid: int, payload: bytes) -> None:
        if sid:
            raise H2Error(PROTOCOL_ERROR, "PING on a stream")
        self.spend()
        if flags & ACK:
            self.sink.on_ping_ack(payload)
        else:
            self.out += frame(PING, ACK, 0, payload)

    def _on_goaway(self, sid: int, payload: bytes) -> None:
        if sid:
            raise H2Error(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise H2Error(FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self.spend()
        self.goaway_seen = True
        self.sink.on_goaway(u32(payload, 0) & MAX_STREAM_ID, u32(payload, 4), payload[8:])

    # ---- headers -----------------------------------------------------------------------------

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        plain = decode_literals(block)
        if plain is not None:
            return plain
        try:
            # raw: names and values stay bytes, whatever they hold.
            return [(bytes(h[0]), bytes(h[1])) for h in self._decoder.decode(block, raw=True)]
        except hpack.OversizedHeaderListError as e:
            raise H2Error(ENHANCE_YOUR_CALM, f"header list: {e}") from e
        except hpack.HPACKError as e:
            raise H2Error(COMPRESSION_ERROR, f"header block: {e}") from e
        except (ValueError, IndexError, UnicodeError, OverflowError) as e:
            raise H2Error(COMPRESSION_ERROR, f"header block: {e!r}") from e

    def header_block(self, sid: int, block: bytes, end: bool) -> None:
        """See FrameReader. The block is decoded in any case: the tables depend on it."""
        headers = self._decode(block)
        stream = self.streams.get(sid)
        if stream is not None:
            self._more_headers(stream, headers, end)
            return
        if not self.server or not sid & 1 or sid <= self.last_peer:
            self._check_closed(sid, "HEADERS")
            self.spend()
            return
        self.last_peer = sid
        if sid > self.goaway_sent:
            self.spend()  # it will be told by the last-stream-id of GOAWAY
            return
        stream = H2Stream(None)
        stream.sid = sid
        if len(self.streams) >= self.max_streams:
            self.spend()
            self.reset(stream, REFUSED_STREAM)
            return
        stream.send_window = self.peer_window
        stream.recv_window = STREAM_WINDOW
        stream.remote_ended = end
        self.streams[sid] = stream
        self.sink.on_request(stream, headers, end)

    def _more_headers(
        self, stream: H2Stream, headers: list[tuple[bytes, bytes]], end: bool
    ) -> None:
        if stream.remote_ended:
            self._break(stream, STREAM_CLOSED)
        elif not self.server and not stream.answered:
            self._response(stream, headers, end)
        elif end:
            self._remote_end(stream)  # trailers
        else:
            self._break(stream, PROTOCOL_ERROR)

    def _response(self, stream: H2Stream, headers: list[tuple[bytes, bytes]], end: bool) -> None:
        status = b""
        for name, value in headers:
            if name == b":status":
                status = value
        informational = status[:1] == b"1"
        if len(status) != 3 or not status.isdigit() or (informational and end):
            self._break(stream, PROTOCOL_ERROR)
        elif informational:
            self.spend()
        else:
            stream.answered = True
            if end:
                stream.remote_ended = True
                if stream.local_ended:
                    self._drop(stream)
            self.sink.on_response(stream, headers, end)

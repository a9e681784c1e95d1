"""What a peer may not do, and what it costs us when it does."""

from __future__ import annotations

import hpack
import pytest
from h2_pair import BLOCK, Log, feed, library, ours, send_data, settle, take

from mesh.wire import frames as f
from mesh.wire.h2 import Codec
from mesh.wire.sink import H2Stream


def server() -> tuple[Codec, Log]:
    """Our codec as server, with the client's preface and settings read."""
    codec, log = ours(server=True)
    feed(codec, library(client=True).data_to_send())
    take(codec)
    return codec, log


def code_of(codec: Codec, wire: bytes) -> int:
    with pytest.raises(f.H2Error) as e:
        feed(codec, wire)
    return e.value.code


def head(length: int, kind: int, flags: int = 0, sid: int = 0) -> bytes:
    return f.frame_head(length, kind, flags, sid)


PROTOCOL = [
    (b"GET / HTTP/1.1\r\n", f.PROTOCOL_ERROR),
    (f.PREFACE + f.frame(f.PING, 0, 0, bytes(8)), f.PROTOCOL_ERROR),
    (f.PREFACE + f.frame(f.SETTINGS, f.ACK, 0, b""), f.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("wire", "code"), PROTOCOL)
def test_a_wrong_beginning_is_a_protocol_error(wire: bytes, code: int) -> None:
    """No preface, no settings first."""
    codec, _ = ours(server=True)
    assert code_of(codec, wire) == code


AFTER_HELLO = [
    (head((1 << 20) + 1, f.DATA, 0, 1), f.FRAME_SIZE_ERROR),
    (f.frame(f.DATA, 0, 0, b"x"), f.PROTOCOL_ERROR),
    (f.frame(f.DATA, 0, 1, b"x"), f.PROTOCOL_ERROR),
    (f.frame(f.HEADERS, f.END_HEADERS, 0, BLOCK), f.PROTOCOL_ERROR),
    (f.frame(f.HEADERS, f.END_HEADERS, 2, BLOCK), f.PROTOCOL_ERROR),
    (f.frame(f.HEADERS, f.END_HEADERS | f.PADDED, 1, b"\xff"), f.PROTOCOL_ERROR),
    (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), f.COMPRESSION_ERROR),
    (f.frame(f.HEADERS, f.END_HEADERS, 1, b"\xbf\x80\x00"), f.COMPRESSION_ERROR),
    (f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.PING, 0, 0, bytes(8)), f.PROTOCOL_ERROR),
    (
        f.frame(f.HEADERS, 0, 1, BLOCK) + f.frame(f.CONTINUATION, f.END_HEADERS, 3, b""),
        f.PROTOCOL_ERROR,
    ),
    (f.frame(f.CONTINUATION, f.END_HEADERS, 1, b""), f.PROTOCOL_ERROR),
    (f.frame(f.RST_STREAM, 0, 1, bytes(4)), f.PROTOCOL_ERROR),
    (f.frame(f.RST_STREAM, 0, 1, bytes(3)), f.FRAME_SIZE_ERROR),
    (f.frame(f.SETTINGS, 0, 1, b""), f.PROTOCOL_ERROR),
    (f.frame(f.SETTINGS, 0, 0, bytes(5)), f.FRAME_SIZE_ERROR),
    (f.frame(f.SETTINGS, f.ACK, 0, bytes(6)), f.FRAME_SIZE_ERROR),
    (f.frame(f.SETTINGS, 0, 0, b"\0\4\x80\0\0\0"), f.FLOW_CONTROL_ERROR),
    (f.frame(f.SETTINGS, 0, 0, b"\0\5\0\0\0\1"), f.PROTOCOL_ERROR),
    (f.frame(f.SETTINGS, 0, 0, b"\0\2\0\0\0\2"), f.PROTOCOL_ERROR),
    (f.frame(f.PUSH_PROMISE, f.END_HEADERS, 1, bytes(4)), f.PROTOCOL_ERROR),
    (f.frame(f.PING, 0, 0, bytes(7)), f.FRAME_SIZE_ERROR),
    (f.frame(f.PING, 0, 1, bytes(8)), f.PROTOCOL_ERROR),
    (f.frame(f.GOAWAY, 0, 0, bytes(7)), f.FRAME_SIZE_ERROR),
    (f.frame(f.WINDOW_UPDATE, 0, 0, bytes(4)), f.PROTOCOL_ERROR),
    (f.frame(f.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), f.FLOW_CONTROL_ERROR),
    (f.frame(f.WINDOW_UPDATE, 0, 9, b"\0\0\0\1"), f.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("wire", "code"), AFTER_HELLO)
@pytest.mark.parametrize("step", [0, 1])
def test_a_broken_frame_has_its_wire_code(wire: bytes, code: int, step: int) -> None:
    """Each violation of RFC 9113 that concerns the connection, with the code GOAWAY will carry."""
    codec, _ = server()
    with pytest.raises(f.H2Error) as e:
        feed(codec, wire, step)
    assert e.value.code == code


STREAM_ERRORS = [
    (f.frame(f.WINDOW_UPDATE, 0, 1, bytes(4)), f.PROTOCOL_ERROR),
    (f.frame(f.WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff"), f.FLOW_CONTROL_ERROR),
    (f.frame(f.HEADERS, f.END_HEADERS, 1, BLOCK), f.PROTOCOL_ERROR),
    (
        f.frame(f.DATA, f.END_STREAM, 1, b"") + f.frame(f.DATA, 0, 1, b"x"),
        f.STREAM_CLOSED,
    ),
]


@pytest.mark.parametrize(("wire", "code"), STREAM_ERRORS)
def test_a_broken_stream_does_not_break_its_neighbours(wire: bytes, code: int) -> None:
    """The stream is reset with its code; another one on the connection still gets its data."""
    codec, log = server()
    feed(codec, f.frame(f.HEADERS, f.END_HEADERS, 1, BLOCK))
    feed(codec, f.frame(f.HEADERS, f.END_HEADERS, 3, BLOCK))
    feed(codec, wire + f.frame(f.DATA, 0, 3, b"unharmed"))
    assert ("reset", 1, code, False) in log.events
    assert f.frame(f.RST_STREAM, 0, 1, code.to_bytes(4, "big")) in take(codec)
    assert log.data[3] == b"unharmed"


@pytest.mark.parametrize(
    "wire",
    [
        f.frame(f.PING, 0, 0, bytes(8)),
        f.frame(f.SETTINGS, 0, 0, b""),
        f.frame(f.PRIORITY, 0, 1, bytes(5)),
        f.frame(77, 0, 0, b"unknown"),
        f.frame(f.DATA, 0, 1, b""),
        f.frame(f.DATA, f.PADDED, 1, b"\3\0\0\0"),
    ],
    ids=["ping", "settings", "priority", "unknown", "empty data", "padding only"],
)
def test_a_flood_of_frames_without_progress_ends_in_enhance_your_calm(wire: bytes) -> None:
    """A few are served, too many close the connection; a tick in time lets a real peer go on."""
    codec, _ = server()
    feed(codec, f.frame(f.HEADERS, f.END_HEADERS, 1, BLOCK))
    for _ in range(20):
        feed(codec, wire * 100)
        codec.tick()
        take(codec)
    assert code_of(codec, wire * (f.CONTROL_BUDGET + 1)) == f.ENHANCE_YOUR_CALM
    assert len(codec.out) < f.OUT_LIMIT


def test_rapid_reset_ends_in_enhance_your_calm() -> None:
    """Streams opened and reset before they could be answered (CVE-2023-44487)."""
    codec, log = server()
    log.accept = False
    pair = [
        f.frame(f.HEADERS, f.END_HEADERS, sid, BLOCK) + f.frame(f.RST_STREAM, 0, sid, bytes(4))
        for sid in range(1, 2 * f.UNANSWERED_RESET_BUDGET + 20, 2)
    ]
    assert code_of(codec, b"".join(pair)) == f.ENHANCE_YOUR_CALM


def test_a_continuation_flood_is_cut_by_count_and_by_size() -> None:
    """CVE-2024-27316: endless CONTINUATION frames, empty or full."""
    codec, _ = server()
    wire = f.frame(f.HEADERS, 0, 1, b"") + f.frame(f.CONTINUATION, 0, 1, b"") * 40
    assert code_of(codec, wire) == f.ENHANCE_YOUR_CALM
    codec, _ = server()
    big = f.frame(f.CONTINUATION, 0, 1, bytes(16_000))
    assert code_of(codec, f.frame(f.HEADERS, 0, 1, b"") + big * 5) == f.ENHANCE_YOUR_CALM
    codec, _ = server()
    assert code_of(codec, head(70_000, f.HEADERS, 0, 1)) == f.ENHANCE_YOUR_CALM


def test_a_header_block_in_pieces_is_one() -> None:
    """HEADERS and CONTINUATIONs, with padding and priority, cut anywhere."""
    codec, log = server()
    padded = b"\4" + bytes(5) + BLOCK[:10] + bytes(4)
    feed(codec, f.frame(f.HEADERS, f.PADDED | f.WITH_PRIORITY, 1, padded), 1)
    feed(codec, f.frame(f.CONTINUATION, 0, 1, BLOCK[10:30]), 3)
    feed(codec, f.frame(f.CONTINUATION, f.END_HEADERS, 1, BLOCK[30:]))
    request = next(e for e in log.events if e[0] == "request")
    assert (b":authority", b"10.244.1.5:8080") in request[2]


def test_a_header_bomb_is_cut_short() -> None:
    """A small block that refers often to a large table entry would unpack to megabytes."""
    codec, _ = server()
    encoder = hpack.Encoder()
    bomb = encoder.encode([(b"x", b"y" * 3900)]) + b"\xbe" * 3000
    assert code_of(codec, f.frame(f.HEADERS, f.END_HEADERS, 1, bomb)) == f.ENHANCE_YOUR_CALM


def test_data_beyond_the_connection_window_is_a_flow_control_error() -> None:
    """A peer that ignores the connection window is cut off."""
    codec, log = server()
    log.slow = True
    for sid in (1, 3, 5, 7, 9):
        feed(codec, f.frame(f.HEADERS, f.END_HEADERS, sid, BLOCK))
    for sid in (1, 3, 5, 7):
        for _ in range(4):
            feed(codec, f.frame(f.DATA, 0, sid, bytes(1 << 20)))
    assert code_of(codec, f.frame(f.DATA, 0, 9, b"x")) == f.FLOW_CONTROL_ERROR


def test_a_response_without_a_status_resets_the_stream() -> None:
    """A server that answers with nonsense loses that stream only."""
    codec, log = ours(server=False)
    other = library(client=False)
    codec.open(H2Stream(None), BLOCK)
    settle(codec, other)
    feed(codec, f.frame(f.HEADERS, f.END_HEADERS, 1, b"\x00\x01a\x01b"))
    assert log.events[-1] == ("reset", 1, f.PROTOCOL_ERROR, False)


def test_the_head_written_before_a_payload_is_the_frame() -> None:
    """put_data_head counts what it sends and ends the stream when asked to."""
    codec, _ = ours(server=False)
    stream = H2Stream(None)
    codec.open(stream, BLOCK)
    before = codec.room(stream)
    assert send_data(codec, stream, b"abc") == b"\0\0\3\0\0\0\0\0\1abc"
    assert codec.send_window == f.DEFAULT_WINDOW - 3
    assert before == f.DEFAULT_FRAME_SIZE
    assert send_data(codec, stream, b"", end=True) == b"\0\0\0\0\1\0\0\0\1"
    assert stream.local_ended

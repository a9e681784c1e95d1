"""Our codec against the h2 library as the other side."""

from __future__ import annotations

import h2.errors
import h2.events
import h2.settings
import pytest
from h2_pair import BLOCK, CONNECT, feed, library, ours, send_data, settle, take
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.wire import frames as f
from mesh.wire import hbone
from mesh.wire.h2 import Codec
from mesh.wire.sink import H2Stream

STEPS = [0, 1, 7]
ERRORS = range(len(f.ERROR_NAMES))


def error_of(codec: Codec, wire: bytes, step: int = 0) -> int:
    """The code of the H2Error that these bytes raise, 0 for none; anything else goes through."""
    try:
        feed(codec, wire, step)
    except f.H2Error as e:
        return e.code
    return 0


@pytest.mark.parametrize("step", STEPS)
def test_a_client_request_and_its_answer_arrive_as_they_were_sent(step: int) -> None:
    """Headers, data and end both ways, ours as client, however the bytes are cut."""
    codec, log = ours(server=False)
    other = library(client=False)
    stream = H2Stream(None)
    codec.open(stream, BLOCK)
    request = next(
        e for e in settle(codec, other, step) if isinstance(e, h2.events.RequestReceived)
    )
    headers = dict(request.headers)
    assert headers[":method"] == "CONNECT"
    assert headers[":authority"] == "10.244.1.5:8080"
    assert headers["baggage"] == "k8s.cluster.name=Kubernetes"
    assert headers["forwarded"] == 'for="10.244.2.7:40123";host=shop.default.svc.cluster.local'
    assert headers["traceparent"] == f"00-{bytes(range(16)).hex()}-{bytes(range(16, 24)).hex()}-00"
    other.send_headers(1, [(":status", "200"), ("baggage", "c=d")])
    other.send_data(1, b"from the server" * 1000)
    other.end_stream(1)
    got = other.receive_data(send_data(codec, stream, b"from the client", end=True))
    assert [e.data for e in got if isinstance(e, h2.events.DataReceived)] == [b"from the client"]
    assert any(isinstance(e, h2.events.StreamEnded) for e in got)
    settle(codec, other, step)
    assert ("response", 1, [(b":status", b"200"), (b"baggage", b"c=d")], False) in log.events
    assert log.data[1] == b"from the server" * 1000
    assert log.events[-1] == ("end", 1)
    assert stream.gone
    assert not codec.streams


@pytest.mark.parametrize("step", STEPS)
def test_a_server_answers_many_streams_of_a_library_client(step: int) -> None:
    """Huffman coding and the dynamic table of a real encoder are understood on every stream."""
    codec, log = ours(server=True)
    other = library(client=True)
    for sid in (1, 3, 5, 7):
        other.send_headers(sid, [*CONNECT, ("traceparent", f"00-{sid:032x}-{sid:016x}-00")])
        other.send_data(sid, b"%d" % sid * 100, pad_length=17)
    events = settle(codec, other, step)
    answers = [e for e in events if isinstance(e, h2.events.ResponseReceived)]
    assert [dict(a.headers) for a in answers] == [{":status": "200", "baggage": "x=y"}] * 4
    for i, sid in enumerate((1, 3, 5, 7)):
        request = [e for e in log.events if e[0] == "request"][i]
        assert request[1] == sid
        assert (b":authority", b"10.244.1.5:8080") in request[2]
        assert log.data[sid] == b"%d" % sid * 100


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_cuts_of_a_conversation_change_nothing(data: st.DataObject) -> None:
    """Any way of cutting a byte stream gives the same events and the same payload."""
    other = library(client=True)
    other.send_headers(1, CONNECT)
    other.send_data(1, bytes(range(256)) * 20, pad_length=3)
    other.ping(b"12345678")
    other.send_headers(3, CONNECT, priority_weight=10)
    other.end_stream(3)
    other.send_data(1, b"tail")
    other.end_stream(1)
    wire = other.data_to_send()
    whole, whole_log = ours(server=True)
    feed(whole, wire)
    cut, cut_log = ours(server=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=30)))
    for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        feed(cut, wire[a:b]) if b > a else None
    assert cut_log.events == whole_log.events
    assert cut_log.data == whole_log.data == {1: bytearray(bytes(range(256)) * 20 + b"tail")}
    assert take(cut) == take(whole)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_corrupted_bytes_raise_nothing_but_a_protocol_error(data: st.DataObject) -> None:
    """Flipped, dropped and inserted bytes end in an H2Error with a wire code, or in nothing."""
    server = data.draw(st.booleans())
    codec, _ = ours(server)
    if server:
        other = library(client=True)
        other.send_headers(1, CONNECT)
        other.send_data(1, b"x" * 300)
    else:
        other = library(client=False)
        stream = H2Stream(None)
        codec.open(stream, BLOCK)
        other.receive_data(take(codec))
        other.send_headers(1, [(":status", "200"), ("x", "y" * 50)])
        other.send_data(1, b"x" * 300)
        other.close_connection()
    wire = bytearray(other.data_to_send())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(wire) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                wire[at] = data.draw(st.integers(0, 255))
            case 1:
                del wire[at : at + data.draw(st.integers(1, 20))]
            case _:
                wire[at:at] = data.draw(st.binary(max_size=30))
        if not wire:
            return
    assert error_of(codec, bytes(wire), data.draw(st.sampled_from([0, 1, 13]))) in ERRORS


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600), st.booleans())
def test_noise_raises_nothing_but_a_protocol_error(noise: bytes, settled: bool) -> None:
    """Random bytes, before and after the preface."""
    codec, _ = ours(server=True)
    start = library(client=True).data_to_send() if settled else b""
    assert error_of(codec, start + noise) in ERRORS


def test_we_stop_at_the_peers_windows_and_go_on_when_they_open() -> None:
    """Room shrinks with what is sent, for the stream and the connection, and grows by updates."""
    codec, log = ours(server=False)
    other = library(client=False)
    stream = H2Stream(None)
    codec.open(stream, BLOCK)
    settle(codec, other)
    other.send_headers(1, [(":status", "200")])
    settle(codec, other)
    sent = 0
    while (room := codec.room(stream)) > 0:
        other.receive_data(send_data(codec, stream, b"z" * room))
        sent += room
    assert sent == 65_535
    other.increment_flow_control_window(1000, 1)
    settle(codec, other)
    assert codec.room(stream) <= 0, "the connection window is still closed"
    other.increment_flow_control_window(500)
    settle(codec, other)
    assert codec.room(stream) == 500
    assert ("window", 1) in log.events
    assert ("window", 0) in log.events


def test_what_we_credit_lets_the_peer_send_on() -> None:
    """A peer can send far more than a window as long as we pass it on, and stops when we do not."""
    codec, log = ours(server=True)
    other = library(client=True)
    other.send_headers(1, CONNECT)
    settle(codec, other)
    sent = 0
    while sent < 40 << 20:
        n = min(other.local_flow_control_window(1), other.max_outbound_frame_size)
        assert n > 0, f"stalled after {sent} bytes"
        other.send_data(1, bytes(n))
        sent += n
        settle(codec, other)
    assert len(log.data[1]) == sent
    log.slow = True
    while n := min(other.local_flow_control_window(1), other.max_outbound_frame_size):
        other.send_data(1, bytes(n))
        sent += n
        settle(codec, other)
    assert len(log.data[1]) == sent
    wire = f.frame_head(1 << 20, f.DATA, 0, 1)
    codec.credit_connection(f.CONNECTION_WINDOW)
    take(codec)
    feed(codec, wire)
    assert log.events[-1] == ("reset", 1, f.FLOW_CONTROL_ERROR, False)


def test_a_changed_initial_window_moves_open_streams() -> None:
    """RFC 9113 6.9.2: the difference applies to streams that are open, even below zero."""
    codec, _ = ours(server=False)
    other = library(client=False)
    stream = H2Stream(None)
    codec.open(stream, BLOCK)
    settle(codec, other)
    other.send_headers(1, [(":status", "200")])
    settle(codec, other)
    other.receive_data(send_data(codec, stream, b"z" * 10_000))
    other.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 5_000})
    settle(codec, other)
    assert stream.send_window == -5_000
    assert codec.room(stream) < 0
    other.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 30_000})
    settle(codec, other)
    assert codec.room(stream) == min(20_000, codec.peer_frame)
    other.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: 20_000})
    other.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 7})
    settle(codec, other)
    assert codec.room(stream) == 20_000
    assert codec.max_streams == 7


def test_trailers_end_a_stream() -> None:
    """HEADERS with END_STREAM after data is the end of the stream, whatever is in them."""
    codec, log = ours(server=True)
    other = library(client=True)
    other.send_headers(1, CONNECT)
    other.send_data(1, b"x")
    other.send_headers(1, [("grpc-status", "0")], end_stream=True)
    settle(codec, other)
    assert log.events[-1] == ("end", 1)


def test_informational_responses_are_not_the_answer() -> None:
    """1xx goes by, the final status is what is told."""
    codec, log = ours(server=False)
    other = library(client=False)
    codec.open(H2Stream(None), BLOCK)
    settle(codec, other)
    other.send_headers(1, [(":status", "103"), ("link", "x")])
    other.send_headers(1, [(":status", "200")])
    settle(codec, other)
    assert [e for e in log.events if e[0] == "response"] == [
        ("response", 1, [(b":status", b"200")], False)
    ]


def test_resets_travel_both_ways() -> None:
    """RST_STREAM with its code, and late frames for a stream we reset are tolerated."""
    codec, log = ours(server=True)
    other = library(client=True)
    for sid in (1, 3):
        other.send_headers(sid, CONNECT)
    settle(codec, other)
    other.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
    other.send_data(3, b"late")
    late = other.data_to_send()
    codec.reset(codec.streams[3], f.CONNECT_ERROR)
    before = codec.debt
    feed(codec, late)
    assert ("reset", 1, f.CANCEL, True) in log.events
    assert codec.debt == before + 4, "skipped bytes must still open the connection window again"
    got = other.receive_data(take(codec))
    assert [e.error_code for e in got if isinstance(e, h2.events.StreamReset)] == [f.CONNECT_ERROR]


def test_goaway_travels_both_ways() -> None:
    """Last stream id, code and text arrive; a server that said goodbye opens nothing above it."""
    codec, log = ours(server=True)
    other = library(client=True)
    other.send_headers(1, CONNECT)
    settle(codec, other)
    codec.goaway(f.NO_ERROR, "bye")
    other.send_headers(3, CONNECT)
    feed(codec, other.data_to_send())
    assert [e[1] for e in log.events if e[0] == "request"] == [1]
    gone = [
        e for e in other.receive_data(take(codec)) if isinstance(e, h2.events.ConnectionTerminated)
    ]
    assert [(e.last_stream_id, e.error_code, e.additional_data) for e in gone] == [(1, 0, b"bye")]
    client, client_log = ours(server=False)
    server = library(client=False)
    client.open(H2Stream(None), BLOCK)
    settle(client, server)
    server.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, b"no", 0)
    feed(client, server.data_to_send())
    assert client_log.events[-1] == ("goaway", 0, f.ENHANCE_YOUR_CALM, b"no")
    assert client.goaway_seen


def test_ping_is_answered_and_its_answer_told() -> None:
    """PING both ways."""
    codec, log = ours(server=True)
    other = library(client=True)
    other.ping(b"abcdefgh")
    codec.ping(b"12345678")
    events = settle(codec, other)
    assert any(isinstance(e, h2.events.PingAckReceived) for e in events)
    assert ("pong", b"12345678") in log.events


def test_more_streams_than_announced_are_refused_alone() -> None:
    """Beyond max_concurrent_streams a stream gets REFUSED_STREAM, its neighbours go on."""
    codec, log = ours(server=True)
    other = library(client=True)
    feed(codec, other.data_to_send())
    for i in range(f.SERVER_STREAMS + 3):
        feed(codec, f.frame(f.HEADERS, f.END_HEADERS, 2 * i + 1, BLOCK))
    assert len(codec.streams) == f.SERVER_STREAMS
    refused = f.frame(
        f.RST_STREAM, 0, 2 * f.SERVER_STREAMS + 1, f.REFUSED_STREAM.to_bytes(4, "big")
    )
    assert refused in take(codec)
    assert log.kinds().count("request") == f.SERVER_STREAMS


def test_what_we_announce_is_the_contract() -> None:
    """Settings and windows as Istio's ztunnel sends them."""
    for server in (True, False):
        codec, _ = ours(server)
        other = library(client=server)
        changed = {
            int(k): v.new_value
            for e in other.receive_data(take(codec))
            if isinstance(e, h2.events.RemoteSettingsChanged)
            for k, v in e.changed_settings.items()
        }
        assert changed[f.INITIAL_WINDOW_SIZE] == 4 << 20
        assert changed[f.MAX_FRAME_SIZE] == 1 << 20
        assert changed[f.MAX_HEADER_LIST_SIZE] == (64 << 10 if server else 16 << 10)
        if server:
            assert changed[f.MAX_CONCURRENT_STREAMS] == 200
        assert other.outbound_flow_control_window == 16 << 20


def test_responses_of_hbone_are_read() -> None:
    """Statuses that are sent are the statuses that are read."""
    for code in (200, 400, 401, 503):
        codec, log = ours(server=False)
        other = library(client=False)
        codec.open(H2Stream(None), BLOCK)
        settle(codec, other)
        feed(codec, f.frame(f.SETTINGS, 0, 0, b""))
        block = hbone.response_block(code, b"a=b")
        feed(codec, f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, block))
        response = next(e for e in log.events if e[0] == "response")
        assert hbone.status_untrusted(response[2]) == code
        assert response[3]

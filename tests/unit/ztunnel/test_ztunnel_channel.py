"""The framed channel: order, descriptors, bounds, and bytes that nobody of ours would send."""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput
from mesh.model import Action, Authorization, Clause, Match, Rule, Scope, StringMatch
from ztunnel import channel, ipc
from ztunnel.channel import Channel, ChannelClosed, ChannelFull, decode_untrusted, encode

PEER = ipc.Peer("u", "web", "web-1", "shop", "spiffe://cluster.local/ns/shop/sa/web")
CONN = ipc.Connection(
    "uid",
    "outbound",
    ("10.0.0.1", 1),
    ("10.0.0.2", 2),
    ("10.0.0.3", 3),
    ("10.0.0.2", 15008),
    True,
    PEER,
    PEER,
    ipc.ServiceRef("web", "shop", "web.shop"),
)
POLICY = Authorization(
    "p",
    "ns",
    Scope.NAMESPACE,
    Action.DENY,
    (Rule((Clause((Match(principals=(StringMatch("prefix", "a"),)),)),)),),
)
MESSAGES: list[object] = [
    ipc.PodAdd("u", PEER, ("10.0.0.1",), (1, 4), 1, True, (POLICY,)),
    ipc.PodDel("u"),
    ipc.Certificate("spiffe://a", b"c", b"k", b"r", 1.5),
    ipc.Policies("u", (POLICY,)),
    ipc.RouteReply(1, ipc.Route(error="no", flag="CONNECT")),
    ipc.PeerReply(2, PEER),
    ipc.Forget(),
    ipc.Drain(2.5),
    ipc.Reports((ipc.Opened(CONN), ipc.Closed(CONN, 1, 2, 3, "DENY", "e")), 7),
    ipc.DumpReply(3, {"u": [(CONN, 1, 2)]}),
]

Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = socket.socketpair()
    ends = Channel(a), Channel(b)
    yield ends
    for end in ends:
        end.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_comes_back_equal(message: object) -> None:
    """What is sent is what arrives."""
    assert decode_untrusted(encode(message)) == message


def test_messages_arrive_in_order_with_their_own_descriptors(pair: Pair) -> None:
    """Many messages at once: each has the descriptors it was sent with, working ones."""
    a, b = pair
    before = open_fds()
    sent, received = 0, 0
    while received < 200:
        while sent < 200:
            r, w = os.pipe()
            os.write(w, str(sent).encode())
            a.send(ipc.DumpQuery(sent), [r] if sent % 3 == 0 else [])
            os.close(r)
            os.close(w)
            sent += 1
        a.flush()
        for message, fds in b.receive():
            assert message == ipc.DumpQuery(received)
            assert len(fds) == (1 if received % 3 == 0 else 0)
            for fd in fds:
                assert os.read(fd, 10) == str(received).encode()
                os.close(fd)
            received += 1
    assert open_fds() == before


def test_what_cannot_be_sent_waits(pair: Pair) -> None:
    """Big messages in both directions while nobody reads: pending counts, then all arrive."""
    a, b = pair
    big = ipc.Certificate("i", b"x" * 500_000, b"", b"", 0.0)
    for _ in range(5):
        a.send(big)
    assert a.pending > 1_000_000
    got = 0
    while got < 5:
        a.flush()
        got += len(b.receive())
    assert a.pending == 0


def test_queued_descriptors_survive_the_senders_close(pair: Pair) -> None:
    """The sender may close its descriptors as soon as send returns."""
    a, b = pair
    a.send(ipc.Certificate("i", b"x" * 2_000_000, b"", b"", 0.0))
    r, w = os.pipe()
    os.write(w, b"hello")
    a.send(ipc.PodDel("u"), [r])
    os.close(r)
    os.close(w)
    messages: list[Any] = []
    while len(messages) < 2:
        a.flush()
        messages += b.receive()
    (fd,) = messages[1][1]
    assert os.read(fd, 5) == b"hello"
    os.close(fd)


def test_nobody_reads_for_ever(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the sender is told instead of growing."""
    monkeypatch.setattr(channel, "MAX_PENDING", 3_000_000)
    big = ipc.Certificate("i", b"x" * 900_000, b"", b"", 0.0)
    for _ in range(3):
        pair[0].send(big)
    with pytest.raises(ChannelFull):
        pair[0].send(big)


def test_end_is_told_after_everything_sent(pair: Pair) -> None:
    """The last message arrives, then the closing."""
    a, b = pair
    a.send(ipc.PodDel("last"))
    a.close()
    assert [m for m, _ in b.receive()] == [ipc.PodDel("last")]
    with pytest.raises(ChannelClosed):
        b.receive()
    with pytest.raises(ChannelClosed):
        b.send(ipc.Forget())


def test_close_gives_back_unfetched_descriptors() -> None:
    """Nothing leaks when an end is closed with descriptors on their way."""
    before = open_fds()
    a, b = (Channel(s) for s in socket.socketpair())
    r, w = os.pipe()
    a.send(ipc.PodDel("u"), [r, w])
    os.close(r)
    os.close(w)
    b._read()
    a.close()
    b.close()
    assert open_fds() == before


class Evil:
    """Runs code when it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/ambit-evil",))


@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps(Evil()),
        pickle.dumps(io.BytesIO()),
        pickle.dumps("text"),
        pickle.dumps(PEER)[:-5],
        b"",
        b"garbage",
    ],
    ids=["code", "other class", "no message", "cut", "empty", "garbage"],
)
def test_foreign_pickles_are_refused(body: bytes) -> None:
    """Only messages, made of their own classes."""
    with pytest.raises(BadInput):
        decode_untrusted(body)
    assert not os.path.exists("/tmp/ambit-evil")


@given(st.sampled_from(MESSAGES), st.data())
def test_corrupted_pickles_raise_bad_input(message: object, data: st.DataObject) -> None:
    """Any byte changed anywhere: a message or BadInput, nothing else."""
    raw = bytearray(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_untrusted(bytes(raw))
    except BadInput:
        return


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">IB", ipc.MAX_MESSAGE + 1, 0),
        struct.pack(">IB", 1, 200),
        struct.pack(">IB", 1, 1) + b"x",
    ],
    ids=["too long", "too many descriptors", "descriptors that did not come"],
)
def test_broken_frames_are_refused(frame: bytes) -> None:
    """Before anything is read or kept for them."""
    a, b = socket.socketpair()
    end = Channel(b)
    a.send(frame)
    with pytest.raises(BadInput):
        end.receive()
    a.close()
    end.close()

"""Bytes through a pair of pods: all of them, in order, both ways, and how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import random
import socket
import threading
import time
from collections import Counter

import pytest
from relay_rig import App, Mesh, is_reset, read_all

from ztunnel import ipc
from ztunnel.relay.client import SHARE, WIDTH


def pattern(n: int) -> bytes:
    return random.Random(n).randbytes(n)


def test_what_one_side_says_the_other_hears(mesh: Mesh) -> None:
    """An echo comes back, the connection is reported as mutual TLS between both identities."""
    with mesh.connect() as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""
    out = mesh.worker.wait(mesh.worker.closed)[0]
    into = mesh.worker.wait(lambda: mesh.worker.closed("inbound"))[0]
    assert (out.bytes_sent, out.bytes_recv, out.flag, out.error) == (5, 5, "-", "")
    assert (into.bytes_sent, into.bytes_recv, into.flag, into.error) == (5, 5, "-", "")
    assert out.conn.original == ("10.96.0.1", 80)
    assert out.conn.dst == mesh.app.address
    assert out.conn.hbone == mesh.hbone.getsockname()
    assert out.conn.secure
    assert into.conn.secure
    assert into.conn.source.identity == "spiffe://cluster.local/ns/test/sa/a"
    assert into.conn.source.workload == "a", "known from baggage when nothing else knows it"
    assert len(mesh.worker.opened()) == len(mesh.worker.opened("inbound")) == 1


def test_fifty_connections_share_a_tunnel_and_keep_their_bytes_apart(mesh: Mesh) -> None:
    """Parallel connections with different content, all whole; few TLS connections under them."""
    failures: list[str] = []

    def one(i: int) -> None:
        data = pattern(100_000 + i)
        with mesh.connect() as sock:
            threading.Thread(
                target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)), daemon=True
            ).start()
            if read_all(sock) != data:
                failures.append(f"connection {i}")

    threads = [threading.Thread(target=one, args=(i,)) for i in range(50)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert not failures
    closed = mesh.worker.wait(lambda: len(c := mesh.worker.closed("inbound")) == 50 and c)
    assert len({c.conn.hbone for c in closed}) <= 2, "they were to be pooled"


@pytest.mark.parametrize(("spread", "connections"), [(False, 1), (True, WIDTH)])
def test_streams_to_a_waypoint_have_several_tunnels(
    mesh: Mesh, spread: bool, connections: int
) -> None:
    """From SHARE streams on, evenly; and to a pod there is one for all."""
    mesh.lead((dataclasses.replace(mesh.to_b(), spread=spread),))
    with contextlib.ExitStack() as stack:
        for _ in range(4 * SHARE):
            sock = stack.enter_context(mesh.connect())
            sock.sendall(b"x")  # answered before the next begins: no tunnel is still connecting
            assert sock.recv(1) == b"x"
    closed = mesh.worker.wait(lambda: len(c := mesh.worker.closed("inbound")) == 4 * SHARE and c)
    used = Counter(c.conn.hbone for c in closed)
    assert sorted(used.values()) == [4 * SHARE // connections] * connections


@pytest.mark.timeout(240)
def test_a_large_transfer_is_whole_in_both_directions_at_once(mesh: Mesh) -> None:
    """64 MiB there and back at the same time, checksummed: far beyond every window."""
    data = pattern(1 << 20) * 64
    digest = hashlib.sha256()
    total = 0
    with mesh.connect(60) as sock:
        sender = threading.Thread(
            target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)), daemon=True
        )
        sender.start()
        while got := sock.recv(1 << 18):
            digest.update(got)
            total += len(got)
    assert total == len(data)
    assert digest.digest() == hashlib.sha256(data).digest()


def test_a_server_may_speak_first(mesh: Mesh) -> None:
    """The client says nothing until it was greeted."""
    mesh.app.handle = lambda sock: (sock.sendall(b"220 welcome\r\n"), echo_once(sock))[0]
    with mesh.connect() as sock:
        assert sock.recv(100) == b"220 welcome\r\n"
        sock.sendall(b"thanks")
        assert sock.recv(100) == b"thanks"


def echo_once(sock: socket.socket) -> None:
    sock.sendall(sock.recv(100))


def test_the_client_may_finish_first_and_still_be_answered(mesh: Mesh) -> None:
    """FIN from the client reaches the server as end of data; its answer comes back after that."""

    def answer(sock: socket.socket) -> None:
        got = read_all(sock)
        time.sleep(0.3)
        sock.sendall(b"got %d" % len(got))

    mesh.app.handle = answer
    with mesh.connect() as sock:
        sock.sendall(b"x" * 300_000)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"got 300000"


def test_the_server_may_finish_first_and_still_be_told(mesh: Mesh) -> None:
    """FIN from the server reaches the client as end of data; what it sends on still arrives."""
    heard: list[bytes] = []

    def finish(sock: socket.socket) -> None:
        sock.sendall(b"done")
        sock.shutdown(socket.SHUT_WR)
        heard.append(read_all(sock))

    mesh.app.handle = finish
    with mesh.connect() as sock:
        assert read_all(sock) == b"done"
        sock.sendall(b"and another thing")
    mesh.worker.wait(lambda: heard)
    assert heard == [b"and another thing"]


def test_a_client_that_resets_resets_the_server_side(mesh: Mesh) -> None:
    """RST from the client is no clean end for the server, and both ends are reported."""
    started = threading.Event()

    def wait(sock: socket.socket) -> None:
        started.set()
        while sock.recv(100):
            pass

    mesh.app.handle = wait
    sock = mesh.connect()
    sock.sendall(b"x")
    assert started.wait(5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    mesh.worker.wait(lambda: mesh.app.errors)
    assert isinstance(mesh.app.errors[0], ConnectionResetError)
    assert "application" in mesh.worker.wait(mesh.worker.closed)[0].error
    mesh.worker.wait(lambda: mesh.worker.closed("inbound"))


def test_a_server_that_resets_resets_the_client_side(mesh: Mesh) -> None:
    """RST from the server's application reaches the client as RST."""

    def slam(sock: socket.socket) -> None:
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    mesh.app.handle = slam
    with mesh.connect() as sock:
        sock.sendall(b"x")
        assert is_reset(sock)


def test_a_slow_reader_costs_bounded_memory_and_slows_nobody_else(mesh: Mesh) -> None:
    """A client that does not read holds the server back; neighbours on the tunnel go on."""
    sent = 0

    def pour(sock: socket.socket) -> None:
        nonlocal sent
        if sock.recv(4) != b"pour":
            sock.sendall(b"quick")
            return
        block = bytes(1 << 20)
        for _ in range(200):
            sock.sendall(block)
            sent += len(block)

    mesh.app.handle = pour
    before = mesh.worker.memory()
    slow = mesh.connect(60)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    slow.sendall(b"pour")
    time.sleep(2)
    held = mesh.worker.memory() - before
    stopped_at = sent
    assert stopped_at < 64 << 20, "the server was not held back"
    # A stream window in each direction's worth of copies, and kernel buffers do not count here.
    assert held < 24 << 20, f"{held >> 20} MiB for one slow reader"
    for _ in range(5):
        with mesh.connect() as quick:
            quick.sendall(b"help")
            assert read_all(quick) == b"quick"
    total = 0
    while got := slow.recv(1 << 20):
        total += len(got)
    slow.close()
    assert total == 200 << 20


def test_plaintext_inbound_is_relayed_without_identity(mesh: Mesh) -> None:
    """15006: no TLS, the same bytes, reported as not secure."""
    data = pattern(3 << 20)
    with socket.create_connection(mesh.plain.getsockname(), 10) as sock:
        threading.Thread(
            target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)), daemon=True
        ).start()
        assert read_all(sock) == data
    closed = mesh.worker.wait(lambda: mesh.worker.closed("inbound"))[0]
    assert not closed.conn.secure
    assert closed.conn.source.identity == ""
    assert (closed.bytes_sent, closed.bytes_recv) == (len(data), len(data))


def test_unknown_destinations_are_passed_on_as_they_are(mesh: Mesh) -> None:
    """Passthrough: plain TCP to where the client asked, half-close included."""
    outside = App()
    mesh.worker.destine(mesh.out, outside.address)
    mesh.lead((), passthrough=True)
    data = pattern(2 << 20)
    with mesh.connect() as sock:
        threading.Thread(
            target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)), daemon=True
        ).start()
        assert read_all(sock) == data
    closed = mesh.worker.wait(mesh.worker.closed)[0]
    assert closed.conn.dst == outside.address
    assert not closed.conn.secure
    assert closed.error == ""
    outside.close()


def test_live_connections_are_listed_with_their_bytes(mesh: Mesh) -> None:
    """A dump names the connections of each pod while they live."""
    with mesh.connect() as sock:
        sock.sendall(b"12345")
        assert sock.recv(10) == b"12345"
        mesh.worker.send(ipc.DumpQuery(7))
        reply = mesh.worker.wait(lambda: mesh.worker.replies)[0]
    assert reply.query == 7
    (conn, sent, received), *rest = reply.connections["a"]
    assert not rest
    assert (conn.direction, sent, received) == ("outbound", 5, 5)
    assert [c.direction for c, _, _ in reply.connections["b"]] == ["inbound"]

"""Connections over time: rotation, goodbye, loss, deletion, drain, limits."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import h2.events
import h2.settings
import pytest
from h2_peer import Peer, Session, echo
from relay_rig import (
    HBONE,
    ONE_FORM,
    OUTBOUND,
    App,
    Mesh,
    Worker,
    endpoint,
    is_reset,
    listen,
    read_all,
    spiffe,
)

from ztunnel import ipc


def round_trip(mesh: Mesh, word: bytes = b"word") -> None:
    with mesh.connect() as sock:
        sock.sendall(word)
        assert sock.recv(100) == word


def tunnels(mesh: Mesh) -> set[tuple[str, int] | None]:
    return {c.conn.hbone for c in mesh.worker.closed("inbound")}


def lead_to_peer(mesh: Mesh, peer: Peer) -> None:
    mesh.lead((endpoint(mesh.app.address, peer.address, (spiffe("b"),)),))


def test_rotation_under_load_drops_nothing(mesh: Mesh) -> None:
    """New certificates for both ends, again and again, while connections open, live and close."""
    stop = threading.Event()
    failures: list[str] = []
    rounds = [0]

    def short() -> None:
        while not stop.is_set():
            try:
                round_trip(mesh)
                rounds[0] += 1
            except (OSError, AssertionError) as e:
                failures.append(f"short: {e!r}")
                return

    def long() -> None:
        try:
            with mesh.connect() as sock:
                while not stop.is_set():
                    sock.sendall(b"still here")
                    assert sock.recv(100) == b"still here"
                    time.sleep(0.02)
        except (OSError, AssertionError) as e:
            failures.append(f"long: {e!r}")

    threads = [threading.Thread(target=t) for t in (short, short, long, long)]
    for t in threads:
        t.start()
    for i in range(6):
        time.sleep(0.3)
        mesh.worker.send(mesh.ca.issue(spiffe("a" if i % 2 else "b")))
    time.sleep(0.3)
    stop.set()
    for t in threads:
        t.join(10)
    assert not failures
    assert rounds[0] > 20
    closed = mesh.worker.wait(lambda: len(mesh.worker.closed("inbound")) >= rounds[0] + 2)
    assert closed
    assert len(tunnels(mesh)) >= 3, "new connections were to use the new certificate"
    assert all(c.error == "" for c in mesh.worker.closed())


def test_a_stream_outlives_the_certificate_it_began_under(mesh: Mesh) -> None:
    """A tunnel whose certificate expired carries nothing new, but cuts nothing either."""
    mesh.worker.send(mesh.ca.issue(spiffe("a"), seconds=3))
    mesh.worker.sync()
    with mesh.connect() as old:
        old.sendall(b"x")
        assert old.recv(1) == b"x"
        time.sleep(4.5)
        assert mesh.is_refused(), "an expired certificate is no identity"
        mesh.worker.send(mesh.ca.issue(spiffe("a")))
        mesh.worker.sync()
        round_trip(mesh)
        old.sendall(b"y")
        assert old.recv(1) == b"y"
    mesh.worker.wait(lambda: len(mesh.worker.closed("inbound")) >= 2)
    assert len(tunnels(mesh)) >= 2


def test_goaway_moves_new_connections_and_keeps_old_ones(mesh: Mesh) -> None:
    """After the peer's GOAWAY, open streams finish on the old connection, others take a new one."""

    def hook(session: Session, event: h2.events.Event) -> None:
        echo(session, event)
        if isinstance(event, h2.events.DataReceived) and event.data == b"leave":
            # What h2.close_connection would send, without refusing to go on afterwards.
            session.flush()
            session.sock.sendall(b"\0\0\x08\7\0\0\0\0\0" + (1).to_bytes(4, "big") + bytes(4))

    peer = Peer(mesh.ca, mesh.ca.issue(spiffe("b")), hook)
    lead_to_peer(mesh, peer)
    with mesh.connect() as old:
        old.sendall(b"leave")
        assert old.recv(100) == b"leave"
        time.sleep(0.2)
        for _ in range(3):
            round_trip(mesh)
        assert len(peer.sessions) == 2
        old.sendall(b"still here")
        assert old.recv(100) == b"still here"
    peer.close()


def test_a_stream_above_the_last_id_is_moved_with_its_bytes(mesh: Mesh) -> None:
    """GOAWAY that has not seen a stream: it goes on another connection, nothing is lost."""

    def hook(session: Session, event: h2.events.Event) -> None:
        if session.number == 0:
            if isinstance(event, h2.events.DataReceived):
                session.sock.sendall(b"\0\0\x08\7\0\0\0\0\0" + bytes(8))
            return
        echo(session, event)

    peer = Peer(mesh.ca, mesh.ca.issue(spiffe("b")), hook)
    lead_to_peer(mesh, peer)
    round_trip(mesh, b"not lost")
    assert len(peer.sessions) == 2
    peer.close()


def test_a_refused_stream_is_moved_with_its_bytes(mesh: Mesh) -> None:
    """REFUSED_STREAM before an answer: tried again, three times at most."""
    refusals = [0]

    def hook(session: Session, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived) and refusals[0] < 2:
            refusals[0] += 1
            session.h2.reset_stream(event.stream_id, 7)
        elif not isinstance(event, h2.events.DataReceived) or event.stream_id in session.h2.streams:
            try:
                echo(session, event)
            except Exception:
                if refusals[0] >= 2 and isinstance(event, h2.events.RequestReceived):
                    raise

    peer = Peer(mesh.ca, mesh.ca.issue(spiffe("b")), hook)
    lead_to_peer(mesh, peer)
    round_trip(mesh, b"third time lucky")
    assert refusals[0] == 2
    peer.close()


def test_the_peers_stream_limit_is_honoured(mesh: Mesh) -> None:
    """A server that allows three streams gets three on each connection."""
    peaks: dict[int, int] = {}

    def hook(session: Session, event: h2.events.Event) -> None:
        echo(session, event)
        count = session.h2.open_inbound_streams
        peaks[session.number] = max(peaks.get(session.number, 0), count)

    limit = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 3}
    peer = Peer(mesh.ca, mesh.ca.issue(spiffe("b")), hook, limit)
    lead_to_peer(mesh, peer)
    round_trip(mesh)
    socks = [mesh.connect() for _ in range(8)]
    for i, sock in enumerate(socks):
        sock.sendall(b"%d" % i)
        assert sock.recv(10) == b"%d" % i
    for sock in socks:
        sock.close()
    assert max(peaks.values()) == 3
    assert len(peer.sessions) >= 3
    peer.close()


@ONE_FORM
@pytest.mark.timeout(90)
def test_a_peer_that_falls_silent_is_dead_after_its_ping(mesh: Mesh) -> None:
    """No answer to PING for twenty seconds: the streams are reset and say why."""

    def hook(session: Session, event: h2.events.Event) -> None:
        echo(session, event)
        if isinstance(event, h2.events.DataReceived) and event.data == b"sleep":
            session.flush()
            time.sleep(60)

    peer = Peer(mesh.ca, mesh.ca.issue(spiffe("b")), hook)
    lead_to_peer(mesh, peer)
    with mesh.connect(50) as sock:
        sock.sendall(b"sleep")
        assert sock.recv(10) == b"sleep"
        start = time.monotonic()
        assert is_reset(sock)
    assert 18 < time.monotonic() - start < 40
    assert "PING" in mesh.worker.wait(mesh.worker.closed)[0].error
    peer.close()


def two_workers(mesh: Mesh) -> tuple[Worker, socket.socket]:
    """A second worker that serves b, as on another node; a leads there."""
    far = Worker(mesh.tmp, mesh.pure)
    mesh.workers.append(far)
    hb = listen("127.0.0.3")
    far.send(mesh.ca.issue(spiffe("b")))
    far.add_pod("b", "127.0.0.3", {HBONE: hb})
    mesh.lead((endpoint(mesh.app.address, hb.getsockname(), (spiffe("b"),)),))
    return far, hb


def test_a_peer_killed_in_mid_transfer_is_a_reset(mesh: Mesh) -> None:
    """kill -9 of the other node's worker: the client sees a failure, not a short file."""
    far, hb = two_workers(mesh)
    mesh.app.handle = lambda sock: pour(sock)
    with mesh.connect() as sock:
        assert len(sock.recv(100_000)) > 0
        os.kill(far.process.pid, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    assert "lost" in mesh.worker.wait(mesh.worker.closed)[0].error
    hb.close()


def pour(sock: socket.socket) -> None:
    while True:
        sock.sendall(bytes(100_000))


@pytest.mark.parametrize("uid", ["a", "b"])
def test_a_pod_deleted_in_mid_transfer_takes_its_connections_along(mesh: Mesh, uid: str) -> None:
    """Both directions of both pods see it; the worker serves the others on."""
    mesh.app.handle = lambda sock: pour(sock)
    with mesh.connect() as sock:
        assert len(sock.recv(100_000)) > 0
        mesh.worker.send(ipc.PodDel(uid))
        with pytest.raises(ConnectionResetError):
            read_all(sock)
    mesh.worker.wait(lambda: mesh.worker.closed() and mesh.worker.closed("inbound"))
    mesh.worker.send(ipc.DumpQuery(1))
    assert uid not in mesh.worker.wait(lambda: mesh.worker.replies)[0].connections


def test_a_drain_lets_streams_finish_and_then_ends(mesh: Mesh) -> None:
    """Drained far side: old streams go on, the client's side opens no more there, it exits idle."""
    far, hb = two_workers(mesh)
    with mesh.connect() as old:
        old.sendall(b"1")
        assert old.recv(1) == b"1"
        far.send(ipc.Drain(30))
        time.sleep(0.5)
        old.sendall(b"2")
        assert old.recv(1) == b"2"
        assert far.process.poll() is None
    far.process.wait(10)
    assert far.process.returncode == 0
    assert [c.error for c in far.closed("inbound")] == [""]
    hb.close()


def test_a_drain_ends_at_its_deadline(mesh: Mesh) -> None:
    """A stream that does not end is cut when the time is over, and reported."""
    far, hb = two_workers(mesh)
    with mesh.connect() as sock:
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
        start = time.monotonic()
        far.send(ipc.Drain(2))
        assert is_reset(sock)
        assert 1 < time.monotonic() - start < 4
    far.process.wait(5)
    assert [c.error for c in far.closed("inbound")] == ["ztunnel shuts down"]
    hb.close()


def test_a_worker_whose_control_process_is_gone_ends(mesh: Mesh) -> None:
    """It must not serve on with policies that nobody updates."""
    far, hb = two_workers(mesh)
    round_trip(mesh)
    far.stop()
    assert far.process.returncode == 0
    hb.close()


def test_a_pod_sent_again_keeps_its_connections_and_takes_new_listeners(mesh: Mesh) -> None:
    """As after a restart of the node agent: live connections stay, the new listener serves."""
    with mesh.connect() as sock:
        sock.sendall(b"1")
        assert sock.recv(1) == b"1"
        again = listen()
        mesh.worker.destine(again, ("10.96.0.1", 80))
        mesh.worker.add_pod("a", "127.0.0.2", {OUTBOUND: again})
        with socket.create_connection(again.getsockname(), 5) as other:
            other.sendall(b"2")
            assert other.recv(1) == b"2"
        sock.sendall(b"3")
        assert sock.recv(1) == b"3"
        again.close()


@ONE_FORM
@pytest.mark.timeout(60)
def test_idle_and_half_open_connections_are_closed(tmp_path: Path, pure: bool) -> None:
    """Each after its own limit, with a text that says which."""
    limits = {"RELAY_IDLE_TIMEOUT": "12s", "RELAY_HALF_OPEN_TIMEOUT": "5"}
    mesh = Mesh(tmp_path, pure, limits)
    try:
        idle = mesh.connect(40)
        idle.sendall(b"x")
        assert idle.recv(1) == b"x"
        mesh.app.handle = lambda sock: time.sleep(40)
        half = mesh.connect(40)
        half.sendall(b"x")
        half.shutdown(socket.SHUT_WR)
        start = time.monotonic()
        assert is_reset(half)
        assert time.monotonic() - start < 16
        assert is_reset(idle)
        errors = {
            c.error
            for c in mesh.worker.wait(
                lambda: len(mesh.worker.closed()) > 1 and mesh.worker.closed()
            )
        }
        assert any("half-closed" in e for e in errors)
        assert any(e.startswith("idle") for e in errors)
    finally:
        mesh.stop()


@ONE_FORM
@pytest.mark.timeout(60)
def test_long_connections_tell_their_progress(mesh: Mesh) -> None:
    """About every five seconds the bytes since the last time, so that metrics move."""
    with mesh.connect() as sock:
        for _ in range(90):
            sock.sendall(b"0123456789")
            assert sock.recv(100)
            time.sleep(0.1)
    told = [e for e in mesh.worker.events if isinstance(e, ipc.Progress)]
    assert {e.conn.direction for e in told} == {"outbound", "inbound"}
    closed = mesh.worker.wait(mesh.worker.closed)[0]
    assert closed.bytes_sent == 900
    outbound = [e for e in told if e.conn.direction == "outbound"]
    assert closed.told_sent == sum(e.bytes_sent for e in outbound) > 0


@pytest.mark.timeout(60)
def test_many_pods_cost_little_memory(mesh: Mesh) -> None:
    """A hundred connections through a worker, closed again: it does not keep what they used."""
    app = App()
    for _ in range(2):
        socks = [mesh.connect() for _ in range(100)]
        for sock in socks:
            sock.sendall(b"x" * 50_000)
        for sock in socks:
            sock.settimeout(10)
            assert sock.recv(10)
        during = mesh.worker.memory()
        for sock in socks:
            sock.close()
    app.close()
    assert during < 60 << 20, f"{during >> 20} MiB with 100 connections"

"""The whole process with a real Envoy: crashes, refused configurations, rotation, outages."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from wp_process import Authority, Process, run, until
from wp_resources import endpoints, listener, routes

from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES


async def kill_envoy(p: Process) -> int:
    """SIGKILL Envoy; returns the pid of the one that follows."""
    pid = (await p.agent())["envoy"]["pid"]
    os.kill(pid, signal.SIGKILL)

    async def another() -> bool:
        return (await p.agent())["envoy"]["pid"] not in (0, pid)

    await until(another)
    return int((await p.agent())["envoy"]["pid"])


def test_crashed_envoy_comes_back_without_the_control_plane(tmp_path: Path) -> None:
    """kill -9 while the control plane is away: the next Envoy has the newest configuration."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        p.configure(x_generation="2")
        await p.plane.push()
        await until(lambda: p.served(x_generation="2"))
        await p.plane.stop()
        await kill_envoy(p)
        await until(p.is_ready, 5)
        assert await p.served(x_generation="2")
        _, text = await p.get(p.metrics, "/metrics")
        assert "ambit_waypoint_envoy_restarts_total 1.0" in text

    run(tmp_path, body)


def test_restart_of_envoy_costs_the_control_plane_nothing(tmp_path: Path) -> None:
    """It sees one stream, and is asked for nothing that Envoy had."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        (stream,) = p.plane.streams
        await until(p.plane.settled)
        before = len(stream.requests)
        await kill_envoy(p)
        await until(p.is_ready)
        assert await p.served()
        assert p.plane.streams == [stream]
        assert len(stream.requests) == before
        p.configure(x_generation="2")
        await p.plane.push()
        await until(lambda: p.served(x_generation="2"))

    run(tmp_path, body)


def test_control_plane_that_comes_back_sends_what_changed(tmp_path: Path) -> None:
    """The new stream carries the token of now, and says the versions that Envoy has."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        port = p.plane.port
        await p.plane.stop()
        p.plane.token_file.write_text("another-token")
        assert await p.served()
        assert await p.is_ready(), "what is known goes on"
        p.plane.set(ROUTES, routes("web", "echo", x_generation="2"))
        await p.plane.start(port)
        await until(lambda: p.served(x_generation="2"))
        stream = p.plane.streams[-1]
        assert stream.token == "Bearer another-token"
        first: dict[str, Any] = {}
        for request in stream.requests:
            first.setdefault(request.type_url, request)
        assert list(first)[:4] == [CLUSTER, ENDPOINTS, LISTENER, ROUTES]
        assert set(first[LISTENER].initial_resource_versions) == {"web", "tls"}
        assert set(first[ROUTES].resource_names_subscribe) == {"web", "tls"}
        assert first[CLUSTER].HasField("node")
        assert not first[LISTENER].HasField("node")

    run(tmp_path, body)


def test_refused_configuration_changes_nothing_even_after_a_crash(tmp_path: Path) -> None:
    """The control plane hears why; the last good one serves, also a new Envoy."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        good = p.plane.resources[LISTENER]["web"]
        filters = [{"name": "envoy.filters.http.fault"}]
        p.plane.set(LISTENER, listener("web", p.http, filters=filters))
        await p.plane.push()
        stream = p.plane.streams[-1]
        await until(lambda: stream.nacks())
        assert "web" in stream.nacks()[0].error_detail.message
        assert await p.served()
        agent = await p.agent()
        assert agent["xds"]["versions"]["Listener"]["web"] == good[0]
        assert "web" in agent["xds"]["errors"]["Listener"]
        _, text = await p.get(p.metrics, "/metrics")
        assert 'ambit_waypoint_xds_rejected_total{type="Listener"} 1.0' in text
        await kill_envoy(p)
        await until(p.served)
        await until(lambda: len(p.plane.streams) == 2)
        await until(lambda: p.plane.streams[-1].nacks())
        assert await p.served()
        # And a good one ends it.
        p.plane.set(ROUTES, routes("web", "echo", x_generation="3"))
        p.plane.set(LISTENER, listener("web", p.http))
        await p.plane.push()
        await until(lambda: p.served(x_generation="3"))
        assert (await p.agent())["xds"]["errors"] == {}

    run(tmp_path, body)


def test_endpoints_follow_while_requests_run(tmp_path: Path) -> None:
    """A cluster without endpoints gets them; nothing waits for anything else."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        empty = {"cluster_name": "echo", "endpoints": []}
        p.plane.set(ENDPOINTS, empty)
        await p.plane.push()

        async def refused() -> bool:
            return (await p.ask())[0] == 503

        await until(refused)
        p.plane.set(ENDPOINTS, endpoints("echo", p.backend.port))
        await p.plane.push()
        await until(p.served)

    run(tmp_path, body)


# ---- certificates ------------------------------------------------------------------------------


def open_tls(port: int, roots: str = "", client: Path | None = None) -> ssl.SSLSocket:
    """Connect to Envoy's TLS listener; checks the chain where roots are given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if roots else ssl.CERT_NONE
    if roots:
        context.load_verify_locations(cadata=roots)
    if client is not None:
        context.load_cert_chain(client)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5))


def serial(conn: ssl.SSLSocket) -> int:
    der = conn.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def exchange(conn: ssl.SSLSocket) -> bytes:
    conn.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    return conn.recv(4096)


def test_rotation_drops_nothing(tmp_path: Path) -> None:
    """Half-life: new connections get the new certificate, old ones go on."""

    async def body(p: Process) -> None:
        await until(p.is_ready)

        def connect() -> ssl.SSLSocket:
            return open_tls(p.https, p.plane.authority.root_pem)

        conn = await asyncio.to_thread(connect)
        first = serial(conn)
        assert (await asyncio.to_thread(exchange, conn)).startswith(b"HTTP/1.1 200")

        async def rotated() -> bool:
            with await asyncio.to_thread(connect) as other:
                return serial(other) != first

        await until(rotated)
        assert (await asyncio.to_thread(exchange, conn)).startswith(b"HTTP/1.1 200")
        conn.close()
        assert await p.is_ready()

    run(tmp_path, body, before=short_lived)


def short_lived(p: Process) -> None:
    """Certificates are for six seconds."""
    p.plane.authority.lifetime = dt.timedelta(seconds=6)


def test_new_root_beside_the_old_one(tmp_path: Path) -> None:
    """While both are trusted, peers of either are taken; before, those of the new one were not."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        old, new = p.plane.authority, Authority("new root")
        new.lifetime = old.lifetime
        old_client, new_client = pem(old, tmp_path / "old.pem"), pem(new, tmp_path / "new.pem")

        async def takes(client: Path) -> bool:
            return await asyncio.to_thread(answers, p.https, client)

        assert await takes(old_client)
        assert not await takes(new_client)
        p.plane.authority, p.plane.roots = new, [old.root_pem, new.root_pem]
        await until(lambda: takes(new_client))
        assert await takes(old_client)
        with await asyncio.to_thread(open_tls, p.https, new.root_pem) as conn:
            assert serial(conn)
        roots = (await p.agent())["certificate"]["roots"]
        assert len(roots) == 2

    run(tmp_path, body, before=short_lived)


def pem(authority: Authority, path: Path) -> Path:
    key, certificate = authority.server()
    path.write_bytes(key + certificate)
    return path


def answers(port: int, client: Path) -> bool:
    """Whether a request is answered to a client with this key and certificate."""
    try:
        with open_tls(port, client=client) as conn:
            return exchange(conn).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def test_certificate_outlives_the_ca(tmp_path: Path) -> None:
    """No renewal: the certificate stays in use, the waypoint ready, until it ends."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        p.plane.refuse = "closed for today"
        await until(lambda: len(p.plane.issued) >= 3)
        assert await p.is_ready()
        assert (await p.agent())["certificate"]["state"] == "Available"

        async def over() -> bool:
            return "closed for today" in (await p.get(p.ready, "/healthz/ready"))[1]

        await until(over)
        p.plane.refuse = ""
        await until(p.is_ready)

    run(tmp_path, body, before=short_lived)

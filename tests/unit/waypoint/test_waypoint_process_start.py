"""The whole process with a real Envoy, against a control plane by hand: start, pages, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import time
from pathlib import Path

from wp_process import Process, run, until


def test_envoy_serves_what_the_control_plane_says(tmp_path: Path) -> None:
    """Certificate, first configuration, readiness, a request, and a change of it."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        assert await p.served()
        token, metadata = p.plane.issued[0]
        assert token == "Bearer a-token"
        assert metadata == {}, "a pod asks for its own identity, and does not impersonate"
        node = p.plane.streams[0].requests[0].node
        assert node.id == "waypoint~127.0.0.1~wp-1.shop~shop.svc.cluster.local"
        assert node.cluster == "wp.shop"
        assert dict(node.metadata)["GATEWAY_NAME"] == "wp"
        assert dict(node.metadata)["EXTRA"] == "1"
        assert p.plane.streams[0].token == "Bearer a-token"
        p.configure(x_generation="2")
        await p.plane.push()
        await until(lambda: p.served(x_generation="2"))

    run(tmp_path, body, ISTIO_META_EXTRA="1")


def test_pages(tmp_path: Path) -> None:
    """Metrics under Istio's names, Envoy's own pages on the loopback, no key on any of them."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        _, text = await p.get(p.metrics, "/stats/prometheus")
        assert "ambit_waypoint_envoy_live 1.0" in text
        assert "ambit_waypoint_xds_connected 1.0" in text
        assert 'ambit_waypoint_resources{type="Listener"} 2.0' in text
        assert "envoy_server_uptime" not in text
        assert "process_resident_memory_bytes" in text
        status, dump = await p.get(p.admin, "/config_dump")
        assert status == 200
        assert "ListenersConfigDump" in dump
        agent = await p.agent()
        assert agent["identity"] == "spiffe://cluster.local/ns/shop/sa/wp"
        assert agent["certificate"]["state"] == "Available"
        assert set(agent["xds"]["versions"]["Listener"]) == {"web", "tls"}
        assert "PRIVATE" not in dump + text + json.dumps(agent)
        _, said = await p.get(p.admin, "/logging?level=envoy=debug", "POST")
        assert "Envoy's debug" in said
        assert (await p.get(p.admin, "/no/such"))[0] == 404
        mode = stat.S_IMODE(p.folder.stat().st_mode)
        assert mode == 0o700, "who can reach the sockets gets the key"

    run(tmp_path, body)


def test_all_statistics_where_they_are_wanted(tmp_path: Path) -> None:
    """ENVOY_STATS=all: what Envoy keeps beside Istio's metrics is shown."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        _, text = await p.get(p.metrics, "/metrics")
        assert "envoy_server_uptime" in text
        assert "ambit_waypoint_envoy_live 1.0" in text

    run(tmp_path, body, ENVOY_STATS="all")


def everywhere(p: Process) -> None:
    """Have it listen on all addresses, not on 127.0.0.1 alone."""
    p.ipv6_too = True
    p.env |= {"READY_ADDR": f":{p.ready}", "METRICS_ADDR": f":{p.metrics}"}


def test_a_machine_without_ipv6(tmp_path: Path) -> None:
    """Envoy cannot bind [::]: what listens there and elsewhere is served elsewhere."""

    def before(p: Process) -> None:
        p.launcher = (str(Path(__file__).with_name("no_ipv6.py")),)
        everywhere(p)

    async def body(p: Process) -> None:
        await until(p.is_ready)
        assert await p.served()
        assert not p.plane.streams[0].nacks()
        p.configure(x_generation="2")
        await p.plane.push()
        await until(lambda: p.served(x_generation="2"))

    run(tmp_path, body, before)


def test_a_machine_with_ipv6(tmp_path: Path) -> None:
    """The same where it can: requests are answered over both."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        assert await p.served()
        for port, path in ((p.http, "/"), (p.metrics, "/metrics")):
            for host in ("127.0.0.1", "[::1]"):
                assert (await p.get(port, path, host=host))[0] == 200, host

    run(tmp_path, body, everywhere)


def test_not_ready_says_why(tmp_path: Path) -> None:
    """Without a certificate, and why there is none; ready as soon as there is one."""

    async def body(p: Process) -> None:
        p.plane.refuse = "no such pod"
        reason = ""

        async def refused() -> bool:
            nonlocal reason
            with contextlib.suppress(OSError):
                _, reason = await p.get(p.ready, "/healthz/ready")
            return "no such pod" in reason

        await until(refused)
        assert f"no valid certificate from https://127.0.0.1:{p.plane.port}" in reason
        p.plane.refuse = ""
        await until(p.is_ready)

    run(tmp_path, body)


def test_drain_lets_requests_finish(tmp_path: Path) -> None:
    """SIGTERM: not ready, clients are told to go, the request under way is answered, exit 0."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        p.backend.delay = 2.0
        slow = asyncio.ensure_future(p.ask())
        await asyncio.sleep(0.3)
        pid = (await p.agent())["envoy"]["pid"]
        began = time.monotonic()
        stopping = asyncio.ensure_future(p.stop())
        await until(lambda: _not_ready(p))
        p.backend.delay = 0.0
        status, headers = await p.ask()
        assert (status, headers["connection"]) == (200, "close"), "served on, and told to go"
        assert (await slow)[0] == 200
        assert await stopping == 0
        assert 1.5 < time.monotonic() - began < 6
        assert not _alive(pid)
        assert not p.folder.exists()
        assert "drained in" in p.log.read_text()

    run(tmp_path, body)


async def _not_ready(p: Process) -> bool:
    with contextlib.suppress(OSError):
        status, text = await p.get(p.ready, "/healthz/ready")
        return status == 503 and "draining" in text
    return False


def test_drain_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """What does not finish is cut 5 s before the grace period is over, and said."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        p.backend.delay = 60.0
        slow = asyncio.ensure_future(p.ask())
        await asyncio.sleep(0.3)
        began = time.monotonic()
        assert await p.stop() == 0
        assert 1.9 < time.monotonic() - began < 4.5
        assert "1 connections are cut" in p.log.read_text()
        with contextlib.suppress(Exception):
            await slow

    run(tmp_path, body, TERMINATION_GRACE_PERIOD_SECONDS="7")


def test_envoy_does_not_outlive_the_process(tmp_path: Path) -> None:
    """SIGKILL of the process: Envoy is gone within moments."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        assert p.process is not None
        pid = (await p.agent())["envoy"]["pid"]
        assert _alive(pid)
        p.process.kill()
        await p.process.wait()
        await until(lambda: not _alive(pid), 5)
        await p.spawn()  # the folder that was left behind is no obstacle
        await until(p.is_ready)

    run(tmp_path, body)


def test_signal_to_the_group_does_not_reach_envoy(tmp_path: Path) -> None:
    """A SIGTERM for everybody would end Envoy before it is drained."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        pid = (await p.agent())["envoy"]["pid"]
        assert p.process is not None
        assert os.getpgid(pid) != os.getpgid(p.process.pid)

    run(tmp_path, body)


def test_second_process_in_one_place_is_refused(tmp_path: Path) -> None:
    """It must not take the sockets of the one that serves."""

    async def body(p: Process) -> None:
        await until(p.is_ready)
        first = p.process
        assert first is not None
        await p.spawn()
        assert p.process is not None
        assert await asyncio.wait_for(p.process.wait(), 15) == 2
        assert "another ambit-waypoint runs here" in p.log.read_text()
        assert await p.is_ready()
        first.send_signal(signal.SIGKILL)
        await first.wait()

    run(tmp_path, body)


def test_wrong_configuration_names_the_variable(tmp_path: Path) -> None:
    """A value that cannot work ends the process at once with its name and what to write."""

    async def body(p: Process) -> None:
        assert p.process is not None
        assert await asyncio.wait_for(p.process.wait(), 15) == 2
        assert "CONCURRENCY='many': write a number" in p.log.read_text()

    run(tmp_path, body, CONCURRENCY="many")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

"""The whole control process with its workers, against fakes of everything around it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ztunnel_rig import ECHO, SLEEP, Process, until

from mesh.model import Action, Authorization, Scope, convert
from mesh.wire import zds
from ztunnel import netns

IDENTITY = "spiffe://cluster.local/ns/shop/sa/sleep"


def run(folder: Path, body: Callable[[Process], Awaitable[None]], **env: str) -> None:
    async def main() -> None:
        process = Process(folder, **env)
        process.plane.set(SLEEP, ECHO)
        try:
            async with process:
                await body(process)
        except BaseException:
            print(process.log.read_text()[-5000:])
            raise

    asyncio.run(main())


async def serve_sleep(p: Process) -> None:
    await p.agent.accept()
    assert await p.agent.add("uid-1", SLEEP) == ""
    assert await p.agent.ask(zds.SnapshotSent()) == ""


def test_a_pod_is_acked_when_it_has_its_certificate(tmp_path: Path) -> None:
    """The add is acked after the CA gave the pod's identity a certificate; then ready is said."""

    async def body(p: Process) -> None:
        await p.agent.accept()
        assert p.agent.hello == zds.Hello(held_listeners=True)
        assert await p.agent.add("uid-1", SLEEP) == ""
        assert p.plane.issued == [(IDENTITY, "Bearer a-token")]
        assert not await p.is_ready(), "ready before the snapshot was sent"
        assert await p.agent.ask(zds.SnapshotSent()) == ""
        await until(p.is_ready)
        dump = await p.dump()
        assert dump["workloadState"]["uid-1"]["state"] == "Up"
        assert [c["identity"] for c in dump["certificates"]] == [IDENTITY]
        assert dump["certificates"][0]["state"] == "Available"
        assert "PRIVATE" not in str(dump)
        _, metrics = await p.get(p.metrics, "/stats/prometheus")
        assert "istio_active_proxy_count_total 1.0" in metrics
        assert await p.stop() == 0

    run(tmp_path, body)


def test_an_add_that_cannot_work_is_refused_with_its_cause(tmp_path: Path) -> None:
    """No certificate, no workload: an ack with an error before the agent gives up, and no pod."""

    async def body(p: Process) -> None:
        p.plane.refuse = "no such pod on your node"
        await p.agent.accept()
        assert "no such pod on your node" in await p.agent.add("uid-1", SLEEP)
        stranger = replace(SLEEP, name="stranger")
        assert "has not sent it as a workload" in await p.agent.add("uid-2", stranger)
        assert (await p.dump())["workloadState"] == {}
        p.plane.refuse = ""
        assert await p.agent.add("uid-1", SLEEP) == ""

    run(tmp_path, body)


def test_snapshot_drops_pods_that_the_new_agent_does_not_name(tmp_path: Path) -> None:
    """After a reconnect: kept pods stay, unnamed ones go, unknown ones cannot be kept."""

    async def body(p: Process) -> None:
        await p.agent.accept()
        assert await p.agent.add("uid-1", SLEEP) == ""
        assert await p.agent.add("uid-2", ECHO) == ""
        assert await p.agent.ask(zds.SnapshotSent()) == ""
        p.agent.hang_up()
        await p.agent.accept()
        assert not await p.is_ready()
        assert await p.agent.ask(zds.Keep("uid-2")) == ""
        assert "not known" in await p.agent.ask(zds.Keep("uid-3"))
        assert await p.agent.ask(zds.SnapshotSent()) == ""
        assert list((await p.dump())["workloadState"]) == ["uid-2"]
        assert await p.agent.ask(zds.Del("uid-2")) == ""
        assert (await p.dump())["workloadState"] == {}
        await until(p.is_ready)

    run(tmp_path, body)


def test_killed_worker_is_replaced_and_told_again(tmp_path: Path) -> None:
    """kill -9 of a worker: another one serves the same listeners within seconds."""

    async def body(p: Process) -> None:
        await serve_sleep(p)
        (first,) = p.workers()
        os.kill(first, signal.SIGKILL)
        await until(lambda: p.workers() and p.workers() != [first])

        async def served() -> bool:
            return "uid-1" in str((await p.dump())["workloadState"])

        await until(served)
        _, metrics = await p.get(p.metrics, "/metrics")
        assert "ambit_ztunnel_worker_restarts_total 1.0" in metrics

    run(tmp_path, body)


def test_bad_resource_is_nacked_by_name_and_the_good_ones_kept(tmp_path: Path) -> None:
    """Of one response the good workload is used, the bad one named in the NACK."""

    async def body(p: Process) -> None:
        await serve_sleep(p)
        good = convert.workload_to_pb(ECHO)
        good.workload.name = "renamed"
        raw = {ECHO.uid: good.SerializeToString(), "bad/one": b"\xff\xff\xff"}
        await p.plane.push(convert.ADDRESS_TYPE, [], raw=raw)
        stream = p.plane.streams[-1]
        await until(lambda: any(r.HasField("error_detail") for r in stream.requests))
        nack = next(r for r in stream.requests if r.HasField("error_detail"))
        assert "bad/one" in nack.error_detail.message
        assert ECHO.uid not in nack.error_detail.message
        assert "renamed" in [w["name"] for w in (await p.dump())["workloads"]]

    run(tmp_path, body)


def test_losing_the_control_plane_changes_nothing_and_coming_back_costs_what_changed(
    tmp_path: Path,
) -> None:
    """Pods stay served without it; the next stream says versions and sends the new token."""

    async def body(p: Process) -> None:
        await serve_sleep(p)
        port = p.plane.port
        await p.plane.stop()
        await asyncio.sleep(0.1)
        assert await p.is_ready()
        assert (await p.dump())["workloadState"]["uid-1"]["state"] == "Up"
        p.plane.token_file.write_text("another-token")
        deny = Authorization("d", "shop", Scope.NAMESPACE, Action.DENY)
        p.plane.set(deny)
        before = len(p.plane.streams)
        await p.plane.start(port)
        await until(lambda: len(p.plane.streams) > before)

        async def has_policy() -> bool:
            return bool((await p.dump())["policies"])

        await until(has_policy)
        stream = p.plane.streams[-1]
        assert stream.tokens == ["Bearer another-token"]
        first = {r.type_url: r for r in reversed(stream.requests)}
        assert set(first[convert.ADDRESS_TYPE].initial_resource_versions) == {SLEEP.uid, ECHO.uid}

    run(tmp_path, body)


@pytest.mark.root
def test_on_demand_mode_finds_its_own_pod(tmp_path: Path) -> None:
    """XDS_ON_DEMAND: nothing but what is asked for; a pod is found by its namespace's addresses."""

    async def body(p: Process) -> None:
        fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        here = netns.addresses(fd)
        os.close(fd)
        mine = replace(SLEEP, addresses=tuple(here[:1]))
        p.plane.set(mine)
        await p.agent.accept()
        assert await p.agent.add("uid-1", mine) == ""
        for _ in range(100):  # the add is answered as soon as there is a certificate
            found = [w["uid"] for w in (await p.dump())["workloads"]]
            if found:
                break
            await asyncio.sleep(0.05)
        assert found == [SLEEP.uid]

    run(tmp_path, body, XDS_ON_DEMAND="true")


def test_sigterm_drains_and_ends(tmp_path: Path) -> None:
    """SIGTERM: not ready, the agent's connection closed, workers gone, exit code 0."""

    async def body(p: Process) -> None:
        await serve_sleep(p)
        workers = p.workers()
        assert await p.stop() == 0
        for pid in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert "draining" in p.log.read_text()

    run(tmp_path, body)


def test_wrong_configuration_names_the_variable(tmp_path: Path) -> None:
    """A value that cannot work ends the process at once with its name and what to write."""

    async def body(p: Process) -> None:
        assert p.process is not None
        assert await asyncio.wait_for(p.process.wait(), 15) == 2
        assert "ZTUNNEL_WORKER_THREADS='many'" in p.log.read_text()

    run(tmp_path, body, ZTUNNEL_WORKER_THREADS="many")

"""The ZDS socket against a scripted client: descriptors, order, limits."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from mesh.wire import zds
from node_agent import hub as h
from node_agent.zds_server import ACCEPT_INTERVAL, ZdsServer

WORKLOAD = h.Workload("u1", "shop", "cart", "sa", (zds.OUTBOUND_V4,), zds.REDIRECT_EBPF)


class Side:
    """The agent's side: hub and server, with /dev/null for a netns and a listener."""

    def __init__(self, path: Path) -> None:
        self.hub = h.Hub()
        self.server = ZdsServer(path, self)
        self.fds = [os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)]
        self.events: list[h.Output] = []

    def apply(self, outputs: list[h.Output]) -> None:
        for output in outputs:
            self.events.append(output)
            if isinstance(output, h.Send):
                fds = self.fds if isinstance(output.request, zds.Add) else []
                self.server.send(output.session, output.request, fds)
            elif isinstance(output, h.Drop):
                self.server.drop(output.session)
            elif isinstance(output, h.Greeted):
                self.apply(self.hub.start(output.session, time.monotonic()))

    def proxy_connected(self, pid: int) -> int:
        return self.hub.connected(time.monotonic())

    def proxy_received(self, number: int, data: bytes) -> None:
        self.apply(self.hub.received(number, data, time.monotonic()))

    def proxy_disconnected(self, number: int) -> None:
        self.apply(self.hub.disconnected(number, time.monotonic()))


class Client:
    """A proxy, written by hand."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.sock.connect(str(path))

    def say(self, data: bytes) -> None:
        self.sock.send(data)

    async def hear(self) -> tuple[bytes, list[int]]:
        async with asyncio.timeout(3):
            while True:
                try:
                    data, fds, _, _ = socket.recv_fds(self.sock, 2048, 8)
                    return data, fds
                except BlockingIOError:
                    await asyncio.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("not within 3 s")


def scripted(tmp_path: Path, script: Callable[[Side, Path], Awaitable[None]]) -> None:
    async def play() -> None:
        path = tmp_path / "zds.sock"
        side = Side(path)
        side.server.open()
        try:
            await script(side, path)
        finally:
            side.server.close()

    asyncio.run(play())


def test_an_add_carries_netns_and_listeners_in_order(tmp_path: Path) -> None:
    """The descriptors that arrive are the ones that were sent."""

    async def script(side: Side, path: Path) -> None:
        side.apply(side.hub.want(WORKLOAD, 0))
        client = Client(path)
        client.say(zds.encode_hello(zds.Hello(held_listeners=True)))
        data, fds = await client.hear()
        assert zds.decode_request_untrusted(data) == WORKLOAD.request(True)
        assert [os.fstat(fd).st_rdev for fd in fds] == [os.fstat(fd).st_rdev for fd in side.fds]
        client.say(zds.encode_response(zds.Ack()))
        data, fds = await client.hear()
        assert zds.decode_request_untrusted(data) == zds.SnapshotSent()
        assert fds == []
        client.say(zds.encode_response(zds.Ack()))
        await until(lambda: isinstance(side.events[-1], h.Synced))
        assert h.Acked("u1") in side.events

    scripted(tmp_path, script)


def test_a_proxy_that_talks_nonsense_is_closed_and_others_stay(tmp_path: Path) -> None:
    """Oversized and malformed datagrams end that connection only."""

    async def script(side: Side, path: Path) -> None:
        good = Client(path)
        good.say(zds.encode_hello(zds.Hello()))
        await good.hear()
        for nonsense in (b"\xff" * 40, b"\x08\x01" * 1000):
            bad = Client(path)
            bad.say(nonsense)
            data, _ = await bad.hear()
            assert data == b""
        good.say(zds.encode_response(zds.Ack()))
        await until(lambda: side.hub.sessions[1].synced)
        assert list(side.hub.sessions) == [1]

    scripted(tmp_path, script)


def test_connections_are_accepted_at_a_bounded_rate(tmp_path: Path) -> None:
    """A proxy in a crash loop cannot keep the agent busy."""

    async def script(side: Side, path: Path) -> None:
        start = time.monotonic()
        clients = [Client(path) for _ in range(4)]
        for client in clients:
            client.say(zds.encode_hello(zds.Hello()))
        for client in clients:
            await client.hear()
        assert time.monotonic() - start >= 3 * ACCEPT_INTERVAL * 0.9

    scripted(tmp_path, script)


def test_a_successor_takes_the_path_over(tmp_path: Path) -> None:
    """A stale socket file of a killed agent is no obstacle, and there is no moment without one."""
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stale.bind(str(tmp_path / "zds.sock"))
    stale.close()

    async def script(side: Side, path: Path) -> None:
        client = Client(path)
        client.say(zds.encode_hello(zds.Hello()))
        data, _ = await client.hear()
        assert zds.decode_request_untrusted(data) == zds.SnapshotSent()

    scripted(tmp_path, script)


def test_a_proxy_that_closes_is_forgotten(tmp_path: Path) -> None:
    """Its session ends; what it was not told in time is nobody's loss."""

    async def script(side: Side, path: Path) -> None:
        client = Client(path)
        client.say(zds.encode_hello(zds.Hello()))
        await client.hear()
        client.sock.close()
        await until(lambda: not side.hub.sessions)
        assert not side.server.send(1, zds.SnapshotSent(), [])

    scripted(tmp_path, script)

"""Answers what workers ask, and hears what they report.

Most answers are there at once. In on-demand mode an address that nobody has asked for yet is first
fetched from the control plane; the connection waits up to WAIT seconds and then goes on with what
is known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from mesh.model import Workload
from mesh.model.convert import ADDRESS_TYPE
from mesh.xds.client import XdsClient
from ztunnel import ipc
from ztunnel.control import Control
from ztunnel.route import CONNECT_FLAG
from ztunnel.state import address_key

log = logging.getLogger(__name__)

WAIT: Final = 4.5  # workers give up at 5 s
_DUMP_WAIT: Final = 2.0
_MAX_WAITING: Final = 10_000


class OnDemand:
    """Resources that were asked for, and who waits for them."""

    def __init__(self, client: XdsClient) -> None:
        self._client = client
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def need(self, name: str) -> asyncio.Future[None]:
        """Ask for a resource; done when it has come or is known not to exist."""
        future = self._waiting.get(name)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            if self._client.state.is_missing(ADDRESS_TYPE, name):
                future.set_result(None)
                return future
            if len(self._waiting) >= _MAX_WAITING:
                log.warning("%d resources are asked for already; %s is not", _MAX_WAITING, name)
                future.set_result(None)
                return future
            self._waiting[name] = future
            self._client.demand(ADDRESS_TYPE, name)
        return future

    def settled(self, names: set[str]) -> None:
        """See control.Demand."""
        for name in names & self._waiting.keys():
            future = self._waiting.pop(name)
            if not future.done():
                future.set_result(None)


class Desk:
    """The owner of the worker pool."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._tasks: set[asyncio.Task[None]] = set()
        self._dumps: dict[int, tuple[int, asyncio.Future[ipc.DumpReply]]] = {}
        self._query = 0

    # ---- workers -----------------------------------------------------------------------------

    def worker_started(self, index: int) -> None:
        """See workers.Owner."""
        self._control.worker_started(index)

    def worker_lost(self, index: int) -> None:
        """See workers.Owner."""
        self._control.worker_lost(index)
        for at, future in self._dumps.values():
            if at == index and not future.done():
                future.cancel()

    def worker_said(self, index: int, message: Any) -> None:
        """See workers.Owner."""
        if isinstance(message, ipc.Reports):
            if self._control.telemetry is not None:
                now, wall = time.monotonic(), time.time()
                self._control.telemetry.reports(index, message, now, wall)
        elif isinstance(message, ipc.RouteQuery):
            self._route(index, message)
        elif isinstance(message, ipc.PeerQuery):
            self._peer(index, message)
        elif isinstance(message, ipc.DumpReply):
            _, future = self._dumps.pop(message.query, (0, None))
            if future is not None and not future.done():
                future.set_result(message)
        else:
            log.error("worker %d said a %s", index, type(message).__name__)

    # ---- questions ---------------------------------------------------------------------------

    def _route(self, index: int, query: ipc.RouteQuery) -> None:
        pod = self._control.pods.get(query.pod)
        source = pod.workload if pod else None
        if source is None:
            text = "failed to fetch information about local workload: it is not known any more"
            self._reply(
                index, ipc.RouteReply(query.query, ipc.Route(error=text, flag=CONNECT_FLAG))
            )
            return
        known = source

        def answer() -> None:
            route = self._control.router.route(known, query.address, query.port)
            self._reply(index, ipc.RouteReply(query.query, route))

        self._after_fetch(known, query.address, answer)

    def _peer(self, index: int, query: ipc.PeerQuery) -> None:
        pod = self._control.pods.get(query.pod)

        def answer() -> None:
            peer = self._control.router.peer(query.address)
            self._reply(index, ipc.PeerReply(query.query, peer))

        self._after_fetch(pod.workload if pod else None, query.address, answer)

    def _reply(self, index: int, message: object) -> None:
        self._control.pool.send(index, message)

    def _after_fetch(
        self, source: Workload | None, address: str, answer: Callable[[], None]
    ) -> None:
        """Answer now, or in on-demand mode when what is needed has come."""
        if self._control.demand is None or source is None or not self._wanted(source, address):
            answer()
            return
        task = asyncio.ensure_future(self._fetch(source, address, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wanted(self, source: Workload, address: str) -> str:
        """Name what must be fetched before a route can be given; "" when nothing."""
        router = self._control.router
        if router.unknown(address, source.namespace):
            return address_key(self._control.network, address)
        return router.waypoint_unknown(source, address)

    async def _fetch(self, source: Workload, address: str, answer: Callable[[], None]) -> None:
        demand = self._control.demand
        assert demand is not None
        try:
            async with asyncio.timeout(WAIT):
                # The address first, then the waypoint that its answer may name.
                for _ in range(2):
                    if name := self._wanted(source, address):
                        await asyncio.shield(demand.need(name))
        except TimeoutError:
            log.warning("the control plane did not answer for %s in time", address)
        answer()

    # ---- dump --------------------------------------------------------------------------------

    async def connections(self) -> dict[str, list[tuple[ipc.Connection, int, int]]]:
        """Ask all workers for the live connections of each pod."""
        asked: list[asyncio.Future[ipc.DumpReply]] = []
        for index in self._control.pool.alive():
            self._query += 1
            future: asyncio.Future[ipc.DumpReply] = asyncio.get_running_loop().create_future()
            self._dumps[self._query] = (index, future)
            asked.append(future)
            self._control.pool.send(index, ipc.DumpQuery(self._query))
        if not asked:
            return {}
        done, late = await asyncio.wait(asked, timeout=_DUMP_WAIT)
        if late:
            log.warning("%d workers did not say their connections in time", len(late))
        self._dumps.clear()
        found: dict[str, list[tuple[ipc.Connection, int, int]]] = {}
        for each in done:
            if not each.cancelled():
                found.update(each.result().connections)
        return found

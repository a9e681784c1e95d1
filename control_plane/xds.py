"""Delta aggregated discovery over gRPC: the thin shell around control_plane.delta."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from control_plane.authn import Caller, TokenVerifier, bearer_untrusted
from control_plane.delta import ENVOY, PROXY, DeltaConnection, Nack, TypeSet
from control_plane.metrics import Metrics, short_type
from control_plane.resources import Snapshot
from mesh.errors import BadInput, Unavailable
from mesh.xds.delta import Resource, Response
from mesh.xds.pb import request_from_pb, response_to_pb

log = logging.getLogger(__name__)

_SHOWN_NAMES = 10


# Called when a client has answered: what it has taken, and what it has refused.
Answered = Callable[[Sequence[Resource], Sequence[Nack]], None]


class Channel:
    """The newest snapshot for one kind of client, and who wants to know of the next one."""

    def __init__(self, served: TypeSet, answered: Answered = lambda *_: None) -> None:
        self.served = served
        self.answered = answered
        self.snapshot = Snapshot()
        self.published_at = 0.0  # monotonic time at which the change behind it was seen
        self.streams: set[Stream] = set()

    @property
    def reached(self) -> int | None:
        """The version that every client which has one at all has answered for; None: no client."""
        found = [s.state.reached for s in self.streams]
        return min((r for r in found if r >= 0), default=None)

    def publish(self, snapshot: Snapshot, seen_at: float) -> None:
        """Make a snapshot the newest one."""
        if snapshot is not self.snapshot:
            self.snapshot, self.published_at = snapshot, seen_at
            for stream in self.streams:
                stream.news.set()


class Hub:
    """One channel for all node proxies, one for each waypoint (by "namespace/name")."""

    def __init__(self) -> None:
        self.proxies = Channel(PROXY)
        self.waypoints: dict[str, Channel] = {}
        # Called with the name of a waypoint that has answered, and Answered's arguments.
        self.answered: Callable[[str, Sequence[Resource], Sequence[Nack]], None] = lambda *_: None

    def reached(self, waypoint: str) -> int | None:
        """The version that all connected pods of a waypoint have; None: none is connected."""
        channel = self.waypoints.get(waypoint)
        return channel.reached if channel is not None else None

    @property
    def snapshot(self) -> Snapshot:
        """What node proxies are served."""
        return self.proxies.snapshot

    @property
    def streams(self) -> list[Stream]:
        """Everybody who is served."""
        channels = (self.proxies, *self.waypoints.values())
        return [stream for channel in channels for stream in list(channel.streams)]

    def publish(self, snapshot: Snapshot, seen_at: float) -> None:
        """Tell node proxies."""
        self.proxies.publish(snapshot, seen_at)

    def publish_waypoints(self, snapshots: Mapping[str, Snapshot], seen_at: float) -> None:
        """Tell waypoints. One that is not named any more keeps what it has, while it drains."""
        for name, snapshot in snapshots.items():
            if name not in self.waypoints:
                self.waypoints[name] = self._waypoint(name)
            self.waypoints[name].publish(snapshot, seen_at)
        for name in [n for n, c in self.waypoints.items() if n not in snapshots and not c.streams]:
            del self.waypoints[name]

    def _waypoint(self, name: str) -> Channel:
        def answered(accepted: Sequence[Resource], refused: Sequence[Nack]) -> None:
            self.answered(name, accepted, refused)

        return Channel(ENVOY, answered)

    def end_streams(self) -> None:
        """Close every stream."""
        for stream in self.streams:
            stream.end()


class Stream:
    """One proxy's stream."""

    def __init__(
        self,
        channel: Channel,
        metrics: Metrics,
        context: grpc.aio.ServicerContext[
            discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse
        ],
        caller: Caller,
    ) -> None:
        self.news = asyncio.Event()
        self.caller = caller
        self.peer = context.peer()
        self.node = ""
        self.state = DeltaConnection(channel.served)
        self._channel = channel
        self._metrics = metrics
        self._context = context
        # Responses must leave in the order they were made; a slow client holds this, and while it
        # does nothing is made for it.
        self._writing = asyncio.Lock()
        self._ending = asyncio.Event()

    @property
    def _snapshot(self) -> Snapshot:
        """The newest, as this client's pod sees it."""
        return self._channel.snapshot.seen_by(self.caller.pod)

    async def run(self) -> None:
        """Serve until the client goes or end() is called; raises BadInput on a broken protocol."""
        tasks = [asyncio.ensure_future(w) for w in (self._read(), self._push(), self._ended())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end(self) -> None:
        """Close the stream; the client will dial again, here or elsewhere."""
        self._ending.set()

    async def _ended(self) -> None:
        await self._ending.wait()

    async def _read(self) -> None:
        while True:
            pb = await self._context.read()
            if not isinstance(pb, discovery_pb2.DeltaDiscoveryRequest):
                return  # the client has closed its side
            if pb.node.id and not self.node:
                self.node = pb.node.id[:300]
                log.info("xds: %s connected from %s", self.node, self.peer)
            async with self._writing:
                started = time.monotonic()
                responses = self.state.receive_untrusted(request_from_pb(pb), self._snapshot)
                self._report_nacks()
                accepted, refused = self.state.drain()
                await self._write(responses, started)
            if pb.response_nonce:
                self._channel.answered(accepted, refused)

    async def _push(self) -> None:
        while True:
            await self.news.wait()
            async with self._writing:
                self.news.clear()
                started = time.monotonic()
                responses = self.state.push(self._snapshot)
                await self._write(responses, started)
                if responses:
                    self._metrics.convergence.observe(time.monotonic() - self._channel.published_at)

    async def _write(self, responses: Iterable[Response], started: float) -> None:
        for response in responses:
            kind = short_type(response.type_url)
            await self._context.write(response_to_pb(response))
            self._metrics.pushes.inc(kind)
            self._metrics.sent.inc(kind, by=len(response.resources) + len(response.removed))
            self._metrics.push_time.labels(kind).observe(time.monotonic() - started)
            log.debug(
                "xds: %s to %s: %d resources, %d removed",
                kind,
                self.node or self.peer,
                len(response.resources),
                len(response.removed),
            )

    def _report_nacks(self) -> None:
        for nack in self.state.nacks:
            self._metrics.rejects.inc(short_type(nack.type_url))
            more = len(nack.names) - _SHOWN_NAMES
            names = ", ".join(nack.names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
            log.error(
                "xds: %s refused %s (%s): %s; sent again when it changes",
                self.node or self.peer,
                short_type(nack.type_url),
                names,
                nack.error,
            )


class DiscoveryService(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Answers DeltaAggregatedResources for node proxies, by account, and pods of waypoints.

    `gateway_of` names the waypoint whose pod a caller is; `refresh` reads the newest objects,
    before a caller that may be newer than what was read is refused.
    """

    def __init__(
        self,
        hub: Hub,
        verifier: TokenVerifier,
        accounts: Collection[str],
        gateway_of: Callable[[Caller], str],
        refresh: Callable[[], Awaitable[object]],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._hub = hub
        self._verifier = verifier
        self._accounts = accounts
        self._gateway_of = gateway_of
        self._refresh = refresh
        self._metrics = metrics
        self._clock = clock

    async def _authenticate(
        self,
        context: grpc.aio.ServicerContext[
            discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse
        ],
    ) -> tuple[Caller, Channel]:
        token = bearer_untrusted(context.invocation_metadata())
        caller = await self._verifier.prove_untrusted(token, self._clock())
        if caller.account in self._accounts:
            return caller, self._hub.proxies
        for last in (False, True):
            try:
                name = self._gateway_of(caller)
                break
            except BadInput as e:
                if last:
                    raise BadInput(
                        f"{caller.account} is neither a node proxy (known:"
                        f" {', '.join(sorted(self._accounts))}; add one with --proxy-account)"
                        f" nor a waypoint: {e}"
                    ) from e
                await self._refresh()
        channel = self._hub.waypoints.get(name)
        if channel is None:
            raise Unavailable(f"nothing is served to waypoint {name} yet")
        return caller, channel

    async def DeltaAggregatedResources(
        self,
        request_iterator: object,
        context: grpc.aio.ServicerContext[
            discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse
        ],
    ) -> None:
        """Serve one stream."""
        try:
            caller, channel = await self._authenticate(context)
        except BadInput as e:
            self._metrics.refused.inc()
            log.warning("xds: refused %s: %s", context.peer(), e)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(e))
        except Unavailable as e:
            log.warning("xds: %s must wait: %s", context.peer(), e)
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        stream = Stream(channel, self._metrics, context, caller)
        channel.streams.add(stream)
        self._metrics.connected.inc()
        try:
            await stream.run()
        except BadInput as e:
            log.warning("xds: %s broke the protocol: %s", stream.node or stream.peer, e)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        finally:
            channel.streams.discard(stream)
            self._metrics.connected.dec()
            log.info("xds: %s disconnected", stream.node or stream.peer)

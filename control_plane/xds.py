"""Delta aggregated discovery over gRPC: the thin shell around control_plane.delta."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2

from control_plane.authn import Caller, TokenVerifier, bearer_untrusted
from control_plane.delta import DeltaConnection, Response
from control_plane.metrics import Metrics, short_type
from control_plane.resources import Snapshot
from mesh.errors import BadInput, Unavailable
from mesh.xds.delta import Request

log = logging.getLogger(__name__)

_SHOWN_NAMES = 10


def _request(pb: discovery_pb2.DeltaDiscoveryRequest) -> Request:
    error = ""
    if pb.HasField("error_detail"):
        error = pb.error_detail.message or f"code {pb.error_detail.code}"
    return Request(
        type_url=pb.type_url,
        subscribe=tuple(pb.resource_names_subscribe),
        unsubscribe=tuple(pb.resource_names_unsubscribe),
        initial_versions=dict(pb.initial_resource_versions),
        nonce=pb.response_nonce,
        error=error,
    )


def _response(response: Response) -> discovery_pb2.DeltaDiscoveryResponse:
    return discovery_pb2.DeltaDiscoveryResponse(
        type_url=response.type_url,
        nonce=response.nonce,
        system_version_info=response.version,
        removed_resources=response.removed,
        resources=[
            discovery_pb2.Resource(
                name=r.name,
                version=r.version,
                aliases=r.aliases,
                resource=any_pb2.Any(type_url=r.type_url, value=r.payload),
            )
            for r in response.resources
        ],
    )


class Hub:
    """The newest snapshot, and who wants to know of the next one."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.published_at = 0.0  # monotonic time at which the change behind it was seen
        self.streams: set[Stream] = set()

    def publish(self, snapshot: Snapshot, seen_at: float) -> None:
        """Make a snapshot the newest one."""
        if snapshot is not self.snapshot:
            self.snapshot, self.published_at = snapshot, seen_at
            for stream in self.streams:
                stream.news.set()

    def end_streams(self) -> None:
        """Close every stream."""
        for stream in self.streams:
            stream.end()


class Stream:
    """One proxy's stream."""

    def __init__(
        self,
        hub: Hub,
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
        self.state = DeltaConnection()
        self._hub = hub
        self._metrics = metrics
        self._context = context
        # Responses must leave in the order they were made; a slow client holds this, and while it
        # does nothing is made for it.
        self._writing = asyncio.Lock()
        self._ending = asyncio.Event()

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
                responses = self.state.receive_untrusted(_request(pb), self._hub.snapshot)
                self._report_nacks()
                await self._write(responses, started)

    async def _push(self) -> None:
        while True:
            await self.news.wait()
            async with self._writing:
                self.news.clear()
                started = time.monotonic()
                responses = self.state.push(self._hub.snapshot)
                await self._write(responses, started)
                if responses:
                    self._metrics.convergence.observe(time.monotonic() - self._hub.published_at)

    async def _write(self, responses: Iterable[Response], started: float) -> None:
        for response in responses:
            kind = short_type(response.type_url)
            await self._context.write(_response(response))
            self._metrics.pushes.inc(kind)
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
        self.state.nacks.clear()


class DiscoveryService(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Answers DeltaAggregatedResources for proxies of known service accounts."""

    def __init__(
        self,
        hub: Hub,
        verifier: TokenVerifier,
        accounts: Collection[str],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._hub = hub
        self._verifier = verifier
        self._accounts = accounts
        self._metrics = metrics
        self._clock = clock

    async def _authenticate(
        self,
        context: grpc.aio.ServicerContext[
            discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse
        ],
    ) -> Caller:
        token = bearer_untrusted(context.invocation_metadata())
        caller = await self._verifier.prove_untrusted(token, self._clock())
        if caller.account not in self._accounts:
            raise BadInput(
                f"{caller.account} is not a mesh proxy (known: {', '.join(sorted(self._accounts))};"
                " add one with --proxy-account)"
            )
        return caller

    async def DeltaAggregatedResources(
        self,
        request_iterator: object,
        context: grpc.aio.ServicerContext[
            discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse
        ],
    ) -> None:
        """Serve one stream."""
        try:
            caller = await self._authenticate(context)
        except BadInput as e:
            self._metrics.refused.inc()
            log.warning("xds: refused %s: %s", context.peer(), e)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(e))
        except Unavailable as e:
            log.warning("xds: %s must wait: %s", context.peer(), e)
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        stream = Stream(self._hub, self._metrics, context, caller)
        self._hub.streams.add(stream)
        self._metrics.connected.inc()
        try:
            await stream.run()
        except BadInput as e:
            log.warning("xds: %s broke the protocol: %s", stream.node or stream.peer, e)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        finally:
            self._hub.streams.discard(stream)
            self._metrics.connected.dec()
            log.info("xds: %s disconnected", stream.node or stream.peer)

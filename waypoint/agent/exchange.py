"""The gRPC shell: Envoy on one side (a unix socket), the control plane on the other.

Secrets are answered here, on streams of their own or within ADS, and never leave the pod;
everything else the Relay decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from mesh.xds.client import Node, Observer, Upstream, XdsLoop
from mesh.xds.delta import Request, Response
from mesh.xds.pb import ADS, DELTA, request_from_pb, response_to_pb
from waypoint.agent.family import without_ipv6
from waypoint.agent.relay import Out, Relay, ToEnvoy, ToPlane
from waypoint.agent.secrets import SECRET, Secrets, SecretStream

log = logging.getLogger(__name__)

SDS: Final = "envoy.service.secret.v3.SecretDiscoveryService"
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 100),
)

Queue = asyncio.Queue[Response]


class Exchange:
    """Both sides, and what goes between them."""

    def __init__(
        self, upstream: Upstream, node: Node, observer: Observer, relay: Relay, ipv6: bool
    ) -> None:
        self.relay = relay
        self._ipv6 = ipv6  # whether this machine has it
        self._loop = XdsLoop(upstream, node, self, observer)
        self._envoy: Queue | None = None
        self._secrets: Secrets = {}
        self._waiting: dict[SecretStream, Queue] = {}
        self._server: grpc.aio.Server | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a stream to the control plane."""
        return self._loop.connected

    async def start(self, socket: Path) -> None:
        """Listen for Envoy."""
        server = grpc.aio.server(options=_OPTIONS)
        for service, method, handler in (
            (ADS, DELTA, self._aggregated),
            (SDS, "DeltaSecrets", self._delta_secrets),
        ):
            made = grpc.stream_stream_rpc_method_handler(
                handler,
                request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
                response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
            )
            generic = grpc.method_handlers_generic_handler(service, {method: made})
            server.add_generic_rpc_handlers((generic,))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        self._server = server

    async def run(self) -> None:
        """Talk to the control plane until cancelled."""
        await self._loop.run()

    async def stop(self) -> None:
        """Hang up."""
        if self._server is not None:
            await self._server.stop(None)

    def set_secrets(self, made: Secrets) -> None:
        """Give Envoy a newer certificate."""
        self._secrets = made
        for stream, queue in self._waiting.items():
            _put(queue, stream.changed(made))

    def envoy_started(self) -> None:
        """See Relay; call it before an Envoy is started."""
        self._do(self.relay.envoy_started())

    def forget(self) -> None:
        """Drop what is kept for the next Envoy."""
        self._do(self.relay.forget())

    # ---- Envoy -------------------------------------------------------------------------------

    async def _aggregated(self, requests: Any, context: Any) -> None:
        queue: Queue = asyncio.Queue()
        self._envoy = queue
        self.relay.envoy_connected()
        try:
            await self._serve(requests, context, queue)
        finally:
            if self._envoy is queue:
                self._envoy = None
                self.relay.envoy_gone()

    async def _delta_secrets(self, requests: Any, context: Any) -> None:
        await self._serve(requests, context, asyncio.Queue())

    async def _serve(self, requests: Any, context: Any, queue: Queue) -> None:
        stream = SecretStream()
        self._waiting[stream] = queue
        writing = asyncio.ensure_future(_write(context, queue))
        try:
            async for pb in requests:
                request = request_from_pb(pb)
                if request.type_url == SECRET:
                    _put(queue, stream.request(request, self._secrets))
                    if stream.error:
                        log.error("Envoy refused its certificate: %s", stream.error)
                elif queue is self._envoy:
                    self._do(self.relay.request(request))
        finally:
            del self._waiting[stream]
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    def _do(self, out: Iterable[Out]) -> None:
        for each in out:
            if isinstance(each, ToEnvoy):
                _put(self._envoy, each.response)
            elif isinstance(each, ToPlane):
                self._loop.send(each.request)
            else:
                self._loop.redial()

    # ---- control plane: see mesh.xds.client.Session ------------------------------------------

    def opened(self) -> Iterable[Request]:
        """Say what Envoy wants and has."""
        return self._to_plane(self.relay.plane_connected())

    def received(self, response: Response) -> Iterable[Request]:
        """Pass on what came."""
        fit = response if self._ipv6 else without_ipv6(response)
        return self._to_plane(self.relay.response(fit))

    def closed(self) -> None:
        """Go on without."""
        self.relay.plane_gone()

    def _to_plane(self, out: Iterable[Out]) -> list[Request]:
        requests = []
        for each in out:
            if isinstance(each, ToPlane):
                requests.append(each.request)
            else:
                self._do([each])
        return requests


def _put(queue: Queue | None, response: Response | None) -> None:
    if queue is not None and response is not None:
        queue.put_nowait(response)


async def _write(context: Any, queue: Queue) -> None:
    while True:
        response = await queue.get()
        await context.write(response_to_pb(response))

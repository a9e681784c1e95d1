"""ambit-control-plane: wires the parts together, nothing else."""

from __future__ import annotations

import asyncio
import datetime
import gc
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc

from control_plane.admin import AdminServer, dump_registry
from control_plane.backend import Backend, FolderBackend
from control_plane.ca.authority import Lifetimes
from control_plane.ca.current import CurrentCa
from control_plane.ca.root import SigningCa
from control_plane.ca.service import CaConfig, CertificateService
from control_plane.engine import Engine
from control_plane.metrics import Metrics
from control_plane.options import FolderOptions, Options, parse_options
from control_plane.registry import Registry
from control_plane.server import ServingCertificate, add_port, make_server
from control_plane.translate.pods import MeshConfig
from control_plane.waypoints.callers import gateway_of_untrusted
from control_plane.waypoints.state import Waypoints
from control_plane.xds import DiscoveryService, Hub
from mesh.errors import MeshError
from mesh.pb import citadel_pb2_grpc
from waypoint.config.envoy import translate

log = logging.getLogger(__name__)

_GRACE: Final = 2.0  # seconds that calls under way get to finish


def utc_now() -> datetime.datetime:
    """Read the clock."""
    return datetime.datetime.now(datetime.UTC)


def make_backend(
    options: Options, current: CurrentCa, metrics: Metrics, news: Callable[[], None]
) -> Backend:
    """Choose where everything comes from; `news`: what is no object has changed.

    Raises ConfigError.
    """
    if isinstance(options.where, FolderOptions):
        return FolderBackend(options, options.where, current, utc_now)
    # Only here: the client library is large, and the lab does without it.
    from control_plane.kubernetes.backend import KubernetesBackend

    return KubernetesBackend(options, options.where, current, metrics, news, utc_now)


class ControlPlane:
    """One control plane; start() and stop() from the same event loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.metrics = Metrics()
        self.hub = Hub()
        self._current = CurrentCa(self._signs)
        self._backend = make_backend(
            options, self._current, self.metrics, lambda: self.engine.poke()
        )
        verifier = self._backend.verifier
        config = MeshConfig(
            options.root_namespace,
            options.trust_domain,
            options.cluster_id,
            options.cluster_domain,
        )
        self.registry = Registry(config)
        self.waypoints = Waypoints(config, self.registry, translate)
        self.engine = Engine(
            self._backend.source,
            self.registry,
            self.waypoints,
            self.hub,
            self._backend.status,
            self._backend.deployer,
            self._backend.refer,
            self.metrics,
        )
        self._discovery = DiscoveryService(
            self.hub,
            verifier,
            options.proxy_accounts,
            lambda caller: gateway_of_untrusted(
                caller, self.registry, self.registry.bindings.gateways
            ),
            self.engine.refresh,
            self.metrics,
            lambda: utc_now().timestamp(),
        )
        self._certificates = CertificateService(
            CaConfig(
                self._current,
                options.trust_domain,
                options.proxy_accounts,
                Lifetimes(options.default_ttl, options.max_ttl),
            ),
            verifier,
            self.registry,
            self.engine.refresh,
            self.metrics,
            utc_now,
        )
        self._server: grpc.aio.Server | None = None
        self._admin: AdminServer | None = None
        self._running: asyncio.Task[None] | None = None
        self.port = 0
        self.admin_port = 0

    def _signs(self, ca: SigningCa) -> None:
        self.metrics.root_expiry.set(ca.root.not_valid_after_utc.timestamp())

    @property
    def ca(self) -> SigningCa:
        """What signs at this moment."""
        return self._current.ca

    async def start(self) -> None:
        """Serve once the objects are read: a proxy must not be told of an empty mesh."""
        admin = AdminServer(
            self.options.metrics_listen,
            self.metrics,
            lambda: self.engine.synced and self._server is not None,
            lambda: dump_registry(self.hub, self.engine),
        )
        admin.start()
        self._admin, self.admin_port = admin, admin.port
        await self._backend.start()
        await self.engine.refresh()
        self._running = asyncio.get_running_loop().create_task(self.engine.run())
        server = make_server()
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self._discovery, server)
        add_ca = citadel_pb2_grpc.add_IstioCertificateServiceServicer_to_server
        add_ca(self._certificates, server)  # type: ignore[no-untyped-call]
        certificate = ServingCertificate(self._current, self.options.sans, utc_now)
        self.port = add_port(server, self.options.listen, certificate.credentials())
        await server.start()
        self._server = server
        log.info(
            "serving xDS and CA on %s:%d as %s; metrics on port %d; trust domain %s",
            self.options.listen[0],
            self.port,
            ", ".join(self.options.sans),
            self.admin_port,
            self.options.trust_domain,
        )

    async def serve(self) -> None:
        """Start, and wait for the engine to end, which only a defect makes it do: raises that."""
        await self.start()
        # What was read until now stays: the collector need not look at it ever again.
        gc.collect()
        gc.freeze()
        if self._running is not None:
            await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Finish calls, then stop."""
        if self._server is not None:
            stopping = asyncio.ensure_future(self._server.stop(_GRACE))
            await asyncio.sleep(0)  # closed to new streams first
            self.hub.end_streams()
            await stopping
            self._server = None
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._admin is not None:
            self._admin.stop()
        await self._backend.stop()


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    plane = ControlPlane(options)
    stopping = loop.create_task(stop.wait())
    serving = loop.create_task(plane.serve())
    try:
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        log.info("stopping")
    finally:
        for task in (stopping, serving):
            task.cancel()
        await asyncio.gather(stopping, serving, return_exceptions=True)
        await plane.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM."""
    options = parse_options(argv)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        asyncio.run(_serve(options))
    except MeshError as e:
        log.error("%s", e)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""ambit-control-plane: wires the parts together, nothing else."""

from __future__ import annotations

import asyncio
import datetime
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Final

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc

from control_plane.admin import AdminServer, dump_registry
from control_plane.authn import SignedTokens
from control_plane.ca.authority import Lifetimes
from control_plane.ca.root import SigningCa, load_or_create, load_plugged
from control_plane.ca.service import CaConfig, CertificateService
from control_plane.engine import Engine
from control_plane.metrics import Metrics
from control_plane.options import Options, parse_options
from control_plane.registry import Registry
from control_plane.server import ServingCertificate, add_port, make_server
from control_plane.status import StatusWriter
from control_plane.translate.pods import MeshConfig
from control_plane.xds import DiscoveryService, Hub
from mesh.errors import ConfigError, MeshError
from mesh.pb import citadel_pb2_grpc
from mesh.store import FolderStore

log = logging.getLogger(__name__)

_GRACE: Final = 2.0  # seconds that calls under way get to finish


def utc_now() -> datetime.datetime:
    """Read the clock."""
    return datetime.datetime.now(datetime.UTC)


def _load_ca(options: Options) -> SigningCa:
    try:
        options.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        if options.ca_dir is not None:
            return load_plugged(options.ca_dir, options.data, utc_now())
        return load_or_create(options.data, options.trust_domain, utc_now())
    except OSError as e:
        raise ConfigError(f"--data {options.data}: {e.strerror or e}") from e


class ControlPlane:
    """One control plane; start() and stop() from the same event loop."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.metrics = Metrics()
        self.hub = Hub()
        self.ca = _load_ca(options)
        self.metrics.root_expiry.set(self.ca.root.not_valid_after_utc.timestamp())
        verifier = SignedTokens(options.token_key, options.token_audience)
        try:
            self._store = FolderStore(options.objects)
        except OSError as e:
            raise ConfigError(f"--objects {options.objects}: {e.strerror or e}") from e
        self.registry = Registry(
            MeshConfig(
                options.root_namespace,
                options.trust_domain,
                options.cluster_id,
                options.cluster_domain,
            )
        )
        self.engine = Engine(
            self._store, self.registry, self.hub, StatusWriter(self._store), self.metrics
        )
        self._discovery = DiscoveryService(
            self.hub,
            verifier,
            options.proxy_accounts,
            self.metrics,
            lambda: utc_now().timestamp(),
        )
        self._certificates = CertificateService(
            CaConfig(
                self.ca,
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

    async def start(self) -> None:
        """Serve once the objects are read: a proxy must not be told of an empty mesh."""
        await self.engine.refresh()
        loop = asyncio.get_running_loop()
        self._running = loop.create_task(self.engine.run())
        admin = AdminServer(
            self.options.metrics_listen,
            self.metrics,
            lambda: self.engine.synced and self._server is not None,
            lambda: dump_registry(self.hub, self.engine),
        )
        admin.start()
        self._admin, self.admin_port = admin, admin.port
        server = make_server()
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self._discovery, server)
        add_ca = citadel_pb2_grpc.add_IstioCertificateServiceServicer_to_server
        add_ca(self._certificates, server)  # type: ignore[no-untyped-call]
        certificate = ServingCertificate(self.ca, self.options.sans, utc_now)
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

    async def failed(self) -> None:
        """Wait for the engine to end, which only a defect makes it do, and raise what ended it."""
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
        self._store.close()


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    plane = ControlPlane(options)
    try:
        await plane.start()
        stopping = loop.create_task(stop.wait())
        failing = loop.create_task(plane.failed())
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
        for task in (stopping, failing):
            task.cancel()
        log.info("stopping")
    finally:
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

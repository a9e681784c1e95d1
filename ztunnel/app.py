"""ambit-ztunnel: the per-node L4 proxy's control process. Wires the parts; decides nothing."""

from __future__ import annotations

import os

# The workers are started from here while gRPC's threads run; its fork handlers are not needed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import argparse
import asyncio
import gc
import json
import logging
import random
import signal
import sys
import time
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from mesh import logs, process
from mesh.ca.client import CaClient, CertKeeper
from mesh.ca.store import CertStore
from mesh.env import cpu_count
from mesh.errors import BadInput, ConfigError
from mesh.model import convert
from mesh.web import Answer, Pages, Request, WebServer
from mesh.xds.client import Node, Upstream, XdsClient, node_metadata
from mesh.xds.delta import DeltaClient, Update
from ztunnel import dump, ipc
from ztunnel.config import Config, from_environment, help_text
from ztunnel.control import Control
from ztunnel.desk import Desk, OnDemand
from ztunnel.metrics import ProxyMetrics, build_version
from ztunnel.telemetry import Telemetry
from ztunnel.workers import WorkerPool
from ztunnel.zds_client import ZdsClient

log = logging.getLogger("ztunnel")

_JSON: Final = "application/json"


class Ztunnel:
    """All parts of one process."""

    def __init__(self, config: Config, levels: logs.Levels) -> None:
        self.config = config
        self.levels = levels
        self.stop = asyncio.Event()
        self.draining = False
        self.failed = False
        self.control = Control(config.trust_domain, config.network, CertStore(random.random))
        self.telemetry = Telemetry(
            self.control.service_of, logs.write, config.log_json, config.policy_info
        )
        self.metrics = ProxyMetrics(self.control, self.telemetry.tcp)
        self.registry = CollectorRegistry()
        self.registry.register(self.telemetry.tcp)
        self.registry.register(self.metrics)
        ProcessCollector(registry=self.registry)
        self.desk = Desk(self.control)
        self.pool = WorkerPool(config.workers, self.desk, lambda: levels.for_workers)
        self.control.attach(self.pool, self.telemetry)
        self.xds = self._xds()
        if config.on_demand:
            self.control.demand = OnDemand(self.xds)
        headers = {"clusterid": config.cluster_id, **config.headers["ca"]}
        upstream = Upstream(config.ca_address, config.ca_root_ca, config.auth_token, headers)
        self.keeper = CertKeeper(
            self.control.certs, CaClient(upstream, config.secret_ttl), self.control.certificate
        )
        self.zds = ZdsClient(config.zds, self.control, self.keeper.wake)

    def _xds(self) -> XdsClient:
        c = self.config
        delta = DeltaClient(
            {
                convert.AUTHORIZATION_TYPE: convert.authorization_untrusted,
                convert.ADDRESS_TYPE: convert.address_untrusted,
            },
            [convert.ADDRESS_TYPE] if c.on_demand else [],
        )
        node = Node(
            f"ztunnel~{c.instance_ip}~{c.pod_name}.{c.pod_namespace}"
            f"~{c.pod_namespace}.svc.cluster.local",
            {
                **node_metadata(os.environ),
                "NAME": c.pod_name,
                "NAMESPACE": c.pod_namespace,
                "INSTANCE_IPS": c.instance_ip,
                "NODE_NAME": c.node_name,
                "CLUSTER_ID": c.cluster_id,
            },
        )
        headers = {"clusterid": c.cluster_id, **c.headers["xds"]}
        upstream = Upstream(c.xds_address, c.xds_root_ca, c.auth_token, headers)
        return XdsClient(upstream, node, delta, self._on_update, self.metrics)

    def _on_update(self, update: Update) -> None:
        self.control.update(update, self.xds.state.synced)
        # An identity may have changed with its workload.
        self.keeper.wake()

    @property
    def ready(self) -> bool:
        """Pods are served, and new ones would be."""
        return self.control.synced and self.zds.ready and not self.draining

    # ---- running -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        servers = [
            WebServer(self.config.admin, self._admin_pages()),
            WebServer(self.config.ready, {("GET", "/healthz/ready"): self._ready_page}),
            WebServer(self.config.metrics, self._metrics_pages()),
        ]
        for server in servers:
            await server.start()
        self.pool.start()
        zds = process.supervised(self.zds.run(), self._part_failed)
        tasks = [
            process.supervised(self.xds.run(), self._part_failed),
            process.supervised(self.keeper.run(), self._part_failed),
        ]
        log.info(
            "ztunnel %s on node %s: %d workers",
            build_version(),
            self.config.node_name,
            len(self.pool),
        )
        await self.stop.wait()
        # The agent gives new pods to the next ztunnel from here on; its listeners stay open.
        self.draining = True
        zds.cancel()
        seconds = self.config.drain_seconds
        log.info("draining: connections have %g s", seconds)
        await self.pool.drain(ipc.Drain(seconds), seconds + 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(zds, *tasks, return_exceptions=True)
        for server in servers:
            server.close()
        self.control.close()
        log.info("ended")

    def _part_failed(self, error: BaseException) -> None:
        """End the process, to be started again: all parts run forever."""
        log.critical("a part of ztunnel failed", exc_info=error)
        self.failed = True
        self.stop.set()

    # ---- pages -------------------------------------------------------------------------------

    def _admin_pages(self) -> Pages:
        return {
            ("GET", "/config_dump"): self._dump_page,
            ("POST", "/logging"): self._logging_page,
            ("POST", "/quitquitquit"): self._quit_page,
        }

    def _metrics_pages(self) -> Pages:
        return {
            ("GET", "/metrics"): self._metrics_page,
            ("GET", "/stats/prometheus"): self._metrics_page,
        }

    async def _ready_page(self, request: Request) -> Answer:
        if self.ready:
            return Answer(b"ready\n")
        waits = [
            text
            for text, missing in (
                ("draining", self.draining),
                (f"xDS from {self.config.xds_address}", not self.control.synced),
                (f"the node agent's snapshot at {self.config.zds}", not self.zds.ready),
            )
            if missing
        ]
        return Answer(f"not ready: {', '.join(waits)}\n".encode(), 503)

    async def _metrics_page(self, request: Request) -> Answer:
        self.telemetry.tcp.expire(time.monotonic())
        encode, content_type = choose_encoder(request.accept)
        # Thousands of series take a while to render; workers must not wait for that.
        body = await asyncio.to_thread(encode, self.registry)
        return Answer(body, 200, content_type)

    async def _dump_page(self, request: Request) -> Answer:
        connections = await self.desk.connections()
        made = dump.config_dump(
            self.control.state,
            self.control.certs.identities.values(),
            self.control.pods.values(),
            connections,
            self.config.for_dump(),
            build_version(),
            time.time(),
        )
        return Answer(json.dumps(made, indent=2).encode(), 200, _JSON)

    async def _logging_page(self, request: Request) -> Answer:
        try:
            if "reset" in request.query:
                self.levels.reset()
            if request.query.get("level"):
                self.levels.set(request.query["level"])
        except BadInput as e:
            return Answer(f"{e}\n".encode(), 400)
        return Answer(f"current log level is {self.levels}\n".encode())

    async def _quit_page(self, request: Request) -> Answer:
        self.stop.set()
        return Answer(b"shutdown now\n")


async def _main(config: Config, levels: logs.Levels) -> int:
    ztunnel = Ztunnel(config, levels)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ztunnel.stop.set)
    gc.collect()
    gc.freeze()  # what start-up made stays: do not look at it again
    await ztunnel.run()
    return 1 if ztunnel.failed else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 after a drain, 1 after a failure, 2 when the configuration is wrong."""
    parser = argparse.ArgumentParser(
        prog="ambit-ztunnel",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "The per-node L4 proxy: takes pods from the node agent (ZDS), workloads and policies\n"
            "from the control plane (xDS), certificates from its CA, and starts relay workers\n"
            "that carry the connections over mutual TLS. Configured by environment variables.\n"
            "SIGTERM drains: connections may finish, new ones are for the next ztunnel."
        ),
        epilog=help_text(),
    )
    parser.parse_args(argv)
    process.tune()
    try:
        config = from_environment(os.environ, cpu_count())
        levels = logs.setup(config.log_level, config.log_json, {"zds": "ztunnel.zds_client"})
        return asyncio.run(_main(config, levels))
    except (ConfigError, BadInput) as e:
        sys.stderr.write(f"ambit-ztunnel: {e}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())

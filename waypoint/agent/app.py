"""ambit-waypoint: the process in a waypoint's pod. Wires the parts; decides nothing."""

from __future__ import annotations

import os

# Envoy is started from here while gRPC's threads run; its fork handlers are not needed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import random
import resource
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from mesh import logs
from mesh.ca.client import CaClient, CertKeeper
from mesh.ca.held import Held
from mesh.ca.store import CertStore
from mesh.errors import BadInput, ConfigError, Unavailable
from mesh.web import Answer, Pages, Request, WebServer, render
from mesh.xds.client import Node, Upstream, node_metadata
from waypoint.agent import metrics
from waypoint.agent.admin import EnvoyAdmin
from waypoint.agent.bootstrap import arguments, bootstrap, envoy_level
from waypoint.agent.config import Config, from_environment, help_text, this_machine
from waypoint.agent.drain import drain
from waypoint.agent.envoy import EnvoyProcess
from waypoint.agent.exchange import Exchange
from waypoint.agent.folder import RunFolder
from waypoint.agent.relay import Relay
from waypoint.agent.secrets import secrets

log = logging.getLogger("waypoint")

_M_ARENA_MAX: Final = -8  # malloc.h
_PROBE: Final = 1.0  # seconds that Envoy has to say whether it is live
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_SCOPES: Final = {"ca": "mesh.ca", "drain": "waypoint.agent.drain"}


class Waypoint:
    """All parts of one process."""

    def __init__(self, config: Config, levels: logs.Levels) -> None:
        self.config = config
        self.levels = levels
        self.stop = asyncio.Event()
        self.draining = False
        self.failed = False
        self.live = False
        self.relay = Relay()
        self.metrics = metrics.ProcessMetrics(self._state)
        self.registry = CollectorRegistry()
        self.registry.register(self.metrics)
        ProcessCollector(registry=self.registry)
        self.store = CertStore(random.random)
        self.admin = EnvoyAdmin(config.admin_socket)
        self._bootstrap = bootstrap(config, node_metadata(os.environ))
        self.exchange = self._exchange()
        self.keeper = self._keeper()
        self.envoy = EnvoyProcess(
            self._arguments, self.exchange.envoy_started, self._envoy_keeps_ending
        )

    def _exchange(self) -> Exchange:
        c, node = self.config, self._bootstrap["node"]
        headers = {"clusterid": c.cluster_id, **c.headers["xds"]}
        return Exchange(
            Upstream(c.xds_address, c.xds_root_ca, c.auth_token, headers),
            Node(node["id"], node["metadata"], node["cluster"]),
            self.metrics,
            self.relay,
        )

    def _keeper(self) -> CertKeeper:
        c = self.config
        headers = {"clusterid": c.cluster_id, **c.headers["ca"]}
        upstream = Upstream(c.ca_address, c.ca_root_ca, c.auth_token, headers)
        self.store.acquire(c.identity, "this pod", time.time())
        issuer = CaClient(upstream, c.secret_ttl, impersonate=False)
        return CertKeeper(self.store, issuer, self._certificate)

    def _certificate(self, held: Held) -> None:
        self.exchange.set_secrets(secrets(held.certificate))

    def _arguments(self) -> Sequence[str]:
        level = envoy_level(logging.getLogger("envoy").getEffectiveLevel())
        return arguments(self.config, json.dumps(self._bootstrap), level)

    def _envoy_keeps_ending(self) -> None:
        if self.exchange.connected:
            log.error("Envoy keeps ending: what it was given last is dropped and asked for anew")
            self.exchange.forget()

    @property
    def expiry(self) -> float:
        """When the certificate in use ends, unix seconds; 0 without one."""
        held = self.store.identities[self.config.identity].held
        return held.certificate.not_after if held else 0.0

    def _state(self) -> metrics.State:
        return metrics.State(
            envoy_live=self.live,
            envoy_restarts=self.envoy.restarts,
            connected=self.exchange.connected,
            rejected=self.relay.rejected,
            kept={url: len(names) for url, names in self.relay.versions().items()},
            certificate_expiry=self.expiry,
            draining=self.draining,
        )

    # ---- running -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        c = self.config
        servers = [
            WebServer(c.admin, self._admin_pages(), self._pass_on),
            WebServer(c.ready, {("GET", "/healthz/ready"): self._ready_page}),
            WebServer(c.metrics, self._metrics_pages()),
        ]
        for server in servers:
            await server.start()
        await self.exchange.start(c.xds_socket)
        tasks = [
            self._supervised(work)
            for work in (self.exchange.run(), self.keeper.run(), self.envoy.run())
        ]
        log.info(
            "waypoint %s of Gateway %s/%s as %s",
            metrics.build_version(), c.pod_namespace, c.gateway_name, c.identity,
        )  # fmt: skip
        await self.stop.wait()
        self.draining = True
        if self.envoy.pid and not self.failed:
            await self._drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.exchange.stop()
        for server in servers:
            server.close()
        log.info("ended")

    async def _drain(self) -> None:
        self.stop.clear()
        c = self.config
        log.info("draining: connections have %g s; a second signal cuts them", c.drain_seconds)
        draining = asyncio.ensure_future(drain(self.admin, c.minimum_drain, c.drain_seconds))
        again = asyncio.ensure_future(self.stop.wait())
        await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, again):
            task.cancel()
        await asyncio.gather(draining, again, return_exceptions=True)

    def _supervised(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run forever; what ends with an error ends the process, to be started again."""
        task = asyncio.ensure_future(work)

        def ended(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and done.exception() is not None:
                log.critical("a part of the waypoint failed", exc_info=done.exception())
                self.failed = True
                self.stop.set()

        task.add_done_callback(ended)
        return task

    # ---- pages -------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Ask Envoy whether it is live."""
        try:
            await self.admin.get("/ready", seconds=_PROBE)
            self.live = bool(self.envoy.pid)
        except Unavailable:
            self.live = False

    async def _ready_page(self, request: Request) -> Answer:
        await self._look()
        waits = [
            text
            for text, missing in (
                ("draining", self.draining),
                (self._certificate_trouble(), self.expiry < time.time()),
                (self._configuration_trouble(), not self.relay.configured),
                ("Envoy is not live", not self.live),
            )
            if missing
        ]
        if not waits:
            return Answer(b"ready\n")
        return Answer(f"not ready: {'; '.join(waits)}\n".encode(), 503)

    def _certificate_trouble(self) -> str:
        error = self.store.identities[self.config.identity].error
        return f"no valid certificate from {self.config.ca_address}: {error or 'asked for'}"

    def _configuration_trouble(self) -> str:
        refused = [f"{metrics.short(url)}: {e[:300]}" for url, e in self.relay.errors.items() if e]
        if refused:
            return f"Envoy refused its configuration ({'; '.join(refused)})"
        there = "connected" if self.exchange.connected else "not connected"
        return f"no configuration yet from {self.config.xds_address} ({there})"

    def _metrics_pages(self) -> Pages:
        return {
            ("GET", "/metrics"): self._metrics_page,
            ("GET", "/stats/prometheus"): self._metrics_page,
        }

    async def _metrics_page(self, request: Request) -> Answer:
        await self._look()
        target = metrics.EVERYTHING if self.config.all_stats else metrics.ISTIO_ONLY
        try:
            theirs = metrics.renamed(await self.admin.get(target))
        except Unavailable as e:
            log.debug("no metrics of Envoy: %s", e)
            theirs = b""
        return Answer(theirs + generate_latest(self.registry), 200, _TEXT)

    def _admin_pages(self) -> Pages:
        return {
            ("GET", "/agent"): self._agent_page,
            ("POST", "/logging"): self._logging_page,
            ("POST", "/quitquitquit"): self._quit_page,
        }

    async def _agent_page(self, request: Request) -> Answer:
        await self._look()
        identity = self.store.identities[self.config.identity]
        made = {
            "version": metrics.build_version(),
            "gateway": f"{self.config.pod_namespace}/{self.config.gateway_name}",
            "identity": self.config.identity,
            "certificate": {
                "state": identity.state(time.time()),
                "chain": [_facts(c) for c in (identity.held.chain if identity.held else ())],
                "roots": [_facts(c) for c in (identity.held.roots if identity.held else ())],
            },
            "envoy": {
                "pid": self.envoy.pid,
                "live": self.live,
                "restarts": self.envoy.restarts,
            },
            "xds": {
                "address": self.config.xds_address,
                "connected": self.exchange.connected,
                "configured": self.relay.configured,
                "rejected": {metrics.short(u): n for u, n in self.relay.rejected.items()},
                "errors": {metrics.short(u): e for u, e in self.relay.errors.items()},
                "keptBytes": self.relay.size,
                "versions": {metrics.short(u): v for u, v in self.relay.versions().items()},
            },
            "draining": self.draining,
        }
        return Answer(json.dumps(made, indent=2).encode(), 200, "application/json")

    async def _logging_page(self, request: Request) -> Answer:
        """Set our levels, and Envoy's where nothing else is said by its own parameters."""
        try:
            if "reset" in request.query:
                self.levels.reset()
            if request.query.get("level"):
                self.levels.set(request.query["level"])
        except BadInput as e:
            return Answer(f"{e}\n".encode(), 400)
        level = envoy_level(logging.getLogger("envoy").getEffectiveLevel())
        try:
            await self.admin.post(f"/logging?level={level}")
        except Unavailable as e:
            log.warning("%s", e)
        return Answer(f"current log level is {self.levels}; Envoy's {level}\n".encode())

    async def _quit_page(self, request: Request) -> Answer:
        self.stop.set()
        return Answer(b"shutdown now\n")

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await self.admin.pass_on(head, reader, writer)
        except Unavailable as e:
            writer.write(render(Answer(f"{e}\n".encode(), 503), True))


def _facts(c: Any) -> dict[str, Any]:
    return {"serial": c.serial, "notBefore": c.not_before, "notAfter": c.not_after}


async def _main(config: Config, levels: logs.Levels) -> int:
    waypoint = Waypoint(config, levels)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, waypoint.stop.set)
    gc.collect()
    gc.freeze()  # what start-up made stays: do not look at it again
    await waypoint.run()
    return 1 if waypoint.failed else 0


def _tune_process() -> None:
    # Two or three threads that do little need no memory arenas of their own.
    with contextlib.suppress(AttributeError):  # glibc's alone
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    # For Envoy, which inherits it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 after a drain, 1 after a failure, 2 when the configuration is wrong."""
    parser = argparse.ArgumentParser(
        prog="ambit-waypoint",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "The process in a waypoint's pod: runs Envoy, gets its certificate from the CA of the\n"
            "mesh, and relays its configuration from the control plane. Configured by environment\n"
            "variables. SIGTERM drains: requests may finish, new ones are for other pods."
        ),
        epilog=help_text(),
    )
    parser.parse_args(argv)
    _tune_process()
    try:
        config = from_environment(os.environ, this_machine())
        levels = logs.setup(config.log_level, config.log_json, _SCOPES)
        with RunFolder(config.run_dir):
            return asyncio.run(_main(config, levels))
    except (ConfigError, BadInput) as e:
        sys.stderr.write(f"ambit-waypoint: {e}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())

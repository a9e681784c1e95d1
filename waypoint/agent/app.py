"""ambit-waypoint: the process in a waypoint's pod. Wires the parts; decides nothing."""

from __future__ import annotations

import os

# Envoy is started from here while gRPC's threads run; its fork handlers are not needed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from mesh import logs, process
from mesh.ca.client import CaClient, CertKeeper
from mesh.ca.held import Held
from mesh.ca.store import CertStore
from mesh.errors import BadInput, ConfigError
from mesh.ports import INBOUND_HBONE
from mesh.xds.client import Node, Upstream, node_metadata
from waypoint.agent import metrics
from waypoint.agent.admin import EnvoyAdmin
from waypoint.agent.bootstrap import arguments, bootstrap
from waypoint.agent.config import Config, from_environment, help_text, this_machine
from waypoint.agent.drain import drain
from waypoint.agent.envoy import EnvoyProcess
from waypoint.agent.exchange import Exchange
from waypoint.agent.folder import RunFolder
from waypoint.agent.pages import Parts, Views
from waypoint.agent.parking import Parking
from waypoint.agent.relay import Relay
from waypoint.agent.secrets import secrets

log = logging.getLogger("waypoint")

_RETURN_TURN: Final = 0.02  # seconds between two looks whether another Envoy serves
_RETURN_MOST: Final = 10.0  # seconds that callers wait for one, as long as node proxies dial


class Waypoint:
    """All parts of one process."""

    def __init__(self, config: Config, levels: logs.Levels) -> None:
        self.failed = False
        self.relay = Relay()
        self.store = CertStore(random.random)
        identity = self.store.acquire(config.identity, "this pod", time.time())
        self.metrics = metrics.ProcessMetrics(self._state)
        self._bootstrap = bootstrap(config, node_metadata(os.environ))
        self.exchange = self._exchange(config)
        self.keeper = self._keeper(config)
        self.parking = Parking([("0.0.0.0", INBOUND_HBONE), ("::", INBOUND_HBONE)])
        self._returns = asyncio.Event()
        envoy = EnvoyProcess(
            self._arguments,
            self.exchange.envoy_started,
            self._envoy_ended,
            self._envoy_keeps_ending,
        )
        admin = EnvoyAdmin(config.admin_socket)
        self.parts = Parts(config, levels, identity, self.exchange, envoy, admin, asyncio.Event())

    def _exchange(self, c: Config) -> Exchange:
        node = self._bootstrap["node"]
        headers = {"clusterid": c.cluster_id, **c.headers["xds"]}
        return Exchange(
            Upstream(c.xds_address, c.xds_root_ca, c.auth_token, headers),
            Node(node["id"], node["metadata"], node["cluster"]),
            self.metrics,
            self.relay,
            ipv6=socket.has_dualstack_ipv6(),
        )

    def _keeper(self, c: Config) -> CertKeeper:
        headers = {"clusterid": c.cluster_id, **c.headers["ca"]}
        upstream = Upstream(c.ca_address, c.ca_root_ca, c.auth_token, headers)
        issuer = CaClient(upstream, c.secret_ttl, impersonate=False)
        return CertKeeper(self.store, issuer, self._certificate)

    def _certificate(self, held: Held) -> None:
        self.exchange.set_secrets(secrets(held.certificate))

    def _state(self) -> metrics.State:
        p = self.parts
        return metrics.State(
            envoy_live=p.live,
            envoy_restarts=p.envoy.restarts,
            connected=self.exchange.connected,
            rejected=self.relay.rejected,
            kept={url: len(names) for url, names in self.relay.versions().items()},
            certificate_expiry=p.expiry,
            draining=p.draining,
        )

    def _arguments(self) -> Sequence[str]:
        p = self.parts
        return arguments(p.config, json.dumps(self._bootstrap), p.envoy_log_level())

    def _envoy_ended(self) -> None:
        self.parking.park()
        self._returns.set()

    async def _watch_return(self) -> None:
        """Let callers through to Envoy as soon as there is another one."""
        while True:
            await self._returns.wait()
            self._returns.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETURN_MOST):
                    await self._returned()
            self.parking.release()

    async def _returned(self) -> None:
        # Envoy tells nobody when it is live.
        while not (self.relay.configured and await self.parts.envoy_live()):  # noqa: ASYNC110
            await asyncio.sleep(_RETURN_TURN)

    def _envoy_keeps_ending(self) -> None:
        if self.exchange.connected:
            log.error("Envoy keeps ending: what it was given last is dropped and asked for anew")
            self.exchange.forget()

    # ---- running -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until told to stop, then drain."""
        p, c = self.parts, self.parts.config
        servers = Views(p, self.metrics).servers()
        for server in servers:
            await server.start()
        await self.exchange.start(c.xds_socket)
        tasks = [
            process.supervised(work, self._part_failed)
            for work in (
                self.exchange.run(),
                self.keeper.run(),
                p.envoy.run(),
                self._watch_return(),
            )
        ]
        log.info(
            "waypoint %s of Gateway %s/%s as %s",
            metrics.build_version(), c.pod_namespace, c.gateway_name, c.identity,
        )  # fmt: skip
        await p.stop.wait()
        p.draining = True
        if p.envoy.pid and not self.failed:
            await self._drain()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.exchange.stop()
        self.parking.release()
        for server in servers:
            server.close()
        log.info("ended")

    async def _drain(self) -> None:
        p, c = self.parts, self.parts.config
        p.stop.clear()
        log.info("draining: connections have %g s; a second signal cuts them", c.drain_seconds)
        draining = asyncio.ensure_future(drain(p.admin, c.minimum_drain, c.drain_seconds))
        again = asyncio.ensure_future(p.stop.wait())
        await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, again):
            task.cancel()
        await asyncio.gather(draining, again, return_exceptions=True)

    def _part_failed(self, error: BaseException) -> None:
        """End the process, to be started again: all parts run forever."""
        log.critical("a part of the waypoint failed", exc_info=error)
        self.failed = True
        self.parts.stop.set()


async def _main(config: Config, levels: logs.Levels) -> int:
    waypoint = Waypoint(config, levels)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, waypoint.parts.stop.set)
    gc.collect()
    gc.freeze()  # what start-up made stays: do not look at it again
    await waypoint.run()
    return 1 if waypoint.failed else 0


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
    process.tune()
    try:
        config = from_environment(os.environ, this_machine())
        levels = logs.setup(config.log_level, config.log_json)
        with RunFolder(config.run_dir):
            return asyncio.run(_main(config, levels))
    except (ConfigError, BadInput) as e:
        sys.stderr.write(f"ambit-waypoint: {e}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())

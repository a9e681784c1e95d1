"""What a waypoint says of itself: ready or why not, metrics, its state, Envoy's own pages."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from mesh import logs
from mesh.ca.held import CertificateFacts
from mesh.ca.store import Identity
from mesh.errors import BadInput, Unavailable
from mesh.web import Answer, Pages, Request, WebServer, render
from waypoint.agent import metrics
from waypoint.agent.admin import EnvoyAdmin
from waypoint.agent.bootstrap import envoy_level
from waypoint.agent.config import Config
from waypoint.agent.envoy import EnvoyProcess
from waypoint.agent.exchange import Exchange

log = logging.getLogger(__name__)

_PROBE: Final = 1.0  # seconds that Envoy has to say whether it is live
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_JSON: Final = "application/json"
_SHOWN: Final = 300  # characters of an error on the readiness page


@dataclass(slots=True)
class Parts:
    """What is told of."""

    config: Config
    levels: logs.Levels
    identity: Identity
    exchange: Exchange
    envoy: EnvoyProcess
    admin: EnvoyAdmin
    stop: asyncio.Event
    draining: bool = False
    live: bool = False  # as Envoy last said

    @property
    def expiry(self) -> float:
        """When the certificate in use ends, unix seconds; 0 without one."""
        held = self.identity.held
        return held.certificate.not_after if held else 0.0

    async def envoy_live(self) -> bool:
        """Ask Envoy whether it is live."""
        try:
            await self.admin.get("/ready", seconds=_PROBE)
            self.live = bool(self.envoy.pid)
        except Unavailable:
            self.live = False
        return self.live

    def envoy_log_level(self) -> str:
        """Name Envoy's level in force: that of the scope `envoy`."""
        return envoy_level(logging.getLogger("envoy").getEffectiveLevel())


class Views:
    """The pages of three servers."""

    def __init__(self, parts: Parts, process: metrics.ProcessMetrics) -> None:
        self._parts = parts
        self._registry = CollectorRegistry()
        self._registry.register(process)
        ProcessCollector(registry=self._registry)

    def servers(self) -> list[WebServer]:
        """Build the servers; start them."""
        c = self._parts.config
        admin: Pages = {
            ("GET", "/agent"): self.agent,
            ("POST", "/logging"): self.logging,
            ("POST", "/quitquitquit"): self.quit,
        }
        return [
            WebServer(c.admin, admin, self.pass_on),
            WebServer(c.ready, {("GET", "/healthz/ready"): self.ready}),
            WebServer(
                c.metrics,
                {("GET", "/metrics"): self.metrics, ("GET", "/stats/prometheus"): self.metrics},
            ),
        ]

    async def ready(self, request: Request) -> Answer:
        """Say ready, or all that it waits for."""
        p = self._parts
        live = await p.envoy_live()
        waits = [
            text
            for text, missing in (
                ("draining", p.draining),
                (self._certificate_trouble(), p.expiry < time.time()),
                (self._configuration_trouble(), not p.exchange.relay.configured),
                ("Envoy is not live", not live),
            )
            if missing
        ]
        if not waits:
            return Answer(b"ready\n")
        return Answer(f"not ready: {'; '.join(waits)}\n".encode(), 503)

    def _certificate_trouble(self) -> str:
        p = self._parts
        error = p.identity.error[:_SHOWN] or "asked for"
        return f"no valid certificate from {p.config.ca_address}: {error}"

    def _configuration_trouble(self) -> str:
        p = self._parts
        errors = p.exchange.relay.errors
        if errors:
            refused = (f"{metrics.short(url)}: {e[:_SHOWN]}" for url, e in errors.items())
            return f"Envoy refused its configuration ({'; '.join(refused)})"
        there = "connected" if p.exchange.connected else "not connected"
        return f"no configuration yet from {p.config.xds_address} ({there})"

    async def metrics(self, request: Request) -> Answer:
        """Show Istio's metrics out of Envoy, and our own."""
        p = self._parts
        await p.envoy_live()
        target = metrics.EVERYTHING if p.config.all_stats else metrics.ISTIO_ONLY
        try:
            theirs = metrics.renamed(await p.admin.get(target))
        except Unavailable as e:
            log.debug("no metrics of Envoy: %s", e)
            theirs = b""
        return Answer(theirs + generate_latest(self._registry), 200, _TEXT)

    async def agent(self, request: Request) -> Answer:
        """Show this process's state."""
        p, relay = self._parts, self._parts.exchange.relay
        held = p.identity.held
        made = {
            "version": metrics.build_version(),
            "gateway": f"{p.config.pod_namespace}/{p.config.gateway_name}",
            "identity": p.config.identity,
            "certificate": {
                "state": p.identity.state(time.time()),
                "chain": [_facts(c) for c in held.chain] if held else [],
                "roots": [_facts(c) for c in held.roots] if held else [],
            },
            "envoy": {
                "pid": p.envoy.pid,
                "live": await p.envoy_live(),
                "restarts": p.envoy.restarts,
            },
            "xds": {
                "address": p.config.xds_address,
                "connected": p.exchange.connected,
                "configured": relay.configured,
                "rejected": {metrics.short(u): n for u, n in relay.rejected.items()},
                "errors": {metrics.short(u): e for u, e in relay.errors.items()},
                "keptBytes": relay.size,
                "versions": {metrics.short(u): v for u, v in relay.versions().items()},
            },
            "draining": p.draining,
        }
        return Answer(json.dumps(made, indent=2).encode(), 200, _JSON)

    async def logging(self, request: Request) -> Answer:
        """Change levels, Envoy's too (scope `envoy`)."""
        p = self._parts
        try:
            if "reset" in request.query:
                p.levels.reset()
            if request.query.get("level"):
                p.levels.set(request.query["level"])
        except BadInput as e:
            return Answer(f"{e}\n".encode(), 400)
        try:
            await p.admin.post(f"/logging?level={p.envoy_log_level()}")
        except Unavailable as e:
            log.warning("%s", e)  # the next Envoy is started with it
        text = f"current log level is {p.levels}; Envoy's {p.envoy_log_level()}\n"
        return Answer(text.encode())

    async def quit(self, request: Request) -> Answer:
        """Drain and end, as on SIGTERM."""
        self._parts.stop.set()
        return Answer(b"shutdown now\n")

    async def pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Have Envoy answer."""
        try:
            await self._parts.admin.pass_on(head, reader, writer)
        except Unavailable as e:
            writer.write(render(Answer(f"{e}\n".encode(), 503), True))


def _facts(c: CertificateFacts) -> dict[str, Any]:
    return {"serial": c.serial, "notBefore": c.not_before, "notAfter": c.not_after}

"""trafficPolicy of a DestinationRule, read block by block.

A block that is written replaces the whole block of what it inherits from; so does Istio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from waypoint.config.istio.balancing import Balance, read_balance
from waypoint.config.istio.tls import Tls, read_tls
from waypoint.config.reading import Fields
from waypoint.config.traffic import Outliers, Pool, RetryBudget

_U32: Final = (1 << 32) - 1
_PORTS: Final = (1, 65535)

_NO_TUNNEL: Final = "not supported: the waypoint opens its own tunnels (HBONE)"
_NO_PROXY_PROTOCOL: Final = "not supported: backends are reached without a PROXY header"


@dataclass(frozen=True, slots=True)
class Blocks:
    """What one trafficPolicy says; None is not written."""

    balance: Balance | None = None
    pool: Pool | None = None
    outliers: Outliers | None = None
    tls: Tls | None = None
    budget: RetryBudget | None = None

    def under(self, over: Blocks, *, whole: bool = False) -> Blocks:
        """Lay another policy over this one; `whole`: ports' settings inherit no block."""
        budget = over.budget or self.budget
        if whole:
            return Blocks(over.balance, over.pool, over.outliers, over.tls, budget)
        return Blocks(
            over.balance or self.balance,
            over.pool or self.pool,
            over.outliers or self.outliers,
            over.tls or self.tls,
            budget,
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """A trafficPolicy: for all ports, and for some of their own."""

    blocks: Blocks = Blocks()
    ports: tuple[tuple[int, Blocks], ...] = ()

    def at(self, port: int | None) -> tuple[Blocks, bool]:
        """The blocks for a port, and whether they are its own."""
        own = dict(self.ports).get(port) if port is not None else None
        return (self.blocks, False) if own is None else (own, True)


def _limit(f: Fields, name: str) -> int | None:
    """Read a limit, where 0 means the default (proto3 cannot tell 0 from unset)."""
    return f.integer(name, 0, _U32) or None


def _keepalive(f: Fields) -> tuple[int | None, float | None, float | None]:
    found = (_limit(f, "probes"), f.duration("time"), f.duration("interval"))
    f.done()
    return found


def _read_pool(f: Fields) -> Pool:
    empty = Fields({}, f.path, f.report)
    tcp, http = f.mapping("tcp") or empty, f.mapping("http") or empty
    idle_tcp, idle = tcp.duration("idleTimeout", zero=True), http.duration("idleTimeout", zero=True)
    upgrade = http.choice("h2UpgradePolicy", "DEFAULT", "DO_NOT_UPGRADE", "UPGRADE")
    pool = Pool(
        max_connections=_limit(tcp, "maxConnections"),
        connect_timeout=tcp.duration("connectTimeout"),
        tcp_keepalive=tcp.inner("tcpKeepalive", _keepalive),
        idle_timeout=idle_tcp if idle is None else idle,
        max_connection_duration=tcp.duration("maxConnectionDuration"),
        max_pending_requests=_limit(http, "http1MaxPendingRequests"),
        max_requests=_limit(http, "http2MaxRequests"),
        max_requests_per_connection=_limit(http, "maxRequestsPerConnection"),
        max_retries=_limit(http, "maxRetries"),
        upgrade_to_h2={"UPGRADE": True, "DO_NOT_UPGRADE": False}.get(upgrade),
        max_concurrent_streams=_limit(http, "maxConcurrentStreams"),
    )
    if http.boolean("useClientProtocol"):
        http.skip("not needed: a waypoint speaks the client's protocol", "useClientProtocol")
    http.skip("not supported: HBONE connections have their own keepalive", "http2KeepAlive")
    for part in (tcp, http, f):
        part.done()
    return pool


def _read_outliers(f: Fields) -> Outliers:
    if f.has("consecutiveErrors"):
        f.skip("not supported: use consecutive5xxErrors", "consecutiveErrors")
    f.skip(
        "not supported: 5xx answers count (consecutive5xxErrors) or 502, 503 and 504"
        " (consecutiveGatewayErrors)",
        "outlierDetectionHttpErrorCodes",
    )
    found = Outliers(
        consecutive_5xx=f.integer("consecutive5xxErrors", 0, _U32),
        consecutive_gateway_errors=f.integer("consecutiveGatewayErrors", 0, _U32),
        consecutive_local_failures=f.integer("consecutiveLocalOriginFailures", 0, _U32),
        split_local_errors=f.boolean("splitExternalLocalOriginErrors") or False,
        interval=f.duration("interval"),
        base_ejection=f.duration("baseEjectionTime"),
        max_ejection_percent=f.integer("maxEjectionPercent", 0, 100) or None,
        # Never "panic" by default: services here have few endpoints (Istio does the same).
        min_health_percent=f.integer("minHealthPercent", 0, 100) or 0,
    )
    f.done()
    return found


def _read_budget(f: Fields) -> RetryBudget:
    percent = f.number("percent", 0, 100)
    minimum = f.integer("minRetryConcurrency", 0, _U32)
    f.skip("not supported: the share is of what is active at the moment", "budgetInterval")
    f.done()
    return RetryBudget(20.0 if percent is None else percent, minimum or 3)


def _read_blocks(f: Fields, *, with_budget: bool) -> Blocks:
    return Blocks(
        balance=f.inner("loadBalancer", read_balance),
        pool=f.inner("connectionPool", _read_pool),
        outliers=f.inner("outlierDetection", _read_outliers),
        tls=f.inner("tls", read_tls),
        budget=f.inner("retryBudget", _read_budget) if with_budget else None,
    )


def read_policy(f: Fields) -> Policy:
    """Read a trafficPolicy; what is wrong is reported and read as not written."""
    blocks = _read_blocks(f, with_budget=True)
    ports: dict[int, Blocks] = {}
    for entry in f.each("portLevelSettings"):
        selector = entry.mapping("port")
        number = selector.integer("number", *_PORTS) if selector else None
        if selector is not None:
            selector.done()
        if number is None:
            entry.bad("port", "must have the number of a service port")
        elif number in ports:
            entry.bad("port", f"{number} has settings already: these are not used")
        own = _read_blocks(entry, with_budget=False)
        entry.done()
        if number is not None:
            ports.setdefault(number, own)
    f.skip(_NO_TUNNEL, "tunnel")
    f.skip(_NO_PROXY_PROTOCOL, "proxyProtocol")
    f.done()
    return Policy(blocks, tuple(sorted(ports.items())))

"""loadBalancer of a DestinationRule."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final

from waypoint.config.reading import Fields, show
from waypoint.config.traffic import Balancing, ConsistentHash, LocalityBalancing

# Envoy's bounds (config.cluster.v3.Cluster.RingHashLbConfig, MaglevLbConfig).
_MAX_RING: Final = 8 * 1024 * 1024
_MAX_TABLE: Final = 5_000_011
_MAX_NAME: Final = 256
_MAX_PLACES: Final = 256
_MAX_LABELS: Final = 24  # of five distances each: Envoy has 128 priorities
_PLACES: Final = frozenset(
    {"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}
)
# A label's key with its domain, and its value (Kubernetes' labels.IsQualifiedName, loosely).
_LABEL: Final = re.compile(r"[A-Za-z0-9./_-]{1,317}(=[A-Za-z0-9._-]{0,63})?")

_SIMPLE: Final[dict[str, Balancing]] = {
    "LEAST_CONN": "least_request",
    "LEAST_REQUEST": "least_request",
    "RANDOM": "random",
    "ROUND_ROBIN": "round_robin",
}
_NO_WARMUP: Final = "has no effect: only ROUND_ROBIN and LEAST_REQUEST can warm up"
_KEYS: Final = ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName")


@dataclass(frozen=True, slots=True)
class Balance:
    """What a loadBalancer says."""

    balancing: Balancing = "least_request"
    hash: ConsistentHash | None = None
    warmup: float | None = None
    locality: LocalityBalancing | None = None
    path: str = field(default="", compare=False)  # of the loadBalancer

    @property
    def fails_over(self) -> bool:
        """Say whether it has what works by outlierDetection only."""
        found = self.locality
        return (
            found is not None and found.enabled and bool(found.failover + found.failover_priority)
        )


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _read_cookie(f: Fields) -> ConsistentHash | None:
    name, path = f.text("name"), f.text("path")
    ttl = f.duration("ttl", zero=True)
    f.skip("not supported: the cookie has a name, a path and a ttl", "attributes")
    if not name or len(name) > _MAX_NAME:
        f.bad("name", f"a cookie needs a name of at most {_MAX_NAME} characters")
        name = ""
    f.done()
    return ConsistentHash(cookie=name, cookie_path=path, cookie_ttl=ttl) if name else None


def _read_key(f: Fields) -> ConsistentHash | None:
    header, query = f.text("httpHeaderName"), f.text("httpQueryParameterName")
    source, cookie = f.boolean("useSourceIp"), f.inner("httpCookie", _read_cookie)
    if sum(map(f.has, _KEYS)) != 1:
        f.report.bad(f.path, f"set exactly one of {', '.join(_KEYS)}")
        return None
    if f.has("httpCookie"):
        return cookie
    if len(header) > _MAX_NAME or len(query) > _MAX_NAME:
        f.report.bad(f.path, f"a name may have {_MAX_NAME} characters")
        return None
    if not (header or query or source):
        f.report.bad(f.path, "says nothing to tell requests apart by")
        return None
    return ConsistentHash(header=header.lower(), query=query, source_ip=bool(source))


def _read_hash(f: Fields) -> ConsistentHash | None:
    found = _read_key(f)
    ring, maglev = f.mapping("ringHash"), f.mapping("maglev")
    size = f.integer("minimumRingSize", 0, _MAX_RING)  # deprecated, still written
    table = None
    if ring is not None:
        size = ring.integer("minimumRingSize", 0, _MAX_RING) or size
        ring.done()
    if maglev is not None:
        table = maglev.integer("tableSize", 0, _MAX_TABLE) or None
        if table is not None and not _is_prime(table):
            maglev.bad("tableSize", f"{table} is not a prime number: Envoy's own size is used")
            table = None
        maglev.done()
    if ring is not None and maglev is not None:
        f.report.bad(f.path, "set ringHash or maglev, not both: ringHash is used")
        maglev = None
    f.done()
    if found is None:
        return None
    if maglev is not None:
        return replace(found, maglev=True, table_size=table)
    return replace(found, minimum_ring_size=size or None)


def _is_place(text: str) -> bool:
    """Say whether text is region, region/zone or region/zone/subzone, `*` at the end or alone."""
    parts = text.split("/")
    body = parts[:-1] if parts[-1] == "*" else parts
    return 1 <= len(parts) <= 3 and all(p and "*" not in p for p in body)


def _overlap(a: str, b: str) -> bool:
    """Say whether some place is both; what is left out is any."""
    pairs = zip(a.split("/"), b.split("/"), strict=False)
    return all(x == y or "*" in (x, y) for x, y in pairs)


def _read_shares(f: Fields) -> tuple[tuple[str, int], ...] | None:
    """Read `to`: places and their weights; None if any of them is wrong, which is then said."""
    to = f.mapping("to")
    if to is None or not to.value:
        if to is None or to.sound:
            f.bad("to", "must have places and their weights")
        return None
    shares: dict[str, int] = {}
    for place in sorted(to.names()):
        weight = to.integer(place, 1, 100)
        other = next((p for p in shares if _overlap(p, place)), None)
        if not _is_place(place):
            f.bad("to", f"{show(place)} is not a place (region/zone/*)")
        elif other is not None:
            f.bad("to", f"{show(place)} and {show(other)} have places in common")
        elif weight is not None:
            shares[place] = weight
    if len(shares) < len(to.names()):
        return None
    if sum(shares.values()) != 100:
        f.bad("to", f"weights must add up to 100, not {sum(shares.values())}")
        return None
    return tuple(shares.items())


def _read_distribute(setting: Fields) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for f in setting.each("distribute"):
        origin, shares = f.text("from"), _read_shares(f)
        f.done()
        other = next((p for p in found if _overlap(p, origin)), None)
        if not _is_place(origin):
            f.bad("from", f"{show(origin)} is not a place (region/zone/*)")
        elif other is not None:
            f.bad("from", f"{show(origin)} and {show(other)} have places in common: not used")
        elif shares is not None:
            found[origin] = shares
    return tuple(found.items())


def _read_failover(setting: Fields) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for f in setting.each("failover"):
        origin, to = f.text("from"), f.text("to")
        f.done()
        if not origin or not to or origin == to or "/" in origin + to or "*" in origin + to:
            f.report.bad(f.path, "from and to must be two different regions")
        elif origin in found:
            f.bad("from", f"{show(origin)} fails over to {show(found[origin])} already: not used")
        else:
            found[origin] = to
    return tuple(found.items())


def _read_priority(setting: Fields) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for path, text in setting.items("failoverPriority"):
        label = text.partition("=")[0] if isinstance(text, str) else ""
        if not isinstance(text, str) or not _LABEL.fullmatch(text):
            setting.report.bad(path, f"{show(text)} is neither a label nor label=value")
        elif label in found:
            setting.report.bad(path, f"{show(label)} is there already: not used")
        else:
            found[label] = text
    return tuple(found.values())


def _read_locality(f: Fields) -> LocalityBalancing:
    enabled = f.boolean("enabled")
    distribute, failover, priority = _read_distribute(f), _read_failover(f), _read_priority(f)
    f.done()
    if distribute:
        for name, there in (("failover", failover), ("failoverPriority", priority)):
            if there:
                f.bad(name, "not both: beside distribute it is not used")
        failover, priority = (), ()
    if failover and any(text.partition("=")[0] in _PLACES for text in priority):
        f.bad("failover", "not both: beside labels of places in failoverPriority it is not used")
        failover = ()
    for what, most in ((distribute, _MAX_PLACES), (failover, _MAX_PLACES), (priority, _MAX_LABELS)):
        if len(what) > most:
            f.report.bad(f.path, f"more than {most} entries: the rest is not used")
    return LocalityBalancing(
        enabled=enabled is not False,
        distribute=distribute[:_MAX_PLACES],
        failover=failover[:_MAX_PLACES],
        failover_priority=priority[:_MAX_LABELS],
    )


def _read_warmup(f: Fields) -> float | None:
    seconds = f.duration("duration")
    if not f.has("duration"):
        f.bad("duration", "must be set")
    f.skip("not supported: Envoy's own curve is used", "minimumPercent", "aggression")
    f.done()
    return seconds


def read_balance(f: Fields) -> Balance:
    """Read a loadBalancer; what is wrong is reported and read as not written."""
    simple = f.choice("simple", "UNSPECIFIED", "PASSTHROUGH", *_SIMPLE)
    hashed = f.has("consistentHash")
    if simple == "PASSTHROUGH":
        f.skip(
            "PASSTHROUGH is not supported: a waypoint is given the service's address, and must"
            " pick an endpoint (LEAST_REQUEST)",
            "simple",
        )
    if simple and hashed:
        f.report.bad(f.path, "set simple or consistentHash, not both: consistentHash is used")
    f.skip("not supported: use localityLbSetting", "zoneAwareLbSetting")
    warmup = f.duration("warmupDurationSecs")  # deprecated, still written
    if f.has("warmup"):
        warmup = f.inner("warmup", _read_warmup)
    found = Balance(
        balancing=_SIMPLE.get(simple, "least_request"),
        hash=f.inner("consistentHash", _read_hash),
        warmup=warmup,
        locality=f.inner("localityLbSetting", _read_locality),
        path=f.path,
    )
    if warmup is not None and (hashed or simple == "RANDOM"):
        f.skip(
            "has no effect: only ROUND_ROBIN and LEAST_REQUEST can warm up",
            "warmup",
            "warmupDurationSecs",
        )
        found = replace(found, warmup=None)
    f.done()
    return found

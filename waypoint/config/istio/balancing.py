"""loadBalancer of a DestinationRule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from waypoint.config.reading import Fields
from waypoint.config.traffic import Balancing, ConsistentHash, LocalityBalancing

# Envoy's bounds (config.cluster.v3.Cluster.RingHashLbConfig, MaglevLbConfig).
_MAX_RING: Final = 8 * 1024 * 1024
_MAX_TABLE: Final = 5_000_011
_MAX_NAME: Final = 256
_MAX_PLACES: Final = 256

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


def _read_distribute(f: Fields) -> tuple[str, tuple[tuple[str, int], ...]] | None:
    origin, to = f.text("from"), f.mapping("to")
    weights = {name: to.integer(name, 1, 100) for name in to.names()} if to else {}
    f.done()
    for place in (origin, *weights):
        if not _is_place(place):
            f.report.bad(f.path, f"{place[:80]!r} is not a place (region/zone/*)")
            return None
    shares = tuple((place, w) for place, w in sorted(weights.items()) if w is not None)
    if sum(w for _, w in shares) != 100:
        f.bad("to", "weights must add up to 100")
        return None
    return origin, shares


def _read_failover(f: Fields) -> tuple[str, str] | None:
    origin, to = f.text("from"), f.text("to")
    f.done()
    if not origin or not to or origin == to or "/" in origin + to or "*" in origin + to:
        f.report.bad(f.path, "from and to must be two different regions")
        return None
    return origin, to


def _read_locality(f: Fields) -> LocalityBalancing:
    enabled = f.boolean("enabled")
    distribute = [d for entry in f.each("distribute") if (d := _read_distribute(entry))]
    failover = [r for entry in f.each("failover") if (r := _read_failover(entry))]
    priority = f.texts("failoverPriority")
    if distribute and (failover or priority):
        f.report.bad(f.path, "set distribute or failover, not both: distribute is used")
        failover, priority = [], ()
    for what in (distribute, failover, priority):
        if len(what) > _MAX_PLACES:
            f.report.bad(f.path, f"more than {_MAX_PLACES} entries: the rest is not used")
    f.done()
    return LocalityBalancing(
        enabled=enabled is not False,
        distribute=tuple(distribute[:_MAX_PLACES]),
        failover=tuple(failover[:_MAX_PLACES]),
        failover_priority=priority[:_MAX_PLACES],
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
    )
    if found.locality is not None and found.locality.enabled:
        f.skip("has no effect yet: all localities are used alike", "localityLbSetting")
    if warmup is not None and (hashed or simple == "RANDOM"):
        f.skip(
            "has no effect: only ROUND_ROBIN and LEAST_REQUEST can warm up",
            "warmup",
            "warmupDurationSecs",
        )
        found = replace(found, warmup=None)
    f.done()
    return found

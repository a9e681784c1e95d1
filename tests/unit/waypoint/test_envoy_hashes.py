"""Routes tell requests apart by what each of their backends balances by."""

from __future__ import annotations

from typing import Any

from mesh.manifest import Key
from mesh.model import Port, Service
from waypoint.config.envoy.routes import route_configuration
from waypoint.config.model import Bound
from waypoint.config.routing import BackendRef, HttpRule, Routes, WeightedBackend
from waypoint.config.traffic import ConsistentHash, ServiceTraffic, Subset, TrafficPolicy

WEB = Service("web", "shop", "web.shop.svc.cluster.local", ports=(Port(80, 8080, 1),))
OTHER = "shop/other.shop.svc.cluster.local"


def by(header: str) -> TrafficPolicy:
    return TrafficPolicy(hash=ConsistentHash(header=header))


def headers_of(*refs: BackendRef) -> list[str]:
    """The headers that a rule for these backends hashes by."""
    rule = HttpRule(
        Key("VirtualService", "shop", "v"), "r", backends=tuple(map(WeightedBackend, refs))
    )
    bound = Bound(
        WEB,
        ((80, Routes(http=(rule,))),),
        traffic=ServiceTraffic(by("x-own"), subsets=(Subset("v1", (), by("x-subset")),)),
        hashes=((BackendRef(OTHER, 80), by("x-other")),),
    )
    configuration: dict[str, Any] = route_configuration(bound, WEB.ports[0])
    (route,) = configuration["virtual_hosts"][0]["routes"]
    return [h["header"]["header_name"] for h in route["route"].get("hash_policy", [])]


def test_each_backend_s_own() -> None:
    assert headers_of(BackendRef(WEB.key, 80)) == ["x-own"]
    assert headers_of(BackendRef(WEB.key, 80, "v1")) == ["x-subset"]
    assert headers_of(BackendRef(OTHER, 80)) == ["x-other"]
    assert headers_of(BackendRef(OTHER, 81)) == []


def test_several_together_each_once() -> None:
    refs = (BackendRef(WEB.key, 80), BackendRef(WEB.key, 80), BackendRef(OTHER, 80))
    assert headers_of(*refs) == ["x-own", "x-other"]

"""All of what Envoy is sent for a waypoint, as readable files, and taken by the real Envoy.

REFRESH_GOLDEN=1 writes the expected files anew; look at the difference before committing it.
What does not depend on services (tunnels in and out, access logs) is in plain.yaml only,
and access logs in that and logs.yaml.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy_rig import SERVICE, ref, rule, to
from envoy_verdict import WAYPOINT, verdict

from mesh.manifest import Key
from mesh.model import Locality, Port, Service
from mesh.xds.types import CLUSTER
from waypoint.config.access_logs import AccessLog
from waypoint.config.envoy.names import CONNECT_ORIGINATE, CONNECT_TERMINATE, MAIN_INTERNAL
from waypoint.config.envoy.pack import unpack
from waypoint.config.envoy.translate import waypoint_resources
from waypoint.config.locality import NOWHERE, REGION, ZONE, Place
from waypoint.config.model import Backend, Bound, BoundWorkload, Endpoint, Waypoint
from waypoint.config.routing import (
    BackendRef,
    Cors,
    DirectResponse,
    Fault,
    HeaderChange,
    HttpRule,
    Mirror,
    PathMatch,
    Redirect,
    Retry,
    Rewrite,
    RouteMatch,
    Routes,
    Session,
    TcpRule,
    TextMatch,
    WeightedBackend,
)
from waypoint.config.traffic import (
    DEFAULT,
    ConsistentHash,
    LocalityBalancing,
    Outliers,
    Pool,
    ServiceTraffic,
    Subset,
    TrafficPolicy,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "waypoint"
FIXED = (CONNECT_TERMINATE, CONNECT_ORIGINATE)
SECTIONS = ("Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment")
ORIGIN = Key("TCPRoute", "shop", "r")
RETRY = Retry(3, (503,), backoff=0.025, per_try_timeout=1.0, other_places=True)


@dataclass(frozen=True)
class Scenario:
    """What a waypoint serves."""

    bound: tuple[Bound, ...] = ()
    backends: tuple[Backend, ...] = ()
    workloads: tuple[BoundWorkload, ...] = ()
    place: Place = NOWHERE
    waypoint: Waypoint = WAYPOINT


def service(name: str, vip: str, *ports: tuple[int, int]) -> Service:
    """A service; ports are (number, istio.workload.AppProtocol)."""
    return Service(
        name=name,
        namespace="shop",
        hostname=f"{name}.shop.svc.cluster.local",
        vips=(vip,),
        ports=tuple(Port(n, n + 8000, protocol) for n, protocol in ports),
    )


WEB = service("web", "10.0.0.1", (80, 1))
A = service("a", "10.0.0.2", (80, 1))
B = service("b", "10.0.0.3", (80, 1))
MIXED = service("mixed", "10.0.0.4", (80, 1), (90, 3), (99, 0), (443, 5), (5432, 4))


def endpoint(last: int, port: int = 8080, **more: Any) -> Endpoint:
    """One in the mesh."""
    identity = "spiffe://cluster.local/ns/shop/sa/app"
    return Endpoint(f"10.1.0.{last}", port, identity, namespace="shop", **more)


def backend(of: Service, traffic: ServiceTraffic = DEFAULT, *used: BackendRef) -> Backend:
    """A service with two endpoints, the second one outside of the mesh."""
    endpoints = tuple(
        (p.service_port, (endpoint(1, p.target_port), Endpoint("10.1.0.9", p.target_port)))
        for p in of.ports
    )
    return Backend(of, traffic, endpoints, used)


def _plain() -> Scenario:
    return Scenario((Bound(WEB),), (backend(WEB),))


def _protocols() -> Scenario:
    routes = (
        (
            443,
            Routes(
                tcp=(
                    TcpRule(ORIGIN, "r.0", (to("a"),), ("a.example", "*.b.example")),
                    TcpRule(ORIGIN, "r.1", (to("b"),), source_namespaces=("other",)),
                )
            ),
        ),
        (5432, Routes(tcp=(TcpRule(ORIGIN, "r.2", (to("a", 3), WeightedBackend(None))),))),
    )
    return Scenario((Bound(MIXED, routes),), (backend(MIXED), backend(A), backend(B)))


def _matches() -> Scenario:
    def text(kind: Any, value: str = "", **more: bool) -> TextMatch:
        return TextMatch(kind, value, **more)

    matches = (
        RouteMatch(path=PathMatch("exact", "/exact"), method=text("exact", "GET")),
        RouteMatch(path=PathMatch("segments", "/a/b/")),
        RouteMatch(path=PathMatch("prefix", "/text", ignore_case=True)),
        RouteMatch(path=PathMatch("regex", "/[a-c]+", ignore_case=True)),
        RouteMatch(authority=text("suffix", ".example"), scheme=text("exact", "http")),
        RouteMatch(headers=(("x-a", text("present")), ("x-b", text("exact", "1", invert=True)))),
        RouteMatch(query=(("q", text("regex", "[0-9]+")), ("p", text("present")))),
        RouteMatch(grpc=True, source_namespaces=("other", "third-one")),
    )
    return Scenario((_bound(*(rule(match=m) for m in matches)),), (backend(A),))


def _bound(*rules: HttpRule) -> Bound:
    return Bound(WEB, ((80, Routes(http=rules)),))


def _actions() -> Scenario:
    def at(path: str) -> RouteMatch:
        return RouteMatch(path=PathMatch("segments", path))

    rules = (
        rule(match=at("/redirect"), redirect=Redirect(301, "https", "h.example", path="/new")),
        rule(match=at("/answer"), response=DirectResponse(418, "tea")),
        rule(to("a", 0), match=at("/nowhere")),
        rule(match=at("/rewrite"), rewrite=Rewrite("h.example", "/new")),
        rule(match=at("/times"), timeout=1.5, backend_timeout=0.5),
        rule(match=at("/retry"), retry=RETRY),
        rule(match=at("/never"), retry=Retry(0)),
        rule(match=at("/mirror"), mirrors=(Mirror(ref("b"), 12.5),)),
        rule(match=at("/session"), session=Session("cookie", "s", "/session")),
        rule(match=at("/fault"), fault=Fault(0.5, 10.0, 503, None, 0.5)),
        rule(
            match=at("/cors"),
            cors=Cors((TextMatch("exact", "https://a.example"),), ("GET",), max_age=5),
        ),
        rule(
            to("a", 80, request=HeaderChange(set=(("x-share", "a"),))),
            to("b", 15, rewrite=Rewrite("b.example")),
            WeightedBackend(None, 5),
            request_headers=HeaderChange((("x-set", "100%"),), (("x-add", "1"),), ("x-gone",)),
        ),
    )
    return Scenario((_bound(*rules),), (backend(A), backend(B)))


def _subsets() -> Scenario:
    strict = TrafficPolicy(
        pool=Pool(max_connections=10, max_requests=20),
        outliers=Outliers(consecutive_5xx=5, base_ejection=30.0),
    )
    traffic = ServiceTraffic(
        TrafficPolicy(balancing="round_robin"),
        subsets=(
            Subset("v1", (("version", "v1"),)),
            Subset("v2", (("version", "v2"),), strict),
        ),
    )
    used = tuple(BackendRef(SERVICE, 80, version) for version in ("v1", "v2"))
    places = (Locality("r1", "z1", ""), Locality("r1", "z2", ""))
    endpoints = (
        endpoint(1, labels=(("version", "v1"),), locality=places[0], weight=2),
        endpoint(2, labels=(("version", "v1"),), locality=places[1], healthy=False),
        endpoint(3, labels=(("version", "v2"),), locality=places[1], workload="web-v2"),
    )
    shares = (WeightedBackend(used[0], 90), WeightedBackend(used[1], 10))
    web = Bound(WEB, ((80, Routes(http=(rule(*shares),))),), traffic=traffic)
    return Scenario((web,), (Backend(WEB, traffic, ((80, endpoints),), used),))


def _places() -> Scenario:
    """Of a pod in r1/z1: shares, an order by place, and one by labels."""
    lost = Outliers(consecutive_5xx=1)
    shares = LocalityBalancing(distribute=(("r1/z1/*", (("r1/*", 80), ("r2/z1", 20))),))
    priority = LocalityBalancing(failover_priority=(ZONE, "version=v1"))
    traffic = {
        "web": TrafficPolicy(locality=shares),
        "a": TrafficPolicy(locality=LocalityBalancing(failover=(("r1", "r2"),)), outliers=lost),
        "b": TrafficPolicy(hash=ConsistentHash(header="h"), locality=priority, outliers=lost),
    }
    where = ("r1/z1", "r1/z2", "r2/z1", "r3/z1")
    endpoints = tuple(
        endpoint(i, locality=Locality(*w.split("/")), labels=(("version", f"v{i}"),), weight=i)
        for i, w in enumerate(where, 1)
    )
    backends = tuple(
        Backend(of, ServiceTraffic(traffic[of.name]), ((80, endpoints),)) for of in (WEB, A, B)
    )
    place = ((REGION, "r1"), (ZONE, "z1"))
    return Scenario((_bound(rule(to("web"), to("a"), to("b"))),), backends, place=place)


def _pods() -> Scenario:
    inside = BoundWorkload("c//Pod/shop/in", ("10.1.0.1",), endpoint(1, 0), ((8080, 1),))
    outside = BoundWorkload("c//Pod/shop/out", ("fd00::9",), Endpoint("fd00::9", 0))
    return Scenario(workloads=(inside, outside))


def _logs() -> Scenario:
    """A line of everything, and JSON of what failed; connections without HTTP beside it."""
    failed = AccessLog(True, (((">=", 500), ("!=", 503)), (("==", 404),)))
    waypoint = replace(WAYPOINT, access_logs=(AccessLog(), failed))
    db = service("db", "10.0.0.5", (5432, 4))
    return Scenario((Bound(WEB), Bound(db)), (backend(WEB), backend(db)), waypoint=waypoint)


SCENARIOS = {
    "plain": _plain,
    "protocols": _protocols,
    "matches": _matches,
    "actions": _actions,
    "subsets": _subsets,
    "places": _places,
    "pods": _pods,
    "logs": _logs,
}


def _brief(value: Any) -> Any:
    """Without access logs, which are long, the same everywhere, and in one of the files."""
    if isinstance(value, dict):
        return {k: _brief(v) for k, v in value.items() if k != "access_log"}
    return [_brief(v) for v in value] if isinstance(value, list) else value


def _shown(name: str) -> str:
    made = SCENARIOS[name]()
    resources = waypoint_resources(
        made.waypoint, made.bound, made.backends, made.workloads, made.place
    )
    found: dict[str, Any] = {}
    for url in sorted(resources, key=lambda u: SECTIONS.index(u.rpartition(".")[2])):
        left_out = () if name == "plain" else FIXED
        if left_out and url == CLUSTER:
            left_out = (*FIXED, MAIN_INTERNAL)
        kept = {
            n: unpack(url, raw) for n, raw in sorted(resources[url].items()) if n not in left_out
        }
        found[url.rpartition(".")[2]] = kept
    plain = json.loads(json.dumps(found))
    shown = plain if name in ("plain", "logs") else _brief(plain)
    return yaml.safe_dump(shown, sort_keys=False, width=110)


@pytest.mark.parametrize("name", SCENARIOS)
def test_resources_are_as_written(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    shown = _shown(name)
    if os.environ.get("REFRESH_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown)
    assert yaml.safe_load(shown) == yaml.safe_load(path.read_text())


def test_no_file_is_left_over() -> None:
    assert {p.stem for p in GOLDEN.glob("*.yaml")} == set(SCENARIOS)


@pytest.mark.parametrize("name", [n for n in SCENARIOS if n != "pods"])
def test_envoy_takes_all_of_it(name: str, tmp_path: Path) -> None:
    made = SCENARIOS[name]()
    assert verdict(tmp_path, made.bound, made.backends, made.place, made.waypoint) == (True, "")

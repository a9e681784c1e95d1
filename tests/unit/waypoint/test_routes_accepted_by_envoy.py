"""What is left of broken routes and policies is something that Envoy takes.

Every example of docs/routing.md, with hostile values in every place, is put into one
configuration, which the real Envoy validates: one thing that it refused would be refused
together with everything else of a listener or route configuration.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_rig import places, replaced
from routes_rig import GRPC, HTTP, NS, TCP, TLS, UNKNOWN, Mesh, service, skey

from mesh.manifest import Key
from mesh.model import Port, SpiffeId
from mesh.xds.types import CLUSTER, LISTENER, ROUTES
from tests.netns.page_examples import examples
from waypoint.agent.bootstrap import RE2_LIMIT
from waypoint.config.envoy.clusters import backend_dicts
from waypoint.config.envoy.inner import main_internal, service_chains
from waypoint.config.envoy.pack import pack
from waypoint.config.envoy.routes import route_configuration
from waypoint.config.model import Backend, Bound, Waypoint
from waypoint.config.routing import HttpRule, Routes, TcpRule
from waypoint.config.traffic import DEFAULT

MORE = "visitors"
WAYPOINT = Waypoint(NS, "waypoint", SpiffeId("cluster.local", NS, "waypoint"))

# What goes wrong in other programs' input: each in every place of every example.
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**70,
    0.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "%",
    "%REQ(authorization)%",
    "%%",
    "/",
    "//",
    "/a b/",
    "/ä/\U0001f600",
    "/?#",
    "\\1",
    "(?i)a|b",
    "a{1000}",
    "(" * 50,
    "*",
    "*.*",
    "\n",
    "\0",
    "\ud800",
    ":path",
    "Host",
    "x-envoy-retry-on",
    "0.000001ms",
    "99999h",
    "x" * 20_000,
    "/" + "é" * 9000,
    [],
    {},
    [None],
    [{}],
    ["a", "a"],
    {"": ""},
)


def objects() -> Iterator[dict[str, Any]]:
    """All examples, and a rule with what they do not have."""
    for found in examples("routing.md").values():
        yield from found
    ref = {"group": "", "kind": "Service", "name": "tls", "sectionName": "port-443"}
    yield {
        "kind": "TLSRoute",
        "metadata": {"name": "tls", "namespace": NS},
        "spec": {
            "parentRefs": [ref],
            "hostnames": ["*.example.com"],
            "rules": [{"backendRefs": [{"name": "tls", "port": 443, "weight": 1}]}],
        },
    }
    filters = [
        {
            "type": "RequestMirror",
            "requestMirror": {
                "backendRef": {"name": "echo-v2", "port": 80},
                "fraction": {"numerator": 1, "denominator": 3},
            },
        },
        {"type": "ExtensionRef", "extensionRef": {"group": "a", "kind": "b", "name": "c"}},
    ]
    session = {"type": "Header", "header": {"name": "x-session"}, "idleTimeout": "1h"}
    rule = {
        "name": "all",
        "filters": filters[:1],
        "sessionPersistence": session,
        "timeouts": {"request": "2s", "backendRequest": "1s"},
        "backendRefs": [{"name": "echo", "port": 80, "filters": []}],
    }
    yield {
        "kind": "HTTPRoute",
        "metadata": {"name": "more", "namespace": NS},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "echo"}],
            "rules": [rule, {"filters": filters[1:]}],
        },
    }


def mesh() -> Mesh:
    return Mesh(
        *(service(name) for name in ("echo", "echo-v1", "echo-v2")),
        service("lender", MORE),
        *(service(name, NS, (9090, GRPC)) for name in ("prices", "prices-v1", "prices-v2")),
        service("tcp", NS, (9000, TCP), (9001, UNKNOWN)),
        service("tls", NS, (443, TLS)),
    )


class Harvest:
    """All different rules and policies that came out of it, and how many objects went in."""

    def __init__(self) -> None:
        self.mesh = mesh()
        self.http: dict[HttpRule, None] = {}
        self.tcp: dict[TcpRule, None] = {}
        self.traffic: dict[Any, None] = {}
        self.tried = 0

    def take(self, kind: str, obj: dict[str, Any]) -> None:
        """Put an object in, look at all that it touches, and take it out again."""
        metadata = obj["metadata"]
        key = Key(kind, metadata["namespace"], metadata["name"])
        index = self.mesh.index
        for name in index.put(key, obj):
            for routes in index.routes(name).values():
                self.http |= dict.fromkeys(routes.http or ())
                self.tcp |= dict.fromkeys(routes.tcp or ())
            if kind.endswith("Policy"):
                self.traffic[index.traffic(name, DEFAULT)] = None
        index.put(key, None)
        self.tried += 1


@pytest.fixture(scope="module")
def harvest() -> Harvest:
    found = Harvest()
    found.mesh.index.put_config_map(NS, "echo-ca", {"ca.crt": "no certificate"})
    for obj in objects():
        for place in places(obj["spec"]):
            for value in HOSTILE:
                spec = replaced(obj["spec"], place, value)
                found.take(obj["kind"], {**obj, "spec": spec})
    return found


def test_much_is_left(harvest: Harvest) -> None:
    """Otherwise the tests below say nothing."""
    assert harvest.tried > 10_000
    assert len(harvest.http) > 500
    assert len(harvest.tcp) > 10
    assert len(harvest.traffic) > 5


def test_each_rule_can_be_packed(harvest: Harvest) -> None:
    """By itself, so that the rule is named that cannot."""
    port = Port(80, 8080, HTTP)
    broken = []
    for rule in harvest.http:
        bound = Bound(service("echo"), ((80, Routes(http=(rule,))),))
        try:
            pack(ROUTES, route_configuration(bound, port))
        except Exception as e:  # any of them is the defect that is looked for
            broken.append((rule, e))
    assert broken == []


def listener(harvest: Harvest) -> dict[str, Any]:
    """main_internal with all rules, its route configurations written into it."""
    bounds = [
        Bound(service("echo"), ((80, Routes(http=tuple(harvest.http))),)),
        Bound(
            service("tls", NS, (443, TLS), vips=("10.0.0.2",)),
            ((443, Routes(tcp=tuple(harvest.tcp))),),
        ),
    ]
    pieces = []
    for bound in bounds:
        piece = service_chains(WAYPOINT, bound)
        for chain in piece.chains:
            manager = chain["filters"][-1]["typed_config"]
            if manager.pop("rds", None):
                routes = route_configuration(bound, bound.service.ports[0])
                manager["route_config"] = {**routes, "validate_clusters": False}
        pieces.append(piece)
    return main_internal(pieces)


def clusters(harvest: Harvest) -> list[dict[str, Any]]:
    """A cluster for each policy that came out."""
    found = []
    for number, traffic in enumerate(harvest.traffic):
        of = service(f"s{number}", NS, (80, HTTP))
        found += [r for t, _, r in backend_dicts(Backend(of, traffic)) if t == CLUSTER]
    return found


def test_envoy_takes_it_all(harvest: Harvest, tmp_path: Path) -> None:
    """Its own validation, of everything at once, with the limits of a waypoint's bootstrap."""
    made = listener(harvest)
    pack(LISTENER, made)
    kind = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    agent = {"name": "xds", "type": "STATIC", "connect_timeout": "1s"}
    document = {
        "node": {"id": "t", "cluster": "t"},
        "bootstrap_extensions": [{"name": "internal", "typed_config": {"@type": kind}}],
        "layered_runtime": {
            "layers": [
                {"name": "t", "static_layer": {"re2.max_program_size.error_level": RE2_LIMIT}}
            ]
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            }
        },
        "static_resources": {"listeners": [made], "clusters": [agent, *clusters(harvest)]},
    }
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(document))
    envoy = str(Path(sys.executable).with_name("envoy"))
    done = subprocess.run(
        [envoy, "--mode", "validate", "-c", str(config), "--disable-hot-restart"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-700:]


def test_index_of_the_mesh_is_as_it_was(harvest: Harvest) -> None:
    """Nothing of thousands of objects stays behind when they are gone."""
    index = harvest.mesh.index
    assert index.keys() == frozenset()
    assert all(index.routes(skey(name)) == {} for name in ("echo", "prices", "tcp", "tls"))

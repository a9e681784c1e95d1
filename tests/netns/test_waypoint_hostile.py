"""Objects that are malformed, contradictory or huge: each is told what is wrong, and where, and
whatever worked goes on. A loop of requests through the waypoint runs from the first test to the
last, which counts them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import Lab, cgroups
from tests.netns.waypoints import NS, Shop, service, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

_LOAD = Path(__file__).with_name("http_load.py")
ROUTES = 5000
# What 5,000 routes of one service may come to in each process.
CONTROL_PLANE_MIB, WAYPOINT_MIB = 400, 600
Object = dict[str, Any]


@pytest.fixture(scope="module")
def wp() -> Iterator[Shop]:
    with Lab("t-wp-hostile") as lab:
        lab.up([*shop(), service("big", {"app": "echo"}), service("victim", {"app": "echo"})])
        found = Shop(lab)
        found.until(lambda: found.ask().status == 200)
        yield found


@pytest.fixture(scope="module")
def load(wp: Shop) -> Iterator[subprocess.Popen[str]]:
    """Requests to `echo`, to which nothing hostile is attached."""
    command = [sys.executable, str(_LOAD), f"http://echo.{NS}/load", "600", "2", "1", "0.02"]
    process = wp.lab.popen(f"{NS}/client", command)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def loaded(load: subprocess.Popen[str]) -> None:
    """Every test runs under it."""
    assert load.poll() is None


def obj(kind: str, name: str, spec: Any) -> Object:
    groups = {
        "VirtualService": "networking.istio.io/v1",
        "DestinationRule": "networking.istio.io/v1",
        "AuthorizationPolicy": "security.istio.io/v1",
        "RequestAuthentication": "security.istio.io/v1",
        "Telemetry": "telemetry.istio.io/v1",
    }
    return {
        "apiVersion": groups.get(kind, "gateway.networking.k8s.io/v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": NS},
        "spec": spec,
    }


def to(name: str) -> Object:
    return {"name": name, "port": 80}


def http_route(name: str, parent: str, *rules: Object) -> Object:
    parents = [{"group": "", "kind": "Service", "name": parent}]
    return obj("HTTPRoute", name, {"parentRefs": parents, "rules": list(rules)})


def virtual(name: str, *http: Object, hosts: tuple[str, ...] = ("victim",)) -> Object:
    return obj("VirtualService", name, {"hosts": list(hosts), "http": list(http)})


def version(value: str) -> Object:
    """A rule that puts a header into answers."""
    return {
        "filters": [
            {
                "type": "ResponseHeaderModifier",
                "responseHeaderModifier": {"set": [{"name": "x-rule", "value": value}]},
            }
        ],
        "backendRefs": [to("echo")],
    }


VIA: Object = {"destination": {"host": "echo"}}
BY = [{"group": "", "kind": "Service", "name": "victim"}]
_LONG = "a" * 15_000
# Objects, and what the last of them is told: the type of the condition (of a route's parent where
# it begins with a dot), its status, and words of the message.
CASES: dict[str, tuple[list[Object], str, bool, str]] = {
    "a megabyte of expressions": (
        [
            virtual(
                "regexes",
                *(
                    {"match": [{"uri": {"regex": f"/{i}{_LONG}"}}], "route": [VIA]}
                    for i in range(70)
                ),
            )
        ],
        "WaypointAccepted",
        True,
        "the regular expressions of this object are too complex together",
    ),
    "expressions that grow": (
        [
            http_route(
                "growing",
                "victim",
                *(
                    {
                        "matches": [
                            {"path": {"type": "RegularExpression", "value": rf"/{i}\pL{{900}}"}}
                        ],
                        **version("x"),
                    }
                    for i in range(500)
                ),
            )
        ],
        ".Accepted",
        False,
        "pattern too large",
    ),
    "a cycle of delegates": (
        [
            virtual("root", {"delegate": {"name": "leaf"}}),
            virtual("leaf", {"delegate": {"name": "root"}}, hosts=()),
        ],
        "WaypointAccepted",
        True,
        "spec.http[0].delegate: a delegate cannot delegate",
    ),
    "a host of two": (
        [virtual("one", {"route": [VIA]}), virtual("two", {"route": [VIA]})],
        "WaypointAccepted",
        True,
        "spec.http[0]: never reached on port 80: VirtualService shop/one takes every request",
    ),
    "fields that do not exist": (
        [obj("DestinationRule", "typo", {"host": "victim", "trafficPolicy": {"loadbalancer": {}}})],
        "WaypointAccepted",
        True,
        "spec.trafficPolicy.loadbalancer: no such field",
    ),
    "lists for mappings": (
        [obj("DestinationRule", "lists", {"host": "victim", "trafficPolicy": [1], "subsets": {}})],
        "WaypointAccepted",
        True,
        "spec.trafficPolicy: must be a mapping, not a list",
    ),
    "numbers for text": (
        [virtual("numbers", {"match": [{"uri": {"exact": 7}}], "route": [VIA]})],
        "WaypointAccepted",
        True,
        "spec.http[0].match[0].uri.exact: 7 is not text",
    ),
    "no spec at all": (
        [obj("VirtualService", "nothing", None)],
        "WaypointAccepted",
        False,
        "spec: has no rules (http, tls or tcp)",
    ),
    "a policy of nonsense": (
        [obj("AuthorizationPolicy", "junk", {"targetRefs": BY, "action": "MAYBE", "rules": 5})],
        "WaypointAccepted",
        False,
        "spec.action",
    ),
    "keys that are none": (
        [
            obj(
                "RequestAuthentication",
                "keys",
                {"targetRefs": BY, "jwtRules": [{"issuer": "a", "jwks": '{"keys": [{"kty": 5}]}'}]},
            )
        ],
        "WaypointAccepted",
        False,
        "spec.jwtRules[0].jwks",
    ),
    "a place that is not there": (
        [http_route("lost", "victim", {"backendRefs": [to("nowhere")]})],
        ".ResolvedRefs",
        False,
        "nowhere",
    ),
    "a place that is not ours": (
        [
            http_route(
                "across",
                "victim",
                {"backendRefs": [{**to("kube-dns"), "namespace": "kube-system"}]},
            )
        ],
        ".ResolvedRefs",
        False,
        "kube-system",
    ),
    "a gateway of nonsense": (
        [obj("Gateway", "broken", {"gatewayClassName": "istio-waypoint", "listeners": "all"})],
        "Accepted",
        False,
        "HBONE",
    ),
}


def told(wp: Shop, made: Object, type_: str) -> dict[str, Any]:
    kind, name = made["kind"], made["metadata"]["name"]
    parent = 0 if type_.startswith(".") else None
    return wp.condition(kind, name, type_.lstrip("."), parent=parent)


@pytest.mark.parametrize("case", CASES)
def test_an_object_is_told_what_is_wrong(wp: Shop, case: str) -> None:
    objects, type_, status, words = CASES[case]
    try:
        wp.lab.apply(objects)
        wp.until(lambda: words in told(wp, objects[-1], type_).get("message", ""))
        assert told(wp, objects[-1], type_)["status"] == str(status)
        assert wp.ask().status == 200
    finally:
        wp.lab.delete(objects)


JUNK: list[Any] = [None, {}, {"rules": 1}, {"parentRefs": 7}, {"a": {"b": [{}]}}, {"hosts": [{}]}]
KINDS = (
    *("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "BackendTLSPolicy", "ReferenceGrant"),
    *("VirtualService", "DestinationRule", "RequestAuthentication"),
    *("Telemetry", "XBackendTrafficPolicy", "Gateway"),
)


def test_junk_of_every_kind_changes_nothing(wp: Shop) -> None:
    objects = [obj(kind, f"junk-{i}", junk) for kind in KINDS for i, junk in enumerate(JUNK)]
    # Without a target these would be for all of the namespace, and refuse everybody.
    bounded = [{**junk, "targetRefs": BY} for junk in JUNK if junk]
    objects += [obj("AuthorizationPolicy", f"junk-{i}", junk) for i, junk in enumerate(bounded)]
    restarts = wp.lab.components()["control-plane"]["restarts"]
    wp.lab.apply(objects)
    follows(wp, "junk")
    wp.lab.delete(objects)
    assert wp.lab.components()["control-plane"]["restarts"] == restarts


def test_five_thousand_routes(wp: Shop) -> None:
    """All of them are accepted, the last one routes, and a change elsewhere follows at once."""
    rules = [
        {"matches": [{"path": {"type": "Exact", "value": f"/item/{i}"}}], **version(str(i))}
        for i in range(ROUTES)
    ]
    # Ten in an object: a file of the lab's folder for each status is not what this is about.
    routes = [http_route(f"many-{i}", "big", *rules[i : i + 10]) for i in range(0, ROUTES, 10)]
    file = wp.lab.store.root / "huge.yaml"  # all at once, as a cluster's first list is
    file.write_text(yaml.dump_all(routes, Dumper=yaml.CSafeDumper))
    last = routes[-1]
    wp.until(lambda: told(wp, last, ".Accepted").get("status") == "True", 100)
    path = f"/item/{ROUTES - 1}"
    found = wp.until(lambda: rule_of(wp, path, "big"), 100)
    assert found == str(ROUTES - 1)
    follows(wp, "beside")
    pid = wp.lab.components()["control-plane"]["pid"]
    assert resident(pid) < CONTROL_PLANE_MIB
    assert resident(envoy(wp)) < WAYPOINT_MIB
    file.unlink()
    wp.until(lambda: wp.ask(path, host=f"big.{NS}").headers.get("x-rule") is None, 100)


def rule_of(wp: Shop, path: str, name: str) -> str:
    return next(iter(wp.ask(path, host=f"{name}.{NS}").headers.get("x-rule", [""])))


def follows(wp: Shop, value: str) -> None:
    """A good change takes effect as ever."""
    good = http_route("good", "victim", version(value))
    wp.lab.apply([good])
    begun = time.monotonic()
    wp.until(lambda: rule_of(wp, "/", "victim") == value)
    assert time.monotonic() - begun < 10
    wp.lab.delete([good])


def envoy(wp: Shop) -> int:
    """The pid of the waypoint's Envoy, as this machine knows it."""
    pids = cgroups.members(wp.lab.place(wp.waypoint()).cgroup)
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in pids}
    (found,) = [pid for pid, name in names.items() if name.startswith("envoy")]
    return found


def resident(pid: int) -> int:
    """MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def test_no_request_was_lost(wp: Shop, load: subprocess.Popen[str]) -> None:
    """While all of the above went on."""
    assert wp.ask().status == 200
    load.terminate()
    out, err = load.communicate(timeout=20)
    assert out.strip(), err
    found = json.loads(out.strip().splitlines()[-1])
    assert found["failed"] == []
    assert found["ok"] > 100

"""Who writes access logs: levels, providers, filters, and what objects are told."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.findings import Condition
from mesh.manifest import Key
from waypoint.config.access_logs import (
    AccessLog,
    TelemetryIndex,
    read_filter,
    read_mesh_logs,
    read_telemetry,
)
from waypoint.config.envoy.telemetry import http_access_log, tcp_access_log
from waypoint.config.model import Waypoint

ROOT = "istio-system"
WP, OTHER = ("shop", "wp"), ("shop", "other")
TEXT, JSON = AccessLog(False), AccessLog(True)
PROVIDERS = [
    {"name": "json", "envoyFileAccessLog": {"logFormat": {"labels": {"a": "%PROTOCOL%"}}}},
    {"name": "text", "envoyFileAccessLog": {"path": "/dev/stdout"}},
    {"name": "zipkin", "zipkin": {"service": "zipkin", "port": 9411}},
]


def telemetry(
    namespace: str, *entries: dict[str, Any], name: str = "t", age: str = "2026-01-01", **spec: Any
) -> dict[str, Any]:
    more = {"accessLogging": list(entries)} if entries else {}
    metadata = {"namespace": namespace, "name": name, "creationTimestamp": age}
    return {"kind": "Telemetry", "metadata": metadata, "spec": {**more, **spec}}


def at(name: str = "wp", **ref: Any) -> list[dict[str, Any]]:
    return [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name, **ref},
    ]


def by(*names: str, **more: Any) -> dict[str, Any]:
    return {"providers": [{"name": n} for n in names], **more}


def put(index: TelemetryIndex, obj: dict[str, Any]) -> set[tuple[str, str]]:
    return index.put(key_of(obj), obj)


def key_of(obj: dict[str, Any]) -> Key:
    return Key("Telemetry", obj["metadata"]["namespace"], obj["metadata"]["name"])


def told(index: TelemetryIndex, obj: dict[str, Any]) -> Condition:
    (condition,) = index.status(key_of(obj)).conditions
    return condition


@pytest.fixture
def index() -> TelemetryIndex:
    made = TelemetryIndex(ROOT)
    for where in (WP, OTHER, ("bank", "wp")):
        made.put_gateway(where, True)
    made.set_mesh(read_mesh_logs({"extensionProviders": PROVIDERS})[0])
    return made


def test_nobody_writes_unless_told(index: TelemetryIndex) -> None:
    assert index.logs(WP) == ()


def test_the_mesh_configuration_is_the_widest_level(index: TelemetryIndex) -> None:
    """As Istio has it: accessLogFile, its encoding, and default providers."""
    for config, logs in (
        ({"accessLogFile": "/dev/stdout"}, (TEXT,)),
        ({"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON"}, (JSON,)),
        ({"accessLogFile": "", "accessLogEncoding": "JSON"}, ()),
        ({"defaultProviders": {"accessLogging": ["json"]}}, (JSON,)),
    ):
        mesh, problems = read_mesh_logs({**config, "extensionProviders": PROVIDERS})
        assert problems == []
        index.set_mesh(mesh)
        assert index.logs(WP) == logs


def test_a_change_of_the_mesh_touches_all_of_it(index: TelemetryIndex) -> None:
    mesh, _ = read_mesh_logs({"accessLogFile": "/dev/stdout"})
    assert index.set_mesh(mesh) == {WP, OTHER, ("bank", "wp")}
    assert index.set_mesh(mesh) == set()


def test_the_most_specific_level_counts(index: TelemetryIndex) -> None:
    wide = telemetry(ROOT, by("envoy"))
    assert put(index, wide) == {WP, OTHER, ("bank", "wp")}
    assert put(index, telemetry("shop", by("json"))) == {WP, OTHER}
    assert put(index, telemetry("shop", {"disabled": True}, name="off", targetRefs=at())) == {WP}
    assert [index.logs(w) for w in (("bank", "wp"), OTHER, WP)] == [(TEXT,), (JSON,), ()]
    assert index.put(key_of(wide), None) == {WP, OTHER, ("bank", "wp")}
    assert index.logs(("bank", "wp")) == ()


def test_an_entry_without_providers_takes_those_of_the_wider_level(index: TelemetryIndex) -> None:
    only_errors = {"filter": {"expression": "response.code >= 500"}}
    put(index, telemetry("shop", only_errors))
    found = (((">=", 500),),)
    assert index.logs(WP) == (AccessLog(False, found),)
    put(index, telemetry(ROOT, by("json", "text")))
    assert index.logs(WP) == (AccessLog(False, found), AccessLog(True, found))


def test_what_says_nothing_about_logs_changes_nothing(index: TelemetryIndex) -> None:
    put(index, telemetry(ROOT, by("envoy")))
    obj = telemetry("shop", tracing=[{}])
    put(index, obj)
    assert index.logs(WP) == (TEXT,)
    condition = told(index, obj)
    assert not condition.status
    assert "spec.tracing: has no effect at waypoints: they do not trace" in condition.message


def test_the_oldest_of_a_level_counts_and_the_others_hear_of_it(index: TelemetryIndex) -> None:
    new = telemetry("shop", by("json"), name="a", age="2026-02-02")
    old = telemetry("shop", by("envoy"), name="b", age="2026-02-01")
    put(index, new)
    put(index, old)
    assert index.logs(WP) == (TEXT,)
    assert told(index, old).status
    assert told(index, new).reason == "Conflicted"
    assert "Telemetry shop/b" in told(index, new).message


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("response.code >= 400", (((">=", 400),),)),
        ("response.code==404||response.code > 499 && response.code != 503",
         ((("==", 404),), ((">", 499), ("!=", 503)))),
        ("response.code >= 40", None),
        ("response.code >= 400 ||", None),
        ("(response.code >= 400)", None),
        ("has(response.code)", None),
        ("response.code >= 4000", None),
        ("request.path == '/x'", None),
        ("x" * 2000, None),
    ],
)  # fmt: skip
def test_filters(expression: str, found: Any) -> None:
    assert read_filter(expression) == found


@pytest.mark.parametrize(
    ("spec", "reason", "says"),
    [
        ({"accessLogging": [by("zipkin")]}, "PartiallyInvalid",
         "spec.accessLogging[0].providers[0].name: 'zipkin' is no provider of access logs"
         " (known: envoy, json, text)"),
        ({"accessLogging": [{"filter": {"expression": "true"}}]}, "PartiallyInvalid",
         "spec.accessLogging[0].filter.expression: 'true': only comparisons of response.code"),
        ({"accessLogging": [{"match": {"mode": "CLIENT"}}]}, "PartiallyInvalid",
         "spec.accessLogging[0].match: has no effect at waypoints, which log as SERVER"),
        ({"accessLogging": [{"disabled": "yes"}]}, "PartiallyInvalid",
         "spec.accessLogging[0].disabled: 'yes' is neither true nor false"),
        ({"accessLogging": "yes"}, "PartiallyInvalid", "spec.accessLogging: must be a list"),
        ({"accessLog": []}, "Invalid", "spec.accessLog: no such field"),
        ({"selector": {}, "accessLogging": [by("envoy")]}, "Invalid", "spec.selector: selects"),
        ({"accessLogging": [by("envoy")], "targetRefs": at("nobody")}, "TargetNotFound",
         "there is no waypoint shop/nobody"),
        ({"accessLogging": [by("envoy")], "targetRefs": at(namespace="bank")}, "AncestorNotBound",
         "spec.targetRefs[0].namespace: must be the Telemetry's own: shop"),
        ({"accessLogging": [by("envoy")], "targetRefs": [{"kind": "Service", "name": "a"}]},
         "AncestorNotBound", "spec.targetRefs[0].kind: 'Service': access logs are those of a"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_field(
    index: TelemetryIndex, spec: dict[str, Any], reason: str, says: str
) -> None:
    obj = telemetry("shop", **spec)
    put(index, obj)
    condition = told(index, obj)
    assert says in condition.message
    assert (condition.reason, condition.status) == (reason, reason == "PartiallyInvalid")


def test_an_object_that_selects_pods_is_not_taken_for_its_namespace(index: TelemetryIndex) -> None:
    put(index, telemetry("shop", by("envoy"), selector={"matchLabels": {"app": "a"}}))
    assert index.logs(WP) == ()


def test_a_status_follows_its_waypoint(index: TelemetryIndex) -> None:
    obj = telemetry("shop", by("envoy"), targetRefs=at())
    put(index, obj)
    assert told(index, obj).message == "in effect at shop/wp"
    assert index.at(WP) == {key_of(obj)}
    index.put_gateway(WP, False)
    assert told(index, obj).reason == "TargetNotFound"


@pytest.mark.parametrize("bad", [None, 1, "x", [], {"spec": 1}, {"spec": []}, {"metadata": 3}])
def test_nonsense_raises_nothing(index: TelemetryIndex, bad: Any) -> None:
    key = Key("Telemetry", "shop", "t")
    if isinstance(bad, dict):
        index.put(key, bad)
        assert index.status(key).conditions
    assert read_mesh_logs({"extensionProviders": bad, "defaultProviders": bad})[0].default == ()
    assert read_telemetry({"spec": bad}).entries is None


def _loggers(*logs: AccessLog) -> list[dict[str, Any]]:
    waypoint = Waypoint("shop", "wp", None, access_logs=logs)  # type: ignore[arg-type]
    return http_access_log(waypoint, ("web.shop", "shop"))[1:]


def test_what_a_caller_writes_comes_last_on_a_line() -> None:
    """So that whatever it imitates, the first field of a name is the true one."""
    (logger,) = _loggers(TEXT)
    line = logger["typed_config"]["log_format"]["text_format_source"]["inline_string"]
    names = [word.partition("=")[0] for word in line.split()]
    free = ["authority", "path", "user_agent", "request_id", "failure"]
    assert names[-len(free) :] == free
    assert line.endswith('"\n')
    assert len(set(names)) == len(names)


def test_filters_become_those_of_envoy() -> None:
    (logger,) = _loggers(AccessLog(True, (((">", 499), ("<", 504)), (("==", 404),))))
    found = str(logger["filter"])
    for op, value in (("GE", 500), ("LE", 503), ("EQ", 404)):
        assert f"'op': '{op}', 'value': {{'default_value': {value}" in found
    first, second = logger["filter"]["or_filter"]["filters"]
    assert len(first["and_filter"]["filters"]) == 2
    assert "status_code_filter" in second


def test_connections_have_no_code_and_pass_no_filter() -> None:
    logs = (TEXT, AccessLog(True, (((">=", 500),),)))
    waypoint = Waypoint("shop", "wp", None, access_logs=logs)  # type: ignore[arg-type]
    assert len(tcp_access_log(waypoint, ("db.shop", "shop"))) == 3  # opened, closed, one log

"""What the CRDs take is what the readers know, and what they refuse is what the readers tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.manifest import Key
from tests.k8s import crd_routing_cases as cases
from waypoint.config.istio.destination_rule import read_destination_rule
from waypoint.config.istio.virtual_service import read_virtual_service
from waypoint.config.reading import Report

CRDS = Path(__file__).parents[3] / "deploy" / "crds"
KINDS = ("DestinationRule", "VirtualService")
_UNKNOWN = "no such field (known: "


def report(kind: str, spec: Any) -> Report:
    key = Key(kind, "shop", "x")
    obj = {"metadata": {"name": "x", "namespace": "shop"}, "spec": spec}
    if kind == "VirtualService":
        return read_virtual_service(key, obj, "cluster.local").report
    return read_destination_rule(key, obj, "cluster.local").report


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_crd_takes_is_read_without_complaint(kind: str) -> None:
    """Some of it is said not to be done at a waypoint; nothing is said to be wrong."""
    for spec in cases.GOOD[kind]:
        # A waypoint needs a Secret where a sidecar has files.
        wrong = [t for t in report(kind, spec).invalid if "MUTUAL needs a Secret" not in t]
        assert wrong == [], spec


@pytest.mark.parametrize(
    ("kind", "spec"),
    [(k, spec) for k in KINDS for spec, _ in cases.BAD[k]],
    ids=lambda v: str(v)[:60],
)
def test_what_the_crd_refuses_is_told_where_there_is_no_crd(kind: str, spec: Any) -> None:
    """A folder of objects, or a cluster with somebody else's definitions."""
    found = report(kind, spec)
    assert found.invalid or found.refused or found.unsupported


def _fields(schema: Mapping[str, Any], path: str = "spec") -> Iterator[tuple[str, set[str]]]:
    """Every mapping of a schema whose fields are named, with their names."""
    properties = schema.get("properties")
    if properties:
        yield path, set(properties)
        for name, inner in properties.items():
            yield from _fields(inner, f"{path}.{name}")
    if "items" in schema:
        yield from _fields(schema["items"], f"{path}[0]")
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        yield from _fields(extra, f"{path}.key")


def _sample(schema: Mapping[str, Any]) -> Any:
    """A value that has a mapping in every place that can have one, each with an unknown field."""
    if "properties" in schema:
        return {"bogus": 1, **{n: _sample(s) for n, s in schema["properties"].items()}}
    if "items" in schema:
        return [_sample(schema["items"])]
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping) and "properties" in extra:
        return {"key": _sample(extra)}
    return {} if schema.get("type") == "object" else None


@pytest.mark.parametrize("kind", KINDS)
def test_readers_and_crds_know_the_same_fields(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field in one and not in the other would be pruned, or be called unknown."""
    monkeypatch.setattr("waypoint.config.reading._MAX_FINDINGS", 10_000)
    crd = yaml.safe_load((CRDS / f"{kind.lower()}s.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    wanted = dict(_fields(schema))
    found: dict[str, set[str]] = {}
    for text in report(kind, _sample(schema)).invalid:
        if _UNKNOWN in text:
            path, _, known = text.partition(f".bogus: {_UNKNOWN}")
            found[path] = set(known.rstrip(")").split(", "))
    # What is not done at all is not looked into.
    for path, fields in wanted.items():
        if path in found:
            assert found[path] == fields, path
    unread = sorted(set(wanted) - set(found))
    assert all(any(part in path for part in NOT_DONE) for path in unread), unread


NOT_DONE = (
    "workloadSelector",
    "attributes",
    "zoneAwareLbSetting",
    "http2KeepAlive",
    "tunnel",
    "proxyProtocol",
)

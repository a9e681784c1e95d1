"""Routes of the conformance suite's mesh, and the pieces that they are made of."""

from __future__ import annotations

from typing import Any

import yaml

from tests.unit.waypoint.mesh_conformance import NS, Mesh


def route(
    *rules: dict[str, Any],
    parent: str = "echo",
    port: int | None = 80,
    name: str = "r",
    namespace: str = NS,
    kind: str = "HTTPRoute",
    created: str = "2026-01-01T00:00:00Z",
) -> str:
    """A route as text. port None: every port of its parent."""
    ref: dict[str, Any] = {"group": "", "kind": "Service", "name": parent}
    hostnames = {"hostnames": ["www.example.com"]} if kind == "TLSRoute" else {}
    if port:
        ref["port"] = port
    if namespace != NS:
        ref["namespace"] = NS
    return yaml.safe_dump(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
            "spec": {"parentRefs": [ref], **hostnames, "rules": list(rules)},
        }
    )


def to(name: str, port: int = 8080, **more: Any) -> dict[str, Any]:
    return {"backendRefs": [{"name": name, "port": port, **more}]}


def under(prefix: str) -> dict[str, Any]:
    return {"path": {"type": "PathPrefix", "value": prefix}}


def query(value: str) -> dict[str, Any]:
    return {"queryParams": [{"name": "animal", "value": value}]}


def header(value: str) -> dict[str, Any]:
    return {"headers": [{"name": "version", "value": value}]}


def redirect(**fields: Any) -> dict[str, Any]:
    return {"filters": [{"type": "RequestRedirect", "requestRedirect": fields}]}


def answers(value: str) -> dict[str, Any]:
    """A filter that marks the answer, so that it shows which rule gave it."""
    change = {"set": [{"name": "X-Header-Set", "value": value}]}
    return {"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": change}]}


def grant(namespace: str, *services: str, name: str = "grant", **wrong: str) -> str:
    """A ReferenceGrant that lets HTTPRoutes of the suite's namespace name a namespace's services.

    `wrong` replaces fields: from_group, from_kind, from_namespace, to_group, to_kind.
    """
    one = {
        "group": wrong.get("from_group", "gateway.networking.k8s.io"),
        "kind": wrong.get("from_kind", "HTTPRoute"),
        "namespace": wrong.get("from_namespace", NS),
    }
    target = {"group": wrong.get("to_group", ""), "kind": wrong.get("to_kind", "Service")}
    return yaml.safe_dump(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "ReferenceGrant",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "from": [one],
                "to": [{**target, "name": s} for s in services] or [target],
            },
        }
    )


def mesh(*texts: str) -> Mesh:
    made = Mesh()
    for text in texts:
        made.apply(text)
    return made

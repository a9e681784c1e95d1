"""parentRefs and backendRefs of routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mesh.manifest import Key
from waypoint.config.gateway_api.templates import Parent, Problem, Reference
from waypoint.config.reading import Fields, show

GATEWAY_GROUP: Final = "gateway.networking.k8s.io"
MAX_PARENTS: Final = 32
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_CORE: Final = ("", "core")


def service_key(namespace: str, name: str, domain: str) -> str:
    """Build the key of a Service."""
    return f"{namespace}/{name}.{namespace}.svc.{domain}"


def _is_name(text: str) -> bool:
    return bool(_NAME.fullmatch(text))


def _read_parent(f: Fields, owner: Key, domain: str) -> Parent | None:
    """Read one parentRef; None is one that is not about the mesh (a Gateway)."""
    group = f.text("group") if f.has("group") else GATEWAY_GROUP
    kind = f.text("kind") or "Gateway"
    name, namespace = f.text("name"), f.text("namespace") or owner.namespace
    port, section = f.integer("port", 1, 65535), f.text("sectionName")
    f.done()
    raw = f.value
    if not _is_name(name) or not _is_name(namespace):
        if kind == "Service":
            f.bad("name", "must name a Service")
        return None
    if kind == "Service" and group in _CORE:
        return Parent(raw, service_key(namespace, name, domain), port, section)
    if kind in ("Service", "ServiceEntry"):
        what = (
            'a Service has the group "": write group: ""'
            if kind == "Service"
            else "parents of kind ServiceEntry are not supported: only Services are"
        )
        return Parent(raw, "", problem=Problem("NoMatchingParent", what))
    return None


def read_parents(spec: Fields, owner: Key, domain: str) -> tuple[Parent, ...]:
    """Read spec.parentRefs as far as they are about services."""
    entries = spec.items("parentRefs")
    if len(entries) > MAX_PARENTS:
        spec.bad("parentRefs", f"more than {MAX_PARENTS}: the rest is not used")
    found: list[Parent] = []
    for path, value in entries[:MAX_PARENTS]:
        parent = _read_parent(Fields(value, path, spec.report), owner, domain)
        if parent is not None and all(dict(parent.ref) != dict(p.ref) for p in found):
            found.append(parent)
    return tuple(found)


def read_reference(f: Fields, owner: Key, domain: str) -> Reference:
    """Read the part of a backendRef that names an object."""
    group, kind = f.text("group"), f.text("kind") or "Service"
    name, namespace = f.text("name"), f.text("namespace") or owner.namespace
    port = f.integer("port", 1, 65535)
    problem = None
    if kind != "Service" or group not in _CORE:
        what = f"{group}/{kind}" if group else kind
        problem = Problem("InvalidKind", f"{f.path}: {show(what)} is no kind that can be sent to")
    elif not _is_name(name) or not _is_name(namespace):
        problem = Problem("BackendNotFound", f"{f.path}.name: must name a Service")
    elif port is None:
        problem = Problem("BackendNotFound", f"{f.path}.port: must be the number of a port")
    if problem is not None:
        return Reference(f.path, problem=problem)
    return Reference(f.path, service_key(namespace, name, domain), namespace, port)


def created(obj: Mapping[str, object]) -> str:
    """Read when an object was made; "" if it does not say."""
    metadata = obj["metadata"]
    value = metadata.get("creationTimestamp") if isinstance(metadata, Mapping) else ""
    return value if isinstance(value, str) else ""

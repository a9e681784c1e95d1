"""Objects on their way in: read from files, checked, completed as an API server would."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from lab import shapes
from lab.errors import LabError
from mesh.errors import BadInput
from mesh.manifest import CLUSTER_SCOPED, normalise, parse_manifests
from mesh.store import FolderStore

Object = dict[str, Any]

_KINDS: Final = {
    "no": "Node",
    "ns": "Namespace",
    "po": "Pod",
    "svc": "Service",
    "sa": "ServiceAccount",
    "deploy": "Deployment",
    "ap": "AuthorizationPolicy",
    "pa": "PeerAuthentication",
}
_KNOWN: Final = (
    *_KINDS.values(),
    "ConfigMap",
    "DestinationRule",
    "EndpointSlice",
    "GRPCRoute",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "ReferenceGrant",
    "RequestAuthentication",
    "ServiceEntry",
    "TCPRoute",
    "TLSRoute",
    "Telemetry",
    "VirtualService",
    "WorkloadEntry",
    "XBackendTrafficPolicy",
)
# What the cluster fills in, and an object applied again need not repeat.
_KEPT: Final = {"Pod": ("nodeName",), "Service": ("clusterIP", "clusterIPs", "ipFamilies")}


def read(sources: Iterable[Path | str | Object]) -> list[Object]:
    """Read objects from files, folders of them, or as they are; raises LabError with the place."""
    found: list[Object] = []
    for source in sources:
        if isinstance(source, dict):
            found.append(_usable(_checked(source), "object"))
            continue
        path = Path(source)
        files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
        if not files:
            raise LabError(f"{path}: no YAML files in this folder")
        for file in files:
            found += _read_file(file)
    return found


def _read_file(path: Path) -> list[Object]:
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise LabError(f"{path}: {e.strerror}") from e
    objects, problems = parse_manifests(raw)
    if problems:
        raise LabError("; ".join(f"{path}:{p.line}: {p.message}" for p in problems))
    if not objects:
        raise LabError(f"{path}: no objects in it")
    return [_usable(obj, str(path)) for obj in objects.values()]


def _usable(obj: Object, where: str) -> Object:
    if wrong := shapes.problem(obj):
        meta = obj["metadata"]
        name = "/".join(filter(None, (meta.get("namespace"), meta["name"])))
        raise LabError(f"{where}: {obj['kind']} {name}: {wrong}")
    return obj


def _checked(obj: Object) -> Object:
    try:
        return normalise(obj)[1]
    except BadInput as e:
        raise LabError(str(e)) from e


def kind_of(word: str) -> str:
    """Turn what people type (pods, deploy, svc) into a kind."""
    low = word.lower()
    if low in _KINDS:
        return _KINDS[low]
    for kind in _KNOWN:
        plural = kind.lower()
        plural = plural[:-1] + "ies" if plural.endswith("y") else f"{plural}s"
        if low in (kind.lower(), plural, f"{plural}es"):
            return kind
    return word


def is_namespaced(kind: str) -> bool:
    """Say whether objects of a kind live in a namespace."""
    return kind not in CLUSTER_SCOPED


def apply(store: FolderStore, obj: Object) -> str:
    """Write one object; says created, configured or unchanged. Raises LabError."""
    kind, meta = obj["kind"], obj["metadata"]
    old = store.get(kind, meta.get("namespace"), meta["name"])
    new = _admitted(obj, old)
    try:
        store.apply(new)
    except BadInput as e:
        raise LabError(str(e)) from e
    if old is None:
        return "created"
    now = store.get(kind, meta.get("namespace"), meta["name"])
    return "unchanged" if now == old else "configured"


def _admitted(obj: Object, old: Object | None) -> Object:
    kind = obj["kind"]
    if old is None or kind not in _KEPT:
        return obj
    spec, was = dict(obj.get("spec") or {}), old.get("spec") or {}
    for key in _KEPT[kind]:
        if key not in spec and key in was:
            spec[key] = was[key]
    if kind == "Pod" and spec != was:
        where = f"{obj['metadata'].get('namespace', 'default')}/{obj['metadata']['name']}"
        raise LabError(
            f"Pod {where}: the spec of a pod that exists cannot change; "
            "delete the pod first, or use a Deployment"
        )
    return {**obj, "spec": spec}

"""Objects as tables, with the columns kubectl's users look for. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, Final

from cli.output import age, table
from mesh.ports import ANNOTATION_REDIRECTION, LABEL_DATAPLANE_MODE

Object = dict[str, Any]


def rows(kind: str, objects: Sequence[Object], all_namespaces: bool) -> str:
    """Render objects of one kind as a table."""
    headings, cells = _COLUMNS.get(kind, (("NAME", "AGE"), _plain))
    lines = [cells(o) for o in objects]
    if all_namespaces and any("namespace" in o["metadata"] for o in objects):
        headings = ("NAMESPACE", *headings)
        lines = [
            (o["metadata"].get("namespace", ""), *x) for o, x in zip(objects, lines, strict=True)
        ]
    return table(headings, lines)


def _age(obj: Object) -> str:
    try:
        made = datetime.datetime.fromisoformat(obj["metadata"].get("creationTimestamp") or "")
    except ValueError:
        return ""
    return age(max(0.0, (datetime.datetime.now(datetime.UTC) - made).total_seconds()))


def _ready(obj: Object) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _plain(obj: Object) -> tuple[str, ...]:
    return obj["metadata"]["name"], _age(obj)


def _pod(pod: Object) -> tuple[str, ...]:
    meta, status = pod["metadata"], pod.get("status") or {}
    return (
        meta["name"],
        "yes" if _ready(pod) else "no",
        status.get("phase", "Pending"),
        str(sum(c.get("restartCount", 0) for c in status.get("containerStatuses") or [])),
        (meta.get("annotations") or {}).get(ANNOTATION_REDIRECTION, "-"),
        status.get("podIP", ""),
        pod["spec"].get("nodeName", ""),
        _age(pod),
    )


def _service(service: Object) -> tuple[str, ...]:
    spec = service.get("spec") or {}
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or "-"]
    ports = [f"{p['port']}/{p.get('protocol', 'TCP')}" for p in spec.get("ports") or []]
    return service["metadata"]["name"], ",".join(addresses), ",".join(ports), _age(service)


def _deployment(deployment: Object) -> tuple[str, ...]:
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    return (
        deployment["metadata"]["name"],
        f"{status.get('readyReplicas', 0)}/{wanted}",
        str(status.get("updatedReplicas", 0)),
        _age(deployment),
    )


def _namespace(namespace: Object) -> tuple[str, ...]:
    meta = namespace["metadata"]
    mode = (meta.get("labels") or {}).get(LABEL_DATAPLANE_MODE, "-")
    return meta["name"], mode, _age(namespace)


def _node(node: Object) -> tuple[str, ...]:
    addresses = (node.get("status") or {}).get("addresses") or []
    inside = [a["address"] for a in addresses if a.get("type") == "InternalIP"]
    ready = "Ready" if _ready(node) else "NotReady"
    return node["metadata"]["name"], ready, ",".join(inside), _age(node)


_Cells = Callable[[Object], tuple[str, ...]]
_COLUMNS: Final[dict[str, tuple[tuple[str, ...], _Cells]]] = {
    "Pod": (("NAME", "READY", "STATUS", "RESTARTS", "MESH", "IP", "NODE", "AGE"), _pod),
    "Service": (("NAME", "CLUSTER-IP", "PORTS", "AGE"), _service),
    "Deployment": (("NAME", "READY", "UP-TO-DATE", "AGE"), _deployment),
    "Namespace": (("NAME", "MESH", "AGE"), _namespace),
    "Node": (("NAME", "STATUS", "ADDRESSES", "AGE"), _node),
}

"""What the node agent reads from a Pod object. Pure.

Objects come from the API server, which has checked their shape; a field of another shape than
expected is taken for absent, never for an error: one odd pod must not cost the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.enrolment import wants
from mesh.kube.kinds import Kind
from mesh.ports import ANNOTATION_REDIRECTION, LABEL_DATAPLANE_MODE
from node_agent.source import CONDITION, PodStatus

MIRROR_OF: Final = "kubernetes.io/config.mirror"  # on a static pod's mirror: the uid kubelet gave
_SIDECAR_STATUS: Final = "sidecar.istio.io/status"
_TERMINAL: Final = frozenset({"Succeeded", "Failed"})

_ACTIONS: Final = {"httpGet": True, "tcpSocket": True, "grpc": True}
_CONTAINER: Final = {
    "ports": {"name": True, "containerPort": True, "protocol": True},
    **dict.fromkeys(("livenessProbe", "readinessProbe", "startupProbe"), _ACTIONS),
    "lifecycle": {"postStart": _ACTIONS, "preStop": _ACTIONS},
}
_KEPT: Final = {
    "metadata": {
        "deletionTimestamp": True,
        "labels": {LABEL_DATAPLANE_MODE: True},
        "annotations": {ANNOTATION_REDIRECTION: True, _SIDECAR_STATUS: True, MIRROR_OF: True},
    },
    "spec": {
        "serviceAccountName": True,
        "hostNetwork": True,
        "containers": _CONTAINER,
        "initContainers": _CONTAINER,
    },
    "status": {"phase": True, "podIPs": True, "conditions": True},
}


def pods_of(node: str) -> Kind:
    """Pods of one node, and of them what is read here."""
    return Kind("Pod", "pods", keep=_KEPT, selector=f"spec.nodeName={node}")


NAMESPACES: Final = Kind(
    "Namespace",
    "namespaces",
    namespaced=False,
    metadata_only=True,
    keep={"metadata": {"labels": {LABEL_DATAPLANE_MODE: True}}},
)


@dataclass(frozen=True, slots=True)
class PodObject:
    """A Pod, as far as the agent cares.

    uid: as the runtime knows it; object_uid: as the API server does (a static pod's mirror has
    another). addresses: status.podIPs. condition, since: the condition's status and
    lastTransitionTime, "" without.
    """

    uid: str
    object_uid: str
    namespace: str
    name: str
    service_account: str
    addresses: tuple[str, ...]
    probe_ports: tuple[int, ...]
    host_network: bool
    leaving: bool  # finished, or being deleted
    finished: bool
    marked: str
    status: PodStatus | None  # what its annotation and condition say together
    condition: str
    since: str
    raw: Mapping[str, Any]

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.namespace}/{self.name}"

    def wants(self, namespace: Mapping[str, Any] | None) -> bool:
        """Whether it belongs to the mesh, given its Namespace object."""
        return wants(self.raw, namespace)


def read(obj: Mapping[str, Any]) -> PodObject:
    """Read a Pod."""
    metadata, spec, status = (_dict(obj.get(part)) for part in ("metadata", "spec", "status"))
    annotations = _dict(metadata.get("annotations"))
    uid = str(metadata.get("uid") or "")
    marked = str(annotations.get(ANNOTATION_REDIRECTION) or "")
    condition = next(
        (c for c in _dicts(status.get("conditions")) if c.get("type") == CONDITION), None
    )
    finished = status.get("phase") in _TERMINAL
    return PodObject(
        uid=str(annotations.get(MIRROR_OF) or uid),
        object_uid=uid,
        namespace=str(metadata.get("namespace") or "default"),
        name=str(metadata.get("name") or ""),
        service_account=str(spec.get("serviceAccountName") or "default"),
        addresses=tuple(str(ip["ip"]) for ip in _dicts(status.get("podIPs")) if ip.get("ip")),
        probe_ports=probe_ports(spec),
        host_network=bool(spec.get("hostNetwork")),
        leaving=finished or bool(metadata.get("deletionTimestamp")),
        finished=finished,
        marked=marked,
        status=_status(marked, condition),
        condition=str((condition or {}).get("status") or ""),
        since=str((condition or {}).get("lastTransitionTime") or ""),
        raw=obj,
    )


def probe_ports(spec: Mapping[str, Any]) -> tuple[int, ...]:
    """Give the ports that kubelet itself connects to: probes and lifecycle hooks, by number."""
    found: set[int] = set()
    for container in (*_dicts(spec.get("containers")), *_dicts(spec.get("initContainers"))):
        named = {p.get("name"): p.get("containerPort") for p in _dicts(container.get("ports"))}
        for action in _actions(container):
            port = action.get("port")
            port = named.get(port, port) if isinstance(port, str) else port
            if isinstance(port, str) and port.isascii() and port.isdigit():
                port = int(port)
            if isinstance(port, int) and 0 < port < 65536:
                found.add(port)
    return tuple(sorted(found))


def _actions(container: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    lifecycle = _dict(container.get("lifecycle"))
    handlers = [container.get(p) for p in ("livenessProbe", "readinessProbe", "startupProbe")]
    handlers += [lifecycle.get("postStart"), lifecycle.get("preStop")]
    for handler in map(_dict, handlers):
        for kind in _ACTIONS:
            action = handler.get(kind)
            # With a host of its own it does not go to the pod.
            if isinstance(action, dict) and not action.get("host"):
                yield action


def _status(marked: str, condition: Mapping[str, Any] | None) -> PodStatus | None:
    if not marked and condition is None:
        return None
    found = condition or {}
    return PodStatus(marked, str(found.get("reason") or ""), str(found.get("message") or ""))


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

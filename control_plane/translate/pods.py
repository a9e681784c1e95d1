"""Pods and Nodes to workloads, without what other objects add (services, policies)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, Final

from mesh.model import Locality, Tunnel, Workload, WorkloadType
from mesh.ports import ANNOTATION_REDIRECTION
from waypoint.config.binding import SILENT, Wish, read_wish

TERMINAL: Final = frozenset({"Succeeded", "Failed"})
_CRONJOB_RUN = re.compile(r"(.+)-\d{8,10}")  # a CronJob names its Jobs by the scheduled minute

_NAME_LABELS: Final = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS: Final = (
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
)
_REGION: Final = ("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region")
_ZONE: Final = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
_SUBZONE: Final = ("topology.istio.io/subzone",)
PLACE_LABELS: Final = (*_REGION, *_ZONE, *_SUBZONE)


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """What the operator set for the whole mesh."""

    root_namespace: str
    trust_domain: str
    cluster_id: str
    cluster_domain: str


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One pod. `workload` None: it cannot be reached (no address yet, or finished)."""

    namespace: str
    name: str
    uid: str
    service_account: str
    node: str
    terminal: bool
    labels: Mapping[str, str]
    named_ports: Mapping[str, int]  # container ports by name, TCP
    workload: Workload | None
    wish: Wish = SILENT  # for a waypoint


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((labels[n] for n in names if labels.get(n)), "")


def addresses_of(values: list[Any]) -> tuple[str, ...]:
    """Canonical text of those values that are IP addresses, in order, each once."""
    out: dict[str, None] = {}
    for value in values:
        try:
            if isinstance(value, str):
                out[str(ipaddress.ip_address(value))] = None
        except ValueError:
            continue
    return tuple(out)


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def _pod_addresses(status: Mapping[str, Any]) -> tuple[str, ...]:
    ips = [entry.get("ip") for entry in _items(status.get("podIPs"))]
    return addresses_of(ips or [status.get("podIP")])


def _ready(metadata: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    if metadata.get("deletionTimestamp"):
        return False  # draining: existing connections go on, new ones go elsewhere
    return any(
        c.get("type") == "Ready" and c.get("status") == "True"
        for c in _items(status.get("conditions"))
    )


def _owner(metadata: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[str, WorkloadType]:
    """Find the workload's name and type from the owner, or from how a ReplicaSet names pods."""
    name: str = metadata["name"]
    template_hash = labels.get("pod-template-hash", "")
    owner = next((o for o in _items(metadata.get("ownerReferences")) if o.get("controller")), None)
    if owner is None:
        head, _, _ = name.rpartition("-")
        if template_hash and head.endswith(f"-{template_hash}"):
            return head.removesuffix(f"-{template_hash}"), WorkloadType.DEPLOYMENT
        return name, WorkloadType.POD
    kind, owner_name = owner.get("kind"), str(owner.get("name") or name)
    if kind == "ReplicaSet":
        return owner_name.removesuffix(f"-{template_hash}"), WorkloadType.DEPLOYMENT
    if kind == "Deployment":
        return owner_name, WorkloadType.DEPLOYMENT
    if kind == "Job":
        run = _CRONJOB_RUN.fullmatch(owner_name)
        return (run[1], WorkloadType.CRONJOB) if run else (owner_name, WorkloadType.JOB)
    return owner_name, WorkloadType.POD  # StatefulSet, DaemonSet, ...


def _named_ports(spec: Mapping[str, Any]) -> dict[str, int]:
    out: dict[str, int] = {}
    for container in [*_items(spec.get("containers")), *_items(spec.get("initContainers"))]:
        for port in _items(container.get("ports")):
            name, number = port.get("name"), port.get("containerPort")
            if port.get("protocol", "TCP") == "TCP" and name and isinstance(number, int):
                out.setdefault(str(name), number)
    return out


def locality_of(node: Mapping[str, Any] | None) -> Locality:
    """Read a Node's place from its topology labels."""
    labels = ((node or {}).get("metadata") or {}).get("labels") or {}
    return Locality(_first(labels, _REGION), _first(labels, _ZONE), _first(labels, _SUBZONE))


def translate_pod(obj: Mapping[str, Any], config: MeshConfig) -> PodRecord:
    """Read one Pod object."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    name = metadata["name"]
    # One copy of what thousands of pods have in common.
    namespace = intern(str(metadata["namespace"]))
    labels = {intern(str(k)): intern(str(v)) for k, v in (metadata.get("labels") or {}).items()}
    account = intern(str(spec.get("serviceAccountName") or "default"))
    node = intern(str(spec.get("nodeName") or ""))
    terminal = status.get("phase") in TERMINAL
    addresses = _pod_addresses(status)
    workload = None
    if addresses and not terminal:
        workload_name, workload_type = _owner(metadata, labels)
        host_network = spec.get("hostNetwork") is True
        redirection = (metadata.get("annotations") or {}).get(ANNOTATION_REDIRECTION)
        workload = Workload(
            uid=f"{config.cluster_id}//Pod/{namespace}/{name}",
            name=name,
            namespace=namespace,
            addresses=addresses,
            service_account=account,
            trust_domain=config.trust_domain,
            tunnel=Tunnel.HBONE if redirection == "enabled" and not host_network else Tunnel.NONE,
            node=node,
            cluster_id=config.cluster_id,
            canonical_name=_first(labels, _NAME_LABELS) or workload_name,
            canonical_revision=_first(labels, _REVISION_LABELS) or "latest",
            workload_name=workload_name,
            workload_type=workload_type,
            healthy=_ready(metadata, status),
            host_network=host_network,
        )
    return PodRecord(
        namespace=namespace,
        name=name,
        uid=str(metadata.get("uid") or ""),
        service_account=account,
        node=node,
        terminal=terminal,
        labels=labels,
        named_ports=_named_ports(spec),
        workload=workload,
        wish=read_wish(metadata),
    )

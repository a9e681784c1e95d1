"""Kubernetes objects as plain JSON: which one is meant, in which order they go in. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]

PART_OF: Final = "app.kubernetes.io/part-of"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
US: Final = "ambit"
INSTALLER: Final = "ambit-install"  # field manager, and managed-by of what `ambit install` applied

# What an object may need comes before it. Kinds not named come last: they use CRDs.
_ORDER: Final = (
    "Namespace",
    "CustomResourceDefinition",
    "ResourceQuota",
    "NetworkPolicy",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
    "DaemonSet",
)


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Names one object. `namespace` is "" for what belongs to the cluster."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @property
    def group(self) -> str:
        """API group, "" for the core."""
        return self.api_version.rpartition("/")[0]

    @property
    def same(self) -> tuple[str, str, str, str]:
        """What stays when an object moves to another version of its group."""
        return (self.group, self.kind, self.namespace, self.name)

    def __str__(self) -> str:
        """Name it for people."""
        place = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {place}"


def ref(obj: Mapping[str, Any]) -> Ref:
    """Name an object."""
    metadata = obj["metadata"]
    return Ref(obj["apiVersion"], obj["kind"], metadata.get("namespace", ""), metadata["name"])


def rank(of: Ref) -> int:
    """Where a kind comes when objects are created; removing goes the other way."""
    return _ORDER.index(of.kind) if of.kind in _ORDER else len(_ORDER)


def in_order(objects: Iterable[Object]) -> list[Object]:
    """Sort for creation; the chart's own order within a kind."""
    return sorted(objects, key=lambda obj: rank(ref(obj)))


def labels(obj: Mapping[str, Any] | None) -> Mapping[str, str]:
    """Labels of an object, none of no object."""
    return ((obj or {}).get("metadata") or {}).get("labels") or {}


def is_ours(obj: Mapping[str, Any] | None) -> bool:
    """Whether this mesh's chart, by whichever tool, put an object there."""
    return labels(obj).get(PART_OF) == US


def helm_release(obj: Mapping[str, Any] | None) -> str:
    """Name of the Helm release an object belongs to, "" for none."""
    annotations = ((obj or {}).get("metadata") or {}).get("annotations") or {}
    if labels(obj).get(MANAGED_BY) != "Helm":
        return ""
    namespace = annotations.get("meta.helm.sh/release-namespace", "")
    name = annotations.get("meta.helm.sh/release-name", "")
    return f"{name} in {namespace}" if name else ""


def is_node_ready(node: Mapping[str, Any]) -> bool:
    """Whether a node's kubelet reports that it can run pods."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)

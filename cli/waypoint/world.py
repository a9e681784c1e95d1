"""Where waypoints are: a lab on this machine, or (cluster.py) a Kubernetes cluster."""

from __future__ import annotations

from typing import Any, Protocol

from cli.waypoint.shape import laid_over
from lab import readiness
from lab.api import Lab
from lab.workloads import namespace_of
from waypoint.config.binding import USE
from waypoint.config.gateways import GATEWAY_NAME

Object = dict[str, Any]


class World(Protocol):
    """Objects of a mesh. All raise MeshError where they cannot answer."""

    def namespace(self, name: str) -> Object | None:
        """Return a Namespace."""
        ...

    def gateways(self, namespace: str) -> list[Object]:
        """Return the Gateways of a namespace, "" for all; raises NotFound without Gateway API."""
        ...

    def classes(self) -> list[Object]:
        """Return the GatewayClasses."""
        ...

    def users(self, name: str) -> list[Object]:
        """Return the Namespaces, Services and Pods labelled to use a waypoint of this name."""
        ...

    def apply(self, gateway: Object, overwrite: bool) -> str:
        """Write a waypoint's Gateway; says created, configured or unchanged.

        `overwrite`: also over fields that another tool has set.
        """
        ...

    def label_namespace(self, name: str, labels: dict[str, str | None]) -> None:
        """Set labels of a Namespace; None removes one."""
        ...

    def delete(self, namespace: str, name: str) -> bool:
        """Delete a Gateway; False when it was gone."""
        ...

    def why(self, namespace: str, name: str) -> list[str]:
        """Say what holds up the pods of a waypoint, and the next step."""
        ...

    def make_namespace(self, name: str) -> str:
        """Say how to make a Namespace."""
        ...

    def label_command(self, kind: str, namespace: str, name: str, label: str) -> str:
        """Say how to set a label (key=value) or to remove it (key-)."""
        ...


class LabWorld:
    """A lab; raises NotFound where it is not there."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._store = lab.store
        self._suffix = "" if lab.name == "default" else f" --name {lab.name}"

    def namespace(self, name: str) -> Object | None:
        """Return a Namespace."""
        return self._store.get("Namespace", None, name)

    def gateways(self, namespace: str) -> list[Object]:
        """Return the Gateways of a namespace, "" for all."""
        found = self._store.list("Gateway")
        return [o for o in found if namespace in ("", namespace_of(o))]

    def classes(self) -> list[Object]:
        """Return the GatewayClasses."""
        return self._store.list("GatewayClass")

    def users(self, name: str) -> list[Object]:
        """Return what is labelled to use a waypoint of this name."""
        return [
            obj
            for kind in ("Namespace", "Service", "Pod")
            for obj in self._store.list(kind)
            if (obj["metadata"].get("labels") or {}).get(USE) == name
        ]

    def apply(self, gateway: Object, overwrite: bool) -> str:
        """Write a waypoint's Gateway; a lab's objects are nobody's in particular."""
        meta = gateway["metadata"]
        old = self._store.as_written("Gateway", meta["namespace"], meta["name"])
        (line,) = self._lab.apply([laid_over(old, gateway) if old else gateway])
        return line.rpartition(" ")[2]

    def label_namespace(self, name: str, labels: dict[str, str | None]) -> None:
        """Set labels of a Namespace."""
        self._lab.label("Namespace", None, name, labels)

    def delete(self, namespace: str, name: str) -> bool:
        """Delete a Gateway."""
        return self._store.delete("Gateway", namespace, name)

    def why(self, namespace: str, name: str) -> list[str]:
        """Say what its pods wait for."""
        if not self._lab.live:
            return [
                f"the manager of lab {self._lab.name!r} is gone: nothing happens here any more",
                f"      next: ambit lab up FILE...{self._suffix}",
            ]
        parts = [o for o in self._store.list() if _belongs(o, namespace, name)]
        missing = readiness.waiting(parts, mesh=True)
        lines = [f"{one.what}: {one.why}" for one in missing]
        pods = [one for one in missing if one.what.startswith("pod ")]
        log = pods[0].log if pods else "control-plane"
        return [*lines, f"      next: ambit lab logs {log}{self._suffix}"]

    def make_namespace(self, name: str) -> str:
        """Say how to make a Namespace."""
        return f"ambit lab apply -f FILE{self._suffix}, with a Namespace {name} in it"

    def label_command(self, kind: str, namespace: str, name: str, label: str) -> str:
        """Say how to set a label."""
        place = f" -n {namespace}" if namespace else ""
        return f"ambit lab label {kind} {name} {label}{place}{self._suffix}"


def _belongs(obj: Object, namespace: str, name: str) -> bool:
    labels = obj["metadata"].get("labels") or {}
    made = obj["kind"] in ("Deployment", "Pod") and namespace_of(obj) == namespace
    return made and labels.get(GATEWAY_NAME) == name

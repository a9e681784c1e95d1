"""A cluster in memory with Gateways, and a control plane that tells each what it is told to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from cli.cluster.objects import Object, Ref, ref
from cli.waypoint import shape
from mesh.kube.api import ApiError
from tests.unit.cli.fake_kube import FakeKube

NAMES = {"gateway.networking.k8s.io/gateway-name": "waypoint"}
GATEWAY = "gateway.networking.k8s.io/v1"
USE = "istio.io/use-waypoint"


def namespace(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def gateway_class(name: str, controller: str) -> Object:
    spec = {"controllerName": controller}
    return {
        "apiVersion": GATEWAY,
        "kind": "GatewayClass",
        "metadata": {"name": name},
        "spec": spec,
    }


def condition(kind: str, status: str, reason: str, message: str = "", seen: int = 1) -> Object:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": seen,
    }


READY = (condition("Accepted", "True", "Accepted"), condition("Programmed", "True", "Programmed"))
PENDING = (
    condition("Accepted", "True", "Accepted"),
    condition("Programmed", "False", "Pending", "none of its 1 pods is ready"),
)
REFUSED = (
    condition("Accepted", "False", "InvalidParameters", "there is no ConfigMap shop/size"),
    condition("Programmed", "False", "Invalid", "it is not accepted"),
)


class Cluster(FakeKube):
    """With a control plane for waypoints, which tells each new Gateway `told`."""

    def __init__(self, told: tuple[Object, ...] = READY, crds: bool = True) -> None:
        super().__init__(namespace("shop", **{"istio.io/dataplane-mode": "ambient"}))
        self.told, self.crds = told, crds
        self.applied: list[tuple[str, bool]] = []

    def is_namespaced(self, of: Ref) -> bool:
        if of.group == "gateway.networking.k8s.io" and not self.crds:
            raise ApiError(404, "NotFound", f"{of}: this cluster knows no {of.kind}")
        return super().is_namespaced(of)

    def apply(
        self, obj: Object, dry_run: bool = False, manager: str = "", force: bool = True
    ) -> Object:
        self.applied.append((manager, force))
        before = self.get(ref(obj))
        new = copy.deepcopy(obj)
        old_version = before["metadata"]["resourceVersion"] if before else "0"
        same = before is not None and before["spec"] == obj["spec"]
        version = old_version if same else str(int(old_version) + 1)
        new["metadata"] |= {"resourceVersion": version, "generation": 1}
        new["status"] = {"conditions": list(self.told)}
        self.objects[ref(obj).same] = new
        return new

    def patch(
        self, of: Ref, patch: Mapping[str, Any], content: str = "", sub: str = ""
    ) -> Object | None:
        found = self.objects.get(of.same)
        if found is None:
            return None
        labels = {**found["metadata"].get("labels", {}), **patch["metadata"]["labels"]}
        found["metadata"]["labels"] = {k: v for k, v in labels.items() if v is not None}
        return found

    def labels(self, name: str) -> dict[str, str]:
        found = self.get(Ref("v1", "Namespace", "", name))
        assert found
        return dict(found["metadata"].get("labels") or {})

    def waypoint(self, name: str = "waypoint", **fields: Any) -> None:
        """Put one there, with its Deployment and a pod that cannot start."""
        made = shape.manifest(name, "shop")
        made["metadata"] |= {"resourceVersion": "1", "generation": 1}
        made["spec"] |= fields
        made["status"] = {"conditions": list(self.told)}
        self.put(made)

    def stuck_pod(self) -> None:
        meta = {"name": "waypoint", "namespace": "shop", "labels": NAMES}
        spec = {"selector": {"matchLabels": NAMES}}
        self.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
        waiting = {"state": {"waiting": {"reason": "ImagePullBackOff"}}, "name": "waypoint"}
        self.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "waypoint-1", "namespace": "shop", "labels": NAMES},
                "spec": {"nodeName": "n1"},
                "status": {"phase": "Pending", "containerStatuses": [waiting]},
            }
        )

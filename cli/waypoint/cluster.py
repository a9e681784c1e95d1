"""Waypoints of a Kubernetes cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cli.cluster.carry import explain_workload, pods_of
from cli.cluster.kube import Kube
from cli.cluster.objects import Ref
from cli.cluster.ready import is_pod_ready
from cli.waypoint.shape import API_VERSION
from mesh.errors import ConfigError, MeshError, NotFound
from mesh.kube.api import ApiError
from waypoint.config.binding import USE
from waypoint.config.gateways import GATEWAY_NAME

Object = dict[str, Any]

MANAGER: Final = "ambit-waypoint"  # field manager
_LABEL_VALUE: Final = 63  # characters: what is longer is nobody's label
_CONFLICT: Final = 409


class ClusterWorld:
    """A cluster, seen through its API server."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    @classmethod
    def connect(cls, kubeconfig: Path | None, context: str | None) -> ClusterWorld:
        """Use a kubeconfig, or the pod's account; raises ConfigError."""
        return cls(Kube.connect(kubeconfig, context))

    def namespace(self, name: str) -> Object | None:
        """Return a Namespace."""
        return self._kube.get(Ref("v1", "Namespace", "", name))

    def gateways(self, namespace: str) -> list[Object]:
        """Return the Gateways of a namespace, "" for all; raises NotFound without Gateway API."""
        self._need_gateway_api()
        return list(self._kube.list(API_VERSION, "Gateway", namespace))

    def _need_gateway_api(self) -> None:
        try:
            self._kube.is_namespaced(Ref(API_VERSION, "Gateway", "", ""))
        except ApiError as e:
            if e.status != 404:
                raise
            raise NotFound(
                f"{self._kube.host} knows no Gateway of {API_VERSION}: the Gateway API's CRDs are"
                " missing; install them with: ambit install --gateway-api-crds PATH"
            ) from e

    def classes(self) -> list[Object]:
        """Return the GatewayClasses."""
        return list(self._kube.list(API_VERSION, "GatewayClass"))

    def users(self, name: str) -> list[Object]:
        """Return what is labelled to use a waypoint of this name."""
        if len(name) > _LABEL_VALUE:
            return []
        return [
            obj
            for kind in ("Namespace", "Service", "Pod")
            for obj in self._kube.list("v1", kind, labelSelector=f"{USE}={name}")
        ]

    def apply(self, gateway: Object, overwrite: bool) -> str:
        """Apply on the server's side; raises ConfigError where another tool set something else."""
        meta = gateway["metadata"]
        old = self._kube.get(Ref(API_VERSION, "Gateway", meta["namespace"], meta["name"]))
        try:
            new = self._kube.apply(gateway, manager=MANAGER, force=overwrite)
        except ApiError as e:
            if e.status != _CONFLICT:
                raise
            raise ConfigError(
                f"Gateway {meta['namespace']}/{meta['name']}: {e.message}; change it there, or"
                " take these fields over with --overwrite"
            ) from e
        if old is None:
            return "created"
        same = old["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]
        return "unchanged" if same else "configured"

    def label_namespace(self, name: str, labels: dict[str, str | None]) -> None:
        """Set labels of a Namespace; raises NotFound when it has gone."""
        patch = {"metadata": {"labels": labels}}
        if self._kube.patch(Ref("v1", "Namespace", "", name), patch) is None:
            raise NotFound(f"namespace {name} has gone meanwhile")

    def delete(self, namespace: str, name: str) -> bool:
        """Delete a Gateway."""
        return self._kube.delete(Ref(API_VERSION, "Gateway", namespace, name))

    def why(self, namespace: str, name: str) -> list[str]:
        """Say what holds up its pods: events, containers, the end of a log."""
        try:
            return self._why(namespace, name)
        except MeshError as e:
            return [f"its pods cannot be looked at: {e}"]

    def _why(self, namespace: str, name: str) -> list[str]:
        selector = f"{GATEWAY_NAME}={name}"
        made = list(self._kube.list("apps/v1", "Deployment", namespace, labelSelector=selector))
        if not made:
            return ["no Deployment was made for it", "      next: ambit status"]
        lines = []
        for deployment in made:
            pods = pods_of(self._kube, deployment)
            if pods and all(is_pod_ready(pod) for pod in pods):
                lines.append(
                    f"its {len(pods)} pods are ready, and the control plane says otherwise"
                )
                lines.append("      next: ambit status")
            else:
                lines += explain_workload(self._kube, deployment)
        return lines

    def make_namespace(self, name: str) -> str:
        """Say how to make a Namespace."""
        return f"kubectl create namespace {name}"

    def label_command(self, kind: str, namespace: str, name: str, label: str) -> str:
        """Say how to set a label."""
        place = f"-n {namespace} " if namespace else ""
        return f"kubectl {place}label {kind} {name} {label}"

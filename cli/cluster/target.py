"""The mesh in a Kubernetes cluster, asked through the API server by port-forward.

Pages are fetched from the pods' own loopback, as in the lab: an admin port that listens nowhere
else can be read by who may forward to the pod, and by nobody else.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any, Final

from cli.cluster.kube import Kube
from cli.cluster.objects import PART_OF, US, Object
from cli.cluster.ready import holdup, is_pod_ready
from cli.target import Unreachable, read_page
from mesh.errors import NotFound, Unavailable
from mesh.kube.api import ApiError
from mesh.kube.forward import forward
from mesh.ports import AGENT_HEALTH, AGENT_METRICS

_AGENT: Final = "ambit-node-agent"
_ZTUNNEL: Final = "ztunnel"
_CONTROL_PLANE: Final = "ambit-control-plane"
_GROUP: Final = "security.istio.io/v1"
_TIMEOUT: Final = 10.0  # seconds without a byte


class KubeTarget:
    """A mesh in a cluster. Safe to ask from several threads."""

    def __init__(self, kube: Kube) -> None:
        """Find the mesh; raises NotFound, ApiError, Unavailable."""
        self._kube = kube
        self._pods: dict[tuple[str, str], Object] = {}  # (app, node) -> its pod
        self._control_planes: list[Object] = []
        self.namespace = ""
        for pod in kube.list("v1", "Pod", labelSelector=f"{PART_OF}={US}"):
            self._take(pod)
        if not self.namespace:
            raise NotFound(f"Ambit is not in {kube.host}; install it with: ambit install")

    @classmethod
    def connect(cls, kubeconfig: Path | None, context: str | None) -> KubeTarget:
        """Find the mesh of a kubeconfig's cluster."""
        return cls(Kube.connect(kubeconfig, context))

    def _take(self, pod: Object) -> None:
        app = pod["metadata"].get("labels", {}).get("app", "")
        node = (pod.get("spec") or {}).get("nodeName", "")
        if app not in (_AGENT, _ZTUNNEL, _CONTROL_PLANE):
            return
        self.namespace = pod["metadata"]["namespace"]
        if app == _CONTROL_PLANE:
            self._control_planes.append(pod)
        elif node:
            other = self._pods.get((app, node))
            if other is None or _better(pod, other):
                self._pods[app, node] = pod

    def nodes(self) -> list[str]:
        """Names of the nodes that have a part of the mesh, sorted."""
        return sorted({node for _, node in self._pods})

    def fetch(self, node: str, port: int, path: str, method: str = "GET") -> bytes:
        """Fetch a page from a pod's loopback; raises Unreachable."""
        app = _AGENT if port in (AGENT_HEALTH, AGENT_METRICS) else _ZTUNNEL
        pod = self._pods.get((app, node))
        if pod is None:
            raise Unreachable(f"node {node}: no pod of {app} is there")
        return self._fetch(pod, port, path, method)

    def fetch_control_plane(self, port: int, path: str) -> list[bytes]:
        """Fetch a page of every replica that is ready; raises Unreachable when there is none."""
        ready = [pod for pod in self._control_planes if is_pod_ready(pod)]
        if not ready:
            raise Unreachable(
                f"{len(self._control_planes)} pods of {_CONTROL_PLANE}, none is ready"
            )
        return [self._fetch(pod, port, path, "GET") for pod in ready]

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """Objects of a kind of the mesh's policies, with their status."""
        return list(self._kube.list(_GROUP, kind))

    def log_command(self, component: str) -> str:
        """Say how to see a component's log; AGENT or ZTUNNEL/NODE, control-plane."""
        name, _, node = component.partition("/")
        if name == "control-plane":
            return f"kubectl -n {self.namespace} logs deploy/{_CONTROL_PLANE}"
        app = _ZTUNNEL if name == "ztunnel" else _AGENT
        pod = self._pods.get((app, node))
        if pod is None:
            return f"kubectl -n {self.namespace} describe daemonset {app}"
        container = " -c agent" if app == _AGENT else ""
        return f"kubectl -n {self.namespace} logs {pod['metadata']['name']}{container}"

    def _fetch(self, pod: Object, port: int, path: str, method: str) -> bytes:
        metadata = pod["metadata"]
        what = f"pod {metadata['namespace']}/{metadata['name']}, port {port}"
        reason = holdup(pod)
        state = f" (pod: {reason})" if reason else ""
        try:
            with forward(self._kube.api, metadata["namespace"], metadata["name"], port) as socket:
                socket.settimeout(_TIMEOUT)
                connection = http.client.HTTPConnection("localhost", port, timeout=_TIMEOUT)
                connection.sock = socket
                return read_page(connection, path, method)
        except (Unavailable, ApiError) as e:
            raise Unreachable(f"{e}{state}") from e
        except (OSError, http.client.HTTPException) as e:
            raise Unreachable(f"{what}: {e or type(e).__name__}{state}") from e


def _better(pod: Object, other: Object) -> bool:
    """Whether of two pods on a node this is the one that serves: ready, then younger."""
    return _standing(pod) > _standing(other)


def _standing(pod: Object) -> tuple[bool, str]:
    return is_pod_ready(pod), str(pod["metadata"].get("creationTimestamp", ""))

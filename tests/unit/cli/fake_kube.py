"""An API server's objects in memory, with controllers that finish at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from cli.cluster.objects import Object, Ref, ref

_CLUSTER = {
    "Namespace", "Node", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding",
    "GatewayClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}  # fmt: skip


def node(name: str, ready: bool = True) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "status": {
            "nodeInfo": {
                "operatingSystem": "linux",
                "kernelVersion": "6.18.1",
                "containerRuntimeVersion": "containerd://2.3.0",
            },
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
        },
    }


class FakeKube:
    """As cli.cluster.kube.Kube. `stuck`: names of workloads whose pods do not start."""

    host = "https://fake:6443"

    def __init__(self, *nodes: Object, stuck: frozenset[str] = frozenset()) -> None:
        self.objects: dict[tuple[str, str, str, str], Object] = {}
        self.stuck = stuck
        self.served = {"v1", "apps/v1"}
        self.writes: list[str] = []
        for one in nodes:
            self.put(one)

    def put(self, obj: Object) -> None:
        self.objects[ref(obj).same] = copy.deepcopy(obj)

    def names(self, kind: str) -> list[str]:
        return sorted(name for _, k, _, name in self.objects if k == kind)

    # ---- what commands use -------------------------------------------------------------------

    def version(self) -> str:
        return "v1.37.2"

    def api_versions(self) -> set[str]:
        return set(self.served)

    def forget_kinds(self) -> None: ...

    def is_namespaced(self, of: Ref) -> bool:
        return of.kind not in _CLUSTER

    def resource(self, of: Ref) -> str:
        return of.kind.lower() + "s"

    def listable(self) -> list[tuple[str, str]]:
        return [("v1", "ConfigMap"), ("v1", "Secret"), ("v1", "Pod"), ("v1", "ServiceAccount")]

    def get(self, of: Ref) -> Object | None:
        found = self.objects.get(of.same)
        return copy.deepcopy(found) if found else None

    def list(
        self, api_version: str, kind: str, namespace: str = "", **query: str
    ) -> Iterator[Object]:
        wanted = dict(p.split("=") for p in query.get("labelSelector", "").split(",") if p)
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        for obj in list(self.objects.values()):
            metadata = obj["metadata"]
            labels = metadata.get("labels") or {}
            if (
                obj["kind"] == kind
                and namespace in ("", metadata.get("namespace", ""))
                and name in ("", metadata["name"])
                and all(labels.get(k) == v for k, v in wanted.items())
            ):
                yield copy.deepcopy(obj)

    def apply(
        self, obj: Object, dry_run: bool = False, manager: str = "", force: bool = True
    ) -> Object:
        before = self.objects.get(ref(obj).same)
        new = copy.deepcopy(obj)
        if before and "status" in before:
            new["status"] = before["status"]
        new["metadata"]["uid"] = "u"
        if dry_run:
            return new
        self.writes.append(f"apply {ref(obj)}")
        self.objects[ref(obj).same] = new
        self._control(new)
        return new

    def create(self, obj: Object, path: str) -> Object:
        return {"status": {"allowed": True}}

    def delete(self, of: Ref, propagation: str = "Background", uid: str = "") -> bool:
        self.writes.append(f"delete {of}")
        gone = self.objects.pop(of.same, None)
        if gone is not None and of.kind in ("DaemonSet", "Deployment"):
            self._drop_pods(gone)
        return gone is not None

    def patch(
        self, of: Ref, patch: Mapping[str, Any], content: str = "", sub: str = ""
    ) -> Object | None:
        self.writes.append(f"patch {of}")
        return self.get(of)

    def logs(self, namespace: str, pod: str, container: str, lines: int, previous: bool) -> str:
        return "cannot load the hooks\n"

    # ---- controllers -------------------------------------------------------------------------

    def _control(self, obj: Object) -> None:
        match obj["kind"]:
            case "CustomResourceDefinition":
                obj["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
            case "Deployment":
                self._run(obj, ["n1"] * obj["spec"]["replicas"])
            case "DaemonSet":
                self._run(obj, self.names("Node"))

    def _run(self, obj: Object, nodes: list[str]) -> None:
        self._drop_pods(obj)
        ready = 0
        for number, name in enumerate(nodes):
            is_ready = obj["metadata"]["name"] not in self.stuck and self._answers(name)
            ready += is_ready
            self.put(self._pod(obj, name, number, is_ready))
        obj["status"] = {
            "observedGeneration": 1,
            "replicas": len(nodes), "updatedReplicas": ready, "availableReplicas": ready,
            "desiredNumberScheduled": len(nodes), "updatedNumberScheduled": ready,
            "numberReady": ready,
        }  # fmt: skip

    def _answers(self, name: str) -> bool:
        found = self.get(Ref("v1", "Node", "", name))
        return bool(found and found["status"]["conditions"][0]["status"] == "True")

    def _pod(self, obj: Object, on: str, number: int, is_ready: bool) -> Object:
        template = obj["spec"]["template"]
        waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **copy.deepcopy(template["metadata"]),
                "name": f"{obj['metadata']['name']}-{number}",
                "namespace": obj["metadata"]["namespace"],
                "ownerReferences": [{"kind": obj["kind"]}],
            },
            "spec": {"nodeName": on},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True" if is_ready else "False"}],
                "containerStatuses": []
                if is_ready
                else [{"name": "agent", "state": waiting, "restartCount": 2}],
            },
        }

    def _drop_pods(self, obj: Object) -> None:
        for pod in list(self.list("v1", "Pod", obj["metadata"]["namespace"])):
            if pod["metadata"]["name"].rpartition("-")[0] == obj["metadata"]["name"]:
                self.objects.pop(ref(pod).same)

"""What an uninstallation removes, what it keeps, and how far the nodes are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cli.cluster.objects import Object, Ref, is_node_ready, is_ours, rank, ref
from cli.cluster.ready import is_pod_ready

MODE: Final = "ambit.io/mode"  # annotation of the node agent's pods
REDIRECTION: Final = "ambient.istio.io/redirection"
CONDITIONS: Final = "ambit.io/"  # beginning of the types of conditions that we write
AGENT: Final = "ambit-node-agent"
CNI: Final = "ambit-cni"
ROOT_CERT: Final = "istio-ca-root-cert"
CA_SECRET: Final = "istio-ca-secret"
LEASE: Final = "ambit-control-plane"

# What a namespace has without anybody's doing.
_BORN_WITH: Final = {("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")}
_FLEETING: Final = ("Event", "Endpoints", "EndpointSlice", "ControllerRevision")
_KEPT: Final = ("Namespace", "CustomResourceDefinition", "Secret")


def removable(objects: Iterable[Ref]) -> list[Ref]:
    """Sort what goes in any case: workloads first, then what they used, backwards."""
    gone = [of for of in objects if of.kind not in _KEPT]
    return sorted(gone, key=lambda of: (-rank(of), of))


def wrote(obj: Mapping[str, Any]) -> bool:
    """Whether one of our processes made an object: it says so, or its fields are theirs."""
    if is_ours(obj):
        return True
    fields = (obj.get("metadata") or {}).get("managedFields") or []
    return any(str(entry.get("manager", "")).startswith("ambit") for entry in fields)


# ---- nodes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Names of nodes: clean, still at it, and those whose kubelet does not answer."""

    clean: tuple[str, ...]
    busy: tuple[str, ...]
    unreachable: tuple[str, ...]
    done: bool


def cleaning(
    daemon_set: Object | None, pods: Sequence[Object], nodes: Sequence[Object]
) -> Cleaning:
    """Judge how far the node agents in cleanup mode are."""
    ready = {node["metadata"]["name"]: is_node_ready(node) for node in nodes}
    seen, clean = set[str](), set[str]()
    for pod in pods:
        node = (pod.get("spec") or {}).get("nodeName")
        if not node or node not in ready:
            continue
        seen.add(node)
        mode = (pod["metadata"].get("annotations") or {}).get(MODE)
        if mode == "cleanup" and is_pod_ready(pod):
            clean.add(node)
    unreachable = {node for node in seen - clean if not ready[node]}
    busy = seen - clean - unreachable
    status = (daemon_set or {}).get("status") or {}
    generation = ((daemon_set or {}).get("metadata") or {}).get("generation", 1)
    is_current = status.get("observedGeneration", 0) >= generation
    want = status.get("desiredNumberScheduled", 0)
    return Cleaning(
        clean=tuple(sorted(clean)),
        busy=tuple(sorted(busy)),
        unreachable=tuple(sorted(unreachable)),
        done=is_current and not busy and len(clean) + len(unreachable) >= want,
    )


# ---- leftovers -------------------------------------------------------------------------------


def pod_patch(pod: Object) -> dict[str, Any] | None:
    """Build the patch of pods/status that takes our marks off a pod; None when it has none."""
    annotations = pod["metadata"].get("annotations") or {}
    found = (pod.get("status") or {}).get("conditions") or []
    types = [str(c["type"]) for c in found if str(c.get("type", "")).startswith(CONDITIONS)]
    is_marked = REDIRECTION in annotations and (bool(types) or wrote(pod))
    if not types and not is_marked:
        return None
    patch: dict[str, Any] = {}
    if REDIRECTION in annotations:
        patch["metadata"] = {"annotations": {REDIRECTION: None}}
    if types:
        patch["status"] = {"conditions": [{"$patch": "delete", "type": t} for t in types]}
    return patch


def strangers(objects: Iterable[Object]) -> list[Ref]:
    """List what in a namespace is neither ours nor there by itself: it keeps the namespace."""
    found = []
    for obj in objects:
        of = ref(obj)
        if of.kind in _FLEETING or (of.kind, of.name) in _BORN_WITH:
            continue
        if obj["metadata"].get("ownerReferences") or obj["metadata"].get("deletionTimestamp"):
            continue
        if not wrote(obj):
            found.append(of)
    return sorted(found)


def named(refs: Sequence[Ref], most: int = 5) -> str:
    """List some objects for people."""
    text = ", ".join(str(of) for of in refs[:most])
    return text + (f" and {len(refs) - most} more" if len(refs) > most else "")

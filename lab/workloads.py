"""Controllers' decisions: which pods a Deployment needs, on which node a pod runs. Pure."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lab.services import is_ready
from mesh.ports import ROOT_NAMESPACE

Object = dict[str, Any]

STATIC: Final = "lab.ambit.io/static"  # annotation of pods that the lab itself runs
_HASH_LABEL: Final = "pod-template-hash"
_SUFFIX: Final = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes': nothing that spells a word
_TERMINAL: Final = frozenset({"Succeeded", "Failed"})
_SYSTEM: Final = frozenset({ROOT_NAMESPACE, "kube-system"})


@dataclass(slots=True)
class Plan:
    """What to do about one Deployment, and what to say about it."""

    create: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    status: Object = field(default_factory=dict)


def namespace_of(obj: Object) -> str:
    """Return an object's namespace."""
    return str(obj["metadata"].get("namespace", "default"))


def is_static(pod: Object) -> bool:
    """Say whether the lab itself runs this pod (proxy, agent, cluster DNS)."""
    return STATIC in (pod["metadata"].get("annotations") or {})


def is_terminal(pod: Object) -> bool:
    """Say whether a pod has run to its end."""
    return (pod.get("status") or {}).get("phase") in _TERMINAL


def is_system(pod: Object) -> bool:
    """Say whether a pod belongs to the mesh or the cluster rather than to a user."""
    return namespace_of(pod) in _SYSTEM


def template_hash(deployment: Object) -> str:
    """Digest of the pod template; another digest means other pods."""
    text = json.dumps(deployment["spec"].get("template") or {}, sort_keys=True)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    digits = []
    for _ in range(10):
        number, digit = divmod(number, len(_SUFFIX))
        digits.append(_SUFFIX[digit])
    return "".join(digits)


def replicas(deployment: Object) -> int:
    """How many pods are wanted."""
    wanted = deployment["spec"].get("replicas")
    return 1 if wanted is None else max(0, int(wanted))


def owner(pod: Object) -> str | None:
    """Name the Deployment that made a pod."""
    for reference in pod["metadata"].get("ownerReferences") or []:
        if reference.get("kind") == "ReplicaSet" and reference.get("controller"):
            return str(reference["name"]).rpartition("-")[0]
    return None


def plan(deployment: Object, pods: Iterable[Object], dice: random.Random) -> Plan:
    """Compare a Deployment with its pods: one surplus pod at a time while rolling over."""
    wanted, digest = replicas(deployment), template_hash(deployment)
    own = [p for p in pods if not is_terminal(p)]
    new = [p for p in own if (p["metadata"].get("labels") or {}).get(_HASH_LABEL) == digest]
    old = [p for p in own if p not in new]
    recreate = (deployment["spec"].get("strategy") or {}).get("type") == "Recreate"
    out = Plan(status=_status(deployment, own, new))
    # Of surplus pods those that serve nobody go first.
    new.sort(key=lambda p: (not is_ready(p), p["metadata"].get("creationTimestamp") or ""))
    out.delete += new[wanted:]
    missing = max(0, wanted - len(new))
    if old and recreate:
        out.delete += old
        missing = 0
    elif old:
        serving = sum(is_ready(p) for p in own)
        idle = [p for p in old if not is_ready(p)]
        out.delete += idle
        ready_old = [p for p in old if is_ready(p)]
        out.delete += ready_old[: max(0, serving - wanted)]
        missing = min(missing, max(0, wanted + 1 - len(own)))
    out.create = [_pod(deployment, digest, dice) for _ in range(missing)]
    return out


def _status(deployment: Object, own: list[Object], new: list[Object]) -> Object:
    ready = sum(is_ready(p) for p in own)
    return {
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "replicas": len(own),
        "updatedReplicas": len(new),
        "readyReplicas": ready,
        "availableReplicas": ready,
    }


def _pod(deployment: Object, digest: str, dice: random.Random) -> Object:
    template = deployment["spec"].get("template") or {}
    meta = template.get("metadata") or {}
    base = f"{deployment['metadata']['name']}-{digest}"
    reference = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": base,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {
        "name": f"{base}-{''.join(dice.choices(_SUFFIX, k=5))}",
        "generateName": f"{base}-",
        "namespace": namespace_of(deployment),
        "labels": {**(meta.get("labels") or {}), _HASH_LABEL: digest},
        "ownerReferences": [reference],
    }
    if meta.get("annotations"):
        metadata["annotations"] = meta["annotations"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def is_rolled_out(deployment: Object) -> bool:
    """Say whether a Deployment's status says that it is as its spec wants it."""
    status, wanted = deployment.get("status") or {}, replicas(deployment)
    counts = {status.get(k) for k in ("replicas", "updatedReplicas", "readyReplicas")}
    seen = status.get("observedGeneration") == deployment["metadata"].get("generation", 1)
    return seen and counts == {wanted}


def choose_node(pod: Object, nodes: Mapping[str, Object], load: Mapping[str, int]) -> str | None:
    """Pick the least loaded node that a pod's nodeSelector allows; None when there is none."""
    selector = (pod.get("spec") or {}).get("nodeSelector") or {}
    fit = [
        name
        for name, node in nodes.items()
        if selector.items() <= {**(node["metadata"].get("labels") or {}), **_own(name)}.items()
    ]
    return min(fit, key=lambda name: (load.get(name, 0), name)) if fit else None


def _own(node: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": node}


def implied(objects: Collection[Object]) -> list[Object]:
    """List what the objects take for granted: Namespaces, and a ServiceAccount in each."""
    have = {(o["kind"], namespace_of(o), o["metadata"]["name"]) for o in objects}
    named = {o["metadata"]["name"] for o in objects if o["kind"] == "Namespace"}
    used = {o["metadata"]["namespace"] for o in objects if o["metadata"].get("namespace")}
    used |= {"default", *_SYSTEM}
    made = [_object("Namespace", None, name) for name in sorted(used - named)]
    for namespace in sorted(used | named):
        if ("ServiceAccount", namespace, "default") not in have:
            made.append(_object("ServiceAccount", namespace, "default"))
    return made


def orphans(objects: Collection[Object]) -> list[Object]:
    """List what is left of deleted owners: pods without their Deployment."""
    alive = {(namespace_of(o), o["metadata"]["name"]) for o in objects if o["kind"] == "Deployment"}
    found = []
    for pod in objects:
        name = owner(pod) if pod["kind"] == "Pod" else None
        if name is not None and (namespace_of(pod), name) not in alive:
            found.append(pod)
    return found


def _object(kind: str, namespace: str | None, name: str) -> Object:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}

"""How far along a component is, and what holds it up, from the objects' own status. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """`have` of `want` pods (or one of one) are as they should be."""

    done: bool
    have: int
    want: int


def progress(obj: Object | None) -> Progress:
    """Judge a Deployment, DaemonSet or CRD; anything else is done when it exists."""
    if obj is None:
        return Progress(False, 0, 1)
    match obj["kind"]:
        case "Deployment":
            return _deployment(obj)
        case "DaemonSet":
            return _daemon_set(obj)
        case "CustomResourceDefinition":
            is_established = _condition(obj, "Established") == "True"
            return Progress(is_established, int(is_established), 1)
    return Progress(True, 1, 1)


def _status(obj: Object) -> tuple[Mapping[str, Any], bool]:
    """Return the status, and whether it speaks of the newest spec."""
    status = obj.get("status") or {}
    generation = (obj.get("metadata") or {}).get("generation", 1)
    return status, status.get("observedGeneration", 0) >= generation


def _deployment(obj: Object) -> Progress:
    status, is_current = _status(obj)
    want = (obj.get("spec") or {}).get("replicas", 1)
    if not is_current:
        return Progress(False, 0, want)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    # Old pods count as available until they are gone.
    old = status.get("replicas", 0) - updated
    have = max(0, min(updated, available - old))
    return Progress(have >= want and old <= 0, have, want)


def _daemon_set(obj: Object) -> Progress:
    status, is_current = _status(obj)
    want = status.get("desiredNumberScheduled", 0)
    if not is_current:
        return Progress(False, 0, want)
    # A node counts as updated when its old pod is gone, which waits for minReadySeconds of the new
    # one; where there was no old pod nobody has to wait for that.
    have = min(status.get("updatedNumberScheduled", 0), status.get("numberReady", 0))
    return Progress(have >= want, have, want)


def _condition(obj: Object, kind: str) -> str:
    for condition in (obj.get("status") or {}).get("conditions") or []:
        if condition.get("type") == kind:
            return str(condition.get("status"))
    return ""


# ---- pods ------------------------------------------------------------------------------------


def is_pod_ready(pod: Object) -> bool:
    """Whether a pod is ready and not on its way out."""
    return not pod["metadata"].get("deletionTimestamp") and _condition(pod, "Ready") == "True"


def holdup(pod: Object) -> str:
    """Say in a few words why a pod is not ready; "" when it is."""
    if is_pod_ready(pod):
        return ""
    if pod["metadata"].get("deletionTimestamp"):
        return "terminating"
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return "no node takes it"
    for container in containers(pod):
        state = container.get("state") or {}
        if reason := (state.get("waiting") or {}).get("reason"):
            if reason in ("PodInitializing", "ContainerCreating"):
                continue
            return str(reason)
        ended = state.get("terminated") or {}
        if ended and ended.get("exitCode"):
            return f"{container.get('name')} ended with {ended['exitCode']}"
    phase = str(status.get("phase") or "Pending")
    return "starting" if phase in ("Pending", "Running") else phase


def holdups(pods: Iterable[Object]) -> str:
    """Sum up what holds up pods: "2 ImagePullBackOff, 1 starting"."""
    counted = Counter(reason for pod in pods if (reason := holdup(pod)))
    return ", ".join(f"{n} {reason}" for reason, n in counted.most_common(3))


def containers(pod: Object) -> list[Mapping[str, Any]]:
    """Statuses of a pod's containers in the order they start."""
    status = pod.get("status") or {}
    return [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]

"""What a lab still waits for, and why. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lab import gateways, services, shapes, workloads
from mesh.enrolment import wants
from mesh.ports import ANNOTATION_REDIRECTION

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Waiting:
    """An object that is not as it should be."""

    what: str
    why: str
    log: str = ""  # the component or pod whose log says more
    hopeless: bool = False  # waiting longer will not help


def enrolled(pod: Object) -> bool:
    """Say whether the agent has proved that the pod is captured."""
    annotations = pod["metadata"].get("annotations") or {}
    return bool(annotations.get(ANNOTATION_REDIRECTION) == "enabled")


def condition(obj: Object, kind: str) -> Object:
    """Return a condition of an object's status, or {}."""
    for entry in (obj.get("status") or {}).get("conditions") or []:
        if entry.get("type") == kind:
            return dict(entry)
    return {}


def waiting(objects: Collection[Object], mesh: bool) -> list[Waiting]:
    """List what is missing until every pod is ready, and captured if it is to be."""
    namespaces = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Namespace"}
    found = []
    for obj in objects:
        if wrong := shapes.problem(obj):
            found.append(Waiting(_name(obj), f"cannot work: {wrong}", hopeless=True))
        elif obj["kind"] == "Pod":
            wanted = mesh and wants(obj, namespaces.get(workloads.namespace_of(obj)))
            missing = _pod(obj, wanted)
            found += [missing] if missing else []
        elif obj["kind"] == "Deployment" and not workloads.is_rolled_out(obj):
            found.append(_deployment(obj))
        elif obj["kind"] == "Gateway" and mesh and gateways.is_waypoint(obj, objects):
            missing = _gateway(obj)
            found += [missing] if missing else []
        elif obj["kind"] == "Service" and _unaddressed(obj):
            found.append(Waiting(_name(obj), "has no cluster address yet", "manager"))
    return found


def _name(obj: Object) -> str:
    return f"{obj['kind'].lower()} {workloads.namespace_of(obj)}/{obj['metadata']['name']}"


def _unaddressed(service: Object) -> bool:
    spec = service.get("spec") or {}
    named_only = services.is_headless(service) or spec.get("type") == "ExternalName"
    return not named_only and not services.addresses(service)


def _deployment(deployment: Object) -> Waiting:
    status = deployment.get("status") or {}
    wanted = workloads.replicas(deployment)
    why = (
        f"{status.get('readyReplicas', 0)} of {wanted} pods ready, "
        f"{status.get('updatedReplicas', 0)} of the present template, "
        f"{status.get('replicas', 0)} in all"
    )
    return Waiting(_name(deployment), why, "manager")


def _gateway(gateway: Object) -> Waiting | None:
    """Say what a waypoint lacks; one that is not accepted says so in its status, for good."""
    programmed = condition(gateway, "Programmed")
    seen = programmed.get("observedGeneration") == gateway["metadata"].get("generation")
    if seen and condition(gateway, "Accepted").get("status") == "False":
        return None
    if seen and programmed.get("status") == "True":
        return None
    why = programmed.get("message") or "the control plane has not looked at it"
    return Waiting(_name(gateway), f"not programmed: {why}", "control-plane")


def _pod(pod: Object, wanted: bool) -> Waiting | None:
    status = pod.get("status") or {}
    where = f"{workloads.namespace_of(pod)}/{pod['metadata']['name']}"
    if status.get("phase") == "Succeeded":
        return None
    if status.get("phase") == "Failed":
        return Waiting(_name(pod), "ran to its end and failed", where, hopeless=True)
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return Waiting(_name(pod), scheduled.get("message", ""), "manager", hopeless=True)
    if wanted and not enrolled(pod):
        said = condition(pod, "ambit.io/Captured")
        why = said.get("message") or said.get("reason") or "the node agent has not answered"
        node = pod["spec"].get("nodeName", "")
        return Waiting(_name(pod), f"not captured: {why}", f"agent/{node}")
    if not wanted and not workloads.is_static(pod) and enrolled(pod):
        node = pod["spec"].get("nodeName", "")
        return Waiting(_name(pod), "still captured", f"agent/{node}")
    if services.is_ready(pod):
        return None
    why = condition(pod, "Ready").get("message") or "not started yet"
    if workloads.is_static(pod):
        return Waiting(_name(pod), why, _component(pod))
    return Waiting(_name(pod), why, where, hopeless=_crashes(pod))


def _crashes(pod: Object) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any(s.get("restartCount", 0) >= 4 for s in statuses)


def _component(pod: Object) -> str:
    name, node = pod["metadata"]["name"], pod["spec"].get("nodeName", "")
    return f"{'ztunnel' if name.startswith('ztunnel-') else 'agent'}/{node}"

"""Why a component is not ready: the pod, what its events and containers say, what to do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from cli.cluster.ready import containers, holdup
from cli.output import printable

Object = Mapping[str, Any]
# (pod, container, of the run before) -> last lines of its log, "" when there is none
Logs = Callable[[str, str, bool], str]

_MAX_PODS: Final = 3
_MAX_EVENTS: Final = 4
_MAX_LINES: Final = 12

_IMAGE: Final = "put the image where nodes can pull it, or set hub, tag and imagePullSecrets"
_NEXT: Final = {
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "ErrImageNeverPull": "import the image into each node's container runtime",
    "InvalidImageName": "correct hub and tag",
    "no node takes it": "see the event: free resources, or change nodeSelector and tolerations",
    "CreateContainerConfigError": "see the event: an object that the container needs is missing",
    "CreateContainerError": "see the event; for a refused capability set nodeAgent.privileged=true",
}


def explain(
    component: str,
    namespace: str,
    pods: Iterable[Object],
    events: Iterable[Object],
    logs: Logs,
) -> list[str]:
    """Lines about up to three pods that are not ready, and the next step for each."""
    known = list(events)
    stuck = [pod for pod in pods if holdup(pod)]
    lines: list[str] = []
    for pod in stuck[:_MAX_PODS]:
        lines += _pod(pod, namespace, known, logs)
    if len(stuck) > _MAX_PODS:
        lines.append(f"and {len(stuck) - _MAX_PODS} more pods of {component} like these")
    if not stuck:
        lines += [f"no pod of {component} was made"]
        lines += _events(known, lambda involved: involved.get("kind") != "Pod")
        lines.append(
            f"      next: kubectl -n {namespace} get events; Pod Security or a quota may refuse it"
        )
    return [printable(line) for line in lines]


def _pod(pod: Object, namespace: str, events: Sequence[Object], logs: Logs) -> list[str]:
    name = pod["metadata"]["name"]
    node = (pod.get("spec") or {}).get("nodeName", "no node")
    reason = holdup(pod)
    lines = [f"pod {namespace}/{name} on {node}: {reason}"]
    for container in containers(pod):
        lines += _container(container)
    lines += _events(events, lambda involved: involved.get("name") == name)
    for container in containers(pod):
        crashed = bool((container.get("lastState") or {}).get("terminated"))
        log = logs(name, container["name"], False) or (
            logs(name, container["name"], True) if crashed else ""
        )
        if log.strip() and not container.get("ready"):
            lines.append(f"    log of {container['name']}:")
            lines += [f"      | {line}" for line in log.strip().splitlines()[-_MAX_LINES:]]
            break
    fallback = f"kubectl -n {namespace} describe pod {name}"
    lines.append(f"      next: {_NEXT.get(reason, fallback)}")
    return lines


def _container(container: Object) -> list[str]:
    state = container.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    before = (container.get("lastState") or {}).get("terminated") or {}
    name, restarts = container.get("name"), container.get("restartCount", 0)
    said = ""
    if waiting.get("reason") and waiting["reason"] != "PodInitializing":
        message = "" if waiting["reason"] == "CrashLoopBackOff" else waiting.get("message")
        said = ": ".join(t for t in (waiting["reason"], message) if t)
    elif ended.get("exitCode"):
        said = f"ended with {ended['exitCode']} {ended.get('message') or ended.get('reason') or ''}"
    elif not container.get("ready") and "running" in state:
        said = "runs, but its readiness probe fails"
    if not said:
        return []
    if before:
        said += f" (ended {restarts} times, last with {before.get('exitCode')}"
        said += f" {before.get('reason') or ''})"
    return [f"    container {name}: {' '.join(said.split())}"]


def _events(events: Iterable[Object], wanted: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    found = [
        e for e in events if e.get("type") != "Normal" and wanted(e.get("involvedObject") or {})
    ]
    found.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
    lines = []
    for event in found[-_MAX_EVENTS:]:
        message = " ".join(str(event.get("message", "")).split())
        lines.append(f"    event {event.get('reason')}: {message}")
    return lines

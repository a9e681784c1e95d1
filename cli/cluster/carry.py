"""Carries out a plan: applies, waits, explains what does not come up, removes what is left over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cli.cluster.console import Console
from cli.cluster.diagnose import explain
from cli.cluster.inventory import dump
from cli.cluster.kube import Kube
from cli.cluster.objects import Object, Ref, ref
from cli.cluster.plan import Plan, component
from cli.cluster.ready import holdups, progress
from mesh.errors import MeshError, Unavailable
from mesh.kube.api import ApiError

_TURN: Final = 0.3  # seconds between looks
_LOG_LINES: Final = 12
_LOOK_AT_PODS: Final = 8.0  # seconds after which it is worth saying what holds pods up


class NotReady(MeshError):
    """Something was applied and did not come up in time; the message says why."""


def carry_out(kube: Kube, plan: Plan, console: Console, timeout: float) -> None:
    """Apply, wait and prune; raises ApiError, NotReady.

    `timeout`: seconds for everything to become ready.
    """
    deadline = time.monotonic() + timeout
    for step in plan.steps:
        begun = time.monotonic()
        for obj in step.objects:
            kube.apply(obj)
            if obj["kind"] == "Namespace":
                kube.apply(dump(plan.before))
        if not any(obj["kind"] == "Namespace" for obj in plan.objects) and step is plan.steps[0]:
            kube.apply(dump(plan.before))
        if step.wait and step.wait[0].kind == "CustomResourceDefinition":
            wait(kube, step.wait, console, deadline, lambda _: None)
            kube.forget_kinds()
        if not any(of.kind != "CustomResourceDefinition" for of in step.wait):
            count = f"{len(step.objects)} object{'s' if len(step.objects) > 1 else ''}"
            console.done(f"{step.title}: {count}", time.monotonic() - begun)
            continue
        wait(kube, step.wait, console, deadline, _announce(console))
    removed = [of for of in plan.prune if kube.delete(of)]
    if removed:
        console.done(f"removed {len(removed)} objects that this version does not have")
    kube.apply(dump(plan.after))


def _announce(console: Console) -> Callable[[tuple[Ref, int, int]], None]:
    def announce(done: tuple[Ref, int, int]) -> None:
        of, have, want = done
        console.done(f"{component(of)} ready {have}/{want}", console.elapsed())

    return announce


def wait(
    kube: Kube,
    refs: Sequence[Ref],
    console: Console,
    deadline: float,
    announce: Callable[[tuple[Ref, int, int]], None],
) -> None:
    """Wait until all are ready, announcing each; raises NotReady with the reasons."""
    left, begun = list(refs), time.monotonic()
    while True:
        waiting = []
        for of in list(left):
            try:
                obj = kube.get(of)
            except ApiError as e:
                if e.status not in (429, 500, 503, 504):
                    raise
                obj = None  # the server is restarting; the deadline bounds this
            except Unavailable:
                obj = None
            state = progress(obj)
            if state.done:
                left.remove(of)
                announce((of, state.have, state.want))
                continue
            text = f"{component(of)} {state.have}/{state.want}"
            if obj is not None and time.monotonic() - begun > _LOOK_AT_PODS:
                text += _why(kube, obj)
            waiting.append(text)
        if not left:
            return
        console.doing(", ".join(waiting))
        if time.monotonic() > deadline:
            raise NotReady("\n".join(_explain_all(kube, left)))
        time.sleep(_TURN)


def _why(kube: Kube, workload: Object) -> str:
    try:
        said = holdups(pods_of(kube, workload))
    except (ApiError, Unavailable):
        return ""
    return f" ({said})" if said else ""


def pods_of(kube: Kube, workload: Object) -> list[Object]:
    """List the pods that a Deployment or DaemonSet selects."""
    wanted = ((workload.get("spec") or {}).get("selector") or {}).get("matchLabels")
    if not wanted:
        return []
    selector = ",".join(f"{k}={v}" for k, v in wanted.items())
    namespace = workload["metadata"]["namespace"]
    return list(kube.list("v1", "Pod", namespace, labelSelector=selector))


def _explain_all(kube: Kube, refs: Iterable[Ref]) -> list[str]:
    lines = []
    for of in refs:
        obj = kube.get(of)
        state = progress(obj)
        lines.append(f"{component(of)} is not ready: {state.have} of {state.want}")
        if obj is not None:
            lines += [f"  {line}" for line in explain_workload(kube, obj)]
    return lines


def explain_workload(kube: Kube, workload: Object) -> list[str]:
    """Lines about the pods of a workload that are not ready, or an object's own conditions."""
    if workload["kind"] not in ("DaemonSet", "Deployment"):
        conditions = (workload.get("status") or {}).get("conditions") or []
        return [f"{c.get('type')} {c.get('status')}: {c.get('message', '')}" for c in conditions]
    namespace = workload["metadata"]["namespace"]
    pods = pods_of(kube, workload)
    return explain(
        component(ref(workload)),
        namespace,
        pods,
        [
            e
            for e in kube.list("v1", "Event", namespace)
            if _concerns(e, {p["metadata"]["name"] for p in pods}, workload["metadata"]["name"])
        ],
        lambda pod, container, before: kube.logs(namespace, pod, container, _LOG_LINES, before),
    )


def _concerns(event: Object, pods: set[str], workload: str) -> bool:
    name = str((event.get("involvedObject") or {}).get("name", ""))
    return name in pods or name == workload or name.startswith(f"{workload}-")

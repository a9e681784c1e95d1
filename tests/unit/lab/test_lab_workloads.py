"""The decisions of the lab's controllers."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from lab import readiness, workloads

Object = dict[str, Any]


def deployment(replicas: int = 2, **template: Any) -> Object:
    return {
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "generation": 1},
        "spec": {
            "replicas": replicas,
            "template": {
                "metadata": {"labels": {"app": "web"}, **template},
                "spec": {"containers": []},
            },
        },
    }


def ready(pod: Object, yes: bool = True) -> Object:
    status = "True" if yes else "False"
    return {**pod, "status": {"conditions": [{"type": "Ready", "status": status}]}}


def plan(of: Object, pods: list[Object]) -> workloads.Plan:
    return workloads.plan(of, pods, random.Random(1))


def test_pods_are_made_as_kubernetes_makes_them() -> None:
    """Labels, names and owner that dashboards and the mesh read."""
    made = plan(deployment(), []).create
    assert len({p["metadata"]["name"] for p in made}) == 2
    for pod in made:
        meta = pod["metadata"]
        assert meta["labels"]["app"] == "web"
        assert meta["ownerReferences"][0]["kind"] == "ReplicaSet"
        assert meta["name"].startswith(f"web-{meta['labels']['pod-template-hash']}-")
        assert workloads.owner(pod) == "web"


def test_a_whole_deployment_is_left_alone() -> None:
    """Nothing to do, and its status says so."""
    pods = [ready(p) for p in plan(deployment(), []).create]
    done = plan(deployment(), pods)
    assert (done.create, done.delete) == ([], [])
    assert workloads.is_rolled_out({**deployment(), "status": done.status})


def test_scaling_down_takes_those_that_serve_nobody_first() -> None:
    """A ready pod is not removed for one that is not."""
    one, two = plan(deployment(), []).create
    done = plan(deployment(1), [ready(one, False), ready(two)])
    assert [p["metadata"]["name"] for p in done.delete] == [one["metadata"]["name"]]


def test_rolling_over_never_serves_with_fewer_than_wanted() -> None:
    """Simulated to its end: one surplus pod at a time."""
    pods = [ready(p) for p in plan(deployment(3), []).create]
    new = deployment(3, annotations={"version": "2"})
    for _ in range(20):
        done = plan(new, pods)
        gone = [p["metadata"]["name"] for p in done.delete]
        pods = [p for p in pods if p["metadata"]["name"] not in gone]
        assert sum(workloads.is_ready(p) for p in pods) >= 3
        assert len(pods) + len(done.create) <= 4
        pods = [ready(p) for p in [*pods, *done.create]]
        if not done.create and not done.delete:
            break
    digest = workloads.template_hash(new)
    assert [p["metadata"]["labels"]["pod-template-hash"] for p in pods] == [digest] * 3


def test_recreate_removes_all_before_it_makes_any() -> None:
    """strategy.type Recreate."""
    pods = [ready(p) for p in plan(deployment(), []).create]
    new = deployment(2, annotations={"version": "2"})
    new["spec"]["strategy"] = {"type": "Recreate"}
    first = plan(new, pods)
    assert (len(first.delete), first.create) == (2, [])
    assert len(plan(new, []).create) == 2


def test_an_older_status_is_not_taken_for_the_present_one() -> None:
    """A spec that nobody has looked at is not rolled out."""
    pods = [ready(p) for p in plan(deployment(), []).create]
    seen = {**deployment(), "status": plan(deployment(), pods).status}
    changed = copy.deepcopy(seen)
    changed["metadata"]["generation"] = 2
    assert workloads.is_rolled_out(seen)
    assert not workloads.is_rolled_out(changed)


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [({}, "b"), ({"disk": "ssd"}, "a"), ({"kubernetes.io/hostname": "a"}, "a"), ({"x": "y"}, None)],
)
def test_nodes_are_chosen_by_labels_then_by_load(selector: Object, chosen: str | None) -> None:
    """The least loaded of those that fit; None when none fits."""
    nodes = {"a": {"metadata": {"labels": {"disk": "ssd"}}}, "b": {"metadata": {}}}
    pod = {"spec": {"nodeSelector": selector}}
    assert workloads.choose_node(pod, nodes, {"a": 1}) == chosen


def test_namespaces_and_their_accounts_are_implied() -> None:
    """For each namespace that is named or used."""
    pod = {"kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}}
    made = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in
            workloads.implied([pod])}  # fmt: skip
    assert ("Namespace", None, "shop") in made
    assert ("ServiceAccount", "shop", "default") in made


def test_pods_of_a_deleted_deployment_are_orphans() -> None:
    """Others are not."""
    pods = plan(deployment(), []).create
    lone = {"kind": "Pod", "metadata": {"name": "p", "namespace": "shop"}}
    assert workloads.orphans([*pods, lone]) == pods
    assert workloads.orphans([*pods, lone, deployment()]) == []


# ---- what is waited for ----------------------------------------------------------------------


def captured(pod: Object, mode: str) -> Object:
    notes = {"ambient.istio.io/redirection": mode}
    return {**pod, "metadata": {**pod["metadata"], "annotations": notes}}


AMBIENT = {"kind": "Namespace", "metadata": {
    "name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}  # fmt: skip
POD = {
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {"nodeName": "n1", "containers": []},
}


def test_a_pod_of_the_mesh_is_waited_for_until_it_is_proved() -> None:
    """Ready is not enough; and the agent's own word is passed on."""
    (missing,) = readiness.waiting([AMBIENT, ready(POD)], mesh=True)
    assert (missing.what, missing.log) == ("pod shop/p", "agent/n1")
    said = ready(POD)
    said["status"]["conditions"].append({"type": "ambit.io/Captured", "message": "no ztunnel"})
    assert "no ztunnel" in readiness.waiting([AMBIENT, said], mesh=True)[0].why
    assert readiness.waiting([AMBIENT, captured(ready(POD), "enabled")], mesh=True) == []
    assert readiness.waiting([AMBIENT, ready(POD)], mesh=False) == []


def test_a_pod_that_left_the_mesh_is_waited_for_until_it_is_released() -> None:
    """The other way round."""
    (missing,) = readiness.waiting([captured(ready(POD), "enabled")], mesh=True)
    assert missing.why == "still captured"


def test_waiting_longer_does_not_help_a_pod_that_keeps_crashing() -> None:
    """So the lab does not come up in a minute but fails in seconds."""
    pod = ready(POD, False)
    pod["status"]["containerStatuses"] = [{"restartCount": 7}]
    assert readiness.waiting([pod], mesh=False)[0].hopeless

"""How far a component is, why it is not further, and how far an uninstallation is."""

from __future__ import annotations

from typing import Any

import pytest

from cli.cluster.diagnose import explain
from cli.cluster.objects import Object, Ref
from cli.cluster.ready import holdup, holdups, progress
from cli.cluster.removal import cleaning, named, pod_patch, removable, strangers, wrote


def deployment(want: int, observed: int = 2, **status: int) -> Object:
    return {
        "kind": "Deployment",
        "metadata": {"generation": 2},
        "spec": {"replicas": want},
        "status": {"observedGeneration": observed, **status},
    }


def daemon_set(observed: int = 2, **status: int) -> Object:
    return {
        "kind": "DaemonSet",
        "metadata": {"generation": 2},
        "status": {"observedGeneration": observed, **status},
    }


@pytest.mark.parametrize(
    ("obj", "done", "have", "want"),
    [
        (None, False, 0, 1),
        (deployment(2), False, 0, 2),
        (deployment(2, replicas=2, updatedReplicas=2, availableReplicas=2), True, 2, 2),
        (deployment(2, 1, replicas=2, updatedReplicas=2, availableReplicas=2), False, 0, 2),
        # the old pod still serves, the new one does not yet
        (deployment(1, replicas=2, updatedReplicas=1, availableReplicas=1), False, 0, 1),
        # both serve: the old one is on its way out
        (deployment(1, replicas=2, updatedReplicas=1, availableReplicas=2), False, 1, 1),
        (daemon_set(desiredNumberScheduled=2), False, 0, 2),
        (
            daemon_set(desiredNumberScheduled=2, updatedNumberScheduled=1, numberReady=2),
            False, 1, 2,
        ),
        (
            daemon_set(desiredNumberScheduled=2, updatedNumberScheduled=2, numberReady=2),
            True, 2, 2,
        ),
        (daemon_set(1, desiredNumberScheduled=2, numberReady=2), False, 0, 2),
        ({"kind": "CustomResourceDefinition"}, False, 0, 1),
        (
            {
                "kind": "CustomResourceDefinition",
                "status": {"conditions": [{"type": "Established", "status": "True"}]},
            },
            True, 1, 1,
        ),
        ({"kind": "Service"}, True, 1, 1),
    ],
)  # fmt: skip
def test_progress_counts_new_pods_that_serve(
    obj: Object | None, done: bool, have: int, want: int
) -> None:
    """Never an old pod, never by a status that speaks of an older spec."""
    state = progress(obj)
    assert (state.done, state.have, state.want) == (done, have, want)


def pod(name: str = "p", ready: bool = False, node: str = "n1", **more: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "istio-system", **more.pop("metadata", {})},
        "spec": {"nodeName": node},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            **more,
        },
    }


def container(name: str = "agent", **state: Any) -> dict[str, Any]:
    return {"name": name, "ready": False, "restartCount": 0, "state": state}


CRASH = {
    **container(waiting={"reason": "CrashLoopBackOff", "message": "back-off 10s"}),
    "restartCount": 3,
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
}
PULL = container(waiting={"reason": "ImagePullBackOff", "message": "no such image"})
UNSCHEDULED = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (pod(ready=True), ""),
        (pod(), "starting"),
        (pod(containerStatuses=[PULL]), "ImagePullBackOff"),
        (pod(containerStatuses=[CRASH]), "CrashLoopBackOff"),
        (pod(containerStatuses=[container(waiting={"reason": "PodInitializing"})]), "starting"),
        (pod(initContainerStatuses=[container(terminated={"exitCode": 2})]), "agent ended with 2"),
        (pod(conditions=[UNSCHEDULED]), "no node takes it"),
        (pod(ready=True, metadata={"deletionTimestamp": "x"}), "terminating"),
        (pod(phase="Failed"), "Failed"),
    ],
)
def test_a_pod_that_is_not_ready_has_a_reason(made: Object, why: str) -> None:
    """In the words of kubectl where there are any."""
    assert holdup(made) == why


def test_reasons_are_counted() -> None:
    """For one line of progress."""
    pods = [pod(containerStatuses=[PULL]), pod(containerStatuses=[PULL]), pod(), pod(ready=True)]
    assert holdups(pods) == "2 ImagePullBackOff, 1 starting"


def test_a_crashing_pod_is_explained_by_its_log_and_events() -> None:
    """State, events, the last lines of the log, and what to do."""
    events = [
        {
            "type": "Warning",
            "reason": "BackOff",
            "message": "Back-off restarting\nfailed container",
            "involvedObject": {"kind": "Pod", "name": "p"},
        },
        {"type": "Normal", "reason": "Pulled", "involvedObject": {"kind": "Pod", "name": "p"}},
    ]

    def logs(name: str, which: str, before: bool) -> str:
        return "first\n\x1b[31mthe cause\n" if before else ""

    lines = explain("node agent", "istio-system", [pod(containerStatuses=[CRASH])], events, logs)
    text = "\n".join(lines)
    assert "pod istio-system/p on n1: CrashLoopBackOff" in text
    assert "container agent: CrashLoopBackOff (ended 3 times, last with 1 Error)" in text
    assert "event BackOff: Back-off restarting failed container" in text
    assert "Pulled" not in text
    assert "| ?[31mthe cause" in text
    assert "next: kubectl -n istio-system describe pod p" in text


def test_a_missing_image_is_a_matter_of_hub_and_tag() -> None:
    """And of no log."""
    lines = explain("x", "ns", [pod(containerStatuses=[PULL])], [], lambda *_: "")
    assert any("hub, tag and imagePullSecrets" in line for line in lines)


def test_pods_that_were_never_made_are_explained_by_their_controller() -> None:
    """As when Pod Security refuses them."""
    event = {
        "type": "Warning",
        "reason": "FailedCreate",
        "message": "violates PodSecurity",
        "involvedObject": {"kind": "DaemonSet", "name": "ambit-node-agent"},
    }
    lines = explain("node agent", "istio-system", [], [event], lambda *_: "")
    assert lines[0] == "no pod of node agent was made"
    assert "    event FailedCreate: violates PodSecurity" in lines


def test_many_stuck_pods_are_three_and_a_number() -> None:
    """A hundred nodes do not make a hundred paragraphs."""
    lines = explain("x", "ns", [pod(f"p{i}") for i in range(9)], [], lambda *_: "")
    assert sum(line.startswith("pod ") for line in lines) == 3
    assert lines[-1] == "and 6 more pods of x like these"


# ---- removal ---------------------------------------------------------------------------------


def node(name: str, ready: bool = True) -> Object:
    status = "True" if ready else "Unknown"
    conditions = [{"type": "Ready", "status": status}]
    return {"metadata": {"name": name}, "status": {"conditions": conditions}}


def agent(name: str, mode: str, ready: bool) -> Object:
    return pod(f"a-{name}", ready, name, metadata={"annotations": {"ambit.io/mode": mode}})


def test_nodes_are_clean_when_their_cleanup_pod_is_ready() -> None:
    """An agent that still manages does not count, a node that does not answer is named."""
    nodes = [node("n1"), node("n2"), node("n3", ready=False)]
    wanted = daemon_set(desiredNumberScheduled=3)
    early = cleaning(
        wanted,
        [agent("n1", "cleanup", True), agent("n2", "manage", True), agent("n3", "manage", True)],
        nodes,
    )
    assert early.clean == ("n1",)
    assert early.busy == ("n2",)
    assert early.unreachable == ("n3",)
    assert not early.done
    late = cleaning(
        wanted,
        [agent("n1", "cleanup", True), agent("n2", "cleanup", True), agent("n3", "manage", True)],
        nodes,
    )
    assert late.done


def test_cleaning_is_not_done_before_it_began() -> None:
    """Between two pods of a node there is none; and the controller may not have looked yet."""
    nodes = [node("n1")]
    assert not cleaning(daemon_set(desiredNumberScheduled=1), [], nodes).done
    assert not cleaning(daemon_set(1), [agent("n1", "cleanup", True)], nodes).done
    assert not cleaning(None, [], nodes).done
    busy = [agent("n1", "cleanup", False)]
    assert not cleaning(daemon_set(desiredNumberScheduled=1), busy, nodes).done


def test_a_node_is_clean_when_both_its_pods_have_been_seen() -> None:
    """The old agent's pod, on its way out, does not make it busy again."""
    pods = [agent("n1", "cleanup", True), agent("n1", "manage", False)]
    assert cleaning(daemon_set(desiredNumberScheduled=1), pods, [node("n1")]).done


def test_workloads_go_first_and_some_things_stay() -> None:
    """What others may still need goes last."""
    refs = [
        Ref("v1", "Namespace", "", "istio-system"),
        Ref("v1", "ServiceAccount", "istio-system", "a"),
        Ref("apps/v1", "DaemonSet", "istio-system", "a"),
        Ref("v1", "Secret", "istio-system", "s"),
    ]
    assert [of.kind for of in removable(refs)] == ["DaemonSet", "ServiceAccount"]


MARKED = {"annotations": {"ambient.istio.io/redirection": "enabled"}}
OUR_FIELDS = [{"manager": "ambit-node-agent"}]


def test_our_marks_are_taken_off_pods() -> None:
    """By the conditions only we write, or the field manager only we use."""
    captured = {"type": "ambit.io/Captured", "status": "True"}
    assert pod_patch(pod(metadata=MARKED, conditions=[captured])) == {
        "metadata": {"annotations": {"ambient.istio.io/redirection": None}},
        "status": {"conditions": [{"$patch": "delete", "type": "ambit.io/Captured"}]},
    }
    ours = pod_patch(pod(metadata={**MARKED, "managedFields": OUR_FIELDS}))
    assert ours == {"metadata": {"annotations": {"ambient.istio.io/redirection": None}}}


def test_marks_of_istio_stay() -> None:
    """Its annotation has the same name."""
    assert pod_patch(pod(metadata=MARKED)) is None
    assert pod_patch(pod()) is None


def test_what_we_wrote_is_known_by_label_or_fields() -> None:
    """Istio writes ConfigMaps and Secrets of the same names."""
    assert wrote({"metadata": {"labels": {"app.kubernetes.io/part-of": "ambit"}}})
    assert wrote({"metadata": {"managedFields": [{"manager": "ambit-control-plane"}]}})
    assert not wrote({"metadata": {"managedFields": [{"manager": "pilot-discovery"}]}})
    assert not wrote({})


def test_a_namespace_with_somebodys_objects_is_kept_for_them() -> None:
    """What is there by itself, ends anyway, or is ours, does not count."""
    objects = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": "i"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}},
        {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "x"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "ownerReferences": [{}]}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "y", "deletionTimestamp": "t"}},
        {"apiVersion": "v1", "kind": "A", "metadata": {"name": "z", "managedFields": OUR_FIELDS}},
    ]
    assert strangers(objects) == [Ref("v1", "Secret", "i", "cacerts")]


def test_long_lists_are_cut() -> None:
    """Five and a number."""
    refs = [Ref("v1", "Pod", "", str(i)) for i in range(7)]
    assert named(refs).endswith("Pod 4 and 2 more")

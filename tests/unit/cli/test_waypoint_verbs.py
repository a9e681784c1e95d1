"""ambit waypoint from the command line on, against a cluster in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cli import main
from cli.cluster.objects import Object, Ref
from cli.waypoint import cluster, shape, verbs
from mesh.kube.api import ApiError
from tests.unit.cli.fake_kube import FakeKube
from tests.unit.cli.fake_waypoints import (
    GATEWAY,
    PENDING,
    READY,
    REFUSED,
    USE,
    Cluster,
    gateway_class,
    namespace,
)

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Cluster]:
    """The cluster that commands reach: put one in."""
    found = [Cluster()]

    class Connect:
        @staticmethod
        def connect(*_: Any) -> FakeKube:
            return found[0]

    monkeypatch.setattr(cluster, "Kube", Connect)
    monkeypatch.setattr(verbs, "_TURN", 0.0)
    return found


@pytest.fixture
def run(here: list[Cluster], capsys: pytest.CaptureFixture[str]) -> Run:
    def one(*words: str) -> tuple[int, str]:
        code = main.main(["waypoint", *words, "--kubeconfig", "x"])
        out = capsys.readouterr()
        return code, out.out + out.err

    return one


# ---- making ----------------------------------------------------------------------------------


def test_generated_is_what_is_applied(
    run: Run, here: list[Cluster], capsys: pytest.CaptureFixture[str]
) -> None:
    """Name, listener and label; without a cluster. The namespace only where it is given."""
    assert main.main(["waypoint", "generate", "-n", "shop", "--name", "wp", "--for", "all"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    assert made["metadata"] == {
        "name": "wp",
        "namespace": "shop",
        "labels": {"istio.io/waypoint-for": "all"},
    }
    code, said = run("apply", "-n", "shop", "--name", "wp", "--for", "all")
    assert (code, said) == (0, "✔ waypoint shop/wp created\n")
    stored = here[0].get(Ref(GATEWAY, "Gateway", "shop", "wp"))
    assert stored is not None
    assert stored["spec"] == made["spec"]
    assert stored["metadata"]["labels"] == made["metadata"]["labels"]
    assert here[0].applied == [("ambit-waypoint", False)]
    main.main(["waypoint", "generate"])
    assert yaml.safe_load(capsys.readouterr().out)["metadata"] == {"name": "waypoint"}


@pytest.mark.parametrize("name", ["none", "Wp", "1wp", "w" * 64, "a/b", ""])
def test_names_that_no_service_can_have_are_refused(run: Run, name: str) -> None:
    """Before anything is asked."""
    code, said = run("apply", "-n", "shop", "--name", name)
    assert code == 1
    assert said.startswith("ambit: --name ")
    assert run("list", "-n", "../x")[1].startswith("ambit: --namespace '../x'")


def test_a_namespace_is_enrolled_once_its_waypoint_is_ready(run: Run, here: list[Cluster]) -> None:
    """Again: nothing changes."""
    code, said = run("apply", "-n", "shop", "--enroll-namespace", "--wait")
    assert code == 0
    assert here[0].labels("shop")[USE] == "waypoint"
    lines = ("created", "is ready", f"namespace shop labelled {USE}=waypoint")
    assert [line in said for line in lines] == [True] * 3
    assert said.index("is ready") < said.index("labelled")
    code, said = run("apply", "-n", "shop", "--enroll-namespace")
    assert (code, said) == (0, "✔ waypoint shop/waypoint unchanged\n")


def test_what_is_not_ready_in_time_is_explained_and_not_used(run: Run, here: list[Cluster]) -> None:
    """Exit code 3; the pod, what it waits for, the next step."""
    here[0].told = PENDING
    here[0].stuck_pod()
    code, said = run("apply", "-n", "shop", "--enroll-namespace", "--wait", "--timeout", "0")
    assert code == verbs.NOT_READY
    assert USE not in here[0].labels("shop")
    assert "Pending: none of its 1 pods is ready" in said
    assert "pod shop/waypoint-1 on n1: ImagePullBackOff" in said
    assert "next: put the image where nodes can pull it" in said
    assert "What was applied stays; namespace shop was not labelled" in said


def test_a_namespace_keeps_its_waypoint_unless_told_otherwise(
    run: Run, here: list[Cluster]
) -> None:
    """Nothing is applied, then; --overwrite also takes the other waypoint's namespace away."""
    here[0].put(namespace("shop", **{USE: "other", f"{USE}-namespace": "infra"}))
    code, said = run("apply", "-n", "shop", "--enroll-namespace")
    assert code == 1
    assert "uses another waypoint already (istio.io/use-waypoint: infra/other)" in said
    assert here[0].names("Gateway") == []
    code, said = run("apply", "-n", "shop", "--enroll-namespace", "--overwrite")
    assert code == 0
    assert here[0].labels("shop") == {USE: "waypoint"}
    assert here[0].applied == [("ambit-waypoint", True)]


def test_a_namespace_outside_the_mesh_is_warned_of(run: Run, here: list[Cluster]) -> None:
    """With the command that takes it in; it is no error."""
    here[0].put(namespace("shop"))
    code, said = run("apply", "-n", "shop", "--enroll-namespace")
    assert code == 0
    assert "! namespace shop is not labelled istio.io/dataplane-mode=ambient" in said
    assert "next: kubectl label namespace shop istio.io/dataplane-mode=ambient" in said
    assert "until the waypoint is ready, its traffic is refused" in said


def test_what_is_missing_is_named_with_the_next_step(run: Run, here: list[Cluster]) -> None:
    """Namespace, Gateway API, waypoint."""
    for verb in (["apply"], ["list"], ["status"], ["delete", "waypoint"]):
        code, said = run(*verb, "-n", "nowhere")
        assert code == 1
        assert "there is no namespace nowhere" in said
        assert "kubectl create namespace nowhere" in said
    here[0].waypoint("one")
    for verb in (["status"], ["delete"]):
        code, said = run(*verb, "two", "-n", "shop")
        assert code == 1
        assert "no waypoint shop/two (there are: one)" in said
    here[0] = Cluster(crds=False)
    for verb in (["apply"], ["list"], ["status"], ["delete", "waypoint"]):
        code, said = run(*verb, "-n", "shop")
        assert code == 1
        assert "https://fake:6443 knows no Gateway of gateway.networking.k8s.io/v1" in said
        assert "ambit install --gateway-api-crds PATH" in said


def test_a_gateway_of_another_class_is_left_alone(run: Run, here: list[Cluster]) -> None:
    """Neither changed nor deleted nor listed; an own class of ours stays as it is."""
    here[0].waypoint("edge", gatewayClassName="nginx")
    before = copy.deepcopy(here[0].objects)
    for words in (["apply", "--name", "edge"], ["delete", "edge", "-y"], ["status", "edge"]):
        code, said = run(*words, "-n", "shop")
        assert code == 1
        assert "Gateway shop/edge is of class nginx: no waypoint" in said
    assert run("delete", "--all", "-y", "-n", "shop")[0] == 0
    assert run("list", "-n", "shop")[1] == "no waypoints in namespace shop (list -A: all)\n"
    assert here[0].objects == before
    here[0].waypoint("wp", gatewayClassName="ambit-waypoint")
    assert run("apply", "--name", "wp", "-n", "shop")[1] == "✔ waypoint shop/wp unchanged\n"


def test_beside_istio_the_class_is_our_own(run: Run, here: list[Cluster]) -> None:
    """Where istio-waypoint belongs to another controller, that one would serve it."""
    here[0].put(gateway_class("istio-waypoint", "istio.io/mesh-controller"))
    here[0].put(gateway_class("ambit-waypoint", "ambit.io/mesh-controller"))
    run("apply", "-n", "shop")
    found = here[0].get(Ref(GATEWAY, "Gateway", "shop", "waypoint"))
    assert found is not None
    assert found["spec"]["gatewayClassName"] == "ambit-waypoint"
    assert "waypoint" in run("list", "-n", "shop")[1]


def test_another_tools_fields_are_not_taken_in_silence(
    run: Run, here: list[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's conflict, and the way on."""

    def refuse(*_: Any, **__: Any) -> Object:
        raise ApiError(409, "Conflict", 'conflict with "kubectl": .metadata.labels')

    monkeypatch.setattr(here[0], "apply", refuse)
    code, said = run("apply", "-n", "shop")
    assert code == 1
    assert 'Gateway shop/waypoint: conflict with "kubectl": .metadata.labels' in said
    assert "--overwrite" in said


# ---- looking ---------------------------------------------------------------------------------


def test_lists_are_tables_or_structured(run: Run, here: list[Cluster]) -> None:
    """Only one namespace, or all with their names."""
    here[0].put(namespace("other"))
    here[0].waypoint()
    far = shape.manifest("far", "other", "workload")
    here[0].put(far)
    code, said = run("list", "-n", "shop")
    assert code == 0
    assert [line.split() for line in said.splitlines()] == [
        ["NAME", "CLASS", "TRAFFIC", "TYPE", "PROGRAMMED"],
        ["waypoint", "istio-waypoint", "service", "True"],
    ]
    code, said = run("list", "-A")
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [
        ["other", "far"],
        ["shop", "waypoint"],
    ]
    found = json.loads(run("list", "-A", "-o", "json")[1])
    assert found[0] == {
        "namespace": "other",
        "name": "far",
        "class": "istio-waypoint",
        "trafficType": "workload",
        "accepted": "Unknown",
        "programmed": "Unknown",
        "reason": "Pending",
        "message": "the control plane has not looked at it yet",
    }
    assert yaml.safe_load(run("list", "-A", "-o", "yaml")[1]) == found


def test_status_of_what_serves(run: Run, here: list[Cluster]) -> None:
    """Exit code 0; so it is where there is none."""
    here[0].waypoint()
    code, said = run("status", "waypoint", "-n", "shop")
    assert code == 0
    assert said.splitlines()[1].split() == ["waypoint", "True", "Programmed"]
    here[0] = Cluster()
    assert run("status", "-n", "shop") == (0, "no waypoints in namespace shop (list -A: all)\n")
    assert run("status", "-A", "-o", "json") == (0, "[]\n")
    assert run("status", "x", "-A")[0] == 1


def test_status_waits_and_then_says_why(run: Run, here: list[Cluster]) -> None:
    """From the condition, and from the pods behind it."""
    here[0].told = PENDING
    here[0].waypoint()
    looks = iter(range(3))

    class Slow(Cluster):
        def list(self, *words: Any, **query: str) -> Any:
            if words[1] == "Gateway" and next(looks, None) is None:
                made = self.objects[("gateway.networking.k8s.io", "Gateway", "shop", "waypoint")]
                made["status"] = {"conditions": list(READY)}
            return super().list(*words, **query)

    slow = Slow(PENDING)
    slow.waypoint()
    here[0], quick = slow, here[0]
    assert run("status", "-n", "shop")[0] == 0
    here[0] = quick
    code, said = run("status", "-n", "shop", "--timeout", "0")
    assert code == 1
    assert "WRONG: shop/waypoint" in said
    assert "no Deployment was made for it" in said
    quick.stuck_pod()
    code, said = run("status", "-n", "shop", "--no-wait", "-o", "json")
    assert code == 1
    (found,) = json.loads(said)
    assert found["reason"] == "Pending"
    assert "pod shop/waypoint-1 on n1: ImagePullBackOff" in "\n".join(found["details"])


def test_what_is_refused_is_not_waited_for(run: Run, here: list[Cluster]) -> None:
    """It is for the operator to correct; the clock is not asked."""
    here[0].told = REFUSED
    here[0].waypoint()
    code, said = run("status", "-n", "shop", "--timeout", "1h")
    assert code == 1
    assert "InvalidParameters: there is no ConfigMap shop/size" in said
    assert "next: correct Gateway shop/waypoint" in said


def test_what_serves_in_an_older_form_is_not_ready(run: Run, here: list[Cluster]) -> None:
    """What was made before goes on; what was asked for is not there."""
    here[0].told = (REFUSED[0], READY[1])
    here[0].waypoint()
    code, said = run("status", "-n", "shop")
    assert code == 1
    assert "InvalidParameters: there is no ConfigMap shop/size" in said
    assert run("apply", "-n", "shop", "--wait")[0] == verbs.NOT_READY


def test_a_condition_of_an_older_form_says_nothing(run: Run, here: list[Cluster]) -> None:
    """A Gateway that was just changed is not ready by what was said before."""
    here[0].waypoint()
    key = ("gateway.networking.k8s.io", "Gateway", "shop", "waypoint")
    here[0].objects[key]["metadata"]["generation"] = 2
    code, said = run("status", "-n", "shop", "--no-wait")
    assert code == 1
    assert "the control plane has not looked at it yet" in said


def test_ready_pods_of_a_waypoint_that_is_not_are_said_to_be(run: Run, here: list[Cluster]) -> None:
    """Instead of that no pod was made."""
    here[0].told = PENDING
    here[0].waypoint()
    here[0].stuck_pod()
    pod = here[0].objects[("", "Pod", "shop", "waypoint-1")]
    pod["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    said = run("status", "-n", "shop", "--no-wait")[1]
    assert "its 1 pods are ready, and the control plane says otherwise" in said


# ---- deleting --------------------------------------------------------------------------------


def test_deleting_says_whose_traffic_will_be_refused(run: Run, here: list[Cluster]) -> None:
    """Of this waypoint, not of one of the same name elsewhere; nobody said yes."""
    here[0].waypoint()
    for name, labels in {
        "own": {USE: "waypoint"},
        "far": {USE: "waypoint", f"{USE}-namespace": "infra"},
    }.items():
        meta = {"name": name, "namespace": "shop", "labels": labels}
        here[0].put({"apiVersion": "v1", "kind": "Service", "metadata": meta})
    code, said = run("delete", "waypoint", "-n", "shop")
    assert code == 1
    assert "their traffic will be refused: Service shop/own\n" in said
    assert f"next: kubectl -n shop label service own {USE}-" in said
    assert "Nothing was changed." in said
    assert here[0].names("Gateway") == ["waypoint"]
    code, said = run("delete", "waypoint", "-n", "shop", "-y")
    assert code == 0
    assert said.endswith("✔ waypoint shop/waypoint deleted\n")
    assert here[0].names("Gateway") == []


def test_all_of_a_namespace_or_by_name(run: Run, here: list[Cluster]) -> None:
    """One of both; a name that is not there leaves all."""
    for name in ("one", "two", "three"):
        here[0].waypoint(name)
    assert run("delete", "-n", "shop", "-y")[0] == 1
    assert run("delete", "one", "--all", "-n", "shop", "-y")[0] == 1
    assert run("delete", "one", "four", "-n", "shop", "-y")[0] == 1
    assert here[0].names("Gateway") == ["one", "three", "two"]
    assert run("delete", "one", "two", "-n", "shop", "-y")[0] == 0
    assert here[0].names("Gateway") == ["three"]
    assert run("delete", "--all", "-n", "shop", "-y")[0] == 0
    assert here[0].names("Gateway") == []

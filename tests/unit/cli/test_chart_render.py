"""The chart, rendered for each profile, is what it was when somebody last looked.

REFRESH_GOLDEN=1 writes the expected files anew; look at the difference before committing it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.chart.load import Chart, Object, Release, load
from cli.chart.text import to_documents
from cli.chart.values import parse_set
from mesh import __version__

GOLDEN = Path(__file__).parents[2] / "golden" / "chart"
GATEWAY_API = "gateway.networking.k8s.io/v1/GatewayClass"


@pytest.fixture(scope="module")
def chart() -> Chart:
    return load()


def render(chart: Chart, sets: Sequence[str] = (), served: Sequence[str] = ()) -> list[Object]:
    values = chart.values([parse_set(sets, {})])
    return list(chart.render(values, Release(), served).objects)


def find(objects: list[Object], kind: str, name: str) -> Any:
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("profile", ["default", "demo", "minimal"])
def test_each_profile_renders_to_what_was_reviewed(chart: Chart, profile: str) -> None:
    """Every change of the chart shows as a difference here."""
    values = chart.values([chart.profile(profile)])
    text = to_documents(list(chart.render(values, Release(), [GATEWAY_API]).objects))
    expected = GOLDEN / f"{profile}.yaml"
    if os.environ.get("REFRESH_GOLDEN"):
        expected.parent.mkdir(exist_ok=True)
        expected.write_text(text)
    assert text == expected.read_text()


def test_the_chart_has_the_version_of_the_program(chart: Chart) -> None:
    """The images' tag follows from it."""
    assert (chart.version, chart.metadata["appVersion"]) == (__version__, __version__)


def test_every_object_can_be_told_as_ours(chart: Chart) -> None:
    """Pruning and uninstalling go by these labels."""
    for obj in render(
        chart, ["monitoring.podMonitor=true,networkPolicy.enabled=true"], [GATEWAY_API]
    ):
        labels = obj["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "ambit", obj["metadata"]["name"]
        assert labels["app.kubernetes.io/managed-by"] == "ambit-install"


def test_gateway_classes_wait_for_their_crd(chart: Chart) -> None:
    """Without it the whole installation would fail."""
    assert not [o for o in render(chart) if o["kind"] == "GatewayClass"]
    names = [
        o["metadata"]["name"]
        for o in render(chart, [], [GATEWAY_API])
        if o["kind"] == "GatewayClass"
    ]
    assert names == ["istio-waypoint", "ambit-waypoint"]


def test_one_replica_has_no_disruption_budget(chart: Chart) -> None:
    """It would keep every node from being drained."""
    kinds = {o["kind"] for o in render(chart, ["controlPlane.replicas=1"])}
    assert "PodDisruptionBudget" not in kinds
    assert "PodDisruptionBudget" in {o["kind"] for o in render(chart)}


def test_another_namespace_is_followed_everywhere(chart: Chart) -> None:
    """No name of the default is left over."""
    objects = render(chart, ["namespace=mesh,networkPolicy.enabled=true"])
    text = to_documents(objects)
    assert "namespace: istio-system" not in text
    assert "istio-system" not in text
    assert "https://istiod.mesh.svc:15012" in text
    assert "--proxy-account=mesh/ztunnel" in text


def test_only_the_agent_sees_the_host(chart: Chart) -> None:
    """And nobody is privileged unless told so."""
    objects = render(chart)
    for obj in objects:
        if obj["kind"] not in ("Deployment", "DaemonSet"):
            continue
        pod = obj["spec"]["template"]["spec"]
        is_agent = obj["metadata"]["name"] == "ambit-node-agent"
        assert pod.get("hostNetwork", False) is pod.get("hostPID", False) is is_agent
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert not security.get("privileged")
            assert security["capabilities"]["drop"] == ["ALL"]
    for container in find(objects, "DaemonSet", "ambit-node-agent")["spec"]["template"]["spec"][
        "containers"
    ]:
        assert "SYS_MODULE" not in container["securityContext"]["capabilities"].get("add", [])
    privileged = find(render(chart, ["nodeAgent.privileged=true"]), "DaemonSet", "ambit-node-agent")
    agent, holder = privileged["spec"]["template"]["spec"]["containers"]
    assert agent["securityContext"]["privileged"] is True
    assert "privileged" not in holder["securityContext"]


def test_cleaning_up_runs_once_per_node_and_then_only_says_so(chart: Chart) -> None:
    """The same DaemonSet, so that a node's agent is gone before its node is cleaned."""
    agent = find(render(chart, ["nodeAgent.cleanup=true"]), "DaemonSet", "ambit-node-agent")
    pod = agent["spec"]["template"]["spec"]
    cleanup, sweep = pod["initContainers"]
    assert sweep["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "--cleanup" in cleanup["args"]
    assert [c["name"] for c in pod["containers"]] == ["done"]
    assert agent["spec"]["updateStrategy"]["rollingUpdate"] == {
        "maxSurge": 0,
        "maxUnavailable": "100%",
    }
    managing = find(render(chart), "DaemonSet", "ambit-node-agent")
    assert agent["spec"]["selector"] == managing["spec"]["selector"]
    assert (
        cleanup["volumeMounts"]
        == managing["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    )


def test_what_is_set_arrives(chart: Chart) -> None:
    """One value of each kind that templates pass on."""
    sets = [
        "hub=r.example/x/,tag=v9,imagePullSecrets[0].name=reg,logLevel=debug",
        "controlPlane.extraEnv[0].name=A,controlPlane.extraEnv[0].value=b",
        "controlPlane.affinity.nodeAffinity.x=y",
        "controlPlane.extraArgs={--san=x}",
        "ztunnel.podAnnotations.a\\.b/c=d,ztunnel.workers=50%,ztunnel.image=i:1",
        "nodeAgent.criSocket=/run/k3s/containerd/containerd.sock,nodeAgent.maxSurge=10%",
    ]
    objects = render(chart, sets)
    pod = find(objects, "Deployment", "ambit-control-plane")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "r.example/x/ambit:v9"
    assert pod["imagePullSecrets"] == [{"name": "reg"}]
    assert {"name": "A", "value": "b"} in container["env"]
    assert container["args"][-1] == "--san=x"
    assert "--log-level=debug" in container["args"]
    assert pod["affinity"] == {"nodeAffinity": {"x": "y"}}
    assert "topologySpreadConstraints" not in pod
    template = find(objects, "DaemonSet", "ztunnel")["spec"]["template"]
    assert template["metadata"]["annotations"]["a.b/c"] == "d"
    assert template["spec"]["containers"][0]["image"] == "i:1"
    agent = find(objects, "DaemonSet", "ambit-node-agent")["spec"]
    mounts = agent["template"]["spec"]["containers"][0]["volumeMounts"]
    assert "/run/k3s/containerd" in [m["mountPath"] for m in mounts]
    assert agent["updateStrategy"]["rollingUpdate"]["maxSurge"] == "10%"

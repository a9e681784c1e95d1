"""What a node agent may write about pods, as the API server enforces it.

The policy and the rights are the chart's; their names are this test's, as a mesh may be installed.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from cli.chart.load import Release, load
from cli.chart.values import parse_set
from mesh.kube.api import load_configuration
from tests.k8s.cluster import Cluster, ClusterError
from tests.k8s.objects import pod

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(180)]

NS = "tried"
NAME = "tried-node-agent"
ACCOUNT = "ambit-node-agent"
MARK = "ambient.istio.io/redirection"
CAPTURED = {"type": "ambit.io/Captured", "status": "True", "reason": "Proved", "message": ""}


def of_the_chart() -> list[dict[str, Any]]:
    """The agent's cluster-wide rights and its admission policy, renamed."""
    chart = load()
    values = chart.values([parse_set([f"namespace={NS},createNamespace=false"], {})])
    kinds = (
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    )
    found = []
    for obj in chart.render(values, Release(), []).objects:
        if obj["kind"] not in kinds or obj["metadata"]["name"] != ACCOUNT:
            continue
        obj["metadata"]["name"] = NAME
        if "roleRef" in obj:
            obj["roleRef"]["name"] = NAME
        if "policyName" in obj.get("spec", {}):
            obj["spec"]["policyName"] = NAME
        found.append(obj)
    assert len(found) == len(kinds)
    return found


@pytest.fixture(scope="module")
def agents(cluster: Cluster) -> Iterator[Cluster]:
    """A pod of the agent's account on each node, and one to write about on n1."""
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": ACCOUNT, "namespace": NS},
    }
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NS}}, account)
    cluster.apply(*of_the_chart())
    for node in ("n1", "n2"):
        made = pod(NS, f"agent-{node}", node)
        made["spec"]["serviceAccountName"] = ACCOUNT
        cluster.apply(made)
    cluster.apply(pod(NS, "target", "n1"))
    cluster.kubectl("wait", "-n", NS, "--for=condition=Ready", "pod", "--all", "--timeout=90s")
    yield cluster
    for obj in of_the_chart():
        cluster.kubectl("delete", obj["kind"], NAME)
    cluster.kubectl("delete", "namespace", NS, "--timeout=90s")


def patch(cluster: Cluster, node: str, body: dict[str, Any], sub: str = "status") -> str:
    """Patch the target as the agent of a node; returns what the server says against it."""
    token = cluster.kubectl(
        "create", "token", ACCOUNT, "-n", NS, "--bound-object-kind=Pod",
        f"--bound-object-name=agent-{node}",
    ).strip()  # fmt: skip
    configuration = load_configuration(cluster.layout.kubeconfig)
    request = urllib.request.Request(
        f"{configuration.host}/api/v1/namespaces/{NS}/pods/target/{sub}".rstrip("/"),
        json.dumps(body).encode(),
        {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/strategic-merge-patch+json",
        },
        method="PATCH",
    )
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.check_hostname = False
    try:
        urllib.request.urlopen(request, context=context, timeout=10).read()
    except urllib.error.HTTPError as refused:
        return str(json.load(refused)["message"])
    return ""


def test_an_agent_marks_the_pods_of_its_node_and_takes_marks_away(agents: Cluster) -> None:
    """Annotation and condition, as the kubelet goes on writing its own."""
    mark = {"metadata": {"annotations": {MARK: "enabled"}}, "status": {"conditions": [CAPTURED]}}
    assert patch(agents, "n1", mark) == ""
    found = agents.get("pod", "target", "-n", NS)
    assert found["metadata"]["annotations"][MARK] == "enabled"
    assert "ambit.io/Captured" in [c["type"] for c in found["status"]["conditions"]]
    gone = {
        "metadata": {"annotations": {MARK: None}},
        "status": {"conditions": [{"$patch": "delete", "type": "ambit.io/Captured"}]},
    }
    assert patch(agents, "n1", gone) == ""
    found = agents.get("pod", "target", "-n", NS)
    assert MARK not in found["metadata"].get("annotations", {})


@pytest.mark.parametrize(
    ("node", "body", "why"),
    [
        ("n2", {"metadata": {"annotations": {MARK: "enabled"}}}, "pods of its own node only"),
        ("n1", {"metadata": {"annotations": {"other": "x"}}}, "and no other"),
        ("n1", {"metadata": {"labels": {"app": "bank"}}}, "leaves labels"),
        ("n1", {"status": {"phase": "Failed"}}, "leaves labels, addresses and phase"),
        ("n1", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, "its own"),
    ],
)
def test_an_agent_writes_nothing_else(
    agents: Cluster, node: str, body: dict[str, Any], why: str
) -> None:
    """Whoever took over one node does not get at the pods of another by this account."""
    said = patch(agents, node, body)
    assert "ValidatingAdmissionPolicy" in said
    assert why in said


def test_an_agent_has_no_other_right(agents: Cluster) -> None:
    """The pod itself, secrets, other writes: refused by its role."""
    body = {"metadata": {"annotations": {MARK: "enabled"}}}
    assert "cannot patch resource" in patch(agents, "n1", body, sub="")
    who = f"--as=system:serviceaccount:{NS}:{ACCOUNT}"
    for verb, resource in (
        ("list", "secrets"), ("create", "pods"), ("delete", "pods"), ("update", "nodes"),
        ("list", "configmaps"), ("create", "pods/exec"),
    ):  # fmt: skip
        with pytest.raises(ClusterError):  # can-i ends with 1 for a no
            agents.kubectl("auth", "can-i", verb, resource, who)
    assert "yes" in agents.kubectl("auth", "can-i", "list", "pods", who)

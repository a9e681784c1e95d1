"""`ambit install` and `ambit uninstall` against a real cluster, where things are not as hoped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cli.main import main
from tests.k8s.cluster import Cluster

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]

NS = "istio-system"
# Images that no node has and nobody may pull.
NO_IMAGES = ("--set", "hub=nowhere.example,imagePullPolicy=Never", "--profile", "demo", "-y")


class Shell:
    """Runs commands of `ambit` with a cluster's kubeconfig."""

    def __init__(self, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
        self._cluster = cluster
        self._capsys = capsys

    def run(self, *words: str, kubeconfig: Path | None = None) -> tuple[int, str]:
        path = kubeconfig or self._cluster.layout.kubeconfig
        code = main([*words, "--kubeconfig", str(path)])
        out = self._capsys.readouterr()
        return code, out.out + out.err


@pytest.fixture
def shell(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    made = Shell(cluster, capsys)
    yield made
    made.run("uninstall", "--purge", "-y", "--skip-nodes")


def everything(cluster: Cluster) -> set[str]:
    """Names of all objects that an installation could leave behind."""
    kinds = (
        "ns,crd,clusterrole,clusterrolebinding,validatingadmissionpolicy,"
        "validatingadmissionpolicybinding,configmap,secret,serviceaccount,daemonset,deployment,lease"
    )
    return {
        f"{i['kind']}/{i['metadata'].get('namespace', '')}/{i['metadata']['name']}"
        for i in cluster.get(kinds, "-A")["items"]
    }


def test_pods_that_cannot_start_are_explained_and_nothing_is_left(
    cluster: Cluster, shell: Shell
) -> None:
    """The cause in the first lines, exit code 3; after uninstalling, the cluster is as before."""
    before = everything(cluster)
    code, said = shell.run("install", *NO_IMAGES, "--timeout", "30")  # a busy node is slow
    assert code == 3, said
    assert "control plane is not ready: 0 of 1" in said
    assert "ErrImageNeverPull" in said
    assert "next: import the image into each node's container runtime" in said
    code, said = shell.run("status")
    assert code == 1
    assert "0 of" in said or "none is ready" in said
    code, said = shell.run("uninstall", "--purge", "-y", "--timeout", "5")
    assert code == 1
    assert "nothing was removed yet" in said
    code, said = shell.run("uninstall", "--purge", "-y", "--skip-nodes")
    assert code == 0, said
    assert everything(cluster) == before


def test_installing_again_repairs_what_somebody_changed(cluster: Cluster, shell: Shell) -> None:
    """Fields are ours again, deleted objects are back, others' additions stay."""
    shell.run("install", *NO_IMAGES, "--timeout", "5")
    agent = "daemonset/ambit-node-agent"
    cluster.kubectl("-n", NS, "delete", "service", "istiod")
    cluster.kubectl("-n", NS, "set", "image", agent, "agent=other:1")
    cluster.kubectl("-n", NS, "label", agent, "theirs=yes")
    _, said = shell.run("install", *NO_IMAGES, "--dry-run")
    assert "  + Service istio-system/istiod" in said
    assert "  ~ DaemonSet istio-system/ambit-node-agent" in said
    assert "Role" not in said
    # Broken off before ztunnel's turn, the plan still has it.
    assert "  + DaemonSet istio-system/ztunnel" in said
    shell.run("install", *NO_IMAGES, "--timeout", "1")
    _, said = shell.run("install", *NO_IMAGES, "--dry-run")
    assert "DaemonSet istio-system/ambit-node-agent" not in said
    found = cluster.get(agent, "-n", NS)
    image = found["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.startswith("nowhere.example/ambit-node-agent:")
    assert found["metadata"]["labels"]["theirs"] == "yes"


def test_policies_outlive_an_uninstallation(cluster: Cluster, shell: Shell) -> None:
    """Also a purge, which names them, until somebody says that they may go."""
    shell.run("install", *NO_IMAGES, "--timeout", "3")
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "mine", "namespace": "default"},
        "spec": {},
    }
    cluster.apply(policy)
    shell.run("uninstall", "-y", "--skip-nodes")
    assert cluster.get("ap", "mine", "-n", "default")["spec"] == {}
    shell.run("install", *NO_IMAGES, "--timeout", "3")
    _, said = shell.run("uninstall", "--purge", "-y", "--skip-nodes")
    assert "has objects: AuthorizationPolicy default/mine" in said
    assert cluster.get("ap", "mine", "-n", "default")["spec"] == {}
    cluster.kubectl("delete", "crd", "authorizationpolicies.security.istio.io")


def test_an_account_that_may_not_is_told_before_anything_happens(
    cluster: Cluster, shell: Shell, tmp_path: Path
) -> None:
    """With all that it lacks."""
    before = everything(cluster)
    cluster.kubectl("create", "serviceaccount", "viewer", "-n", "default")
    cluster.kubectl(
        "create", "clusterrolebinding", "viewer", "--clusterrole=view",
        "--serviceaccount=default:viewer",
    )  # fmt: skip
    try:
        token = cluster.kubectl("create", "token", "viewer", "-n", "default").strip()
        config = yaml.safe_load(cluster.layout.kubeconfig.read_text())
        for user in config["users"]:
            user["user"] = {"token": token}
        kubeconfig = tmp_path / "viewer"
        kubeconfig.write_text(yaml.safe_dump(config))
        code, said = shell.run("install", *NO_IMAGES, kubeconfig=kubeconfig)
        assert code == 1
        assert "is forbidden" in said or "this account may not" in said
    finally:
        cluster.kubectl("delete", "clusterrolebinding", "viewer")
        cluster.kubectl("delete", "serviceaccount", "viewer", "-n", "default")
    assert everything(cluster) == before


def test_the_gateway_api_comes_and_goes_with_the_mesh(cluster: Cluster, shell: Shell) -> None:
    """From the module's own folder, its guard included; not when it was there before."""
    from tests.k8s.cluster import binaries

    crds = binaries.module_file("conformance", "sigs.k8s.io/gateway-api", "config/crd/standard")
    before = everything(cluster)
    code, said = shell.run("install", *NO_IMAGES, "--timeout", "3", "--gateway-api-crds", str(crds))
    assert "the Gateway API will be installed" in said
    assert "  + GatewayClass istio-waypoint" in said
    cluster.kubectl("get", "crd", "gateways.gateway.networking.k8s.io")
    code, said = shell.run("uninstall", "--purge", "-y", "--skip-nodes")
    assert code == 0, said
    assert everything(cluster) == before

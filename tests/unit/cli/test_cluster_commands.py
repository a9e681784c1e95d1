"""install and uninstall from the command line on, against objects in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import main
from cli.chart.load import load
from cli.cluster import carry, installation, purge, uninstallation
from cli.cluster.inventory import parse_untrusted
from cli.cluster.objects import Ref
from tests.unit.cli.fake_kube import FakeKube, node

INVENTORY = Ref("v1", "ConfigMap", "istio-system", "ambit-install")
DEMO = ("install", "--profile", "demo", "-y")


class Shell:
    """Runs commands against one fake cluster."""

    def __init__(self, kube: FakeKube, capsys: pytest.CaptureFixture[str]) -> None:
        self.kube = kube
        self._capsys = capsys

    def run(self, *words: str) -> tuple[int, str]:
        code = main.main(words)
        out = self._capsys.readouterr()
        return code, out.out + out.err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    made = Shell(FakeKube(node("n1"), node("n2")), capsys)

    class Connect:
        @staticmethod
        def connect(*_: Any) -> FakeKube:
            return made.kube

    for module in (installation, uninstallation):
        monkeypatch.setattr(module, "Kube", Connect)
    for module in (carry, uninstallation, purge):
        monkeypatch.setattr(module, "_TURN", 0.0)
    return made


def stored(kube: FakeKube) -> Any:
    config_map = kube.get(INVENTORY)
    return parse_untrusted(config_map) if config_map else None


def test_it_installs_and_says_what_it_did(shell: Shell) -> None:
    """Checks, plan, each part as it becomes ready, and what to do next."""
    code, said = shell.run(*DEMO, "--set", "tag=v7")
    assert code == 0, said
    for line in (
        "✔ Kubernetes v1.37.2",
        "✔ 2 Linux nodes: 2 with kernel 6.18",
        "· the Gateway API is not installed",
        "  + DaemonSet istio-system/ztunnel",
        "✔ control plane ready 1/1",
        "✔ node agent ready 2/2",
        "✔ ztunnel ready 2/2",
        "kubectl label namespace default istio.io/dataplane-mode=ambient",
    ):
        assert line in said
    assert (stored(shell.kube).profile, stored(shell.kube).values) == ("demo", {"tag": "v7"})
    assert stored(shell.kube).created_namespace


def test_what_is_applied_is_known_before_it_is(shell: Shell) -> None:
    """An installation that breaks off can be uninstalled."""
    shell.run(*DEMO)
    first = shell.kube.writes.index("apply ConfigMap istio-system/ambit-install")
    assert shell.kube.writes[:first] == ["apply Namespace istio-system"]


def test_again_changes_nothing(shell: Shell) -> None:
    """The same values, the same objects."""
    shell.run(*DEMO)
    before = dict(shell.kube.objects)
    code, said = shell.run("install", "--set", "profile=demo", "-y")
    assert code == 0
    assert "There is nothing to change" in said
    assert shell.kube.objects.keys() == before.keys()


def test_a_dry_run_and_a_no_change_nothing(shell: Shell) -> None:
    """And without a terminal nobody said yes."""
    code, said = shell.run("install", "--dry-run")
    assert (code, shell.kube.writes) == (0, [])
    code, said = shell.run("install")
    assert (code, shell.kube.writes) == (1, [])
    assert "Nothing was changed" in said


def test_an_upgrade_removes_what_the_new_values_have_not(shell: Shell) -> None:
    """And keeps the rest."""
    shell.run(*DEMO, "--set", "networkPolicy.enabled=true")
    assert shell.kube.names("NetworkPolicy") == ["ambit-control-plane", "ztunnel"]
    code, said = shell.run(*DEMO, "--set", "logLevel=debug")
    assert code == 0
    assert "  - NetworkPolicy istio-system/ztunnel" in said
    assert "  ~ DaemonSet istio-system/ztunnel" in said
    assert "✔ removed 2 objects that this version does not have" in said
    assert shell.kube.names("NetworkPolicy") == []
    assert not {o.kind for o in stored(shell.kube).objects} & {"NetworkPolicy"}


def test_what_does_not_come_up_is_explained(shell: Shell) -> None:
    """Pod, state, log and the next step; exit code 3."""
    shell.kube.stuck = frozenset({"ambit-node-agent"})
    code, said = shell.run(*DEMO, "--timeout", "0")
    assert code == 3
    assert "node agent is not ready: 0 of 2" in said
    assert "pod istio-system/ambit-node-agent-0 on n1: CrashLoopBackOff" in said
    assert "| cannot load the hooks" in said
    assert "next: kubectl -n istio-system describe pod ambit-node-agent-0" in said
    assert stored(shell.kube) is not None


def test_a_stranger_under_our_name_stops_it(shell: Shell) -> None:
    """Before anything is written."""
    shell.kube.put(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "istiod", "namespace": "istio-system"},
        }
    )
    code, said = shell.run(*DEMO)
    assert (code, shell.kube.writes) == (1, [])
    assert "✘ there already, and not from Ambit: Service istio-system/istiod" in said


def test_the_gateway_apis_own_admission_policy_is_no_stranger(shell: Shell, tmp_path: Path) -> None:
    """It comes beside the definitions, from `ambit install` or anybody else."""
    guard = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {
            "name": "safe-upgrades.gateway.networking.k8s.io",
            "annotations": {"gateway.networking.k8s.io/bundle-version": "v1.6.0"},
        },
    }
    shell.kube.put(guard)
    bundle = tmp_path / "gateway-api.yaml"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "gatewayclasses.gateway.networking.k8s.io"},
        "spec": {"group": "gateway.networking.k8s.io"},
    }
    bundle.write_text(yaml.safe_dump_all([definition, guard]))
    code, said = shell.run(*DEMO, "--gateway-api-crds", str(bundle))
    assert "not from Ambit" not in said
    assert code == 0, said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "nosuch=1"), "no such value"),
        (("--profile", "nosuch"), "no profile 'nosuch'; there are: default, demo, minimal"),
        (("--profile", "demo", "--set", "profile=minimal"), "give one"),
        (("-f", "/nosuch.yaml"), "/nosuch.yaml: No such file"),
        (("--gateway-api-crds", "/nosuch"), "/nosuch: No such file"),
        (("--gateway-api-crds", "deploy/crds"), "has no CRD of gateway.networking.k8s.io"),
    ],
)
def test_what_cannot_be_meant_is_said_before_a_cluster_is_asked(
    shell: Shell, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names it."""
    monkeypatch.chdir(Path(__file__).parents[3])
    code, said = shell.run("install", *words)
    assert code == 1
    assert message in said
    assert shell.kube.writes == []


def test_the_gateway_api_is_brought_along(shell: Shell, tmp_path: Path) -> None:
    """Its CRDs first, then our classes."""
    (tmp_path / "crds.yaml").write_text(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n"
        "metadata: {name: gatewayclasses.gateway.networking.k8s.io}\n"
        "spec: {group: gateway.networking.k8s.io}\n"
    )
    code, said = shell.run(*DEMO, "--gateway-api-crds", str(tmp_path))
    assert code == 0
    assert "the Gateway API will be installed" in said
    assert shell.kube.names("GatewayClass") == ["ambit-waypoint", "istio-waypoint"]


def test_a_values_file_comes_before_set(shell: Shell, tmp_path: Path) -> None:
    """As with Helm."""
    file = tmp_path / "v.yaml"
    file.write_text("controlPlane: {replicas: 3}\nlogLevel: debug\n")
    shell.run(*DEMO, "-f", str(file), "--set", "logLevel=error")
    made = shell.kube.get(Ref("apps/v1", "Deployment", "istio-system", "ambit-control-plane"))
    assert made is not None
    assert made["spec"]["replicas"] == 3
    arguments = made["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--log-level=error" in arguments


# ---- uninstall -------------------------------------------------------------------------------


def test_uninstalling_cleans_nodes_first_and_keeps_what_is_precious(shell: Shell) -> None:
    """ztunnel and the control plane serve until every node is clean."""
    shell.run(*DEMO)
    shell.kube.writes.clear()
    code, said = shell.run("uninstall", "-y")
    assert code == 0, said
    assert "✔ clean nodes: 2" in said
    cleaning = shell.kube.writes.index("apply DaemonSet istio-system/ambit-node-agent")
    deleting = next(i for i, w in enumerate(shell.kube.writes) if w.startswith("delete "))
    assert cleaning < deleting
    assert len(shell.kube.names("CustomResourceDefinition")) == len(load().crds())
    assert shell.kube.names("Namespace") == ["istio-system"]
    assert shell.kube.names("DaemonSet") == shell.kube.names("Deployment") == []
    # and it comes back as if nothing had been
    code, said = shell.run(*DEMO)
    assert code == 0
    assert "Installed now" not in said


def secret(name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "istio-system", "labels": labels, "uid": "u"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata}


OURS = {"app.kubernetes.io/part-of": "ambit"}


def test_a_purge_leaves_nothing(shell: Shell) -> None:
    """Only the nodes themselves."""
    shell.run(*DEMO)
    shell.kube.put(secret("istio-ca-secret", **OURS))
    code, said = shell.run("uninstall", "--purge", "-y")
    assert code == 0, said
    assert {kind for _, kind, _, _ in shell.kube.objects} == {"Node"}


def test_a_purge_takes_nothing_of_others(shell: Shell) -> None:
    """A namespace that was there, an Istio's secret, somebody's policies."""
    shell.kube.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}})
    shell.run(*DEMO)
    shell.kube.put(secret("istio-ca-secret"))
    shell.kube.put(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "mine", "namespace": "shop"},
        }
    )
    code, said = shell.run("uninstall", "--purge", "-y")
    assert code == 0
    assert "left: Secret istio-system/istio-ca-secret, which Ambit did not make" in said
    assert "has objects: AuthorizationPolicy shop/mine" in said
    assert "left: namespace istio-system, which was there before" in said
    namespace = shell.kube.get(Ref("v1", "Namespace", "", "istio-system"))
    assert namespace is not None
    assert "labels" not in namespace["metadata"]
    assert shell.kube.names("CustomResourceDefinition") == [
        "authorizationpolicies.security.istio.io"
    ]
    assert shell.kube.names("Secret") == ["istio-ca-secret"]


def test_a_namespace_with_somebodys_secret_stays(shell: Shell) -> None:
    """The plugged-in CA is the operator's."""
    shell.run(*DEMO)
    shell.kube.put(secret("cacerts"))
    _, said = shell.run("uninstall", "--purge", "-y")
    assert "left: namespace istio-system, for it has Secret istio-system/cacerts" in said
    assert shell.kube.names("Secret") == ["cacerts"]


def test_a_node_that_does_not_answer_is_named_and_tried_again(shell: Shell) -> None:
    """Exit code 3; the next run finishes."""
    shell.run(*DEMO)
    shell.kube.put(node("n2", ready=False))
    code, said = shell.run("uninstall", "--purge", "-y")
    assert code == 3
    assert "node n2 is not ready and was not cleaned" in said
    assert "ambit uninstall --purge once more" in said
    assert shell.kube.names("Namespace") == ["istio-system"]
    shell.kube.put(node("n2"))
    code, said = shell.run("uninstall", "--purge", "-y")
    assert code == 0, said
    assert "✔ clean nodes: 2" in said
    assert shell.kube.names("Namespace") == []


def test_nodes_that_cannot_be_cleaned_stop_it(shell: Shell) -> None:
    """Nothing is removed before: captured pods still need it."""
    shell.run(*DEMO)
    shell.kube.stuck = frozenset({"ambit-node-agent"})
    shell.kube.writes.clear()
    code, said = shell.run("uninstall", "-y", "--timeout", "0")
    assert code == 1
    assert "nodes not clean within 0 s: n1, n2" in said
    assert "CrashLoopBackOff" in said
    assert not [w for w in shell.kube.writes if w.startswith("delete")]
    code, said = shell.run("uninstall", "-y", "--skip-nodes")
    assert code == 0
    assert "nodes are left as they are" in said


def test_without_its_inventory_it_is_found_by_labels(shell: Shell) -> None:
    """Somebody deleted the ConfigMap."""
    shell.run(*DEMO)
    shell.kube.objects.pop(INVENTORY.same)
    code, _ = shell.run("uninstall", "-y")
    assert code == 0
    assert shell.kube.names("DaemonSet") == shell.kube.names("ClusterRole") == []


def test_nothing_installed_is_said(shell: Shell) -> None:
    """And is no error: the wish is fulfilled."""
    code, said = shell.run("uninstall", "--purge", "-y")
    assert (code, shell.kube.writes) == (0, [])
    assert "Nothing that `ambit install` installed" in said


def test_a_helm_release_is_helms(shell: Shell) -> None:
    """The message says how to do it there."""
    metadata = {
        "name": "ambit-node-agent",
        "namespace": "istio-system",
        "labels": {"app": "ambit-node-agent", "app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "mesh"},
    }
    shell.kube.put({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata})
    code, said = shell.run("uninstall", "-y")
    assert (code, shell.kube.writes) == (1, [])
    assert "nodeAgent.cleanup=true" in said


def test_manifest_prints_what_would_be_applied(shell: Shell) -> None:
    """With CRDs, in order; no cluster is asked."""
    code, said = shell.run("manifest", "generate", "--set", "profile=minimal", "--set", "tag=v9")
    assert code == 0
    assert said.startswith("---\napiVersion: v1\nkind: Namespace")
    assert said.index("CustomResourceDefinition") < said.index("kind: DaemonSet")
    assert "ambit:v9" in said
    _, without = shell.run("manifest", "--skip-crds")
    assert "CustomResourceDefinition" not in without

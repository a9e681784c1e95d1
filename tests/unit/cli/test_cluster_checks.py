"""A cluster is looked at before anything is done to it."""

from __future__ import annotations

from typing import Any

import pytest

from cli.cluster.checks import ERROR, NOTE, OK, WARN, Check, Facts, judge, may_go_on
from cli.cluster.inventory import Inventory
from cli.cluster.objects import Object

GATEWAY_API = "gateway.networking.k8s.io/v1/GatewayClass"


def node(name: str = "n1", ready: str = "True", **info: str) -> Object:
    system = {
        "operatingSystem": "linux",
        "kernelVersion": "6.12.3-amd64",
        "containerRuntimeVersion": "containerd://2.3.0",
        **info,
    }
    status = {"nodeInfo": system, "conditions": [{"type": "Ready", "status": ready}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status}


def thing(kind: str, name: str, **metadata: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "istio-system", **metadata},
    }


def find(**changes: Any) -> list[Check]:
    facts: dict[str, Any] = {
        "version": "v1.37.2",
        "api_versions": frozenset({GATEWAY_API}),
        "nodes": (node(),),
        "denied": (),
        "live": (),
        "suspects": (),
        "installed": (),
        **changes,
    }
    return judge(Facts(**facts), "istio-system", False)


def test_a_good_cluster_is_told_in_four_lines() -> None:
    """Nothing to do."""
    found = find()
    assert [c.level for c in found] == [OK] * 4
    assert may_go_on(found)
    assert "1 Linux nodes: 1 with kernel 6.12" in [c.what for c in found]


OURS = {"app.kubernetes.io/part-of": "ambit"}
HELM = {
    "labels": {**OURS, "app.kubernetes.io/managed-by": "Helm"},
    "annotations": {
        "meta.helm.sh/release-name": "mesh",
        "meta.helm.sh/release-namespace": "default",
    },
}


@pytest.mark.parametrize(
    ("changes", "level", "what"),
    [
        ({"version": "v1.28.4"}, ERROR, "Kubernetes v1.28.4: 1.30 is needed"),
        ({"version": "main"}, OK, "Kubernetes main"),
        ({"version": "v0.0.0-master"}, OK, "Kubernetes v0.0.0"),
        ({"denied": ("create daemonsets.apps",)}, ERROR, "may not: create daemonsets.apps"),
        ({"nodes": ()}, WARN, "no Linux node"),
        ({"nodes": (node(ready="Unknown"),)}, WARN, "n1 is not ready"),
        ({"nodes": (node(kernelVersion="5.4.0"),)}, WARN, "kernel 5.4.0: pods will be captured by"),
        ({"nodes": (node(kernelVersion="odd"),)}, OK, "1 with kernel odd"),
        ({"nodes": (node(), node("w", operatingSystem="windows"))}, NOTE, "node w runs windows"),
        ({"nodes": (node(containerRuntimeVersion="cri-o://1"),)}, WARN, "runs cri-o://1"),
        (
            {"live": (thing("Service", "istiod"),)},
            ERROR,
            "not from Ambit: Service istio-system/ist",
        ),
        ({"live": (thing("Service", "istiod", labels=OURS),)}, OK, "Kubernetes"),
        ({"live": (thing("Namespace", "istio-system"),)}, OK, "Kubernetes"),
        ({"live": (thing("Service", "istiod", **HELM),)}, ERROR, "Helm release mesh in default"),
        ({"suspects": (thing("DaemonSet", "istio-cni-node"),)}, ERROR, "capture the same pods"),
        (
            {"installed": (Inventory("mesh", "0.1.0", "demo"),)},
            ERROR,
            "is installed in mesh already",
        ),
        ({"installed": (Inventory("istio-system", "0.1.0", "demo"),)}, OK, "Kubernetes"),
        ({"api_versions": frozenset()}, NOTE, "the Gateway API is not installed"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], level: str, what: str) -> None:
    """With the next step, where it stops the installation."""
    found = find(**changes)
    assert [c for c in found if c.level == level and what in c.what], found
    assert may_go_on(found) == (level != ERROR)
    assert all(c.next for c in found if c.level == ERROR)


def test_the_gateway_api_can_be_brought_along() -> None:
    """Then its absence is no finding."""
    facts = Facts("v1.37.2", frozenset(), (node(),), (), (), (), ())
    assert "will be installed" in judge(facts, "istio-system", True)[-1].what

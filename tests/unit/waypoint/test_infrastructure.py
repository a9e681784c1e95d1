"""The objects that are made of a Gateway."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mesh.errors import BadInput
from waypoint.config.gateways import read_gateway
from waypoint.config.infrastructure import Runtime, objects

IMAGE = Runtime(
    command=("/usr/bin/ambit-waypoint",),
    control_plane="https://istiod.istio-system.svc:15012",
    trust_domain="cluster.local",
    cluster_id="Kubernetes",
    image="registry.example/ambit:1",
    pull_secrets=("pull",),
)


def made(
    parameters: dict[str, Any] | None = None, infrastructure: Any = None, **metadata: Any
) -> dict[str, dict[str, Any]]:
    """Objects by kind; parameters as plain data."""
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    gateway = read_gateway(
        {
            "metadata": {"name": "wp", "namespace": "shop", "uid": "u-1", **metadata},
            "spec": {
                "gatewayClassName": "istio-waypoint",
                "listeners": [listener],
                "infrastructure": infrastructure,
            },
        }
    )
    data = {k: v if isinstance(v, str) else yaml.dump(v) for k, v in (parameters or {}).items()}
    return {o["kind"]: o for o in objects(gateway, IMAGE, data)}


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_five_objects_owned_by_the_gateway() -> None:
    found = made()
    assert list(found) == [
        "ServiceAccount",
        "Service",
        "Deployment",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
    ]
    for obj in found.values():
        metadata = obj["metadata"]
        assert (metadata["name"], metadata["namespace"]) == ("wp", "shop")
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": "wp",
                "uid": "u-1",
            }
        ]
        assert metadata["labels"]["gateway.networking.k8s.io/gateway-name"] == "wp"
        assert metadata["labels"]["gateway.istio.io/managed"] == "ambit.io-mesh-controller"


def test_pods_are_reached_by_hbone_and_are_not_captured() -> None:
    found = made()
    template = found["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert labels["istio.io/dataplane-mode"] == "none"
    ports = {p["port"] for p in found["Service"]["spec"]["ports"]}
    assert ports == {15008, 15021}
    selector = found["Service"]["spec"]["selector"]
    assert selector.items() <= labels.items()
    assert found["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_replicas_are_the_autoscalers() -> None:
    """A field that two write is written for ever."""
    found = made()
    assert "replicas" not in found["Deployment"]["spec"]
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "wp")
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_what_the_process_is_told() -> None:
    env = {e["name"]: e for e in container(made()["Deployment"])["env"]}
    assert env["XDS_ADDRESS"]["value"] == "https://istiod.istio-system.svc:15012"
    assert env["GATEWAY_NAME"]["value"] == "wp"
    assert env["INSTANCE_IP"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    token = env["AUTH_TOKEN"]["value"]
    mounts = container(made()["Deployment"])["volumeMounts"]
    assert any(token.startswith(m["mountPath"]) for m in mounts)


def test_infrastructure_labels_and_annotations_go_everywhere() -> None:
    """But do not replace what ties the objects together."""
    found = made(
        infrastructure={
            "labels": {"team": "a", "gateway.networking.k8s.io/gateway-name": "evil"},
            "annotations": {"note": "b"},
        }
    )
    for obj in found.values():
        assert obj["metadata"]["labels"]["team"] == "a"
        assert obj["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] == "wp"
        assert obj["metadata"]["annotations"]["note"] == "b"
    template = found["Deployment"]["spec"]["template"]["metadata"]
    assert template["labels"]["team"] == "a"
    assert template["annotations"]["note"] == "b"


def test_parameters_are_merged_by_name() -> None:
    """Lists of named items by name, mappings by key; null removes."""
    overlay = {
        "spec": {
            "replicas": 2,
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "waypoint",
                            "resources": {"limits": {"memory": "2Gi"}},
                            "env": [{"name": "CONCURRENCY", "value": "4"}],
                        }
                    ],
                    "topologySpreadConstraints": None,
                }
            },
        }
    }
    found = made({"deployment": overlay, "horizontalPodAutoscaler": {"spec": {"maxReplicas": 9}}})
    spec = found["Deployment"]["spec"]
    assert spec["replicas"] == 2
    assert "topologySpreadConstraints" not in spec["template"]["spec"]
    only = container(found["Deployment"])
    assert only["image"] == "registry.example/ambit:1"
    assert only["resources"]["limits"]["memory"] == "2Gi"
    assert only["resources"]["requests"]["cpu"] == "100m"
    names = [e["name"] for e in only["env"]]
    assert "CONCURRENCY" in names
    assert "XDS_ADDRESS" in names
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 9)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"deploymnt": {}}, ["deploymnt", "known: serviceAccount"]),
        ({"deployment": "- a\n- b"}, ["data.deployment", "mapping"]),
        ({"deployment": "{"}, ["data.deployment", "not YAML"]),
        ({"service": {"metadata": {"name": "x"}}}, ["data.service", "metadata.name"]),
        ({"deployment": {"spec": {"selector": {}}}}, ["data.deployment", "spec.selector"]),
        ({"deployment": "[" * 200 + "]" * 200}, ["data.deployment", "nested"]),
    ],
)
def test_bad_parameters_name_object_and_field(parameters: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(BadInput) as e:
        made(
            parameters,
            infrastructure={"parametersRef": {"group": "", "kind": "ConfigMap", "name": "size"}},
        )
    assert "ConfigMap shop/size" in str(e.value)
    for name in names:
        assert name in str(e.value)


def test_names_may_be_given() -> None:
    found = made(
        annotations={
            "gateway.istio.io/name-override": "front",
            "gateway.istio.io/service-account": "mine",
        }
    )
    assert "ServiceAccount" not in found
    assert {o["metadata"]["name"] for o in found.values()} == {"front"}
    spec = found["Deployment"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "mine"
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "front"

"""What the agent reads from a Pod, and what it keeps of it."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.kube.kinds import unpack
from mesh.ports import ANNOTATION_REDIRECTION, LABEL_DATAPLANE_MODE
from node_agent.pod_object import MIRROR_OF, NAMESPACES, pods_of, probe_ports, read
from node_agent.source import CONDITION, PodStatus


def pod(**parts: Any) -> dict[str, Any]:
    metadata = {"name": "web-1", "namespace": "shop", "uid": "u-1"} | parts.pop("metadata", {})
    return {"metadata": metadata, "spec": {}, "status": {}} | parts


def test_names_addresses_and_account() -> None:
    """The account has Kubernetes' own default; addresses are of every family."""
    found = read(pod(status={"podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}, {}]}))
    assert (found.title, found.uid, found.object_uid) == ("shop/web-1", "u-1", "u-1")
    assert found.service_account == "default"
    assert found.addresses == ("10.1.2.3", "fd00::3")
    assert found.status is None


def test_a_static_pod_is_known_to_the_runtime_by_another_uid() -> None:
    """Its mirror in the API server has a uid of its own."""
    found = read(pod(metadata={"annotations": {MIRROR_OF: "c0ffee"}}))
    assert (found.uid, found.object_uid) == ("c0ffee", "u-1")


def test_status_is_annotation_and_condition_together() -> None:
    """One without the other differs from both, and is written again."""
    condition = {"type": CONDITION, "status": "True", "reason": "Proved", "message": "m"}
    both = pod(
        metadata={"annotations": {ANNOTATION_REDIRECTION: "enabled"}},
        status={"conditions": [{"type": "Ready"}, condition | {"lastTransitionTime": "T"}]},
    )
    found = read(both)
    assert found.status == PodStatus("enabled", "Proved", "m")
    assert (found.marked, found.condition, found.since) == ("enabled", "True", "T")
    assert read(pod(status={"conditions": [condition]})).status == PodStatus("", "Proved", "m")


@pytest.mark.parametrize(
    ("parts", "leaving", "finished"),
    [
        ({"status": {"phase": "Running"}}, False, False),
        ({"status": {"phase": "Succeeded"}}, True, True),
        ({"status": {"phase": "Failed"}}, True, True),
        ({"metadata": {"deletionTimestamp": "T"}}, True, False),
    ],
)
def test_who_leaves(parts: dict[str, Any], leaving: bool, finished: bool) -> None:
    """A pod that is deleted is captured until it has ended; a finished one is not."""
    found = read(pod(**parts))
    assert (found.leaving, found.finished) == (leaving, finished)


def test_enrolment_is_the_mesh_s_own_rule() -> None:
    """Pod label over namespace label, as everywhere."""
    ambient = {"metadata": {"labels": {LABEL_DATAPLANE_MODE: "ambient"}}}
    assert read(pod()).wants(ambient)
    assert not read(pod()).wants(None)
    assert not read(pod(metadata={"labels": {LABEL_DATAPLANE_MODE: "none"}})).wants(ambient)
    assert not read(pod(spec={"hostNetwork": True})).wants(ambient)


def test_probe_ports_of_every_kind() -> None:
    """Named, numbered, gRPC, lifecycle hooks, init containers; not what goes to another host."""
    spec = {
        "containers": [
            {
                "ports": [{"name": "http", "containerPort": 8080}],
                "livenessProbe": {"httpGet": {"port": "http"}},
                "readinessProbe": {"tcpSocket": {"port": 9000}},
                "startupProbe": {"grpc": {"port": 9001}},
                "lifecycle": {"preStop": {"httpGet": {"port": 9002}}},
            },
            {"livenessProbe": {"httpGet": {"port": 7000, "host": "example.test"}}},
            {"livenessProbe": {"exec": {"command": ["true"]}}},
        ],
        "initContainers": [{"startupProbe": {"httpGet": {"port": "9003"}}}],
    }
    assert probe_ports(spec) == (8080, 9000, 9001, 9002, 9003)


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": None},
        {"containers": [None, 1, {"livenessProbe": 3}]},
        {"containers": [{"livenessProbe": {"httpGet": {"port": "nobody"}}}]},
        {"containers": [{"livenessProbe": {"tcpSocket": {"port": 70000}}}]},
    ],
)
def test_odd_shapes_are_taken_for_absent(spec: dict[str, Any]) -> None:
    """One odd pod must not cost the others."""
    assert probe_ports(spec) == ()
    assert read({"metadata": {"annotations": 3}, "spec": spec, "status": []}).probe_ports == ()


def test_what_is_kept_is_enough_and_no_more() -> None:
    """Reading the packed object gives the same as reading the whole."""
    whole = pod(
        metadata={
            "labels": {"app": "x", LABEL_DATAPLANE_MODE: "ambient"},
            "annotations": {ANNOTATION_REDIRECTION: "pending", "long": "y" * 1000},
        },
        spec={
            "serviceAccountName": "web",
            "containers": [
                {"image": "i", "env": [{}], "livenessProbe": {"tcpSocket": {"port": 1}}}
            ],
        },
        status={"phase": "Running", "podIPs": [{"ip": "10.1.2.3"}], "hostIP": "h"},
    )
    kind = pods_of("n1")
    assert kind.selector == "spec.nodeName=n1"
    key, data = kind.pack(whole, "v1")
    kept = read(unpack(data))
    assert "long" not in str(kept.raw)
    assert "image" not in str(kept.raw)
    full = read(whole)
    for field in ("uid", "service_account", "addresses", "probe_ports", "marked", "status"):
        assert getattr(kept, field) == getattr(full, field), field
    assert kept.wants(None)
    _, data = NAMESPACES.pack(
        {"metadata": {"name": "shop", "labels": {"a": "b", LABEL_DATAPLANE_MODE: "none"}}}, "v1"
    )
    assert unpack(data)["metadata"]["labels"] == {LABEL_DATAPLANE_MODE: "none"}
    assert key.name == "web-1"

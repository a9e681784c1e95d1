"""mesh.enrolment: who belongs to the mesh."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.enrolment import wants

AMBIENT = {"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}
PLAIN = {"metadata": {"name": "shop"}}


def pod(mode: str | None = None, **more: Any) -> dict[str, Any]:
    labels = {"istio.io/dataplane-mode": mode} if mode else {}
    return {"metadata": {"name": "a", "namespace": "shop", "labels": labels}, **more}


@pytest.mark.parametrize(
    ("own", "namespace", "expected"),
    [
        (None, AMBIENT, True),
        (None, PLAIN, False),
        (None, None, False),
        ("ambient", PLAIN, True),
        ("none", AMBIENT, False),
        ("something", AMBIENT, True),
    ],
)
def test_pod_label_beats_namespace_label(own: str | None, namespace: Any, expected: bool) -> None:
    """The pod's own label decides where it has a known value, else the namespace's."""
    assert wants(pod(own), namespace) is expected


@pytest.mark.parametrize(
    "excluded",
    [
        pod("ambient", spec={"hostNetwork": True}),
        pod("ambient", status={"phase": "Succeeded"}),
        pod("ambient", status={"phase": "Failed"}),
        {
            "metadata": {
                "namespace": "kube-system",
                "labels": {"istio.io/dataplane-mode": "ambient"},
            }
        },
        {"metadata": {"namespace": "istio-system"}},
        {"metadata": {"namespace": "shop", "annotations": {"sidecar.istio.io/status": "{}"}}},
    ],
)
def test_never_enrolled(excluded: dict[str, Any]) -> None:
    """Host network, finished pods, system namespaces and sidecar pods are out in any case."""
    assert wants(excluded, AMBIENT) is False


def test_tolerates_null_sections() -> None:
    """YAML written by hand has keys without values."""
    assert wants({"metadata": {"namespace": "shop", "labels": None}, "spec": None}, AMBIENT)

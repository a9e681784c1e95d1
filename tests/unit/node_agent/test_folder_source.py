"""Pods of the lab: runtime files joined with objects."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput
from mesh.store import FolderStore
from node_agent.folder_source import FolderSource, decode_pod_untrusted
from node_agent.source import CONDITION, ENABLED, PENDING, PodStatus

UID = "3f1b0d6e-0000-4000-8000-000000000001"
FILE: dict[str, Any] = {
    "uid": UID,
    "namespace": "shop",
    "name": "cart",
    "service_account": "cart",
    "netns": "/run/netns/cart",
    "cgroup": "/sys/fs/cgroup/cart",
    "addresses": ["10.244.1.5", "FD00::5"],
    "probe_ports": [8081, 8080],
}


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pods").mkdir()
        self.store = FolderStore(folder / "objects")
        self.source = FolderSource(folder / "objects", folder / "pods")

    def file(self, **changes: Any) -> Path:
        path = self.folder / "pods" / f"{changes.get('uid', UID)}.json"
        path.write_text(json.dumps({**FILE, **changes}))
        return path

    def pod(self, uid: str = UID, **labels: str) -> None:
        metadata = {"name": "cart", "namespace": "shop", "uid": uid, "labels": labels}
        self.store.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}})

    def namespace(self, mode: str) -> None:
        metadata = {"name": "shop", "labels": {"istio.io/dataplane-mode": mode}}
        self.store.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.source.close()


def test_a_runtime_file_is_read_with_canonical_addresses() -> None:
    """Text forms that mean the same become one form, ports are sorted."""
    pod = decode_pod_untrusted(json.dumps(FILE).encode())
    assert pod.addresses == ("10.244.1.5", "fd00::5")
    assert pod.probe_ports == (8080, 8081)
    assert pod.wants is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"uid": "../etc"}, "uid"),
        ({"name": "Cart"}, "name"),
        ({"namespace": 5}, "namespace"),
        ({"service_account": ""}, "service_account"),
        ({"netns": "run/netns/cart"}, "absolute"),
        ({"cgroup": None}, "absolute"),
        ({"addresses": []}, "addresses"),
        ({"addresses": ["10.0.0.256"]}, "addresses"),
        ({"probe_ports": [0]}, "probe_ports"),
        ({"probe_ports": [True]}, "probe_ports"),
        ({"probe_ports": [1] * 65}, "probe_ports"),
    ],
)
def test_a_doubtful_runtime_file_is_refused_by_field(
    change: dict[str, Any], complaint: str
) -> None:
    """The message names what is wrong."""
    with pytest.raises(BadInput, match=complaint):
        decode_pod_untrusted(json.dumps({**FILE, **change}).encode())


@given(st.data())
def test_cut_and_corrupted_files_raise_only_bad_input(data: st.DataObject) -> None:
    """Half-written files too: one value or BadInput."""
    raw = bytearray(json.dumps(FILE).encode())
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    for candidate in (bytes(raw), b"[" * 50_000):
        try:
            decode_pod_untrusted(candidate)
        except BadInput:
            continue


def test_a_pod_wants_what_its_labels_say(lab: Lab) -> None:
    """Pod label beats namespace; without an object nobody says anything."""
    lab.file()
    assert lab.source.pods()[UID].wants is None
    lab.namespace("ambient")
    lab.pod()
    assert lab.source.pods()[UID].wants is True
    lab.pod(**{"istio.io/dataplane-mode": "none"})
    assert lab.source.pods()[UID].wants is False


def test_a_namesake_with_another_uid_does_not_speak_for_the_pod(lab: Lab) -> None:
    """A pod deleted and made again under its name: the old sandbox is nobody's, and its status
    is never written onto the new pod."""
    lab.file()
    lab.namespace("ambient")
    lab.pod(uid="another")
    pod = lab.source.pods()[UID]
    assert pod.wants is None
    lab.source.report(pod, PodStatus(ENABLED, "Proved", "yes"))
    found = lab.store.get("Pod", "shop", "cart")
    assert found is not None
    assert "annotations" not in found["metadata"]


def test_bad_files_are_skipped_and_said_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """One bad file costs one line and no good pod."""
    lab.file()
    (lab.folder / "pods" / "bad.json").write_text("{")
    (lab.folder / "pods" / "other.json").write_text(json.dumps(FILE))
    for _ in range(3):
        assert list(lab.source.pods()) == [UID]
    assert len([r for r in caplog.records if "is ignored" in r.message]) == 2


def test_status_is_written_read_back_and_removed(lab: Lab) -> None:
    """Annotation and condition; the time changes only when True becomes False or back."""
    lab.file()
    lab.namespace("ambient")
    lab.pod()
    pod = lab.source.pods()[UID]
    lab.source.report(pod, PodStatus(PENDING, "Enrolling", "not yet"))
    assert lab.source.pods()[UID].marked == PENDING
    first = condition(lab)
    assert (first["status"], first["reason"], first["message"]) == ("False", "Enrolling", "not yet")
    lab.source.report(pod, PodStatus(PENDING, "NotProved", "no"))
    assert condition(lab)["lastTransitionTime"] == first["lastTransitionTime"]
    lab.source.report(pod, PodStatus(ENABLED, "Proved", "yes"))
    assert condition(lab)["status"] == "True"
    assert lab.source.pods()[UID].marked == ENABLED
    lab.source.report(pod, None)
    assert lab.source.pods()[UID].marked == ""
    assert condition(lab) == {}


def test_changes_of_either_folder_are_told(lab: Lab) -> None:
    """Within much less than a second."""
    lab.namespace("ambient")
    told = threading.Event()
    lab.source.start(told.set)
    told.wait(2)
    for change in (lab.file, lab.pod, lambda: (lab.folder / "pods" / f"{UID}.json").unlink()):
        told.clear()
        change()
        assert told.wait(0.5)


def condition(lab: Lab) -> dict[str, str]:
    found = lab.store.get("Pod", "shop", "cart") or {}
    conditions = (found.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == CONDITION), {})

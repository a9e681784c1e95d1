"""FolderStore: a folder of YAML that behaves as an API server."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import BadInput
from mesh.store import FolderStore


def pod(name: str, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": "n1"},
        **more,
    }


def hand(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)


TWO = """# a comment to keep
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
---
# another
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
"""


def test_apply_assigns_what_an_api_server_would(tmp_path: Path) -> None:
    """uid and creationTimestamp are kept over applies; generation counts changes of spec only."""
    s = FolderStore(tmp_path)
    s.apply(pod("a"))
    first = s.get("Pod", "shop", "a")
    assert first
    s.apply(pod("a", metadata={"name": "a", "namespace": "shop", "labels": {"x": "y"}}))
    second = s.get("Pod", "shop", "a")
    assert second
    s.apply(pod("a", spec={"nodeName": "n2"}))
    third = s.get("Pod", "shop", "a")
    assert third
    assert first["metadata"]["uid"] == second["metadata"]["uid"] == third["metadata"]["uid"]
    assert [o["metadata"]["generation"] for o in (first, second, third)] == [1, 1, 2]
    assert second["metadata"]["labels"] == {"x": "y"}
    assert first["metadata"]["creationTimestamp"].endswith("Z")


def test_apply_keeps_status_when_it_brings_none(tmp_path: Path) -> None:
    """Re-applying a manifest does not erase what a running object reported."""
    s = FolderStore(tmp_path)
    s.apply(pod("a", status={"podIP": "10.0.0.1"}))
    s.apply(pod("a"))
    found = s.get("Pod", "shop", "a")
    assert found
    assert found["status"] == {"podIP": "10.0.0.1"}


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"kind": "Pod"},
        {"kind": "Pod", "metadata": {}},
        {"kind": "Pod", "metadata": {"name": "../../etc/passwd"}},
        {"kind": "Pod", "metadata": {"name": "a", "namespace": "../x"}},
        {"kind": "../Pod", "metadata": {"name": "a"}},
        {"kind": "Pod", "metadata": {"name": "a", "labels": {"x": 1}}},
        {"kind": "Pod", "metadata": {"name": "a" * 250}},
        {"kind": "Pod", "metadata": {"name": "a"}, "spec": []},
        {"kind": "Pod", "metadata": {"name": "a"}, "spec": {"x": object()}},
    ],
)
def test_apply_refuses_what_is_no_object(tmp_path: Path, bad: dict[str, Any]) -> None:
    """A broken object is refused and nothing is written, inside the folder or outside."""
    s = FolderStore(tmp_path / "objects")
    with pytest.raises(BadInput):
        s.apply(bad)
    assert s.list() == []
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == []


def test_cluster_scoped_objects_have_no_namespace(tmp_path: Path) -> None:
    """A Node is found whatever namespace is asked for."""
    s = FolderStore(tmp_path)
    s.apply({"kind": "Node", "metadata": {"name": "n1", "namespace": "oops"}})
    node = s.get("Node", "elsewhere", "n1")
    assert node
    assert node == s.get("Node", "", "n1")
    assert "namespace" not in node["metadata"]


def test_lists_are_fresh_copies(tmp_path: Path) -> None:
    """Changing what was listed changes nothing in the store."""
    s = FolderStore(tmp_path)
    s.apply(pod("a"))
    s.list("Pod")[0]["spec"]["nodeName"] = "other"
    assert s.list("Pod")[0]["spec"]["nodeName"] == "n1"


def test_overlays_of_managers_merge(tmp_path: Path) -> None:
    """Each manager owns what it said: no manager undoes what another said."""
    s = FolderStore(tmp_path)
    s.apply(
        pod("a", status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    )
    s.patch("Pod", "shop", "a", "agent", {"metadata": {"annotations": {"x": "1", "gone": None}}})
    s.patch(
        "Pod", "shop", "a", "cp", {"status": {"conditions": [{"type": "Bound", "status": "True"}]}}
    )
    found = s.get("Pod", "shop", "a")
    assert found
    assert found["metadata"]["annotations"] == {"x": "1"}
    assert [c["type"] for c in found["status"]["conditions"]] == ["Ready", "Bound"]
    s.patch("Pod", "shop", "a", "agent", None)
    found = s.get("Pod", "shop", "a")
    assert found
    assert not found["metadata"].get("annotations")
    assert [c["type"] for c in found["status"]["conditions"]] == ["Ready", "Bound"]
    assert found["status"]["phase"] == "Running"


def test_equal_patch_writes_nothing(tmp_path: Path) -> None:
    """Saying the same again is no change, so watchers are not woken."""
    s, watcher = FolderStore(tmp_path), FolderStore(tmp_path)
    s.apply(pod("a"))
    assert s.patch("Pod", "shop", "a", "cp", {"status": {"x": 1}}) is True
    while watcher.watch(0.05):
        pass
    assert s.patch("Pod", "shop", "a", "cp", {"status": {"x": 1}}) is False
    assert watcher.watch(0.05) is False


def test_overlay_does_not_pass_to_the_next_object_of_that_name(tmp_path: Path) -> None:
    """A recreated pod must not inherit "enrolled" from the one before it."""
    s = FolderStore(tmp_path)
    s.apply(pod("a"))
    s.patch("Pod", "shop", "a", "agent", {"metadata": {"annotations": {"x": "1"}}})
    (tmp_path / "Pod.shop.a.yaml").unlink()  # behind the store's back: the overlay stays
    s.apply(pod("a"))
    found = s.get("Pod", "shop", "a")
    assert found
    assert "annotations" not in found["metadata"]


def test_applying_what_was_read_does_not_take_over_what_controllers_said(tmp_path: Path) -> None:
    """get, edit, apply: the agent's annotation and conditions go when the agent takes them back."""
    s = FolderStore(tmp_path)
    ready = {"type": "Ready", "status": "True"}
    s.apply(pod("a", status={"phase": "Pending", "conditions": [ready]}))
    bound = {"type": "Bound", "status": "True"}
    said = {
        "metadata": {"annotations": {"x": "1"}},
        "status": {"phase": "Running", "conditions": [bound]},
    }
    s.patch("Pod", "shop", "a", "agent", said)
    read = s.get("Pod", "shop", "a")
    assert read
    assert read["status"]["conditions"] == [ready, bound]
    read["metadata"]["annotations"]["mine"] = "2"
    s.apply(read)
    again = s.get("Pod", "shop", "a")
    assert again
    assert again["metadata"]["annotations"] == {"x": "1", "mine": "2"}
    s.patch("Pod", "shop", "a", "agent", None)
    now = s.get("Pod", "shop", "a")
    assert now
    assert now["metadata"]["annotations"] == {"mine": "2"}
    assert now["status"] == {"phase": "Pending", "conditions": [ready]}


@pytest.mark.parametrize(
    "patch", [{"spec": {}}, {"metadata": {"name": "b"}}, {"status": {"x": object()}}]
)
def test_patch_touches_status_and_metadata_only(tmp_path: Path, patch: dict[str, Any]) -> None:
    """A controller cannot rewrite a spec through its overlay."""
    s = FolderStore(tmp_path)
    s.apply(pod("a"))
    with pytest.raises(BadInput):
        s.patch("Pod", "shop", "a", "agent", patch)
    assert s.patch("Pod", "shop", "none", "agent", {"status": {}}) is False


def test_delete_from_a_file_written_by_hand(tmp_path: Path) -> None:
    """Other documents of the file keep their text; the last one takes the file along."""
    hand(tmp_path, "all.yaml", TWO)
    s = FolderStore(tmp_path)
    assert s.delete("Service", "shop", "b") is True
    assert "# a comment to keep" in (tmp_path / "all.yaml").read_text()
    assert [o["metadata"]["name"] for o in s.list()] == ["a"]
    assert s.delete("Service", "shop", "b") is False
    assert s.delete("Service", "shop", "a") is True
    assert not (tmp_path / "all.yaml").exists()


def test_last_written_copy_wins_and_keeps_identity(tmp_path: Path) -> None:
    """Editing by hand what was applied before is another apply: uid and status stay."""
    s = FolderStore(tmp_path)
    s.apply(pod("a", status={"podIP": "10.0.0.1"}))
    uid = s.list()[0]["metadata"]["uid"]
    hand(
        tmp_path,
        "mine.yaml",
        "kind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {nodeName: n9}\n",
    )
    later = time.time_ns() + 10_000_000_000
    os.utime(tmp_path / "mine.yaml", ns=(later, later))
    (found,) = FolderStore(tmp_path).list("Pod")
    assert found["spec"] == {"nodeName": "n9"}
    assert found["metadata"]["uid"] == uid
    assert found["status"] == {"podIP": "10.0.0.1"}


def test_malformed_document_is_named_once_and_spoils_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One log line with file and line; the other documents and files go on."""
    hand(tmp_path, "bad.yaml", TWO + "---\nkind: Pod\nmetadata: {name: [\n")
    hand(tmp_path, "binary.yaml", "")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    s = FolderStore(tmp_path)
    with caplog.at_level(logging.ERROR):
        assert len(s.list()) == 2
        assert len(s.list()) == 2
    lines = [r.getMessage() for r in caplog.records if "bad.yaml" in r.getMessage()]
    assert len(lines) == 1
    assert f"{tmp_path}/bad.yaml:12: while parsing" in lines[0]
    assert len(s.problems()) == 2


def test_typo_does_not_remove_a_policy(tmp_path: Path) -> None:
    """A file that turns malformed keeps its last good objects until it is repaired or deleted."""
    hand(tmp_path, "p.yaml", TWO)
    s = FolderStore(tmp_path)
    assert len(s.list()) == 2
    hand(tmp_path, "p.yaml", TWO.replace("name: b", "name: [b"))
    assert len(s.list()) == 2
    hand(tmp_path, "p.yaml", "")
    assert len(s.list()) == 2
    hand(tmp_path, "p.yaml", TWO.split("---")[0])
    assert len(s.list()) == 1
    (tmp_path / "p.yaml").unlink()
    assert s.list() == []


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 50_000, "a: " * 9])
def test_absurd_nesting_is_refused(tmp_path: Path, text: str) -> None:
    """A file that would overflow the parser's stack is one error line."""
    hand(tmp_path, "deep.yaml", text)
    s = FolderStore(tmp_path)
    assert s.list() == []
    assert len(s.problems()) == 1


def test_kubernetes_dialect(tmp_path: Path) -> None:
    """Timestamps stay text, a List is its items, the namespace defaults, JSON files count too."""
    hand(
        tmp_path,
        "list.yaml",
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {kind: Pod, metadata: {name: a, creationTimestamp: 2026-01-01T00:00:00Z}}\n"
        "- {kind: Pod, metadata: {name: b}}\n",
    )
    hand(tmp_path, "c.json", '{"kind": "Pod", "metadata": {"name": "c"}}')
    s = FolderStore(tmp_path)
    found = s.get("Pod", "default", "a")
    assert found
    assert found["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"
    assert s.delete("Pod", "default", "a")
    assert [o["metadata"]["name"] for o in s.list()] == ["b", "c"]


def test_watch_sees_every_way_of_change(tmp_path: Path) -> None:
    """Whatever changes an object wakes a watcher once; nothing else does."""
    s, watcher = FolderStore(tmp_path), FolderStore(tmp_path)
    assert watcher.watch(0.02) is False
    steps = [
        lambda: s.apply(pod("a")),
        lambda: s.patch("Pod", "shop", "a", "new", {"status": {"x": 1}}),
        lambda: s.patch("Pod", "shop", "a", "new", {"status": {"x": 2}}),
        lambda: hand(tmp_path, "h.yaml", TWO),
        lambda: hand(tmp_path, "h.yaml", TWO + "---\n"),
        lambda: (tmp_path / "link.yaml").symlink_to(tmp_path / "h.yaml"),
        lambda: (tmp_path / "h.yaml").rename(tmp_path / "i.yaml"),
        lambda: (tmp_path / "i.yaml").unlink(),
        lambda: s.delete("Pod", "shop", "a"),
    ]
    for i, step in enumerate(steps):
        step()
        assert watcher.watch(1) is True, i
        assert watcher.watch(0.02) is False, i
    hand(tmp_path, ".h.yaml.swp", "x")
    hand(tmp_path, "notes.txt", "x")
    assert watcher.watch(0.05) is False


def test_first_watch_looks_back_to_the_opening(tmp_path: Path) -> None:
    """A change between opening and the first watch is not lost."""
    watcher = FolderStore(tmp_path)
    watcher.list()
    FolderStore(tmp_path).apply(pod("a"))
    watcher.list()
    assert watcher.watch(0) is True


def test_reader_sees_another_writer_at_once(tmp_path: Path) -> None:
    """What one store wrote the next list of another store shows, also after many quick rewrites."""
    writer, reader = FolderStore(tmp_path), FolderStore(tmp_path)
    for i in range(50):
        writer.apply(pod("a", spec={"nodeName": f"n{i % 10}"}))
        (found,) = reader.list()
        assert found["spec"]["nodeName"] == f"n{i % 10}"


def test_folder_replaced_under_a_watcher(tmp_path: Path) -> None:
    """A folder deleted and made again is followed."""
    root = tmp_path / "o"
    watcher = FolderStore(root)
    FolderStore(root).apply(pod("a"))
    assert len(watcher.list()) == 1
    root.rename(tmp_path / "away")
    FolderStore(root).apply(pod("b"))
    assert [o["metadata"]["name"] for o in watcher.list()] == ["b"]
    while watcher.watch(0.02):
        pass
    FolderStore(root).apply(pod("c"))
    assert watcher.watch(1) is True


def test_without_inotify_it_still_follows(tmp_path: Path) -> None:
    """On a machine out of watches (here: a closed store) files are compared instead."""
    reader = FolderStore(tmp_path)
    reader.close()
    writer = FolderStore(tmp_path)
    for i in range(20):
        writer.apply(pod("a", spec={"nodeName": f"n{i % 10}"}))
        assert reader.list()[0]["spec"]["nodeName"] == f"n{i % 10}"
    writer.delete("Pod", "shop", "a")
    assert reader.list() == []
    while reader.watch(0.3):
        pass
    writer.apply(pod("b"))
    assert reader.watch(1) is True
    assert reader.watch(0.3) is False


def test_writers_do_not_lose_each_other(tmp_path: Path) -> None:
    """Many writers on one object: every manager's word survives, and no reader sees half a file."""
    FolderStore(tmp_path).apply(pod("a"))

    def write(manager: str) -> None:
        s = FolderStore(tmp_path)
        for i in range(10):
            s.patch("Pod", "shop", "a", manager, {"status": {manager: i}})
            s.apply(pod("a", spec={"nodeName": f"{manager}{i}"}))

    threads = [threading.Thread(target=write, args=(f"m{i}",)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    s = FolderStore(tmp_path)
    (found,) = s.list()
    assert found["status"] == {f"m{i}": 9 for i in range(4)}
    assert found["metadata"]["generation"] == 41
    assert s.problems() == []


def test_changes_since_revisions(tmp_path: Path) -> None:
    """changes() gives what is new, changed and gone since the revisions seen, and no more."""
    s = FolderStore(tmp_path)
    s.apply(pod("a"))
    s.apply(pod("b"))
    changed, gone = s.changes({})
    known = {k: r for k, (r, _) in changed.items()}
    assert len(known) == 2
    assert not gone
    assert s.changes(known) == ({}, set())
    s.patch("Pod", "shop", "a", "m", {"status": {"x": 1}})
    s.delete("Pod", "shop", "b")
    changed, gone = s.changes(known)
    assert [k.name for k in changed] == ["a"]
    assert [k.name for k in gone] == ["b"]

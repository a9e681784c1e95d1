"""The node's CNI configuration: what is put in, and that taking it out leaves what was there."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput, MeshError
from node_agent import cni_conf as conf
from node_agent.cni_install import SET_ASIDE, ConfWatch, Installer, Places

ENTRY = conf.Entry("/run/ambit/cni.sock", "/k", "istio-system", "agent", ("a",), "/logs", "/log")
LIST = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}, {"type": "portmap"}],
}
SINGLE = {"cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0"}


def types(found: dict[str, Any]) -> list[str]:
    return [p["type"] for p in found["plugins"]]


def test_candidates_are_those_that_a_runtime_reads() -> None:
    names = ["10-b.conflist", "10-a.conf", "05.json", "x.txt", ".ambit-10-b.conflist.7", "10-a.bak"]
    assert conf.candidates(names) == ["05.json", "10-a.conf", "10-b.conflist"]


def test_our_entry_comes_last_and_once() -> None:
    """The rest keeps its place and its content; doing it again changes nothing."""
    found = conf.insert(LIST, ENTRY)
    assert types(found) == ["ptp", "portmap", "ambit-cni"]
    assert found["plugins"][:2] == LIST["plugins"]
    assert found["plugins"][2]["socket"] == "/run/ambit/cni.sock"
    assert conf.insert(found, ENTRY) == found
    assert conf.remove(found) == LIST


def test_an_entry_that_is_there_is_brought_up_to_date_in_its_place() -> None:
    """Another plugin that wants to be last would else fight for it."""
    old = conf.Entry("/old.sock", "", "", "", (), "", "").object()
    given = {**LIST, "plugins": [LIST["plugins"][0], old, {"type": "tuning"}, old]}
    found = conf.insert(given, ENTRY)
    assert types(found) == ["ptp", "ambit-cni", "tuning"]
    assert found["plugins"][1]["socket"] == "/run/ambit/cni.sock"


def test_a_single_plugin_becomes_a_list() -> None:
    found = conf.insert(SINGLE, ENTRY)
    assert (found["cniVersion"], found["name"]) == ("0.4.0", "pods")
    assert found["plugins"][0] == {"type": "bridge", "bridge": "cni0"}
    assert types(found) == ["bridge", "ambit-cni"]


@pytest.mark.parametrize("version", [None, "0.1.0", "0.2.0", 3])
def test_a_version_without_chains_is_raised(version: object) -> None:
    """In it a plugin would hear nothing of the one before it."""
    given = {k: v for k, v in LIST.items() if k != "cniVersion"}
    if version is not None:
        given["cniVersion"] = version
    assert conf.insert(given, ENTRY)["cniVersion"] == "0.3.1"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"name": "x"}',
        b'{"name": "x", "plugins": []}',
        b'{"name": "x", "plugins": [{}]}',
        b'{"name": "x", "plugins": {"type": "a"}}',
        b'{"type": "bridge"}',
        b"\xff",
        b" " * (conf.MAX_FILE + 1),
    ],
)
def test_what_no_runtime_could_use_is_bad_input(text: bytes) -> None:
    with pytest.raises(BadInput):
        conf.parse_untrusted(text)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_any_bytes(noise: bytes, at: int) -> None:
    """BadInput, or something that our entry fits into."""
    whole = json.dumps(LIST).encode()
    try:
        found = conf.parse_untrusted(whole[:at] + noise + whole[at + len(noise) :])
    except BadInput:
        return
    assert conf.has_ours(conf.insert(found, ENTRY))


# ---- on disk -------------------------------------------------------------------------------------


class Node:
    """The folders of a node, and an installer for them."""

    def __init__(self, root: Path) -> None:
        self.conf = root / "net.d"
        self.places = Places(root / "image/ambit-cni", root / "bin", self.conf, root / "originals")
        self.places.binary.parent.mkdir()
        self.places.binary.write_bytes(b"#!plugin 1")
        self.places.bin_dir.mkdir()
        self.conf.mkdir()
        self.installer = Installer(self.places, ENTRY)

    def write(self, name: str, content: object, mode: int = 0o644) -> bytes:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.conf / name).write_bytes(data)
        (self.conf / name).chmod(mode)
        return data

    def types(self, name: str) -> list[str]:
        return types(json.loads((self.conf / name).read_bytes()))

    def names(self) -> list[str]:
        return sorted(os.listdir(self.conf))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_binary_and_entry_come_and_go(node: Node) -> None:
    """What was there is there again, to the byte and with its rights; nothing else is left."""
    before = node.write("10-pods.conflist", json.dumps(LIST, indent=7).encode(), 0o600)
    node.write("20-other.conflist", LIST)
    assert node.installer.install() == "10-pods.conflist"
    assert node.types("10-pods.conflist")[-1] == "ambit-cni"
    assert node.types("20-other.conflist") == ["ptp", "portmap"]
    binary = node.places.bin_dir / "ambit-cni"
    assert stat.S_IMODE(binary.stat().st_mode) == 0o755
    assert node.names() == ["10-pods.conflist", "20-other.conflist"]
    node.installer.remove()
    assert (node.conf / "10-pods.conflist").read_bytes() == before
    assert stat.S_IMODE((node.conf / "10-pods.conflist").stat().st_mode) == 0o600
    assert not binary.exists()
    assert not node.places.originals.exists()
    node.installer.remove()


def test_doing_it_again_touches_nothing(node: Node) -> None:
    node.write("10-pods.conflist", LIST)
    node.installer.install()
    files = [node.conf / "10-pods.conflist", node.places.bin_dir / "ambit-cni"]
    before = [f.stat().st_ino for f in files]
    assert node.installer.install() == "10-pods.conflist"
    assert [f.stat().st_ino for f in files] == before


def test_a_newer_plugin_replaces_the_old_one(node: Node) -> None:
    node.write("10-pods.conflist", LIST)
    node.installer.install()
    node.places.binary.write_bytes(b"#!plugin 2")
    node.installer.install()
    assert (node.places.bin_dir / "ambit-cni").read_bytes() == b"#!plugin 2"


def test_a_single_configuration_is_wrapped_and_restored(node: Node) -> None:
    """The .conf must not be read any more, as it sorts before its list."""
    before = node.write("10-pods.conf", SINGLE)
    assert node.installer.install() == "10-pods.conflist"
    assert node.names() == ["10-pods.conf" + SET_ASIDE, "10-pods.conflist"]
    assert node.types("10-pods.conflist") == ["bridge", "ambit-cni"]
    assert node.installer.install() == "10-pods.conflist"
    node.installer.remove()
    assert node.names() == ["10-pods.conf"]
    assert (node.conf / "10-pods.conf").read_bytes() == before


def test_what_another_writes_is_the_new_original(node: Node) -> None:
    """Its file, rewritten without our entry, gets it again; removal restores the newer text."""
    node.write("10-pods.conflist", LIST)
    node.installer.install()
    newer = node.write("10-pods.conflist", {**LIST, "name": "newer"})
    node.installer.install()
    assert node.types("10-pods.conflist")[-1] == "ambit-cni"
    node.installer.remove()
    assert (node.conf / "10-pods.conflist").read_bytes() == newer


def test_what_another_changes_around_our_entry_stays(node: Node) -> None:
    """Removal takes out our entry alone."""
    node.write("10-pods.conflist", LIST)
    node.installer.install()
    found = json.loads((node.conf / "10-pods.conflist").read_bytes())
    found["plugins"].insert(2, {"type": "bandwidth"})
    node.write("10-pods.conflist", found)
    node.installer.install()
    node.installer.remove()
    assert node.types("10-pods.conflist") == ["ptp", "portmap", "bandwidth"]


def test_changes_of_another_survive_a_new_entry_of_ours(node: Node) -> None:
    """Also when an upgrade of ours comes in between."""
    node.write("10-pods.conflist", LIST)
    node.installer.install()
    found = json.loads((node.conf / "10-pods.conflist").read_bytes())
    found["plugins"].insert(2, {"type": "bandwidth"})
    node.write("10-pods.conflist", found)
    other = conf.Entry("/new.sock", "/k", "istio-system", "agent", ("a",), "/logs", "/log")
    upgraded = Installer(node.places, other)
    upgraded.install()
    upgraded.remove()
    assert node.types("10-pods.conflist") == ["ptp", "portmap", "bandwidth"]


def test_a_new_primary_file_is_the_one(node: Node) -> None:
    """And both are clean after removal."""
    first = node.write("10-pods.conflist", LIST)
    node.installer.install()
    other = node.write("05-new.conflist", {**LIST, "name": "new"})
    assert node.installer.install() == "05-new.conflist"
    node.installer.remove()
    assert (node.conf / "05-new.conflist").read_bytes() == other
    assert (node.conf / "10-pods.conflist").read_bytes() == first


def test_a_malformed_file_is_never_touched(node: Node) -> None:
    """The next good one is used."""
    bad = node.write("05-bad.conflist", b'{"name": "half')
    node.write("10-pods.conflist", LIST)
    assert node.installer.install() == "10-pods.conflist"
    node.installer.remove()
    assert (node.conf / "05-bad.conflist").read_bytes() == bad


def test_a_link_is_not_replaced(node: Node) -> None:
    """Somebody manages it elsewhere."""
    node.write("target", LIST)
    (node.conf / "10-pods.conflist").symlink_to("target")
    with pytest.raises(MeshError, match="symbolic link"):
        node.installer.install()
    assert (node.conf / "10-pods.conflist").is_symlink()


def test_no_configuration_yet(node: Node) -> None:
    assert node.installer.install() == ""
    node.conf.rmdir()
    assert node.installer.install() == ""
    assert (node.places.bin_dir / "ambit-cni").exists()


def test_a_missing_plugin_is_named(node: Node) -> None:
    node.places.binary.unlink()
    with pytest.raises(MeshError, match="image/ambit-cni"):
        node.installer.install()


def test_lost_memory_of_originals_still_takes_our_entry_out(node: Node) -> None:
    node.write("10-pods.conflist", LIST)
    node.installer.install()
    (node.places.originals / "10-pods.conflist.json").write_bytes(b"garbage")
    node.installer.remove()
    assert json.loads((node.conf / "10-pods.conflist").read_bytes()) == LIST


class Told:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.states: list[bool] = []

    def __call__(self, installed: bool) -> None:
        with self.changed:
            self.states.append(installed)
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 8), self.states


def test_the_watch_waits_installs_and_puts_back(node: Node) -> None:
    """A CNI that comes later, and one that rewrites its file by a rename."""
    told = Told()
    watch = ConfWatch(node.installer, node.conf, told)
    watch.start()
    told.wait(lambda: told.states == [False])
    node.write("10-pods.conflist", LIST)
    told.wait(lambda: told.states[-1])
    node.write("10-pods.conflist.tmp", LIST)
    count = len(told.states)
    (node.conf / "10-pods.conflist.tmp").rename(node.conf / "10-pods.conflist")
    told.wait(lambda: len(told.states) > count)
    told.wait(lambda: node.types("10-pods.conflist")[-1] == "ambit-cni")
    watch.close()
    watch._thread.join(5)
    assert node.types("10-pods.conflist")[-1] == "ambit-cni", "it stays when the agent ends"

"""cgroups, sockets in a proxy, holders side by side, the plugin's token: on files and processes."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ConfigError, MeshError, Unavailable
from mesh.wire import zds
from node_agent import cgroups
from node_agent.cni_token import TokenKeeper
from node_agent.config import Cluster, parse
from node_agent.keeper import Keeper, SharedKeeper, private_folder
from node_agent.parts import Lock
from node_agent.reclaim import read_table

ROOT = Path(__file__).parents[3]


# ---- options -------------------------------------------------------------------------------------


def test_in_a_cluster_little_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node and pins; the rest has the places that the chart mounts."""
    monkeypatch.setenv("POD_NAMESPACE", "mesh")
    config = parse(["--kubernetes", "--node", "n1", "--pins", "/p", "--cgroup", "auto"])
    assert (config.cgroup, config.proxy_cgroup) == (None, None)
    assert config.state == Path("/run/ambit")
    assert isinstance(config.source, Cluster)
    assert config.source.namespace == "mesh"
    assert config.source.cni_conf_dir == Path("/host/etc/cni/net.d")


def test_the_holder_needs_nothing_but_its_folder() -> None:
    config = parse(["--holder", "--state", "/run/x"])
    assert (config.holder, config.state) == (True, Path("/run/x"))


# ---- cgroups -------------------------------------------------------------------------------------


class Tree:
    """Files in place of cgroup2 and /proc: processes are written where they are."""

    def __init__(self, root: Path) -> None:
        self.top, self.proc = root / "cgroup", root / "proc"
        for folder in ("", "runtime", "own"):
            (self.top / folder).mkdir(parents=True, exist_ok=True)
        (self.top / "cgroup.controllers").touch()

    def fill(self, folder: str, *pids: int) -> Path:
        (self.top / folder / "cgroup.procs").write_text("\n".join(map(str, pids)))
        return self.top / folder

    def process(self, pid: int, parent: int, name: str = "python") -> None:
        (self.proc / str(pid)).mkdir(parents=True)
        (self.proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.process(10, 1)
    made.process(11, 10, "a) S 99 (b")
    made.process(12, 11)
    made.process(20, 1)
    return made


def test_the_hierarchy_is_found(tmp_path: Path, tree: Tree) -> None:
    """Alone, or beside version 1."""
    assert cgroups.root([tmp_path / "none", tree.top]) == tree.top
    hybrid = tmp_path / "hybrid" / "unified"
    hybrid.mkdir(parents=True)
    (hybrid / "cgroup.controllers").touch()
    assert cgroups.root([hybrid.parent]) == hybrid
    with pytest.raises(ConfigError, match="--cgroup"):
        cgroups.root([tmp_path / "none"])


def test_a_process_is_found_where_it_is(tree: Tree) -> None:
    own = tree.fill("own", 10, 11)
    assert cgroups.folder_of(tree.top, 11) == own
    with pytest.raises(MeshError, match="process 99"):
        cgroups.folder_of(tree.top, 99)


def test_a_proxy_alone_in_its_cgroup_stays_there(tree: Tree) -> None:
    own = tree.fill("own", 10, 11, 12)
    assert cgroups.isolate(tree.top, 10, tree.proc) == own.stat().st_ino
    assert not (own / cgroups.OWN).exists()


def test_a_proxy_that_shares_its_cgroup_is_moved(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its children, and nobody else; said again it stays."""
    shared = tree.fill("runtime", 10, 11, 12, 20)
    moved: list[int] = []

    def move(pids: set[int], folder: Path) -> None:
        assert folder == shared / cgroups.OWN
        moved.extend(sorted(pids))
        tree.fill("runtime", *({10, 11, 12, 20} - set(moved)))
        tree.fill(f"runtime/{cgroups.OWN}", *moved)

    monkeypatch.setattr(cgroups, "_move", move)
    number = cgroups.isolate(tree.top, 10, tree.proc)
    assert moved == [10, 11, 12]
    assert number == (shared / cgroups.OWN).stat().st_ino
    assert cgroups.isolate(tree.top, 10, tree.proc) == number
    assert moved == [10, 11, 12]


def test_a_proxy_that_cannot_be_moved_is_not_let_in(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections would be captured, and come back to it."""
    tree.fill("runtime", 10, 20)

    def move(pids: set[int], folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cgroups, "_move", move)
    with pytest.raises(MeshError, match=r"process 10 shares cgroup .*Permission denied"):
        cgroups.isolate(tree.top, 10, tree.proc)


# ---- sockets of a proxy --------------------------------------------------------------------------

ROW = "   0: {} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 {} 1 0 1 2"


def test_listeners_are_told_by_address_and_port() -> None:
    """Only on the mesh's own addresses: an application may listen on 15001 of another."""
    any6, local6 = "0" * 32, "0" * 24 + "01000000"
    rows = [
        ROW.format("0100007F:3A99", 1),
        ROW.format("0103010A:3A99", 2),
        ROW.format("00000000:1F90", 3),
        ROW.format(f"{local6}:3A99", 4),
        ROW.format(f"{any6}:3A9E", 5),
        ROW.format(f"{any6}:3AA0", 6),
        ROW.format(f"{any6}:3A99", 7),
    ]
    assert read_table(rows) == {
        zds.OUTBOUND_V4: 1,
        zds.OUTBOUND_V6: 4,
        zds.INBOUND_PLAIN: 5,
        zds.INBOUND_HBONE: 6,
    }


# ---- holders -------------------------------------------------------------------------------------


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 8
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Holders:
    def __init__(self, folder: Path) -> None:
        self.folder = private_folder(folder)
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        known = len(self.sockets())
        command = ["node_agent.app", "--holder", "--state", str(self.folder)]
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
        self.running.append(process)
        until(lambda: len(self.sockets()) > known)
        time.sleep(0.02)
        return process

    def sockets(self) -> list[Path]:
        return sorted(self.folder.glob("holder-*.sock"))


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[Holders]:
    made = Holders(tmp_path / "state")
    yield made
    for process in made.running:
        process.kill()
        process.wait()


def put(keeper: Keeper, key: str) -> int:
    """Keep a listening socket; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        keeper.put(key, "label", [sock.fileno()])
        return int(sock.getsockname()[1])


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return False
    return True


def test_an_upgrade_takes_over_from_the_older_holder(holders: Holders) -> None:
    """The next agent finds both, moves everything to the younger, and the older one ends."""
    old = holders.start()
    former = SharedKeeper(holders.folder)
    assert former.find()
    port = put(former, "u-1")
    former.forget()
    holders.start()
    old.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert old.poll() is None, "it lingers while it holds something"
    keeper = SharedKeeper(holders.folder)
    assert keeper.find()
    taken = keeper.take()
    assert list(taken) == ["u-1"]
    for fd in taken["u-1"].fds:
        os.close(fd)
    assert old.wait(5) == 0
    assert is_open(port), "the younger one holds it"
    assert len(holders.sockets()) == 1
    assert keeper.alive()
    keeper.quit()
    until(lambda: not is_open(port))


def test_an_empty_holder_ends_at_once(holders: Holders) -> None:
    process = holders.start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert holders.sockets() == []


def test_a_dead_holder_is_passed_by(holders: Holders) -> None:
    """Its socket's name is left over; another is used, or the want of one is said."""
    first = holders.start()
    keeper = SharedKeeper(holders.folder)
    assert keeper.find()
    first.kill()
    first.wait()
    assert not keeper.alive()
    with pytest.raises(MeshError, match="no descriptor holder runs"):
        keeper.replace()
    holders.start()
    keeper.replace()
    assert keeper.alive()
    keeper.forget()


def test_an_agent_that_stays_goes_on_with_its_holder(holders: Holders) -> None:
    """A standby's holder is younger, but nobody has taken over yet."""
    holders.start()
    keeper = SharedKeeper(holders.folder)
    assert keeper.find()
    mine = keeper.path
    holders.start()
    assert keeper.alive()
    put(keeper, "u-1")
    assert keeper.path == mine
    keeper.quit()


def test_one_agent_at_a_time(tmp_path: Path) -> None:
    """The second stands by until the first lets go."""
    first, second = Lock(tmp_path), Lock(tmp_path)
    assert first.take()
    assert not second.take()
    assert second.owner() == str(os.getpid())
    with pytest.raises(ConfigError, match=str(os.getpid())), second:
        pass
    first.__exit__()
    assert second.take()
    second.__exit__()


# ---- the plugin's token --------------------------------------------------------------------------


class Configuration:
    ca_cert_data: str | None = "PEM"
    ssl_ca_cert = None


class FakeApi:
    address = "https://10.96.0.1:443"
    configuration: Any = Configuration()

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def request(self, method: str, path: str, body: Any) -> Any:
        self.asked.append(f"{method} {path}")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_kubeconfig_for_root_alone(tmp_path: Path) -> None:
    """JSON, with the server's authority and a token of the plugin's own account."""
    path = tmp_path / "cni" / "kubeconfig"
    api = FakeApi({"status": {"token": "a.b.c"}})
    TokenKeeper(api, "mesh", path).renew()  # type: ignore[arg-type]
    assert api.asked == ["POST /api/v1/namespaces/mesh/serviceaccounts/ambit-cni/token"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = json.loads(path.read_bytes())
    cluster = found["clusters"][0]["cluster"]
    assert cluster["server"] == "https://10.96.0.1:443"
    assert base64.b64decode(cluster["certificate-authority-data"]) == b"PEM"
    assert found["users"][0]["user"]["token"] == "a.b.c"
    assert [p.name for p in path.parent.iterdir()] == ["kubeconfig"]


@pytest.mark.parametrize("answer", [Unavailable("away"), {}, {"status": {"token": ""}}])
def test_a_token_that_is_not_had_keeps_the_old_one(tmp_path: Path, answer: object) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("old")
    with pytest.raises(MeshError):
        TokenKeeper(FakeApi(answer), "mesh", path).renew()  # type: ignore[arg-type]
    assert path.read_text() == "old"


def test_a_server_of_unknown_authority_is_not_written_down(tmp_path: Path) -> None:
    """The plugin would have to trust anybody."""
    api = FakeApi({"status": {"token": "a.b.c"}})
    api.configuration = type("C", (), {"ca_cert_data": None, "ssl_ca_cert": None})
    with pytest.raises(ConfigError, match="certificate-authority"):
        TokenKeeper(api, "mesh", tmp_path / "kubeconfig").renew()  # type: ignore[arg-type]

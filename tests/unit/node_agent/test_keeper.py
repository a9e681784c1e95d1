"""Descriptors survive in the holder: with pipes in place of listeners, and no root."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.keeper import HolderLost, Keeper, private_folder
from node_agent.pods import Sandboxes


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(private_folder(tmp_path / "state") / "holder.sock")
    made.ensure()
    yield made
    made.forget()
    if made.find():
        made.quit()


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def holder_pid(keeper: Keeper) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(keeper.path))
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little")


def test_a_listener_outlives_whoever_made_it(keeper: Keeper) -> None:
    """Put, close, forget, find, take: connects succeed all the time."""
    with listener() as made:
        address = made.getsockname()
        keeper.put("pod-1", "ebpf 1", [made.fileno()])
    keeper.forget()
    with socket.create_connection(address, timeout=2):
        pass
    again = Keeper(keeper.path)
    assert again.find()
    kept = again.take()
    assert list(kept) == ["pod-1"]
    assert kept["pod-1"].label == "ebpf 1"
    with socket.socket(fileno=kept["pod-1"].fds[0]) as taken:
        assert taken.getsockname() == address
        conn, _ = taken.accept()
        conn.close()
    again.forget()


def test_putting_again_replaces_and_dropping_closes(keeper: Keeper) -> None:
    """No descriptor is left behind: the dropped listener refuses."""
    with listener() as first, listener() as second:
        old, new = first.getsockname(), second.getsockname()
        keeper.put("pod", "a", [first.fileno()])
        keeper.put("pod", "b", [second.fileno()])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(old, timeout=2)
    socket.create_connection(new, timeout=2).close()
    keeper.drop("pod")
    keeper.drop("pod")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(new, timeout=2)
    assert keeper.take() == {}


def test_a_hundred_pods_come_back(keeper: Keeper) -> None:
    """Each with its own netns and four listeners."""
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    for number in range(100):
        keeper.put(f"pod-{number}", "ebpf 1,2,3,4", files)
    kept = keeper.take()
    assert len(kept) == 100
    assert {len(entry.fds) for entry in kept.values()} == {5}
    for fd in [*files, *(fd for entry in kept.values() for fd in entry.fds)]:
        os.close(fd)


def test_a_dead_holder_is_noticed_and_replaced(keeper: Keeper) -> None:
    """The agent learns of it and can start another."""
    assert keeper.alive()
    old = holder_pid(keeper)
    os.kill(old, signal.SIGKILL)
    with listener() as made:
        with pytest.raises(HolderLost):
            keeper.put("pod", "", [made.fileno()])
        assert not keeper.alive()
        keeper.replace()
        assert holder_pid(keeper) != old
        keeper.put("pod", "", [made.fileno()])
    assert keeper.alive()


def test_a_holder_that_makes_no_sense_is_replaced_at_start(tmp_path: Path) -> None:
    """An agent never fails to start because of what an earlier one left."""
    path = private_folder(tmp_path / "state") / "holder.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as broken:
        broken.bind(str(path))
        broken.listen(1)
        keeper = Keeper(path)
        keeper.ensure()
        conn, _ = broken.accept()
        conn.send(b"nonsense")
        Sandboxes(keeper, tmp_path).adopt({}, lambda uid: False)
        conn.close()
    assert keeper.alive()
    assert keeper.take() == {}
    keeper.quit()


def test_garbage_is_answered_and_costs_nothing(keeper: Keeper) -> None:
    """A wrong request is refused; descriptors that came with it are closed."""
    with listener() as made:
        address = made.getsockname()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(keeper.path))
            for request in (b"X nonsense", b"P", b"\0\0"):
                socket.send_fds(sock, [request], [made.fileno()])
                assert sock.recv(100).startswith(b"E ")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=2)
    assert keeper.take() == {}


def test_the_holder_is_small_and_leaves_when_told(keeper: Keeper) -> None:
    """It runs on every node for ever: below 5 MB of its own, and `quit` ends it."""
    pid = holder_pid(keeper)
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = int(status.split("RssAnon:")[1].split()[0])
    assert anonymous < 5 * 1024
    keeper.quit()
    assert not keeper.path.exists()
    assert not keeper.find()
    keeper.ensure()

"""The agent's side of the descriptor holder: start it, find it again, put and take.

Calls block for as long as the holder takes, which is microseconds; one that does not answer within
HOLDER_TIMEOUT counts as dead. A dead holder costs nothing as long as the agent lives: the agent
still has every descriptor and puts them into the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from mesh.errors import MeshError
from node_agent import holder

log = logging.getLogger(__name__)

HOLDER_TIMEOUT: Final = 3.0  # seconds
_SHARED: Final = "holder-"
_SOCKET: Final = ".sock"


class HolderLost(MeshError):
    """The holder process does not answer; what it held is gone or out of reach."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One entry: what the agent wrote on it, and its descriptors (now the taker's to close)."""

    label: str
    fds: list[int]


class Keeper:
    """A connection to the holder process of one state folder."""

    def __init__(self, path: Path) -> None:
        """`path`: the holder's socket. Nothing is started before `ensure`."""
        self.path = path
        self._sock: socket.socket | None = None

    def find(self) -> bool:
        """Connect to a holder that an earlier agent left; False when there is none."""
        self._sock = _connect(self.path)
        return self._sock is not None

    def ensure(self) -> None:
        """Connect to the holder, starting it if need be."""
        if self._sock is None and not self.find():
            self.replace()

    def replace(self) -> None:
        """Give up a holder that does not answer and start another in its place."""
        self.forget()
        self._spawn()
        if not self.find():
            raise HolderLost(f"descriptor holder at {self.path} does not come up")

    def alive(self) -> bool:
        """Say whether the holder still has its end of the connection open."""
        if self._sock is None:
            return False
        # It says nothing unasked: anything but silence is its end, or a mess.
        if select.select([self._sock], [], [], 0)[0]:
            self.forget()
            return False
        return True

    def put(self, key: str, label: str, fds: Iterable[int]) -> None:
        """Have descriptors kept under `key`, in place of what was."""
        self._ask(b"P " + key.encode() + b"\0" + label.encode(), list(fds))

    def drop(self, key: str) -> None:
        """Have them closed."""
        self._ask(b"D " + key.encode())

    def take(self) -> dict[str, Kept]:
        """Give copies of everything that is kept; the caller closes them."""
        taken: dict[str, Kept] = {}
        sock = self._connected()
        try:
            sock.send(b"L")
            while True:
                data, fds, _, _ = socket.recv_fds(sock, holder.MAX_DATAGRAM, holder.MAX_FDS)
                if data == b".":
                    return taken
                if data[:2] != b"K ":
                    raise HolderLost(f"descriptor holder at {self.path} answered {data[:40]!r}")
                key, _, label = data[2:].partition(b"\0")
                taken[key.decode()] = Kept(label.decode(), list(fds))
        except OSError as error:
            raise self._lost(error) from error

    def quit(self) -> None:
        """End the holder; what only it held is closed when this returns."""
        self._ask(b"Q")
        self.forget()

    def forget(self) -> None:
        """Close the connection; the holder goes on holding."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def _ask(self, request: bytes, fds: list[int] | None = None) -> None:
        sock = self._connected()
        try:
            socket.send_fds(sock, [request], fds or [])
            reply = sock.recv(holder.MAX_DATAGRAM)
        except OSError as error:
            raise self._lost(error) from error
        if reply != b".":
            raise self._lost(reply.decode(errors="replace") or "connection closed")

    def _connected(self) -> socket.socket:
        if self._sock is None:
            raise HolderLost("not connected to the descriptor holder")
        return self._sock

    def _lost(self, cause: object) -> HolderLost:
        self.forget()
        return HolderLost(f"descriptor holder at {self.path} is lost: {cause}")

    def _spawn(self) -> None:
        """Start the holder in a session of its own, so that what ends us does not end it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-S", holder.__file__, str(self.path)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env={},
        )
        assert process.stdout is not None
        with process.stdout as ready:
            ready.read(1)  # ends when it listens, or when it died
        # Reaped whenever it ends; it usually outlives us.
        threading.Thread(target=process.wait, name="holder", daemon=True).start()
        log.info("started the descriptor holder, pid %d", process.pid)


class SharedKeeper(Keeper):
    """A connection to a holder that somebody else runs: a container of its own beside the agent.

    Every holder has a socket of its own in the state folder, and the youngest one is used. In an
    upgrade there are two: what the older one holds is moved to the younger by `take`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / f"{_SHARED}*{_SOCKET}")
        self._folder = folder

    def find(self) -> bool:
        """Connect to the youngest holder; False when there is none."""
        for path in self._paths():
            self._sock = _connect(path)
            if self._sock is not None:
                self.path = path
                return True
        return False

    def replace(self) -> None:
        """Give up a holder that does not answer; HolderLost when there is no other."""
        self.forget()
        if not self.find():
            raise HolderLost(f"no descriptor holder runs: there is none at {self.path}")

    def take(self) -> dict[str, Kept]:
        """Give copies of everything that any holder keeps; it is in this one then."""
        taken = super().take()
        for path in self._paths():
            other = Keeper(path)
            if path == self.path or not other.find():
                continue
            try:
                moved = other.take()
                for key, kept in moved.items():
                    if key in taken:
                        for fd in kept.fds:
                            os.close(fd)
                    else:
                        self.put(key, kept.label, kept.fds)
                        taken[key] = kept
                if moved:
                    log.info("%d pods' descriptors taken over from %s", len(moved), path.name)
                    other.quit()
            except HolderLost as error:
                log.warning("%s; what it held is lost", error)
            finally:
                other.forget()
        return taken

    def quit(self) -> None:
        """End every holder."""
        self.forget()
        for path in self._paths():
            other = Keeper(path)
            if other.find():
                other.quit()

    def _paths(self) -> list[Path]:
        """Give the sockets, the youngest first; those of dead holders are removed."""
        found = []
        for path in self._folder.glob(f"{_SHARED}*{_SOCKET}"):
            sock = _connect(path)
            if sock is None:
                path.unlink(missing_ok=True)
                continue
            sock.close()
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]


def run_holder(state: Path) -> NoReturn:
    """Become a holder that a SharedKeeper of this state folder finds."""
    path = private_folder(state) / f"{_SHARED}{os.urandom(4).hex()}{_SOCKET}"
    command = [sys.executable, "-I", "-S", holder.__file__, str(path), "linger"]
    os.execve(command[0], command, {})


def _connect(path: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(HOLDER_TIMEOUT)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        return None
    return sock


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner enters; what it holds would open every pod."""
    path.mkdir(parents=True, exist_ok=True)
    os.chmod(path, 0o700)
    return path

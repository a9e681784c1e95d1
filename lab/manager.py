"""The lab's one daemon: scheduler, controllers, kubelets, CNI, kube-proxy and DNS in one loop.

`python -m lab.manager NAME --lock-fd N --leash-fd N`, started by `ambit lab up`; what it starts
dies with it. Requests come over STATE/manager.sock, one JSON line each, answered by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lab import cgroups, host
from lab.cluster import Cluster
from lab.components import Settings
from lab.layout import Layout
from mesh.errors import MeshError
from mesh.store import FolderStore

log = logging.getLogger("lab.manager")

_WATCH_TURN: Final = 1.0
_REQUEST: Final = 65536  # bytes
_PATIENCE: Final = 60.0  # seconds for a component to end when asked to


@dataclass(slots=True)
class _Restart:
    """A restart that somebody waits for."""

    component: str
    old_pid: int | None
    deadline: float
    asker: socket.socket


class Manager:
    """The loop around a Cluster."""

    def __init__(self, layout: Layout, settings: Settings, leash: int) -> None:
        self._layout = layout
        self._leash = leash
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._changed = threading.Event()
        self._stop = False
        self._restarts: list[_Restart] = []
        self._settling: list[socket.socket] = []  # askers to answer after the next whole turn
        self._cluster = Cluster(layout, settings, self.wake)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(layout.socket))
        self._server.listen(64)
        self._server.setblocking(False)

    def wake(self) -> None:
        """Make the loop turn; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"w")

    def run(self) -> None:
        """Turn until SIGTERM."""
        signal.signal(signal.SIGTERM, self._on_term)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        self._changed.set()
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.register(self._server, select.POLLIN)
        poll.register(self._leash, select.POLLIN)
        while not self._stop:
            changed = self._changed.is_set()
            self._changed.clear()
            settling, self._settling = self._settling, []
            self._cluster.tick(changed)
            for asker in settling:
                _reply(asker, {"settled": True})
            self._answer_restarts()
            wait = 0.0 if self._changed.is_set() else self._cluster.due() - time.monotonic()
            if self._restarts:
                wait = min(wait, 0.5)
            ready = {fd for fd, _ in poll.poll(max(0, int(wait * 1000) + 1))}
            if self._leash in ready:
                poll.unregister(self._leash)
                self._feel_leash()
            if self._read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._read, 65536)
            # After the leash: a lab that is ending answers nobody, and so counts as ending.
            if self._server.fileno() in ready and not self._stop:
                self._accept()

    def _feel_leash(self) -> None:
        """Go on alone when let go; end when whoever held the other end is gone."""
        if not os.read(self._leash, 1):
            log.warning("the process that this lab belongs to is gone: ending")
            self._stop = True
        os.close(self._leash)

    def _on_term(self, *_: object) -> None:
        self._stop = True

    def _watch(self) -> None:
        store = FolderStore(self._layout.objects)
        while True:
            if store.watch(_WATCH_TURN):
                self._changed.set()
                self.wake()

    # ---- requests ----------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            asker, _ = self._server.accept()
        except BlockingIOError:
            return
        asker.settimeout(1.0)  # root on this machine: it has sent its line already
        try:
            request = json.loads(asker.recv(_REQUEST))
            answer = self._serve(request, asker)
        except (OSError, ValueError, KeyError, TypeError) as e:
            answer = {"error": f"request not understood: {e}"}
        if answer is not None:
            _reply(asker, answer)

    def _serve(self, request: dict[str, Any], asker: socket.socket) -> dict[str, Any] | None:
        known = self._cluster.components
        if request["do"] == "components":
            return {
                name: {"pid": c.process.pid, "ready": c.ready, "restarts": c.process.restarts}
                for name, c in known.items()
            }
        if request["do"] == "settle":
            self._settling.append(asker)
            self._changed.set()
            return None
        if request["do"] != "restart":
            return {"error": f"no such request: {request['do']}"}
        name = request["component"]
        if name not in known:
            return {"error": f"no component {name!r}; there are: {', '.join(sorted(known))}"}
        process = known[name].process
        deadline = time.monotonic() + _PATIENCE
        self._restarts.append(_Restart(name, process.pid, deadline, asker))
        process.bounce(bool(request.get("kill")))
        return None

    def _answer_restarts(self) -> None:
        now = time.monotonic()
        for restart in list(self._restarts):
            process = self._cluster.components[restart.component].process
            if process.running and process.pid != restart.old_pid:
                _reply(restart.asker, {"pid": process.pid})
            elif now > restart.deadline:
                why = f"{restart.component} did not end within {_PATIENCE:.0f} s of SIGTERM"
                _reply(restart.asker, {"error": f"{why}; try --kill"})
            else:
                continue
            self._restarts.remove(restart)


def _reply(asker: socket.socket, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        asker.sendall(json.dumps(answer).encode() + b"\n")
    asker.close()


def _daemonize(layout: Layout) -> None:
    """Leave the caller's session, terminal and standard files."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(layout.log("manager"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(out)
    os.chdir("/")


def _guard(layout: Layout) -> None:
    """Fork a process that outlives the manager by as long as it takes to kill what it ran.

    It inherits the lab's lock: the lab counts as live until nothing of it runs any more. (A
    parent-death signal would not do: programs that change their credentials lose it.)
    """
    group = host.cgroup_root() / "ambit" / layout.name
    read, write = os.pipe()
    if os.fork():
        os.close(read)
        return
    os.close(write)
    os.read(read, 1)
    cgroups.kill(group)
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Become the manager of a lab whose folder and lock exist."""
    parser = argparse.ArgumentParser(prog="lab.manager", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--lock-fd", type=int, required=True, help="the locked lock file")
    parser.add_argument(
        "--leash-fd",
        type=int,
        required=True,
        help="read end of a pipe: a byte lets the lab go on alone, its end ends the lab",
    )
    args = parser.parse_args(arguments)
    layout = Layout(args.name)
    _daemonize(layout)
    os.set_inheritable(args.lock_fd, False)
    os.set_inheritable(args.leash_fd, False)
    os.ftruncate(args.lock_fd, 0)
    os.pwrite(args.lock_fd, str(os.getpid()).encode(), 0)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    _guard(layout)
    try:
        settings = Settings.load((layout.state / "lab.json").read_text())
        Manager(layout, settings, args.leash_fd).run()
    except (MeshError, OSError):
        log.exception("the lab cannot go on")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

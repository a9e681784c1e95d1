"""A thread that asks the container runtime for the sandboxes that the agent needs to know.

The list of ready sandboxes is cheap and read every INTERVAL; the namespace of one is asked for
only when a pod is to be captured whose newest sandbox is not known yet.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from mesh.errors import BadInput, MeshError
from node_agent.cri import SandboxFacts, SandboxName
from node_agent.sandbox import StepError, check_addresses, open_namespace
from node_agent.sandbox_table import Found, Look

log = logging.getLogger(__name__)

INTERVAL: Final = 10.0  # seconds
_RETRY: Final = 1.0  # after a runtime that did not answer
_PROC: Final = Path("/proc")


class RuntimeFacts(Protocol):
    """What is asked: node_agent/cri.py. Every method may raise MeshError."""

    def ready(self) -> list[SandboxName]:
        """List the ready sandboxes."""

    def facts(self, sandbox: str) -> SandboxFacts | None:
        """Say where a sandbox's namespace is, None when it is gone."""


class RuntimeWatch:
    """Asks, and keeps what was found until it is taken."""

    def __init__(self, runtime: RuntimeFacts, changed: Callable[[], None]) -> None:
        """`changed` is called, from the thread, whenever there is something to take."""
        self.problem = ""  # why the runtime could not be asked last time
        self.answered = 0  # the last wish (number) that a look has covered
        self._runtime = runtime
        self._changed = changed
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._wish: tuple[int, Mapping[str, str]] = (0, {})
        self._look: Look | None = None
        self._thread = threading.Thread(target=self._run, name="runtime", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def want(self, needs: Mapping[str, str]) -> int:
        """Have these pods' sandboxes found: uid to the sandbox known, "" none.

        Returns the wish's number; it is covered once `answered` has reached it.
        """
        with self._lock:
            number, before = self._wish
            if needs != before or not number:
                number += 1
                self._wish = (number, dict(needs))
                # Only what is not known yet is worth a look before its time.
                if (
                    any(before.get(uid) != known for uid, known in needs.items() if not known)
                    or number == 1
                ):
                    self._wake.set()
        return number

    def poke(self) -> None:
        """Look soon."""
        self._wake.set()

    def take(self) -> Look | None:
        """Give what was found since the last call."""
        with self._lock:
            look, self._look = self._look, None
        return look

    def close(self) -> None:
        """Have the thread end; what nobody took is closed."""
        self._stop = True
        self._wake.set()
        look = self.take()
        _close(look.found if look else ())

    def _run(self) -> None:
        while not self._stop:
            self._wake.clear()
            pause = self._turn()
            self._wake.wait(pause)

    def _turn(self) -> float:
        try:
            self.look()
        except MeshError as error:
            if str(error) != self.problem:
                log.warning("%s; sandboxes stay as they were", error)
            self.problem = str(error)
            return _RETRY
        except Exception:
            log.exception("looking at the container runtime failed; tried again")
            return _RETRY
        if self.problem:
            log.info("the container runtime answers again")
        self.problem = ""
        return INTERVAL

    def look(self) -> None:
        """Look once and keep what comes of it; MeshError when the runtime does not answer."""
        with self._lock:
            number, needs = self._wish
        began = time.monotonic()
        ready = newest(self._runtime.ready())
        found: list[Found] = []
        problems: dict[str, str] = {}
        try:
            for uid, known in needs.items():
                sandbox = ready.get(uid, "")
                if sandbox and sandbox != known:
                    self._find(uid, sandbox, found, problems)
        except BaseException:
            _close(found)
            raise
        self._keep(Look(began, ready, found, problems), number)

    def _find(self, uid: str, sandbox: str, found: list[Found], problems: dict[str, str]) -> None:
        try:
            facts = self._runtime.facts(sandbox)
            if facts is None or facts.host_network:
                return
            found.append(Found(uid, sandbox, open_sandbox(facts), facts.addresses))
        except (StepError, BadInput) as error:
            problems[uid] = f"sandbox {sandbox[:13]}: {error}"

    def _keep(self, look: Look, number: int) -> None:
        with self._lock:
            before, self._look = self._look, None
            if self._stop:
                _close((*look.found, *(before.found if before else ())))
                return
            if before is not None:
                again = {found.uid for found in look.found}
                _close(f for f in before.found if f.uid in again)
                kept = [f for f in before.found if f.uid not in again]
                look = Look(look.began, look.ready, [*kept, *look.found], look.problems)
            self._look = look
            self.answered = number
        self._changed()


def newest(names: Iterable[SandboxName]) -> dict[str, str]:
    """Give each pod's newest ready sandbox: one that is being replaced may be listed still."""
    found: dict[str, SandboxName] = {}
    for name in names:
        other = found.get(name.uid)
        if other is None or other.created <= name.created:
            found[name.uid] = name
    return {uid: name.sandbox for uid, name in found.items()}


def open_sandbox(facts: SandboxFacts) -> int:
    """Open a sandbox's network namespace by what the runtime says; StepError when none is there.

    The path is the namespace's own, but may lie where this process does not see it; the first
    process is always seen, but in a virtual machine's sandbox it lives elsewhere. The one that
    holds the pod's addresses is it.
    """
    paths = [facts.netns] if facts.netns else []
    if facts.pid:
        paths.append(str(_PROC / str(facts.pid) / "ns" / "net"))
    error = StepError("NetnsGone", "the runtime names neither a process nor a namespace")
    for path in paths:
        try:
            fd = open_namespace(path)
        except StepError as caught:
            error = caught
            continue
        if not facts.addresses:
            return fd  # the pod's own object knows them; checked before anything is done in there
        try:
            check_addresses(fd, path, facts.addresses)
        except (StepError, OSError) as caught:
            os.close(fd)
            error = caught if isinstance(caught, StepError) else StepError("NetnsGone", str(caught))
            continue
        return fd
    raise error


def _close(found: Iterable[Found]) -> None:
    for one in found:
        os.close(one.netns)

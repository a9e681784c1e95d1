"""Health probes, from the node as kubelet sends them: readiness and liveness."""

from __future__ import annotations

import http.client
import socket
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lab import netns
from lab.place import Place

Object = dict[str, Any]

_UNTIL_FIRST: Final = 0.15  # seconds between probes until one succeeds: pods should start fast
_WORKERS: Final = 8  # of a node; a probe that hangs must not hold up the others


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe as its container's spec has it."""

    kind: str  # readiness, liveness
    spec: Object
    container: Object

    @property
    def period(self) -> float:
        """Seconds between probes."""
        return float(self.spec.get("periodSeconds") or 10)

    @property
    def timeout(self) -> float:
        """Seconds until no answer is a failure."""
        return float(self.spec.get("timeoutSeconds") or 1)

    @property
    def failures(self) -> int:
        """Failures in a row that count."""
        return int(self.spec.get("failureThreshold") or 3)

    @property
    def delay(self) -> float:
        """Seconds after the start before the first probe."""
        return float(self.spec.get("initialDelaySeconds") or 0)

    def port(self) -> int | None:
        """Port that it dials, if it dials."""
        action = self.spec.get("httpGet") or self.spec.get("tcpSocket") or {}
        wanted = action.get("port")
        if isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdigit()):
            return int(wanted)
        for declared in self.container.get("ports") or []:
            if wanted is not None and declared.get("name") == wanted:
                return int(declared["containerPort"])
        return None


def of_container(container: Object) -> list[Probe]:
    """List a container's probes."""
    return [
        Probe(kind, container[f"{kind}Probe"], container)
        for kind in ("readiness", "liveness")
        if container.get(f"{kind}Probe")
    ]


def check(probe: Probe, address: str, place: Place) -> str:
    """Probe once; returns "" or what is wrong. Dials from the calling thread's namespace."""
    try:
        if "exec" in probe.spec:
            return _run(probe, place)
        port = probe.port()
        if port is None:
            return "the probe names no port (httpGet, tcpSocket or exec is needed)"
        if "httpGet" in probe.spec:
            return _get(probe, address, port)
        socket.create_connection((address, port), probe.timeout).close()
        return ""
    except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
        return str(error) or type(error).__name__


def _get(probe: Probe, address: str, port: int) -> str:
    action = probe.spec["httpGet"]
    headers = {h["name"]: h["value"] for h in action.get("httpHeaders") or []}
    headers.setdefault("User-Agent", "kube-probe/lab")
    connection = http.client.HTTPConnection(address, port, timeout=probe.timeout)
    try:
        connection.request("GET", action.get("path") or "/", headers=headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if 200 <= status < 400 else f"HTTP status {status}"


def _run(probe: Probe, place: Place) -> str:
    done = subprocess.run(
        place.argv(probe.spec["exec"]["command"]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=probe.timeout,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip()[-200:] or "failed"


class Prober:
    """Threads that live in a node's namespace and probe from there."""

    def __init__(self, node_netns: Path) -> None:
        self._pool = ThreadPoolExecutor(
            _WORKERS, thread_name_prefix="probe", initializer=netns.enter, initargs=(node_netns,)
        )

    def submit(self, probe: Probe, address: str, place: Place) -> Future[str]:
        """Start a probe."""
        return self._pool.submit(check, probe, address, place)

    def close(self) -> None:
        """Start no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class Watch:
    """One probe over time. `ok` is None until it has said something for good."""

    probe: Probe
    due: float
    ok: bool | None = None
    message: str = "not probed yet"
    _failed: int = 0
    _running: Future[str] | None = None

    @property
    def idle(self) -> bool:
        """Whether no probe is under way."""
        return self._running is None

    def tick(self, now: float, prober: Prober, address: str, place: Place, wake: Any) -> bool:
        """Take in an answer, ask again when it is time; returns whether `ok` changed."""
        before = self.ok
        if self._running is not None and self._running.done():
            self._take(self._running, now)
        if self._running is None and now >= self.due:
            self._running = prober.submit(self.probe, address, place)
            self._running.add_done_callback(lambda _: wake())
        return self.ok != before

    def _take(self, answer: Future[str], now: float) -> None:
        self._running = None
        if answer.cancelled():
            return
        error = answer.exception()
        self.message = str(error) if error else answer.result()
        if self.message:
            self._failed += 1
            if self._failed >= self.probe.failures:
                self.ok = False
        else:
            self._failed, self.ok = 0, True
        quick = self.probe.kind == "readiness" and not self.ok
        self.due = now + (min(_UNTIL_FIRST, self.probe.period) if quick else self.probe.period)

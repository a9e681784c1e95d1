"""Who leads: a Lease (coordination.k8s.io/v1), as every Kubernetes controller uses it.

Rule 1: clocks of different machines are never compared. A lease has run out when this process has
watched it unchanged for its whole duration, by this machine's own clock.
Rule 2: a leader stops by itself, before others may begin: it leads for DEADLINE after the start of
its last successful renewal, and others wait DURATION after they saw that renewal.
Rule 3: every write names the version it replaces: of two that try, one succeeds.

The pure part is Election; LeaderElection is its thread.
"""

from __future__ import annotations

import datetime
import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from control_plane.kubernetes.naming import LABELS
from mesh.errors import BadInput, Unavailable
from mesh.kube.api import Api, ApiError

log = logging.getLogger(__name__)

DURATION: Final = 15.0  # seconds; the same as Kubernetes' own controllers
DEADLINE: Final = 10.0
RETRY: Final = 2.0
_TIMEOUT: Final = 4.0  # of one request: DEADLINE + _TIMEOUT stays below DURATION

Object = dict[str, Any]


def boot_time() -> float:
    """Seconds by a clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Election:
    """What one candidate knows, and what it should write. No I/O, no clock of its own."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.leads_until = -math.inf  # by the caller's clock
        self._seen: object = None
        self._seen_at = 0.0

    def leading(self, now: float) -> bool:
        """Say whether this candidate leads."""
        return now < self.leads_until

    def wish(self, lease: Mapping[str, Any] | None, now: float, wall: str) -> Object | None:
        """Say what to write over the lease as it was just read (None: there is none).

        Returns the new spec, or None when somebody else holds it. wall: RFC 3339 time, for people.
        """
        old = (lease or {}).get("spec") or {}
        holder = old.get("holderIdentity") or ""
        mark = (holder, old.get("renewTime"), old.get("leaseTransitions"))
        if mark != self._seen:
            self._seen, self._seen_at = mark, now
        if holder not in ("", self.identity):
            self.leads_until = -math.inf
            duration = old.get("leaseDurationSeconds")
            wait = float(duration) if isinstance(duration, int) and duration > 0 else DURATION
            if now - self._seen_at < wait:
                return None
        spec: Object = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(DURATION),
            "renewTime": wall,
            "acquireTime": old.get("acquireTime") or wall,
            "leaseTransitions": old.get("leaseTransitions") or 0,
        }
        if holder != self.identity:
            spec["acquireTime"] = wall
            if lease is not None:
                spec["leaseTransitions"] += 1
        return spec

    def won(self, asked_at: float) -> None:
        """The wish was granted; asked_at: when the request was sent."""
        self.leads_until = asked_at + DEADLINE

    def lost(self) -> None:
        """Somebody else was faster."""
        self.leads_until = -math.inf


class LeaderElection:
    """Keeps trying in a thread. `leading()` may be asked from anywhere, before every write."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        candidate: str,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        # A container that was restarted is another candidate: its predecessor's lease must run out.
        self._election = Election(f"{candidate}_{uuid.uuid4().hex[:8]}")
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader-election", daemon=True)
        self._led = False
        self._problem = ""

    @property
    def identity(self) -> str:
        """How this candidate is called in the Lease."""
        return self._election.identity

    def leading(self) -> bool:
        """Say whether this process leads at this moment."""
        return self._election.leading(self._clock())

    def start(self) -> None:
        """Begin to stand for election."""
        self._thread.start()

    def stop(self) -> None:
        """Give the lease back, so that the next one need not wait for its end."""
        self._stop.set()
        if self._thread.ident is None:
            return
        self._thread.join(_TIMEOUT + 1)
        if self.leading():
            self._election.lost()
            try:
                self._release()
            except (ApiError, Unavailable, BadInput) as e:
                log.warning("the lease could not be given back: %s", e)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._try()
                self._report("")
            except (ApiError, Unavailable, BadInput) as e:
                self._report(str(e))
            leads = self.leading()
            if leads != self._led:
                self._led = leads
                log.info("%s %s", self.identity, "leads" if leads else "does not lead any more")
            self._stop.wait(RETRY * (0.8 + 0.4 * random.random()))

    def _report(self, problem: str) -> None:
        if problem and not self._problem:
            log.warning("Lease %s/%s: %s", self._namespace, self._name, problem)
        self._problem = problem

    def _read(self) -> Object | None:
        try:
            return self._api.request("GET", f"{self._path}/{self._name}", timeout=_TIMEOUT)
        except ApiError as e:
            if e.status == 404:
                return None
            raise

    def _try(self) -> None:
        lease = self._read()
        asked_at = self._clock()
        spec = self._election.wish(lease, asked_at, _now())
        if spec is None:
            return
        try:
            self._write(lease, spec)
        except ApiError as e:
            if e.status != 409:
                raise
            self._election.lost()
            return
        self._election.won(asked_at)

    def _write(self, lease: Mapping[str, Any] | None, spec: Object) -> None:
        body: Object = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "labels": dict(LABELS),
            },
            "spec": spec,
        }
        if lease is None:
            self._api.request("POST", self._path, body=body, timeout=_TIMEOUT)
            return
        body["metadata"] = lease["metadata"]  # with its resourceVersion
        self._api.request("PUT", f"{self._path}/{self._name}", body=body, timeout=_TIMEOUT)

    def _release(self) -> None:
        lease = self._read()
        spec = (lease or {}).get("spec") or {}
        if lease is None or spec.get("holderIdentity") != self.identity:
            return
        self._write(lease, {**spec, "holderIdentity": "", "leaseDurationSeconds": 1})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

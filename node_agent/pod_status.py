"""Writing what became of a pod into its object, and telling people by events.

Annotation and condition are written by server-side apply to pods/status, as a field manager of our
own: nothing else of the object is touched. What is there already is not written again, and what
somebody else changed is put right, at most every HEAL seconds.
"""

from __future__ import annotations

import datetime
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import MeshError
from mesh.kube.api import APPLY, Api, ApiError
from mesh.ports import ANNOTATION_REDIRECTION
from node_agent.outbox import Outbox
from node_agent.pod_object import PodObject
from node_agent.source import ENABLED, PodStatus, condition

log = logging.getLogger(__name__)

MANAGER: Final = "ambit-node-agent"
HEAL: Final = 30.0  # seconds
# Most pods are captured within this: one write then, not two.
PATIENCE: Final = 0.7
_PATIENT: Final = frozenset({"Enrolling", "NoZtunnel"})  # states on the way
_FIRST: Final = 0.5  # seconds, doubling
_MOST: Final = 30.0

EVENT_AGAIN: Final = 600.0  # seconds in which an event of the same reason is not repeated
EVENT_BURST: Final = 25
EVENT_RATE: Final = 0.2  # per second
_EVENT_TRIES: Final = 3
_EVENT_MESSAGE: Final = 1000  # characters; the API allows 1024


@dataclass(slots=True)
class _Written:
    status: PodStatus | None
    at: float


class StatusWriter:
    """Keeps annotation and condition of pods as they were last reported."""

    def __init__(
        self, api: Api, outbox: Outbox, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._outbox = outbox
        self._clock = clock
        self._wanted: dict[str, PodStatus | None] = {}  # uid -> last report
        self._written: dict[str, _Written] = {}

    def report(self, pod: PodObject, status: PodStatus | None) -> None:
        """Have a status written, None: what was written removed."""
        self._wanted[pod.uid] = status
        before = self._written.get(pod.uid)
        shown = before.status if before else pod.status
        if shown == status:
            if _key(pod.uid) not in self._outbox:
                return
            delay = 0.0  # something else is on its way there, perhaps sent already
        else:
            patient = status is not None and not pod.marked and status.reason in _PATIENT
            delay = PATIENCE if patient else 0.0
        self._put(pod, status, delay)

    def forget(self, uid: str) -> None:
        """Let a pod go whose object is gone, or will be."""
        self._outbox.drop(_key(uid))
        self._wanted.pop(uid, None)
        self._written.pop(uid, None)

    def heal(self, pods: Iterable[PodObject]) -> None:
        """Write again what somebody else has changed; forget pods that are not there."""
        now = self._clock()
        alive = set()
        for pod in pods:
            alive.add(pod.uid)
            written = self._written.get(pod.uid)
            if written is None or pod.leaving or pod.status == written.status:
                continue
            if now - written.at < HEAL:
                continue
            if _key(pod.uid) not in self._outbox and self._wanted.get(pod.uid) == written.status:
                log.info("pod %s: its status was changed by somebody else; put right", pod.title)
                self._put(pod, written.status, 0.0)
        for uid in (set(self._wanted) | set(self._written)) - alive:
            self.forget(uid)

    def _put(self, pod: PodObject, status: PodStatus | None, delay: float) -> None:
        if not self._outbox.put(
            _key(pod.uid), lambda tries: self._write(pod, status, tries), delay
        ):
            log.error("pod %s: its status cannot be written: too many wait", pod.title)

    def _write(self, pod: PodObject, status: PodStatus | None, tries: int) -> float | None:
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
        query = {"fieldManager": MANAGER, "force": "true"}
        body = patch(pod, status)
        try:
            self._api.request("PATCH", path, query=query, body=body, content_type=APPLY)
        except ApiError as error:
            if error.status in (400, 404, 409, 422):
                # 404, 409: it was deleted, or another pod has the name by now.
                if error.status in (400, 422):
                    log.error("pod %s: the API server refuses its status: %s", pod.title, error)
                self._written.pop(pod.uid, None)
                return None
            return self._again(pod, error, tries, error.retry_after)
        except MeshError as error:
            return self._again(pod, error, tries, 0.0)
        self._written[pod.uid] = _Written(status, self._clock())
        return None

    def _again(self, pod: PodObject, error: MeshError, tries: int, after: float) -> float:
        level = logging.WARNING if tries in (0, 5) else logging.DEBUG
        log.log(level, "status of pod %s cannot be written: %s; tried again", pod.title, error)
        return float(
            max(after, min(_FIRST * 2 ** min(tries, 16), _MOST) * random.uniform(0.5, 1.5))
        )


def patch(pod: PodObject, status: PodStatus | None) -> dict[str, Any]:
    """Give all that the agent owns in a Pod object; the uid keeps it from another pod's."""
    metadata: dict[str, Any] = {"name": pod.name, "namespace": pod.namespace, "uid": pod.object_uid}
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    if status is not None:
        metadata["annotations"] = {ANNOTATION_REDIRECTION: status.redirection}
        body["status"] = {"conditions": [condition(status, pod.condition, pod.since)]}
    return body


class Events:
    """Events of pods: the first capture, and each kind of failure once in a while."""

    def __init__(
        self, api: Api, outbox: Outbox, node: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._outbox = outbox
        self._node = node
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}
        self._tokens = float(EVENT_BURST)
        self._filled = clock()

    def report(self, pod: PodObject, status: PodStatus | None) -> None:
        """Tell of a status if it is news."""
        if status is None:
            return
        if status.redirection == ENABLED:
            # After a restart of the agent an object that says so already is no news.
            if pod.marked != ENABLED:
                self._tell(pod, "Normal", "Captured", "captured by the mesh: " + status.message)
        elif status.reason not in _PATIENT:
            self._tell(pod, "Warning", status.reason, "not captured by the mesh: " + status.message)

    def _tell(self, pod: PodObject, kind: str, reason: str, message: str) -> None:
        now = self._clock()
        key = (pod.uid, reason)
        if now - self._told.get(key, -EVENT_AGAIN) < EVENT_AGAIN:
            return
        self._tokens = min(EVENT_BURST, self._tokens + (now - self._filled) * EVENT_RATE)
        self._filled = now
        if self._tokens < 1:
            return
        self._tokens -= 1
        self._told = {k: at for k, at in self._told.items() if now - at < EVENT_AGAIN}
        self._told[key] = now
        body = event(pod, self._node, kind, reason, message)
        self._outbox.put(f"event {body['metadata']['name']}", lambda tries: self._send(body, tries))

    def _send(self, body: Mapping[str, Any], tries: int) -> float | None:
        path = f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        try:
            self._api.request("POST", path, body=body)
        except MeshError as error:
            if (isinstance(error, ApiError) and error.status < 429) or tries + 1 >= _EVENT_TRIES:
                log.debug("an event cannot be written: %s", error)
                return None
            return 2.0**tries
        return None


def event(pod: PodObject, node: str, kind: str, reason: str, message: str) -> dict[str, Any]:
    """Give an Event about a pod."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{pod.name[:220]}.{uuid.uuid4().hex[:16]}",
            "namespace": pod.namespace,
        },
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": pod.namespace,
            "name": pod.name,
            "uid": pod.object_uid,
        },
        "type": kind,
        "reason": reason,
        "message": message[:_EVENT_MESSAGE],
        "source": {"component": MANAGER, "host": node},
        "reportingComponent": MANAGER,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _key(uid: str) -> str:
    return f"status {uid}"

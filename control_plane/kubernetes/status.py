"""Status by server-side apply: only what differs, only by the leader, never in storms.

Every replica works out what is missing, and forgets it when the object has it: whoever becomes
leader has the list ready. One thread writes, at most RATE a second, and each object ever less often
if what it wrote is undone (control_plane.kubernetes.pacing). Fields that other managers own are
not taken from them: that is a conflict, and said.

The parents of a route are one list for all controllers, and one field to server-side apply, so it
is read, merged and written where nobody wrote meanwhile.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from control_plane.kubernetes.naming import FIELD_MANAGER
from control_plane.kubernetes.pacing import Pacer
from control_plane.metrics import Counter
from control_plane.status import StatusBook, list_of, with_ours
from mesh.errors import BadInput, Unavailable
from mesh.kube.api import APPLY, MERGE, Api, ApiError
from mesh.kube.backoff import Backoff
from mesh.kube.kinds import Kind
from mesh.manifest import Key
from waypoint.config.status import Status

log = logging.getLogger(__name__)

RATE: Final = 25.0  # writes a second, after a first BURST
BURST: Final = 50
_TIMEOUT: Final = 8.0
_IDLE: Final = 0.5  # seconds between looks at who leads
_FORBIDDEN: Final = 30.0


class Source(Protocol):
    """Where objects come from (control_plane.kubernetes.source)."""

    def kind(self, kind: str) -> Kind:
        """The table's entry."""

    def version(self, kind: str) -> str:
        """The version that is read; "" when it is not served."""

    def object(self, key: Key) -> Mapping[str, Any] | None:
        """One object as it was last read."""


# Gateways of our class and their classes: nobody else has anything to say about them, and what is
# there when they are made are defaults ("Unknown").
_FORCED: Final = frozenset({"Gateway", "GatewayClass"})


@dataclass(frozen=True, slots=True)
class _Wish:
    uid: str
    status: Mapping[str, Any]


class StatusApplier:
    """Implements control_plane.status.StatusSink."""

    def __init__(
        self,
        api: Api,
        source: Source,
        leading: Callable[[], bool],
        writes: Counter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._source = source
        self._leading = leading
        self._writes = writes
        self._clock = clock
        self._book = StatusBook(source.object)
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._wishes: dict[Key, _Wish] = {}
        self._said: set[Key] = set()  # a conflict on it was logged
        self._pacer = Pacer()
        self._bucket, self._filled = float(BURST), clock()
        self._backoff = Backoff(0.5, 15.0, random.random)
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Stop writing; what is left is the next leader's."""
        with self._lock:
            self._stop = True
            self._news.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_TIMEOUT + 1)

    def write(
        self,
        changed: Mapping[Key, Mapping[str, Any]],
        gone: set[Key],
        said: Mapping[Key, Status | None],
        now: str,
    ) -> int:
        """Note what is missing. Nothing is written by this call itself."""
        with self._lock:
            for key, obj, wanted in self._book.update(changed, gone, said, now):
                if wanted is None:
                    self._wishes.pop(key, None)
                    self._said.discard(key)
                else:
                    self._wishes[key] = _Wish(str(obj["metadata"].get("uid") or ""), wanted)
            for key in [k for k in self._wishes if k not in self._book]:
                del self._wishes[key]
            self._said.intersection_update(self._wishes)
            self._news.notify_all()
        return 0

    @property
    def pending(self) -> int:
        """How many objects lack their status."""
        with self._lock:
            return len(self._wishes)

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._stop:
                    return
                found, pause = self._next()
                if found is None:
                    self._news.wait(pause)
                    continue
            pause = self._apply(*found)
            if pause:
                with self._lock:
                    self._news.wait_for(lambda: self._stop, pause)

    def _next(self) -> tuple[tuple[Key, _Wish] | None, float]:
        """Choose the next write, or say how long to wait for one (None: until there is news)."""
        if not self._wishes or not self._leading():
            return None, _IDLE
        now = self._clock()
        self._bucket = min(float(BURST), self._bucket + (now - self._filled) * RATE)
        self._filled = now
        if self._bucket < 1:
            return None, (1 - self._bucket) / RATE
        soonest = now + _IDLE
        for key, wish in self._wishes.items():
            due = self._pacer.due_at(key, wish)
            if due <= now:
                self._bucket -= 1
                self._pacer.trim(now)
                return (key, wish), 0.0
            soonest = min(soonest, due)
        return None, soonest - now

    def _apply(self, key: Key, wish: _Wish) -> float:
        """Write one; returns seconds to wait before the next."""
        kind, version = self._source.kind(key.kind), self._source.version(key.kind)
        if not version:
            return 0.0
        try:
            if list_of(key.kind) in wish.status:
                self._merge(kind, version, key, wish)
            else:
                self._server_side(kind, version, key, wish)
        except ApiError as e:
            return self._refused(key, wish, e)
        except (Unavailable, BadInput) as e:
            self._writes.inc(key.kind, "unavailable")
            log.info("status of %s: %s", key, e)
            return self._backoff.next()
        self._backoff.reset()
        self._writes.inc(key.kind, "ok")
        with self._lock:
            self._pacer.wrote(key, wish, self._clock())
            self._book.wrote(key)
            if key not in self._book and self._wishes.get(key) == wish:
                del self._wishes[key]
        return 0.0

    def _server_side(self, kind: Kind, version: str, key: Key, wish: _Wish) -> None:
        metadata: dict[str, Any] = {"name": key.name}
        if key.namespace:
            metadata["namespace"] = key.namespace
        if wish.uid:
            metadata["uid"] = wish.uid  # not one that was made anew under the same name
        body = {
            "apiVersion": kind.api_version(version),
            "kind": key.kind,
            "metadata": metadata,
            "status": dict(wish.status),
        }
        path = kind.path(version, key.namespace, key.name, "status")
        forced = "true" if key.kind in _FORCED else "false"
        query = {"fieldManager": FIELD_MANAGER, "force": forced}
        self._api.request(
            "PATCH", path, query=query, body=body, content_type=APPLY, timeout=_TIMEOUT
        )

    def _merge(self, kind: Kind, version: str, key: Key, wish: _Wish) -> None:
        path = kind.path(version, key.namespace, key.name)
        live = self._api.request("GET", path, timeout=_TIMEOUT)
        if wish.uid not in ("", live["metadata"].get("uid")):
            return  # made anew under the same name: what is read of it next decides
        body = {
            "metadata": {"resourceVersion": live["metadata"].get("resourceVersion")},
            "status": with_ours({**live, "kind": key.kind}, wish.status),
        }
        query = {"fieldManager": FIELD_MANAGER}
        status = f"{path}/status"
        self._api.request(
            "PATCH", status, query=query, body=body, content_type=MERGE, timeout=_TIMEOUT
        )

    def _refused(self, key: Key, wish: _Wish, error: ApiError) -> float:
        self._writes.inc(key.kind, "refused")
        with self._lock:
            if error.status == 404 and self._wishes.get(key) == wish:
                del self._wishes[key]
                return 0.0
            self._pacer.wrote(key, wish, self._clock())
            new = key not in self._said
            self._said.add(key)
        if error.status in (401, 403):
            if new:
                log.error(
                    "status of %s: %s; give this service account the verb patch on its status",
                    key,
                    error,
                )
            return _FORBIDDEN
        if error.status == 429:
            return max(error.retry_after, self._backoff.next())
        if new:
            log.warning("status of %s: %s; left as it is, tried again later", key, error)
        return 0.0

"""The cluster's objects as the engine wants them: what changed since the revisions it knows.

Every object is kept once, packed; a write that changes nothing that is read is no change. What the
engine has not yet shown to know is told again, so that a call cut short loses nothing.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from mesh.kube.api import Api
from mesh.kube.kinds import Kind, unpack
from mesh.kube.reflector import Observer, Reflector
from mesh.manifest import Key

log = logging.getLogger(__name__)

_JOIN: Final = 1.0  # seconds that watches get to end; their threads are daemons


class ObjectCache:
    """All objects by kind; written by reflectors, read by one consumer of changes."""

    def __init__(self, news: threading.Event | None = None) -> None:
        """news: set with every change, for who waits on several caches."""
        self._event = news
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._kinds: dict[str, dict[Key, tuple[int, bytes]]] = {}
        self._revision = 0
        self._pending: dict[Key, None] = {}  # changed, and not yet known by the consumer
        self._changed = False

    # ---- what reflectors say (mesh.kube.reflector.Sink) ----------------------------------------

    def replace(self, kind: Kind, objects: Mapping[Key, bytes]) -> None:
        """Take the complete list of a kind."""
        with self._lock:
            here = self._kinds.setdefault(kind.name, {})
            for key in [k for k in here if k not in objects]:
                self._drop(here, key)
            for key, data in objects.items():
                self._set(here, key, data)

    def put(self, kind: Kind, key: Key, data: bytes) -> None:
        """Take one object."""
        with self._lock:
            self._set(self._kinds.setdefault(kind.name, {}), key, data)

    def remove(self, kind: Kind, key: Key) -> None:
        """Drop one object."""
        with self._lock:
            self._drop(self._kinds.setdefault(kind.name, {}), key)

    def _set(self, here: dict[Key, tuple[int, bytes]], key: Key, data: bytes) -> None:
        old = here.get(key)
        if old is not None and old[1] == data:
            return
        if old is None:  # one copy of what many keys share
            key = Key(sys.intern(key.kind), sys.intern(key.namespace), key.name)
        self._revision += 1
        here[key] = (self._revision, data)
        self._tell(key)

    def _drop(self, here: dict[Key, tuple[int, bytes]], key: Key) -> None:
        if here.pop(key, None) is not None:
            self._tell(key)

    def _tell(self, key: Key) -> None:
        self._pending[key] = None
        self._changed = True
        self._news.notify_all()
        if self._event is not None:
            self._event.set()

    # ---- what the engine asks (control_plane.engine.Source) ------------------------------------

    def changes(
        self, known: Mapping[Key, int]
    ) -> tuple[dict[Key, tuple[int, dict[str, Any]]], set[Key]]:
        """Compare with the revisions the consumer knows: ({key: (revision, object)}, gone).

        An empty `known` is a consumer that begins. Costs as much as what changed, not as what is.
        """
        with self._lock:
            if not known:
                found = {k: e for here in self._kinds.values() for k, e in here.items()}
                return {k: (r, unpack(data)) for k, (r, data) in found.items()}, set()
            changed: dict[Key, tuple[int, dict[str, Any]]] = {}
            gone: set[Key] = set()
            for key in list(self._pending):
                entry = self._kinds.get(key.kind, {}).get(key)
                if known.get(key) == (entry[0] if entry else None):
                    del self._pending[key]
                elif entry is None:
                    gone.add(key)
                else:
                    changed[key] = (entry[0], unpack(entry[1]))
            return changed, gone

    def watch(self, timeout: float) -> bool:
        """Block until something changed since the last call, or `timeout` seconds; say which."""
        with self._lock:
            self._news.wait_for(lambda: self._changed, timeout)
            changed, self._changed = self._changed, False
            return changed

    # ---- what others ask -----------------------------------------------------------------------

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """Fresh copies of all objects of one kind."""
        with self._lock:
            return [unpack(data) for _, data in self._kinds.get(kind, {}).values()]

    def object(self, key: Key) -> dict[str, Any] | None:
        """Fresh copy of one object."""
        with self._lock:
            entry = self._kinds.get(key.kind, {}).get(key)
            return unpack(entry[1]) if entry else None

    def count(self, kind: str) -> int:
        """How many there are."""
        with self._lock:
            return len(self._kinds.get(kind, {}))

    def size(self, kind: str) -> int:
        """Bytes of packed data of one kind."""
        with self._lock:
            return sum(len(data) for _, data in self._kinds.get(kind, {}).values())


class KubernetesSource:
    """One reflector per kind, into one cache. Implements control_plane.engine.Source."""

    def __init__(
        self,
        api: Api,
        kinds: Iterable[Kind],
        observer: Observer,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.cache = ObjectCache()
        self._reflectors = {k.name: Reflector(api, k, self.cache, observer, rand) for k in kinds}
        self.changes = self.cache.changes
        self.watch = self.cache.watch

    def start(self) -> None:
        """Begin to list and watch."""
        for reflector in self._reflectors.values():
            reflector.start()

    @property
    def synced(self) -> bool:
        """Say whether every kind was listed once, or is known not to be installed."""
        return all(r.listed for r in self._reflectors.values())

    @property
    def missing(self) -> list[str]:
        """Name the kinds that were not listed yet."""
        return [r.name for r in self._reflectors.values() if not r.listed]

    def version(self, kind: str) -> str:
        """The API version that is read of a kind; "" while it is not served."""
        return self._reflectors[kind].version

    def kind(self, kind: str) -> Kind:
        """The table's entry."""
        return self._reflectors[kind].kind

    def object(self, key: Key) -> dict[str, Any] | None:
        """One object as it was last read."""
        return self.cache.object(key)

    def problems(self) -> list[str]:
        """Say what cannot be read, one line per kind."""
        return [f"{r.name}: {r.problem}" for r in self._reflectors.values() if r.problem]

    def close(self) -> None:
        """Stop watching; what was read stays."""
        for reflector in self._reflectors.values():
            reflector.stop()
        end = time.monotonic() + _JOIN
        for reflector in self._reflectors.values():
            reflector.join(max(0.0, end - time.monotonic()))

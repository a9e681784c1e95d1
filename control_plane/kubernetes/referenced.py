"""ConfigMaps and Secrets that other objects name, one by one: the others are not ours to read.

What is wanted is read when it is named first and now and then again (there is no watch of single
objects of many namespaces), and goes into the cache like everything else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from control_plane.kubernetes.source import ObjectCache
from mesh.errors import BadInput, Unavailable
from mesh.kube.api import Api, ApiError
from mesh.kube.kinds import Kind
from mesh.manifest import Key

log = logging.getLogger(__name__)

KINDS: Final = {
    "ConfigMap": Kind("ConfigMap", "configmaps", keep={"data": True}),
    "Secret": Kind("Secret", "secrets", keep={"data": True, "type": True}),
}
AGAIN: Final = 10.0  # seconds until an object is read again
_RETRY: Final = 2.0
_TIMEOUT: Final = 8.0


class ReferencedObjects:
    """Reads what is wanted. `always` is wanted whatever others say."""

    def __init__(
        self,
        api: Api,
        cache: ObjectCache,
        always: Iterable[Key] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._cache = cache
        self._always = frozenset(always)
        self._clock = clock
        self._due: dict[Key, float] = dict.fromkeys(self._always, 0.0)
        self._problems: dict[Key, str] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="referenced", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        with self._lock:
            self._stop = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_TIMEOUT + 1)

    def want(self, keys: Iterable[Key]) -> None:
        """Say which objects are named; cheap when they are the same."""
        wanted = self._always.union(keys)
        with self._lock:
            if wanted == self._due.keys():
                return
            gone = self._due.keys() - wanted
            for key in gone:
                del self._due[key]
                self._problems.pop(key, None)
            for key in wanted - self._due.keys():
                self._due[key] = 0.0
            self._changed.notify_all()
        for key in gone:
            self._cache.remove(KINDS[key.kind], key)

    def problems(self) -> list[str]:
        """Say what cannot be read, one line each."""
        with self._lock:
            return [f"{key}: {text}" for key, text in sorted(self._problems.items())]

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._stop:
                    return
                key = min(self._due, key=self._due.__getitem__, default=None)
                pause = None if key is None else self._due[key] - self._clock()
                if key is None or pause is None or pause > 0:
                    self._changed.wait(pause)
                    continue
            self._read(key)

    def _read(self, key: Key) -> None:
        kind, problem = KINDS[key.kind], ""
        data: bytes | None = None
        try:
            obj = self._api.request(
                "GET", kind.path("v1", key.namespace, key.name), timeout=_TIMEOUT
            )
            data = kind.pack(obj, "v1")[1]
        except ApiError as e:
            problem = "" if e.status == 404 else str(e)
        except (Unavailable, BadInput, ValueError) as e:
            problem = str(e)
        with self._lock:
            if key not in self._due:
                return
            self._due[key] = self._clock() + (_RETRY if problem else AGAIN)
            if problem and self._problems.get(key) != problem:
                log.warning("%s cannot be read: %s; what was read of it before stays", key, problem)
            if problem:
                self._problems[key] = problem
                return
            self._problems.pop(key, None)
        if data is None:
            self._cache.remove(kind, key)
        else:
            self._cache.put(kind, key, data)

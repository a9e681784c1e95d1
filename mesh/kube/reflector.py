"""List and watch one kind, for as long as the process lives.

Rule 1: what was read stays until the API server has said that it is gone. A server that is away,
refuses or talks nonsense changes nothing.
Rule 2: a watch goes on from the last resourceVersion seen (bookmarks keep it young). When the
server has forgotten it (410), everything is listed again and the difference, deletions included,
is exactly what happened meanwhile. So it is when a watch fails twice at the same place.
Rule 3: a kind that is not served (its CRD is not installed) is none of the mesh's business until
it is. One that was served and is not any more is believed gone only after three looks: API servers
that start answer 404 for a moment, and a lost CRD takes policies with it.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from mesh.errors import BadInput, Unavailable
from mesh.kube.api import Api, ApiError, Stream
from mesh.kube.backoff import Backoff
from mesh.kube.kinds import Kind
from mesh.manifest import Key

log = logging.getLogger(__name__)

PAGE: Final = 200  # objects of one list request: bounds what is in memory at once
FIRST: Final = 0.2  # seconds, doubling
MOST: Final = 8.0
FORBIDDEN: Final = 30.0  # somebody must write RBAC; no need to hurry
DISCOVER: Final = 10.0  # seconds between looks for a kind that is not served
_CONFIRM: Final = 3  # looks at a kind that vanished
_CONFIRM_PAUSE: Final = 5.0
# A watch is ended by the server after a while, so that watches spread over the replicas it may
# have. Bookmarks come once a minute, and now and then one is left out: more silence than this is a
# dead connection. (One whose other end has vanished is noticed sooner, by TCP keepalive.)
_WATCH_SECONDS: Final = (300, 420)
_SILENCE: Final = 190.0
_LIST_TIMEOUT: Final = 30.0
_HEALTHY: Final = 5.0  # seconds after which a watch that ends was a good one


class Sink(Protocol):
    """Where objects go; called from the reflector's thread. Data is packed (mesh.kube.kinds)."""

    def replace(self, kind: Kind, objects: Mapping[Key, bytes]) -> None:
        """These are all objects of that kind (and namespace and selector) now."""

    def put(self, kind: Kind, key: Key, data: bytes) -> None:
        """One is new or changed."""

    def remove(self, kind: Kind, key: Key) -> None:
        """One is gone."""


class Observer(Protocol):
    """Who counts."""

    def watch_restarted(self, kind: str) -> None:
        """A watch was opened again."""

    def relisted(self, kind: str) -> None:
        """A kind was listed again because the server had forgotten where the watch stood."""


class _Gone(Exception):
    """The resourceVersion is too old."""


class _NotServed(Exception):
    """The API server does not know the kind."""


class Reflector:
    """Keeps a sink current with one kind. start() makes a thread of its own."""

    def __init__(
        self,
        api: Api,
        kind: Kind,
        sink: Sink,
        observer: Observer,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self.kind = kind
        self.listed = False  # once: its objects are known, or it is known not to be served
        self.served = False
        self.problem = ""
        self._api = api
        self._sink = sink
        self._observer = observer
        self._random = rand
        self._backoff = Backoff(FIRST, MOST, rand)
        self._version = "" if kind.optional else kind.versions[0]
        self._resource_version = ""
        self._failed_at = ""  # the resourceVersion at which a watch sent an error
        self._watched = False
        self._stop = threading.Event()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{kind.plural}", daemon=True)

    @property
    def version(self) -> str:
        """The API version that is read; "" while the kind is not served."""
        return self._version

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; does not wait. What was read stays with the sink."""
        self._stop.set()
        stream = self._stream
        if stream is not None:
            stream.abort()

    def join(self, timeout: float) -> None:
        """Wait for the thread."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    # ---- the loop ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = self._step()
            if pause > 0:
                self._stop.wait(pause)

    def _step(self) -> float:
        """Do the next thing; returns seconds to wait before the one after it."""
        try:
            if not self._version and not self._find():
                self._solved()
                return DISCOVER * (0.75 + 0.5 * self._random())
            if not self._resource_version:
                self._list()
            self._watch()
            self._solved()
            return 0.0
        except _Gone:
            self._resource_version = ""
            self._observer.relisted(self.kind.name)
            log.info("%s: the API server forgot where the watch stood; listing again", self.name)
            return self._backoff.next()
        except _NotServed:
            return self._vanished()
        except ApiError as e:
            return self._refused(e)
        except (Unavailable, BadInput, ValueError) as e:
            self._report(f"{e}; what was last read stays")
            return self._backoff.next()

    @property
    def name(self) -> str:
        """How messages call what is read."""
        where = f" in {self.kind.namespace}" if self.kind.namespace else ""
        what = f" ({self.kind.selector})" if self.kind.selector else ""
        return f"{self.kind.plural}{where}{what}"

    def _report(self, problem: str) -> None:
        # An outage shows in many ways, one after the other: the first is said, the last is kept.
        level = logging.DEBUG if self.problem else logging.WARNING
        log.log(level, "%s: %s", self.name, problem)
        self.problem = problem

    def _solved(self) -> None:
        if self.problem:
            log.info("%s: read again", self.name)
        self.problem = ""

    def _refused(self, error: ApiError) -> float:
        if error.status in (401, 403):
            self._report(
                f"{error}; give this service account the verbs list and watch on {self.name}"
            )
            if self.listed:  # was allowed before: a server that has just started knows no roles yet
                return self._backoff.next()
            return FORBIDDEN * (0.75 + 0.5 * self._random())
        self._report(f"{error}; what was last read stays")
        return max(error.retry_after, self._backoff.next())

    # ---- is it there? --------------------------------------------------------------------------

    def _find(self) -> bool:
        """Look which version is served; raises ApiError or Unavailable when that cannot be said."""
        for version in self.kind.versions:
            try:
                found = self._api.request("GET", self.kind.root(version))
            except ApiError as e:
                if e.status != 404:
                    raise
                continue
            resources = found.get("resources")
            names = [r.get("name") for r in resources if isinstance(r, dict)] if resources else []
            if self.kind.plural in names:
                self._version = version
                self.served = True
                log.info("%s: served as %s", self.name, self.kind.api_version(version))
                return True
        if not self.listed:
            log.info("%s: not installed; looked for again every %.0f s", self.name, DISCOVER)
        self.listed = True
        return False

    def _vanished(self) -> float:
        """React to a 404 for what was served: make sure, then let its objects go."""
        if not self.kind.optional:
            self._report("the API server does not know it (404); what was last read stays")
            return self._backoff.next()
        known, self._version = self._version, ""
        for _ in range(_CONFIRM):
            if self._stop.wait(_CONFIRM_PAUSE * (0.75 + 0.5 * self._random())):
                return 0.0
            try:
                if self._find():
                    # Perhaps another CRD of that name by now: what it has is listed, not resumed.
                    self._resource_version = ""
                    return 0.0
            except (ApiError, Unavailable, BadInput) as e:
                self._version = known
                self._report(f"{e}; what was last read stays")
                return self._backoff.next()
        log.warning("%s: not installed any more; its objects are gone", self.name)
        self.served = False
        self._resource_version = ""
        self._sink.replace(self.kind, {})
        return DISCOVER

    # ---- list ----------------------------------------------------------------------------------

    def _list(self) -> None:
        objects: dict[Key, bytes] = {}
        version = self._list_pages(objects)
        self._sink.replace(self.kind, objects)
        self._resource_version = version
        self.served = self.listed = True
        self._solved()

    def _list_pages(self, objects: dict[Key, bytes]) -> str:
        """Fill `objects`, page by page; returns the resourceVersion they are all of."""
        query = {"limit": str(PAGE)}
        if self.kind.selector:
            query["fieldSelector"] = self.kind.selector
        while True:
            try:
                page = self._get_list(query)
            except ApiError as e:
                if e.status != 410 or "continue" not in query:
                    raise
                # Listing took so long that the rest of it is forgotten: all at once, then.
                objects.clear()
                query.pop("continue")
                query.pop("limit", None)
                continue
            metadata = page.get("metadata") or {}
            for item in page.get("items") or []:
                packed = self._pack(item)
                if packed is not None:
                    objects[packed[0]] = packed[1]
            if not metadata.get("continue"):
                return str(metadata.get("resourceVersion") or "0")
            query["continue"] = str(metadata["continue"])

    def _get_list(self, query: Mapping[str, str]) -> dict[str, Any]:
        path = self.kind.path(self._version, self.kind.namespace)
        try:
            return self._api.request(
                "GET", path, query=query, accept=self.kind.accept_list, timeout=_LIST_TIMEOUT
            )
        except ApiError as e:
            if e.status == 404:
                raise _NotServed from e
            raise

    def _pack(self, obj: Any) -> tuple[Key, bytes] | None:
        """Keep of an object what is kept. One that is none costs nothing but a line in the log."""
        try:
            return self.kind.pack(obj, self._version)
        except (ValueError, TypeError, AttributeError) as e:
            log.error("%s: an object cannot be read: %s; skipped", self.name, e)
            return None

    # ---- watch ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Follow until the server ends the watch; raises when it ends otherwise."""
        if self._watched:
            self._observer.watch_restarted(self.kind.name)
        self._watched = True
        low, high = _WATCH_SECONDS
        query = {
            "watch": "1",
            "resourceVersion": self._resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(low + (high - low) * self._random())),
        }
        if self.kind.selector:
            query["fieldSelector"] = self.kind.selector
        path = self.kind.path(self._version, self.kind.namespace)
        began = time.monotonic()
        try:
            with self._api.stream(
                path, query=query, accept=self.kind.accept_watch, timeout=_SILENCE
            ) as stream:
                self._solved()
                cut = self._follow(stream)
        except ApiError as e:
            if e.status == 410:
                raise _Gone from e
            if e.status == 404:
                raise _NotServed from e
            raise
        if cut or time.monotonic() - began < _HEALTHY:
            # Accepted and ended, again and again, must not become a busy loop.
            self._stop.wait(self._backoff.next())

    def _follow(self, stream: Stream) -> bool:
        """Take events until the stream ends; says whether it was cut.

        That is a problem only if the next one cannot be opened: balancers on the way do it.
        """
        self._stream = stream
        try:
            if self._stop.is_set():
                return False
            for line in stream.lines():
                self._event(line)
                self._backoff.reset()
        except Unavailable as e:
            log.debug("%s: %s", self.name, e)
            return True
        finally:
            self._stream = None
        return False

    def _event(self, line: bytes) -> None:
        """Take one line of a watch; raises ValueError when it is no event."""
        if not line.strip():
            return
        event = json.loads(line)
        what, obj = event.get("type"), event.get("object")
        if not isinstance(obj, dict):
            raise ValueError("a watch event without an object")
        if what == "ERROR":
            status = int(obj.get("code") or 500)
            reason, message = str(obj.get("reason") or ""), str(obj.get("message") or "")
            # The same error twice at the same place would come for ever.
            stuck = self._failed_at == self._resource_version
            self._failed_at = self._resource_version
            if stuck or status == 410 or reason in ("Expired", "Gone"):
                raise _Gone
            raise ApiError(status, reason, message)
        if what != "BOOKMARK":
            packed = self._pack(obj)
            if packed is None:
                pass
            elif what == "DELETED":
                self._sink.remove(self.kind, packed[0])
            else:
                self._sink.put(self.kind, *packed)
        version = (obj.get("metadata") or {}).get("resourceVersion")
        if isinstance(version, str) and version:
            self._resource_version = version

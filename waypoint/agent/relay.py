"""Delta xDS between the control plane and Envoy, without I/O.

The control plane sees one client that lives as long as this process. What Envoy has acknowledged
is kept, so that an Envoy that was started again gets it at once, control plane or not, and the
control plane is told of differences alone. Three things must not be lost on the way:

- A response that Envoy has not answered stays pending. It is given again to the next Envoy; one
  that Envoy died of _MOST_TRIES times is refused in Envoy's name, and the last good state goes on.
- A refused response may have been taken in part. Its names are doubtful: on another stream their
  versions are not claimed. What the next Envoy is given is older than what the control plane
  believes, so it gets a new stream, on which the versions that it really has are said.
- A name that was asked for and is not kept is asked for again: the control plane answers every
  explicit subscription.

Memory is bounded: past `limit` bytes of payload only names and versions are kept, and an Envoy
that is started again has to wait for the control plane.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mesh.xds.delta import Request, Resource, Response
from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES

log = logging.getLogger(__name__)

# First requests of a new stream go in this order; other types after them.
_ORDER: Final = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)

CACHE_LIMIT: Final = 128 << 20
_MOST_TRIES: Final = 3
_ERROR_TEXT: Final = 4000
_UNKNOWN: Final = "unknown"  # a version that no resource has


@dataclass(frozen=True, slots=True)
class ToEnvoy:
    """Send this to Envoy."""

    response: Response


@dataclass(frozen=True, slots=True)
class ToPlane:
    """Send this to the control plane."""

    request: Request


@dataclass(frozen=True, slots=True)
class Redial:
    """End the stream to the control plane and begin another."""


Out = ToEnvoy | ToPlane | Redial


@dataclass(slots=True)
class _Pending:
    """A response that Envoy has not answered; from the control plane, or from what is kept."""

    response: Response
    stream: int = 0  # of the control plane; 0: from what is kept
    nonce: str = ""  # the control plane's
    tries: int = 0


@dataclass(slots=True)
class _Type:
    kept: dict[str, Resource] = field(default_factory=dict)  # acknowledged by Envoy
    complete: bool = False  # Envoy has acknowledged a response: what is kept is an answer
    pending: dict[str, _Pending] = field(default_factory=dict)  # by our nonce; oldest first
    # Subscriptions as the control plane knows them.
    wildcard: bool = False
    names: dict[str, None] = field(default_factory=dict)
    asked: bool = False  # on this stream to the control plane
    begun: bool = False  # on this stream of Envoy
    # Asked for while a response with them was under way to Envoy, which may have passed over them.
    owed: set[str] = field(default_factory=set)
    # In responses that Envoy has refused: it may have taken them all the same.
    doubtful: set[str] = field(default_factory=set)

    def under_way(self) -> set[str]:
        """Name what responses that Envoy has not answered speak of."""
        names: set[str] = set()
        for p in self.pending.values():
            names.update(p.response.removed, (r.name for r in p.response.resources))
        return names


class Relay:
    """One Envoy and its control plane; both come and go."""

    def __init__(self, limit: int = CACHE_LIMIT) -> None:
        self.connected = False  # to the control plane
        self.rejected: Counter[str] = Counter()  # by type
        self.errors: dict[str, str] = {}  # by type: why Envoy refused the newest, "" if it did not
        self.size = 0  # bytes of payload kept
        self._limit = limit
        self._types: dict[str, _Type] = {}
        self._acknowledged: set[str] = set()  # types, by the Envoy of now
        self._envoy = False
        self._stream = 0
        self._nonce = 0
        self._uncertain = False  # Envoy may have other versions than we keep
        self._partial = False  # payloads were dropped

    @property
    def configured(self) -> bool:
        """Whether the Envoy of now has taken its first configuration, listeners in it."""
        here = self._types.get(LISTENER)
        return {CLUSTER, LISTENER} <= self._acknowledged and bool(here and here.kept)

    def versions(self) -> dict[str, dict[str, str]]:
        """What Envoy has: version by name by type."""
        return {url: {n: r.version for n, r in t.kept.items()} for url, t in self._types.items()}

    # ---- Envoy -------------------------------------------------------------------------------

    def envoy_started(self) -> list[Out]:
        """Note that another Envoy takes the place of the one before; it knows nothing."""
        out: list[Out] = []
        for url, t in self._types.items():
            for nonce, p in list(t.pending.items()):
                if p.tries >= _MOST_TRIES:
                    del t.pending[nonce]
                    out += self._refuse(url, p, f"Envoy ended {p.tries} times before it answered")
        if self._partial:
            out += self.forget()
        elif self._uncertain:
            self._uncertain = False
            out.append(Redial())
        for t in self._types.values():
            t.doubtful.clear()
        return out

    def envoy_connected(self) -> None:
        """Note that Envoy has opened a stream."""
        self._envoy = True
        self._acknowledged.clear()
        for t in self._types.values():
            t.begun = False
            t.owed.clear()
            t.pending = {nonce: p for nonce, p in t.pending.items() if p.stream}

    def envoy_gone(self) -> None:
        """Envoy's stream has ended."""
        self._envoy = False
        self._acknowledged.clear()

    def forget(self) -> list[Out]:
        """Drop what is kept, and have the control plane say everything anew."""
        for t in self._types.values():
            t.doubtful.update(t.kept)
            t.kept.clear()
            t.pending.clear()
            t.complete = False
        self.size, self._partial, self._uncertain = 0, False, False
        return [Redial()]

    def request(self, request: Request) -> list[Out]:
        """Take what Envoy says."""
        t = self._types.setdefault(request.type_url, _Type())
        out: list[Out] = []
        ack = self._answered(request, t, out)
        first, t.begun = not t.begun, True
        asked = tuple(n for n in request.subscribe if n != "*")
        wild = "*" in request.subscribe or (first and not request.subscribe)
        have = request.initial_versions
        if first:
            # What waits comes after what is kept, which is older.
            out += self._from_kept(request.type_url, t, t.kept if wild else asked, have, wild)
            out += [self._deliver(p, nonce) for nonce, p in t.pending.items() if p.stream]
        else:
            t.owed.update(t.kept if wild else asked)
            due = t.owed - t.under_way()
            t.owed -= due
            out += self._from_kept(request.type_url, t, sorted(due), {}, False)
        out += self._pass_on(request, t, ack, wild, asked)
        return out

    def _answered(self, request: Request, t: _Type, out: list[Out]) -> Request:
        """Take an ACK or NACK; returns what of it the control plane must hear."""
        silent = Request(request.type_url)
        p = t.pending.pop(request.nonce, None) if request.nonce else None
        if p is None:
            return silent
        if not request.error:
            self._keep(request.type_url, t, p.response)
            return replace(silent, nonce=p.nonce) if self._current(p) else silent
        t.doubtful.update(r.name for r in p.response.resources)
        if p.stream:
            refused = self._refuse(request.type_url, p, request.error)
            return next((o.request for o in refused if isinstance(o, ToPlane)), silent)
        # It was good for the Envoy before. Perhaps another program; start anew.
        log.error("Envoy refused what it was given again: %s", request.error[:_ERROR_TEXT])
        out += self.forget()
        return silent

    def _refuse(self, url: str, p: _Pending, error: str) -> list[Out]:
        self._uncertain = True
        self.rejected[url] += 1
        self.errors[url] = error[:_ERROR_TEXT]
        log.error("Envoy refused %s: %s", url.rpartition(".")[2], error[:_ERROR_TEXT])
        return [ToPlane(Request(url, nonce=p.nonce, error=error))] if self._current(p) else []

    def _current(self, p: _Pending) -> bool:
        return self.connected and p.stream == self._stream

    def _keep(self, url: str, t: _Type, response: Response) -> None:
        for name in response.removed:
            self._drop(t, name)
            t.doubtful.discard(name)
        for resource in response.resources:
            self._drop(t, resource.name)
            t.doubtful.discard(resource.name)
            if not t.wildcard and resource.name not in t.names:
                continue  # given up meanwhile
            self.size += len(resource.payload)
            t.kept[resource.name] = resource
        t.complete = True
        self._acknowledged.add(url)
        self.errors.pop(url, None)
        if self.size > self._limit:
            self._thin()

    def _drop(self, t: _Type, name: str) -> None:
        old = t.kept.pop(name, None)
        if old is not None:
            self.size -= len(old.payload)

    def _thin(self) -> None:
        if not self._partial:
            log.warning(
                "the configuration is larger than %d bytes and is not kept: an Envoy that is"
                " started again waits for the control plane",
                self._limit,
            )
        self._partial, self.size = True, 0
        for t in self._types.values():
            for name, resource in t.kept.items():
                t.kept[name] = replace(resource, payload=b"")

    def _from_kept(
        self, url: str, t: _Type, names: Iterable[str], have: Mapping[str, str], all_of_it: bool
    ) -> list[Out]:
        """Answer from what is kept as far as it goes; `have`: versions that Envoy has already."""
        if self._partial:
            return []
        found = (t.kept[n] for n in names if n in t.kept)
        resources = tuple(r for r in found if have.get(r.name) != r.version)
        must = all_of_it and t.complete
        removed = tuple(n for n in have if n not in t.kept) if must else ()
        if not (resources or must):
            return []
        p = _Pending(Response(url, "", resources, removed))
        nonce = self._new_nonce()
        t.pending = {nonce: p, **t.pending}
        return [self._deliver(p, nonce)]

    def _deliver(self, p: _Pending, nonce: str) -> Out:
        p.tries += 1
        return ToEnvoy(replace(p.response, nonce=nonce))

    def _new_nonce(self) -> str:
        self._nonce += 1
        return str(self._nonce)

    def _pass_on(
        self, request: Request, t: _Type, ack: Request, wild: bool, asked: tuple[str, ...]
    ) -> list[Out]:
        """Tell the control plane of Envoy's answer and of subscriptions that it does not have."""
        subscribe = [n for n in asked if n not in t.names or n not in t.kept or self._partial]
        grows = wild and not t.wildcard
        t.wildcard |= wild
        t.names.update(dict.fromkeys(asked))
        gone = []
        for name in request.unsubscribe:
            if name == "*":
                t.wildcard = False
            elif name in t.names:
                del t.names[name]
                if not t.wildcard:
                    self._drop(t, name)
            gone.append(name)
        if not self.connected or not (t.asked or t.wildcard or t.names):
            return []
        if not t.asked:
            t.asked = True
            return [ToPlane(_first(request.type_url, t))]
        if grows:
            subscribe.insert(0, "*")
        if not (subscribe or gone or ack.nonce):
            return []
        return [ToPlane(replace(ack, subscribe=tuple(subscribe), unsubscribe=tuple(gone)))]

    # ---- control plane -----------------------------------------------------------------------

    def plane_connected(self) -> list[Out]:
        """Begin a stream to the control plane: what is subscribed, and what Envoy has."""
        self.connected = True
        self._stream += 1
        rest = [url for url in self._types if url not in _ORDER]
        out: list[Out] = []
        for url in (*_ORDER, *rest):
            t = self._types.get(url)
            if t is not None:
                t.asked = t.wildcard or bool(t.names)
                if t.asked:
                    out.append(ToPlane(_first(url, t)))
        return out

    def plane_gone(self) -> None:
        """The stream to the control plane has ended; nothing that Envoy has changes."""
        self.connected = False
        for t in self._types.values():
            t.asked = False

    def response(self, response: Response) -> list[Out]:
        """Take what the control plane says."""
        t = self._types.get(response.type_url)
        if t is None:
            log.warning("xds: %s was not asked for", response.type_url[:200])
            return [ToPlane(Request(response.type_url, nonce=response.nonce))]
        nonce = self._new_nonce()
        p = t.pending[nonce] = _Pending(response, self._stream, response.nonce)
        return [self._deliver(p, nonce)] if self._envoy and t.begun else []


def _first(url: str, t: _Type) -> Request:
    """Build a type's first request of a stream. Naming nothing means everything."""
    names = tuple(t.names)
    if t.wildcard and names:
        names = ("*", *names)
    versions = {n: r.version for n, r in t.kept.items()}
    # Envoy may have these, or be about to take them: they are sent again, or removed if they are
    # gone by now.
    for name in t.doubtful:
        if t.wildcard or name in t.names:
            versions[name] = _UNKNOWN
    for name in t.under_way():
        if t.wildcard or name in t.names:
            versions.setdefault(name, _UNKNOWN)
    return Request(url, names, initial_versions=versions)

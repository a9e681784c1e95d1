"""Delta xDS as one connection sees it, without I/O (envoy.service.discovery.v3, the delta variant).

Rule 1: per type at most one response waits for its ACK. What changes meanwhile is not queued: the
difference between what the client has and the newest snapshot is computed when the answer comes.
So a slow client costs one dictionary of versions, and skips states in between.
Rule 2: types are sent in an order (TypeSet). While an earlier type has something to say and must
wait, those that build on it wait too: a workload never overtakes the policies it names, a route
never its cluster.
Rule 3: a NACK counts as an answer. What was refused is sent again when it changes, not before.
Where several resources were in it and its text names none of them, Envoy is sent each once more
alone: what is good must arrive, and which one is bad must be known.
Rule 4: every first request of a type and every explicit subscription gets a response, if need be
an empty one: clients wait for it. What the client has already is not repeated.

Envoy's own three. It answers for clusters only when all of them are warm, and a cluster that has
changed is warm when its endpoints come again, which Envoy does not ask for: endpoints are sent
again with their cluster, never wait for its answer, and routes and listeners do. And a cluster
that is gone is taken away last, when no listener and no route names it any more.

Subscriptions: a first request that names nothing means everything ("wildcard"); naming "*" too;
subscribing and unsubscribing "*" in the first request means nothing yet (on demand). A name is
that of a resource, or "network/ip"; a service brings its workloads along, and what was once sent
is kept up to date. Names that nothing answers to are reported as removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from control_plane.resources import Snapshot
from mesh.errors import BadInput
from mesh.model.convert import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.xds.delta import Request, Resource, Response
from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES

MAX_NAMES: Final = 500_000  # subscriptions and known versions of one connection and type
MAX_NAME: Final = 1024
_ERROR_TEXT: Final = 1000


@dataclass(frozen=True, slots=True)
class TypeSet:
    """The types that one kind of client is served, in the order they are sent.

    after: what a type waits for while that has news to tell and must wait. answered: those of them
    that are waited for until they are answered, news or not. again: a type whose resources are
    sent again with another's of the same name. last: types whose removals wait for all the rest.
    """

    types: tuple[str, ...]
    after: Mapping[str, tuple[str, ...]]
    answered: frozenset[str] = frozenset()
    again: Mapping[str, str] = field(default_factory=dict)
    last: frozenset[str] = frozenset()
    isolates: bool = False  # it refuses all that came together, and does not name the cause


PROXY: Final = TypeSet(
    (AUTHORIZATION_TYPE, ADDRESS_TYPE), after={ADDRESS_TYPE: (AUTHORIZATION_TYPE,)}
)
_ROUTING: Final = (CLUSTER, ENDPOINTS)
ENVOY: Final = TypeSet(
    (CLUSTER, ENDPOINTS, LISTENER, ROUTES),
    after={LISTENER: _ROUTING, ROUTES: _ROUTING},
    answered=frozenset({CLUSTER}),
    again={CLUSTER: ENDPOINTS},
    last=frozenset(_ROUTING),
    isolates=True,
)


@dataclass(frozen=True, slots=True)
class Nack:
    """The client refused these resources."""

    type_url: str
    resources: tuple[Resource, ...]
    error: str

    @property
    def names(self) -> tuple[str, ...]:
        """What was refused."""
        return tuple(r.name for r in self.resources)


@dataclass(slots=True)
class _Watch:
    """One type of one connection."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)  # explicit subscriptions, as asked
    sent: dict[str, str] = field(default_factory=dict)  # resource name: version the client has
    waiting: str = ""  # nonce of the response not yet answered
    last: tuple[Resource, ...] = ()  # what is in it
    alone: list[str] = field(default_factory=list)  # names to send again, one at a time
    # What the next response must contain besides changes.
    owed: bool = False
    repeat: set[str] = field(default_factory=set)  # names to answer even if unchanged
    seen: int = -1  # version of the snapshot that `sent` is current with
    keeps: bool = False  # the client still has what is gone
    reached: int = -1  # version of the snapshot that the client has answered for


class DeltaConnection:
    """The subscriptions of one stream. Feed it requests and snapshots, send what it returns."""

    def __init__(self, served: TypeSet = PROXY) -> None:
        self._served = served
        self._watches: dict[str, _Watch] = {}
        self._nonce = 0
        self.nacks: list[Nack] = []
        self.accepted: list[Resource] = []

    @property
    def subscriptions(self) -> dict[str, dict[str, object]]:
        """Describe the state for the debug page."""
        return {
            t: {
                "wildcard": w.wildcard,
                "subscribed": len(w.names),
                "sent": len(w.sent),
                "waiting": bool(w.waiting),
            }
            for t, w in self._watches.items()
        }

    def drain(self) -> tuple[list[Resource], list[Nack]]:
        """Return what the client has taken and refused since the last call."""
        out = self.accepted, self.nacks
        self.accepted, self.nacks = [], []
        return out

    @property
    def reached(self) -> int:
        """The version of the snapshot that the client has answered for in all it has asked for.

        -1 as long as it has not asked for the last type but one: it is still beginning.
        """
        if self._served.types[-2] not in self._watches:
            return -1
        return min(w.reached for w in self._watches.values())

    def receive_untrusted(self, request: Request, snapshot: Snapshot) -> list[Response]:
        """Take one request; returns what to send now. Raises BadInput on a broken protocol."""
        if request.type_url not in self._served.types:
            raise BadInput(f"type {request.type_url[:200]!r} is not served here")
        watch = self._watches.get(request.type_url)
        first = watch is None
        if watch is None:
            watch = self._watches[request.type_url] = _Watch(owed=True)
        self._answer(request, watch)
        _check_names(request, watch)
        if first:
            _start(request, watch)
        _subscribe(request, watch, first, snapshot)
        _unsubscribe(request, watch, snapshot)
        return self.push(snapshot)

    def push(self, snapshot: Snapshot) -> list[Response]:
        """Return what this snapshot makes due now."""
        out = self._turn(snapshot)
        if any(w.keeps for w in self._watches.values()):
            out += self._turn(snapshot)  # with nothing else to say, what is gone may go
        return out

    def _turn(self, snapshot: Snapshot) -> list[Response]:
        out = []
        held: set[str] = set()
        for type_url in self._served.types:
            watch = self._watches.get(type_url)
            if watch is None:
                continue
            if watch.waiting:
                # Rule 2; what is held comes again with the answer.
                news = watch.owed or watch.alone or watch.seen != snapshot.version
                if news or type_url in self._served.answered:
                    held.add(type_url)
            elif held.isdisjoint(self._served.after.get(type_url, ())):
                response = self._due(type_url, watch, snapshot)
                if response is not None:
                    out.append(response)
                    if type_url in self._served.answered:
                        held.add(type_url)
            else:
                held.add(type_url)
        return out

    def _answer(self, request: Request, watch: _Watch) -> None:
        """Take the ACK or NACK that a request may carry; a stale nonce answers nothing."""
        if not request.nonce or request.nonce != watch.waiting:
            return
        if not request.error:
            self.accepted += watch.last
        else:
            self._refuse(request, watch)
        watch.waiting, watch.last = "", ()
        watch.reached = watch.seen

    def _refuse(self, request: Request, watch: _Watch) -> None:
        named = tuple(r for r in watch.last if _names(request.error, r.name))
        if self._served.isolates and len(watch.last) > 1 and not named:
            watch.alone += [r.name for r in watch.last]
            return
        error = " ".join(request.error.split())[:_ERROR_TEXT]
        self.nacks.append(Nack(request.type_url, named or watch.last, error))

    def _due(self, type_url: str, watch: _Watch, snapshot: Snapshot) -> Response | None:
        settled = type_url not in self._served.last or self._settled(snapshot)
        quiet = not watch.owed and watch.seen == snapshot.version and not watch.alone
        if quiet and not (watch.keeps and settled):
            return None
        if watch.alone:
            return self._alone(type_url, watch, snapshot)
        here = snapshot.of(type_url)
        removed = [name for name in watch.sent if name not in here]
        watch.keeps = bool(removed) and not settled
        if watch.keeps:
            removed = []
        for name in removed:
            del watch.sent[name]
        repeat: set[str] = set()
        for asked in watch.repeat:
            found = snapshot.resolve(type_url, asked)
            repeat.update(found)
            if not found:
                removed.append(asked)
        due = [
            here[name]
            for name in dict.fromkeys(_wanted(type_url, watch, snapshot))
            if name in here and (name in repeat or watch.sent.get(name) != here[name].version)
        ]
        owed, watch.owed, watch.seen = watch.owed, False, snapshot.version
        watch.repeat.clear()
        if not due and not removed and not owed:
            watch.reached = watch.seen
            return None
        for resource in due:
            watch.sent[resource.name] = resource.version
        self._send_again(type_url, due)
        self._nonce += 1
        watch.waiting = str(self._nonce)
        watch.last = tuple(due)
        return Response(
            type_url,
            watch.waiting,
            tuple(due),
            tuple(dict.fromkeys(removed)),
            str(snapshot.version),
        )

    def _alone(self, type_url: str, watch: _Watch, snapshot: Snapshot) -> Response | None:
        """Send one of those that were refused together."""
        while watch.alone:
            resource = snapshot.of(type_url).get(watch.alone.pop(0))
            if resource is None:
                continue
            watch.sent[resource.name] = resource.version
            self._nonce += 1
            watch.waiting, watch.last = str(self._nonce), (resource,)
            return Response(type_url, watch.waiting, (resource,), (), str(snapshot.version))
        return self._due(type_url, watch, snapshot)

    def _settled(self, snapshot: Snapshot) -> bool:
        """Say whether all that might still name what is gone is current, and answered."""
        others = [w for t, w in self._watches.items() if t not in self._served.last]
        return bool(others) and all(
            not w.waiting and not w.owed and w.seen == snapshot.version for w in others
        )

    def _send_again(self, type_url: str, due: Iterable[Resource]) -> None:
        watch = self._watches.get(self._served.again.get(type_url, ""))
        names = watch.names.intersection(r.name for r in due) if watch else set()
        if watch and names:
            watch.repeat |= names
            watch.owed = True


def _names(text: str, name: str) -> bool:
    """Say whether a text has a name in it, not as a part of a longer one."""
    return re.search(rf"(?<![\w|~/.-]){re.escape(name)}(?![\w|~/-]|\.\w)", text) is not None


def _wanted(type_url: str, watch: _Watch, snapshot: Snapshot) -> Iterator[str]:
    """Names of existing resources that the client should have."""
    if watch.wildcard:
        yield from snapshot.of(type_url)
        return
    for name in watch.names:
        yield from snapshot.resolve(type_url, name)
    yield from list(watch.sent)


def _check_names(request: Request, watch: _Watch) -> None:
    names = (request.subscribe, request.unsubscribe, request.initial_versions)
    if any(len(name) > MAX_NAME for group in names for name in group):
        raise BadInput(f"a resource name is longer than {MAX_NAME} characters")
    known = len(watch.names) + len(request.subscribe) + len(request.initial_versions)
    if known > MAX_NAMES:
        raise BadInput(f"more than {MAX_NAMES} names subscribed on one connection")


def _start(request: Request, watch: _Watch) -> None:
    """Take the first request of a type: what the client kept from an earlier connection."""
    watch.wildcard = not request.subscribe
    watch.sent = {name: version for name, version in request.initial_versions.items() if version}


def _subscribe(request: Request, watch: _Watch, first: bool, snapshot: Snapshot) -> None:
    if "*" in request.subscribe:
        watch.wildcard = True
    asked = {name for name in request.subscribe if name != "*"}
    watch.names |= asked
    if first and not (watch.wildcard and "*" not in request.unsubscribe):
        # On demand: names known before are subscriptions. Without a version they were asked for
        # and not yet answered.
        watch.names |= set(request.initial_versions)
        asked |= {name for name, version in request.initial_versions.items() if not version}
    if first:  # what the client kept needs no second telling
        here, kept = snapshot.of(request.type_url), request.initial_versions
        asked = {n for n in asked if n not in here or kept.get(n) != here[n].version}
    if asked:
        watch.repeat |= asked
        watch.owed = True


def _unsubscribe(request: Request, watch: _Watch, snapshot: Snapshot) -> None:
    if not request.unsubscribe:
        return
    gone: set[str] = set()
    for name in request.unsubscribe:
        if name == "*":
            watch.wildcard = False
        else:
            watch.names.discard(name)
            watch.repeat.discard(name)
            gone.update(snapshot.resolve(request.type_url, name))
    if gone and not watch.wildcard:
        kept = set(_resolve_all(request.type_url, watch.names, snapshot))
        for name in gone - kept:
            watch.sent.pop(name, None)


def _resolve_all(type_url: str, names: Iterable[str], snapshot: Snapshot) -> Iterator[str]:
    for name in names:
        yield from snapshot.resolve(type_url, name)

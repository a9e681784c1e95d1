"""Delta xDS as a client sees it, without I/O (envoy.service.discovery.v3, the delta variant).

One object outlives all streams. For each type it knows the version of every resource it holds, and
says so when a stream begins, so that a reconnect costs only what changed meanwhile. Two ways to
subscribe: to everything ("wildcard": the first request names nothing), or on demand (the first
request subscribes and unsubscribes "*"; names follow as they are needed).

Of a response the good resources are kept, and the bad ones refused by name in one NACK. What was
refused is not remembered, so that it is sent again on the next stream; an older good state of it
goes on being used. A name asked for that does not exist comes back as removed; that is remembered
too, because the subscription stays and the server will say when it appears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.errors import BadInput

Decode = Callable[[bytes], Any]  # raises BadInput
MAX_MISSING: Final = 10_000  # names of a type that did not exist when asked for
_ERROR_TEXT: Final = 2000


@dataclass(frozen=True, slots=True)
class Request:
    """What matters of a DeltaDiscoveryRequest."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """One named resource, still encoded; `version` changes with its content alone."""

    name: str
    version: str
    type_url: str
    payload: bytes
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """What matters of a DeltaDiscoveryResponse. version: of all that there is, for people."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """What a response changes: decoded resources by name, and names that are gone.

    answered: names asked for that this response settles.
    """

    type_url: str
    changed: tuple[tuple[str, Any], ...]
    removed: tuple[str, ...]
    answered: frozenset[str] = frozenset()
    rejected: tuple[str, ...] = ()


@dataclass(slots=True)
class _Type:
    decode: Decode
    on_demand: bool
    versions: dict[str, str] = field(default_factory=dict)
    pending: dict[str, None] = field(default_factory=dict)  # asked for, not yet answered
    missing: dict[str, None] = field(default_factory=dict)  # asked for, not there; oldest first
    synced: bool = False  # a response has come once


class DeltaClient:
    """The subscriptions of one client."""

    def __init__(self, types: Mapping[str, Decode], on_demand: Iterable[str] = ()) -> None:
        wanted = frozenset(on_demand)
        self._types = {t: _Type(decode, t in wanted) for t, decode in types.items()}

    @property
    def synced(self) -> bool:
        """Whether every type was answered at least once, on this or an earlier stream."""
        return all(t.synced for t in self._types.values())

    def on_demand(self, type_url: str) -> bool:
        """Whether resources of this type must be asked for."""
        return self._types[type_url].on_demand

    def connect(self) -> list[Request]:
        """Begin a stream: the first request of every type."""
        requests = []
        for url, t in self._types.items():
            if not t.on_demand:
                requests.append(Request(url, initial_versions=dict(t.versions)))
                continue
            again = (*t.pending, *t.missing)
            requests.append(Request(url, ("*", *again), ("*",), dict(t.versions)))
        return requests

    def demand(self, type_url: str, name: str) -> Request | None:
        """Ask for a resource by name or alias; None when that was asked before."""
        t = self._types[type_url]
        if name in t.pending or name in t.missing or name in t.versions:
            return None
        t.pending[name] = None
        return Request(type_url, subscribe=(name,))

    def is_missing(self, type_url: str, name: str) -> bool:
        """Whether the server has said that nothing has this name."""
        return name in self._types[type_url].missing

    def receive(self, response: Response) -> tuple[Update, list[Request]]:
        """Take a response: what it changes, and what to send (its ACK or NACK first).

        Raises BadInput on a type that was never asked for.
        """
        t = self._types.get(response.type_url)
        if t is None:
            raise BadInput(f"xDS: a response of type {response.type_url[:200]!r}, not asked for")
        changed, errors, rejected = [], [], []
        settled: set[str] = set(response.removed)
        for resource in response.resources:
            settled.add(resource.name)
            settled.update(resource.aliases)
            try:
                if resource.type_url != response.type_url:
                    raise BadInput(f"its payload is a {resource.type_url[:200]!r}")
                changed.append((resource.name, t.decode(resource.payload)))
            except BadInput as e:
                errors.append(f"{resource.name}: {e}")
                rejected.append(resource.name)
                t.versions.pop(resource.name, None)
            else:
                t.versions[resource.name] = resource.version
        for name in response.removed:
            t.versions.pop(name, None)
        answered = frozenset(name for name in settled if name in t.pending)
        ack = Request(
            response.type_url, nonce=response.nonce, error="; ".join(errors)[:_ERROR_TEXT]
        )
        requests = [ack, *self._settle(response, t, settled)]
        t.synced = True
        update = Update(
            response.type_url, tuple(changed), response.removed, answered, tuple(rejected)
        )
        return update, requests

    def _settle(self, response: Response, t: _Type, settled: set[str]) -> list[Request]:
        if not t.on_demand:
            return []
        gone = set(response.removed)
        for name in settled:
            if name in gone and (name in t.pending or name in t.missing):
                t.missing[name] = None
            elif name not in gone:
                t.missing.pop(name, None)
            t.pending.pop(name, None)
        excess = list(t.missing)[: max(0, len(t.missing) - MAX_MISSING)]
        for name in excess:
            del t.missing[name]
        return [Request(response.type_url, unsubscribe=tuple(excess))] if excess else []

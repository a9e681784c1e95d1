"""Status: what became of an object, written where its author looks.

Others write status, too: of conditions only the types that are ours are touched, of the parents of
a route (ancestors of a policy) only the entries that carry our controllerName.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from mesh.findings import WAYPOINT_ACCEPTED, ZTUNNEL_ACCEPTED, Condition
from mesh.manifest import Key
from waypoint.config.binding import WAYPOINT_BOUND
from waypoint.config.status import CONTROLLER, ParentStatus, Status

Object = Mapping[str, Any]

MANAGER: Final = "control-plane"
_POLICY: Final = frozenset({ZTUNNEL_ACCEPTED, WAYPOINT_ACCEPTED})
_GATEWAY: Final = frozenset({"Accepted", "Programmed"})
_BOUND: Final = frozenset({WAYPOINT_BOUND})
# Types of conditions that this controller alone writes, by kind.
_OURS: Final[Mapping[str, frozenset[str]]] = {
    "Gateway": _GATEWAY,
    "GatewayClass": _GATEWAY,
    "Pod": _BOUND,
    "Service": _BOUND,
}
# Kinds of which one that carries something of ours, and is not to, has it from before. Gateways of
# other controllers carry conditions of the same types.
_STALE: Final = frozenset(
    {
        "AuthorizationPolicy",
        "BackendTLSPolicy",
        "DestinationRule",
        "GRPCRoute",
        "HTTPRoute",
        "Pod",
        "RequestAuthentication",
        "Service",
        "TCPRoute",
        "TLSRoute",
        "Telemetry",
        "VirtualService",
        "XBackendTrafficPolicy",
    }
)
# Where a kind lists what it is attached to, and what it calls that (Gateway API).
_PARENTS: Final = ("parents", "parentRef")
_LISTS: Final = {
    "BackendTLSPolicy": ("ancestors", "ancestorRef"),
    "XBackendTrafficPolicy": ("ancestors", "ancestorRef"),
}


class StatusStore(Protocol):
    """Where status is written (mesh.store.FolderStore)."""

    def get(self, kind: str, namespace: str | None, name: str) -> dict[str, Any] | None:
        """Read one object."""
        ...

    def patch(
        self,
        kind: str,
        namespace: str | None,
        name: str,
        manager: str,
        patch: Mapping[str, Any] | None,
    ) -> bool:
        """Replace what a manager says about an object."""
        ...


class StatusSink(Protocol):
    """What the engine tells of every change."""

    def write(
        self,
        changed: Mapping[Key, Object],
        gone: set[Key],
        said: Mapping[Key, Status | None],
        now: str,
    ) -> int:
        """See to it that objects carry their status; returns how many were written by now.

        said: what is to be said otherwise than before; None: nothing any more.
        """
        ...


def list_of(kind: str) -> str:
    """Name the list of a kind's status that several controllers share."""
    return _LISTS.get(kind, _PARENTS)[0]


def make_status(obj: Object, status: Status, now: str) -> dict[str, Any]:
    """Build our part of an object's status; a condition's time changes with its status only.

    The list of parents is whole: entries of other controllers are in it as they are.
    """
    there = _mapping(obj.get("status"))
    generation = obj["metadata"].get("generation")
    out: dict[str, Any] = {}
    if status.conditions:
        out["conditions"] = _conditions(status.conditions, there, generation, now)
    for name, value in status.fields.items():
        out[name] = _nested(value, there.get(name), generation, now)
    field, ref = _LISTS.get(obj["kind"], _PARENTS)
    own = [_parent(p, ref, there.get(field), generation, now) for p in status.parents]
    entries = [*_of_others(there.get(field)), *own]
    if own or _of_us(there.get(field)):
        out[field] = entries
    return out


def _conditions(
    conditions: Iterable[Condition], there: Any, generation: Any, now: str
) -> list[dict[str, Any]]:
    existing = _mapping(there).get("conditions")
    return [_condition(c, existing, generation, now) for c in conditions]


def _condition(condition: Condition, existing: Any, generation: Any, now: str) -> dict[str, Any]:
    old = next((c for c in _mappings(existing) if c.get("type") == condition.type), {})
    status = str(condition.status)
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    out = {
        "type": condition.type,
        "status": status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": since or now,
    }
    if isinstance(generation, int):
        out["observedGeneration"] = generation
    return out


def _parent(
    parent: ParentStatus, ref: str, existing: Any, generation: Any, now: str
) -> dict[str, Any]:
    old = next((p for p in _of_us(existing) if p.get(ref) == parent.ref), {})
    return {
        ref: dict(parent.ref),
        "controllerName": CONTROLLER,
        "conditions": _conditions(parent.conditions, old, generation, now),
    }


def _nested(value: Any, existing: Any, generation: Any, now: str) -> Any:
    """Render conditions within a field of status; items of lists are told apart by name."""
    if isinstance(value, Mapping):
        return {
            k: _conditions(v, existing, generation, now)
            if k == "conditions"
            else _nested(v, _mapping(existing).get(k), generation, now)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        by_name = {m.get("name"): m for m in _mappings(existing)}
        return [_nested(v, by_name.get(_mapping(v).get("name")), generation, now) for v in value]
    return value


def is_current(obj: Object, wanted: Mapping[str, Any]) -> bool:
    """Say whether an object's status says this already, and nothing else of ours."""
    there = _mapping(obj.get("status"))
    ours = _OURS.get(obj["kind"], _POLICY)
    said = {c["type"]: c for c in _mappings(there.get("conditions")) if c.get("type") in ours}
    if said != {c["type"]: c for c in wanted.get("conditions", ())}:
        return False
    field = list_of(obj["kind"])
    if field not in wanted and _of_us(there.get(field)):
        return False
    return all(there.get(name) == value for name, value in wanted.items() if name != "conditions")


def with_ours(live: Object, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Put our entries of a shared list beside those that others have there now."""
    field = list_of(live["kind"])
    others = _of_others(_mapping(live.get("status")).get(field))
    return {field: [*others, *_of_us(wanted.get(field))]}


def _of_us(entries: Any) -> list[Mapping[str, Any]]:
    return [e for e in _mappings(entries) if e.get("controllerName") == CONTROLLER]


def _of_others(entries: Any) -> list[Mapping[str, Any]]:
    return [e for e in _mappings(entries) if e.get("controllerName") != CONTROLLER]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


class StatusBook:
    """What objects should say. Looks at what changed only; `find` reads an object that did not."""

    def __init__(self, find: Callable[[Key], Object | None]) -> None:
        self._find = find
        self._said: dict[Key, Status] = {}
        self._leaving: set[Key] = set()  # had a status of ours, and are to have none

    def update(
        self,
        changed: Mapping[Key, Object],
        gone: set[Key],
        said: Mapping[Key, Status | None],
        now: str,
    ) -> Iterator[tuple[Key, Object, dict[str, Any] | None]]:
        """Take a change in; yields (key, object, our part of its status; None where it has it)."""
        touched = self._hear(said)
        for key, obj in changed.items():
            if key in self:
                touched.add(key)
            elif key.kind in _STALE and not is_current(obj, {}):
                # What was said before this process began, and is not to be said any more.
                self._leaving.add(key)
                touched.add(key)
        for key in gone:
            self._said.pop(key, None)
            self._leaving.discard(key)
        for key in sorted(touched - gone):
            found = changed.get(key) or self._find(key)
            if found is None:
                continue
            wanted = make_status(found, self._said.get(key, Status()), now)
            current = is_current(found, wanted)
            if current:
                self._leaving.discard(key)
            yield key, found, None if current else wanted

    def _hear(self, said: Mapping[Key, Status | None]) -> set[Key]:
        """Take in what is said; returns the objects about which it is news."""
        news = set()
        for key, status in said.items():
            if status is None:
                if self._said.pop(key, None) is not None:
                    self._leaving.add(key)
                    news.add(key)
            elif self._said.get(key) != status:
                self._said[key] = status
                self._leaving.discard(key)
                news.add(key)
        return news

    def speaks(self, key: Key) -> bool:
        """Say whether there is something to say about an object."""
        return key in self._said

    def wrote(self, key: Key) -> None:
        """What was to be taken back is; what is still there is somebody else's."""
        self._leaving.discard(key)

    def __contains__(self, key: Key) -> bool:
        """Say whether there is something to say about an object, or to take back."""
        return key in self._said or key in self._leaving


class StatusWriter:
    """Keeps the status of objects in a store current; writes nothing that is there already."""

    def __init__(self, store: StatusStore) -> None:
        self._store = store
        self._book = StatusBook(lambda key: store.get(*key))
        self._owed: dict[Key, dict[str, Any]] = {}  # still to be written

    def write(
        self,
        changed: Mapping[Key, Object],
        gone: set[Key],
        said: Mapping[Key, Status | None],
        now: str,
    ) -> int:
        """Write what differs; returns how many objects were written.

        What could not be written (OSError) is written by the next call.
        """
        for key, _, wanted in self._book.update(changed, gone, said, now):
            self._owed.pop(key, None)
            if wanted is not None:
                self._owed[key] = wanted
        for key in gone:
            self._owed.pop(key, None)
        written = 0
        for key, wanted in list(self._owed.items()):
            patch = {"status": wanted} if self._book.speaks(key) else None
            written += self._store.patch(*key, MANAGER, patch)
            self._book.wrote(key)
            del self._owed[key]
        return written

"""Status conditions: what became of a policy, written where its author looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from mesh.findings import WAYPOINT_ACCEPTED, ZTUNNEL_ACCEPTED, Condition
from mesh.manifest import Key

MANAGER: Final = "control-plane"
_OURS: Final = frozenset({ZTUNNEL_ACCEPTED, WAYPOINT_ACCEPTED})


class StatusStore(Protocol):
    """Where status is written (mesh.store.FolderStore)."""

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
        changed: Mapping[Key, Mapping[str, Any]],
        gone: set[Key],
        conditions: Mapping[Key, Condition],
        now: str,
    ) -> int:
        """See to it that objects carry their conditions; returns how many were written by now."""
        ...


def make_condition(obj: Mapping[str, Any], condition: Condition, now: str) -> dict[str, Any]:
    """Build the condition as an API object; its transition time changes with its status only."""
    existing = (obj.get("status") or {}).get("conditions")
    old = next(
        (
            c
            for c in (existing if isinstance(existing, list) else [])
            if isinstance(c, dict) and c.get("type") == condition.type
        ),
        {},
    )
    status = str(condition.status)
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    out = {
        "type": condition.type,
        "status": status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": since or now,
    }
    generation = obj["metadata"].get("generation")
    if isinstance(generation, int):
        out["observedGeneration"] = generation
    return out


def is_current(obj: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Say whether the object carries this condition already, and no other one of ours."""
    existing = (obj.get("status") or {}).get("conditions")
    ours = [
        c
        for c in (existing if isinstance(existing, list) else [])
        if isinstance(c, dict) and c.get("type") in _OURS
    ]
    return ours == [wanted]


class StatusBook:
    """The objects with conditions, and what they should carry. Looks at what changed only."""

    def __init__(self) -> None:
        self._objects: dict[Key, Mapping[str, Any]] = {}
        self._conditions: dict[Key, Condition] = {}

    def update(
        self,
        changed: Mapping[Key, Mapping[str, Any]],
        gone: set[Key],
        conditions: Mapping[Key, Condition],
        now: str,
    ) -> Iterator[tuple[Key, Mapping[str, Any], dict[str, Any] | None]]:
        """Take a change in; yields (key, object, condition it lacks, or None when it has it)."""
        touched = {k for k in changed if k in conditions}
        touched |= {k for k, c in conditions.items() if self._conditions.get(k) != c}
        self._objects.update({k: o for k, o in changed.items() if k in conditions})
        self._conditions = dict(conditions)
        for key in [k for k in self._objects if k in gone or k not in conditions]:
            del self._objects[key]
        for key in sorted(touched & self._objects.keys()):
            obj = self._objects[key]
            wanted = make_condition(obj, conditions[key], now)
            yield key, obj, None if is_current(obj, wanted) else wanted

    def __contains__(self, key: Key) -> bool:
        """Say whether an object is known and has a condition."""
        return key in self._objects


class StatusWriter:
    """Keeps the conditions of policies in a store current; writes nothing that is there already."""

    def __init__(self, store: StatusStore) -> None:
        self._store = store
        self._book = StatusBook()

    def write(
        self,
        changed: Mapping[Key, Mapping[str, Any]],
        gone: set[Key],
        conditions: Mapping[Key, Condition],
        now: str,
    ) -> int:
        """Write what differs; returns how many objects were written."""
        written = 0
        for key, _, wanted in self._book.update(changed, gone, conditions, now):
            if wanted is not None:
                patch = {"status": {"conditions": [wanted]}}
                written += self._store.patch(*key, MANAGER, patch)
        return written

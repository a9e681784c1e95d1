"""What objects are told about themselves, before it is written anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.findings import Condition

CONTROLLER: Final = "ambit.io/mesh-controller"  # status.parents[].controllerName, GatewayClass
_MAX_MESSAGE: Final = 4096
_MAX_NAMES: Final = 8


@dataclass(frozen=True, slots=True)
class ParentStatus:
    """What one parent of a route says (RouteParentStatus); `ref` is the parentRef as written."""

    ref: Mapping[str, Any]
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """The status of one object: conditions, or parents for routes, and what else its kind has."""

    conditions: tuple[Condition, ...] = ()
    parents: tuple[ParentStatus, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)  # addresses, listeners, ...


def joined(parts: Iterable[str]) -> str:
    """Put the parts of a message together, each of them once."""
    message = "; ".join(dict.fromkeys(p for p in parts if p))
    return message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "..."


def listed(found: Iterable[str]) -> str:
    """List names, sorted: a few of them, since there may be thousands."""
    names = sorted(found)
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")

"""What objects are told about themselves, before it is written anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.findings import Condition

CONTROLLER: Final = "ambit.io/mesh-controller"  # status.parents[].controllerName, GatewayClass


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

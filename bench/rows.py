"""The rows: where the two pods stand, and what runs between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """What a row measures, and the unit of its rate."""

    THROUGHPUT = "Gbit/s"
    REQUESTS = "requests/s"
    CONNECTIONS = "connections/s"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result. `server` is the name of the server pod."""

    name: str
    kind: Kind
    server: str
    parallel: int  # connections of the load generator

    @property
    def scale(self) -> float:
        """What a rate is divided by for printing."""
        return 1e9 if self.kind is Kind.THROUGHPUT else 1.0


SERVERS: Final = {"across": "server-across", "samenode": "server-near"}

# wrk with four connections keeps one new connection in flight per core and one waiting on each:
# enough to fill two cores, few enough that the accept queue never decides.
_SHAPES: Final = (
    ("throughput", Kind.THROUGHPUT, 1),
    ("rps1", Kind.REQUESTS, 1),
    ("rps16", Kind.REQUESTS, 16),
    ("newconn", Kind.CONNECTIONS, 4),
)

ROWS: Final = {
    f"{place}-{shape}": Row(f"{place}-{shape}", kind, server, parallel)
    for place, server in SERVERS.items()
    for shape, kind, parallel in _SHAPES
}

WAYPOINT_SERVER: Final = SERVERS["across"]
# Through a waypoint, which knows HTTP: no row of bytes alone.
WAYPOINT_ROWS: Final = {
    f"waypoint-{shape}": Row(f"waypoint-{shape}", kind, WAYPOINT_SERVER, parallel)
    for shape, kind, parallel in _SHAPES
    if kind is not Kind.THROUGHPUT
}

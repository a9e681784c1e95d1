"""What ztunnel's control process and its relay workers say to each other.

One unix SOCK_STREAM pair per worker. A message is a pickle of one of these dataclasses (both ends
are our own processes, of the same build, and the pair is inherited, never named), framed by
ztunnel.channel. File descriptors of a message travel by SCM_RIGHTS with its first byte.
Everything a worker decides alone it decides from what it was given here; what it does not know it
asks, once, and keeps until `Forget`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mesh.ca.held import Certificate as Certificate
from mesh.model import Authorization

# ---- values ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a workload is, for labels, logs and baggage. Empty strings are unknown."""

    uid: str = ""
    workload: str = ""  # owning workload's name (deployment, ...)
    pod: str = ""
    namespace: str = ""
    identity: str = ""  # spiffe://...
    workload_type: str = "pod"  # deployment | cronjob | pod | job, as baggage spells it
    canonical_service: str = ""
    canonical_revision: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True)
class ServiceRef:
    """The service a connection was addressed to."""

    name: str = ""
    namespace: str = ""
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place a connection may go.

    hbone: dial `tunnel_address`, accept one of `identities`, CONNECT `authority`.
    Not hbone: dial `address` plainly. spread: it serves each connection in one thread, so many
    streams are given several.
    """

    address: tuple[str, int]
    hbone: bool
    tunnel_address: tuple[str, int]
    authority: str
    identities: tuple[str, ...]
    weight: int
    peer: Peer
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """Where connections of one pod to one original destination go.

    Endpoints of the best locality only; the worker picks by weight at random. `error` set means
    refuse: the text goes to the access log, `flag` to response_flags.
    """

    endpoints: tuple[Endpoint, ...] = ()
    service: ServiceRef | None = None
    passthrough: bool = False  # unknown destination: plain TCP to where the client asked
    error: str = ""
    flag: str = "-"


# ---- control process to worker ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodAdd:
    """Serve a pod. fds: network namespace, then one listener for each role in `roles`.

    Roles and redirect use the numbers of mesh/pb/zds.proto (Listener, Redirect).
    Sent again with the same uid it replaces what is known; listeners are then closed and re-taken.
    """

    uid: str
    peer: Peer
    addresses: tuple[str, ...]
    roles: tuple[int, ...]
    redirect: int
    inbound: bool = True
    policies: tuple[Authorization, ...] | None = None  # None: they come; until then refuse


@dataclass(frozen=True, slots=True)
class PodDel:
    """Stop serving a pod: close its listeners and all of its connections.

    With the last pod of an identity the worker drops its certificate.
    """

    uid: str


@dataclass(frozen=True, slots=True)
class Policies:
    """The effective policies of one pod. Live inbound connections are judged again at once."""

    uid: str
    policies: tuple[Authorization, ...]


@dataclass(frozen=True, slots=True)
class RouteReply:
    """Answer to RouteQuery."""

    query: int
    route: Route


@dataclass(frozen=True, slots=True)
class PeerReply:
    """Answer to PeerQuery."""

    query: int
    peer: Peer


@dataclass(frozen=True, slots=True)
class Forget:
    """Cached routes and peers may be stale: ask again (live connections stay)."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new connection, GOAWAY every HBONE connection, exit when idle or at the deadline."""

    seconds: float


@dataclass(frozen=True, slots=True)
class DumpQuery:
    """Ask for the live connections of every pod (for /config_dump)."""

    query: int


# ---- worker to control process ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """Where does `pod`'s connection to this original destination go?"""

    query: int
    pod: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class PeerQuery:
    """Who is at this source address? `pod` is the local pod that was connected to."""

    query: int
    pod: str
    address: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection was accepted and its first decision made."""

    conn: Connection


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection ended. Bytes are from the reporter's own side (sent = toward the far end).

    Bytes already told by Progress are in them again. opened: an Opened came before.
    """

    conn: Connection
    bytes_sent: int
    bytes_recv: int
    duration_ms: int
    flag: str = "-"  # response_flags of the metrics contract
    error: str = ""
    opened: bool = True
    told_sent: int = 0  # of the bytes, told by Progress before
    told_recv: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes since the last report of a long-lived connection, own side, so that metrics live."""

    conn: Connection
    bytes_sent: int
    bytes_recv: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One captured connection, as its access-log line and labels need it."""

    pod: str  # uid of the local pod
    direction: str  # "outbound" | "inbound"
    src: tuple[str, int]
    dst: tuple[str, int]  # outbound: endpoint chosen; inbound: local address
    original: tuple[str, int]  # what the client asked for
    hbone: tuple[str, int] | None  # far end of the tunnel
    secure: bool
    source: Peer
    destination: Peer
    service: ServiceRef | None = None


@dataclass(frozen=True, slots=True)
class Reports:
    """A batch, at most every REPORT_INTERVAL seconds."""

    events: tuple[Opened | Closed | Progress | DryRun, ...]
    sockets_open: int = 0


@dataclass(frozen=True, slots=True)
class DryRun:
    """A dry-run policy would have refused this connection."""

    conn: Connection
    policy: str


@dataclass(frozen=True, slots=True)
class DumpReply:
    """Answer to DumpQuery: per pod uid, its live connections with byte counts (sent, recv)."""

    query: int
    connections: dict[str, list[tuple[Connection, int, int]]] = field(default_factory=dict)


REPORT_INTERVAL: Final = 0.25
MAX_MESSAGE: Final = 16 << 20

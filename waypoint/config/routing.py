"""Routes as the waypoint knows them, whatever kind of object they were written in.

HTTPRoute, GRPCRoute and VirtualService all become HttpRule values, TCPRoute and TLSRoute TcpRule
values, in the order in which they are tried: the first rule that matches a request takes it.
Durations are seconds. Names of headers are lower case. Services are keyed "namespace/hostname".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mesh.manifest import Key

# Tried again where an object does not say on what: what certainly did not reach the application,
# or was lost on the way there. A backend that is gone shows as a reset: the waypoint's own tunnel
# always connects.
DEFAULT_RETRY_ON: Final = ("connect-failure", "refused-stream", "unavailable", "cancelled", "reset")
DEFAULT_ATTEMPTS: Final = 2

MatchKind = Literal["exact", "prefix", "suffix", "regex", "present"]


@dataclass(frozen=True, slots=True)
class TextMatch:
    """One text compared; "present" is any value. Regular expressions are RE2, matched whole."""

    kind: MatchKind
    value: str = ""
    ignore_case: bool = False
    invert: bool = False  # an inverted match of an absent value matches


@dataclass(frozen=True, slots=True)
class PathMatch:
    """How a path is compared.

    "segments" is the prefix of Gateway API ("/a" matches "/a", "/a/" and "/a/b", never "/ab");
    "prefix" is that of VirtualService, text by text.
    """

    kind: Literal["exact", "segments", "prefix", "regex"]
    value: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """All that is set must match."""

    path: PathMatch | None = None
    method: TextMatch | None = None
    authority: TextMatch | None = None
    scheme: TextMatch | None = None
    headers: tuple[tuple[str, TextMatch], ...] = ()
    query: tuple[tuple[str, TextMatch], ...] = ()
    grpc: bool = False  # only gRPC requests
    source_namespaces: tuple[str, ...] = ()  # of the caller's identity; () is any


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """Changes of headers, in the order remove, set, add."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What the backend sees instead."""

    host: str = ""
    path: str = ""  # replaces the whole path, if full; else what the match's prefix matched
    full: bool = False
    regex: str = ""  # with `path` as its substitution, instead of the two above


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answered by the waypoint. Empty and 0: as in the request."""

    code: int = 302
    scheme: str = ""
    host: str = ""
    port: int | None = None  # None: the scheme's own if a scheme is set, else the request's
    path: str = ""
    full: bool = False  # `path` replaces the whole path, else the matched prefix


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """Answered by the waypoint."""

    code: int
    body: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Delays and aborts, percent of requests (0 to 100)."""

    delay: float = 0.0
    delay_percent: float = 0.0
    abort_code: int = 0
    abort_grpc: int | None = None  # a gRPC status instead of an HTTP code
    abort_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Cors:
    """CORS of one rule. Origins are matched against the Origin header."""

    origins: tuple[TextMatch, ...] = ()
    methods: tuple[str, ...] = ()
    request_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age: int | None = None
    credentials: bool = False
    forward_unmatched: bool = True  # preflights of other origins reach the backend
    echo_headers: bool = False  # all that a preflight asks for, instead of request_headers


@dataclass(frozen=True, slots=True)
class Retry:
    """What is tried again. `conditions` are Envoy's retry_on words besides the status codes.

    `attempts` counts tries after the first one; 0 switches the mesh's default retries off.
    """

    attempts: int
    codes: tuple[int, ...] = ()
    conditions: tuple[str, ...] = ()
    per_try_timeout: float | None = None
    backoff: float | None = None
    max_backoff: float | None = None
    other_hosts: bool = True  # a host that failed is not tried again at once
    other_places: bool = False  # after two tries in one place, the next one is tried


@dataclass(frozen=True, slots=True)
class Session:
    """A session is kept on one endpoint by a cookie or a header."""

    kind: Literal["cookie", "header"]
    name: str
    path: str = "/"
    absolute_timeout: float = 0.0
    idle_timeout: float = 0.0
    permanent: bool = False  # the cookie outlives the browser, for absolute_timeout


@dataclass(frozen=True, slots=True, order=True)
class BackendRef:
    """A service's port, perhaps only a subset of its endpoints (DestinationRule)."""

    service: str
    port: int
    subset: str = ""


@dataclass(frozen=True, slots=True)
class WeightedBackend:
    """Where a share of requests goes; no ref is a backend that is invalid: 500, by its weight."""

    ref: BackendRef | None
    weight: int = 1
    request: HeaderChange = HeaderChange()
    response: HeaderChange = HeaderChange()
    rewrite: Rewrite | None = None


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of requests whose answers are thrown away."""

    ref: BackendRef
    percent: float = 100.0


@dataclass(frozen=True, slots=True)
class HttpRule:
    """One rule of one match: what happens to the requests that it takes.

    No backends and neither redirect nor response: 500, as Gateway API asks.
    `origin` is the object that says so; `name` is for logs, metrics and Envoy's route name.
    """

    origin: Key
    name: str
    match: RouteMatch = RouteMatch()
    backends: tuple[WeightedBackend, ...] = ()
    redirect: Redirect | None = None
    response: DirectResponse | None = None
    rewrite: Rewrite | None = None
    request_headers: HeaderChange = HeaderChange()
    response_headers: HeaderChange = HeaderChange()
    mirrors: tuple[Mirror, ...] = ()
    timeout: float | None = None  # None: no limit
    backend_timeout: float | None = None  # of each try
    retry: Retry | None = None  # None: the mesh's default
    session: Session | None = None
    cors: Cors | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class TcpRule:
    """Where connections go; `sni` is for TLS that is passed through (TLSRoute), () is any."""

    origin: Key
    name: str
    backends: tuple[WeightedBackend, ...] = ()
    sni: tuple[str, ...] = ()
    source_namespaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Routes:
    """All rules of one port of one service, in the order in which they are tried.

    `http` None: no route of HTTP kind is attached, requests go to the service itself. A request
    that matches none of the rules is answered with 404. The same for `tcp`, where a connection
    that matches nothing is closed.
    """

    http: tuple[HttpRule, ...] | None = None
    tcp: tuple[TcpRule, ...] | None = None

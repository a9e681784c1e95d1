"""Who may do what at a waypoint, read: the values between objects and Envoy's filters.

All frozen and compared by value. Order of judgement: tokens, CUSTOM, AUDIT, DENY, ALLOW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from mesh.model import StringMatch
from waypoint.config.routing import BackendRef

Action = Literal["CUSTOM", "AUDIT", "DENY", "ALLOW"]
TargetKind = Literal["Service", "ServiceEntry", "Gateway", "GatewayClass"]


class Target(NamedTuple):
    """What a policy is attached to, by its object; namespace is "" for a GatewayClass."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """Kind ns/name, as messages name it."""
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A path with {*} (one segment) and {**} (any number of segments), as written."""

    text: str


Value = StringMatch | PathTemplate | str | int | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Check:
    """One attribute compared: one of the values must match, or none of them if negated.

    Attributes are named as in `when`, besides request.{host,method,path}. `name` is the header's,
    or the path of the claim. Values: StringMatch; PathTemplate for paths; a CIDR for addresses; a
    number for ports; (namespace, name) for service accounts.
    """

    attribute: str
    values: tuple[Value, ...]
    negated: bool = False
    name: tuple[str, ...] = ()


# All tests must hold; no tests: always true.
Alternative = tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Clauses AND'ed, their alternatives OR'ed. `index` is its place in the object, for logs."""

    index: int
    clauses: tuple[tuple[Alternative, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """One AuthorizationPolicy; no rules never matches."""

    namespace: str
    name: str
    action: Action
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    provider: str = ""  # CUSTOM

    @property
    def key(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class JwtRule:
    """Tokens of one issuer; `keys` is a JWKS. Without usable keys no token of it is valid."""

    policy: str  # namespace/name of the RequestAuthentication
    issuer: str
    keys: str
    audiences: tuple[str, ...] = ()
    # Where tokens are looked for; nothing at all is Authorization: Bearer and ?access_token=.
    headers: tuple[tuple[str, str], ...] = ()  # (name, prefix of the value)
    params: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    forward: bool = False
    payload_header: str = ""
    claim_headers: tuple[tuple[str, str], ...] = ()  # (header, claim)
    space_delimited: tuple[str, ...] = ("scope", "permission")  # claims that are lists in one text

    @property
    def locations(self) -> frozenset[tuple[str, str]]:
        """Where its tokens are looked for, as (kind, lower-case name of a header or the name)."""
        found = {("header", name.lower()) for name, _ in self.headers}
        found |= {("param", name) for name in self.params}
        found |= {("cookie", name) for name in self.cookies}
        return frozenset(found or {("header", "authorization"), ("param", "access_token")})


@dataclass(frozen=True, slots=True)
class Provider:
    """A service that CUSTOM policies ask. Header names are lower case; durations are seconds."""

    name: str
    backend: BackendRef
    grpc: bool = False
    timeout: float = 10.0
    fail_open: bool = False
    status_on_error: int = 403
    path_prefix: str = ""
    check_headers: tuple[StringMatch, ...] = ()  # of the request, sent along (HTTP)
    added_headers: tuple[tuple[str, str], ...] = ()  # sent along (HTTP)
    upstream_headers: tuple[StringMatch, ...] = ()  # of its answer, to the application
    downstream_headers: tuple[StringMatch, ...] = ()  # of its refusal, to the caller
    downstream_headers_allowed: tuple[StringMatch, ...] = ()  # of its consent, to the caller
    body_bytes: int = 0  # of the request's body sent along; 0 is none
    body_partial: bool = False
    body_raw: bool = False
    clear_route_cache: bool = False


@dataclass(frozen=True, slots=True)
class Security:
    """What protects one service or workload at its waypoint. Nothing: everything may pass."""

    policies: tuple[Policy, ...] = ()
    jwt: tuple[JwtRule, ...] = ()
    providers: tuple[Provider, ...] = ()  # that CUSTOM policies name, as far as they exist

    def of(self, action: Action, dry_run: bool = False) -> tuple[Policy, ...]:
        """Choose the policies of an action."""
        return tuple(p for p in self.policies if p.action == action and p.dry_run is dry_run)

    def provider(self, name: str) -> Provider | None:
        """Find a provider."""
        return next((p for p in self.providers if p.name == name), None)

    @property
    def enforces(self) -> bool:
        """Say whether anything can be refused: then nobody may go around the waypoint."""
        return bool(self.jwt) or any(not p.dry_run and p.action != "AUDIT" for p in self.policies)


OPEN: Final = Security()

"""L4 authorization: a set of policies and a connection give a decision. Pure.

DENY first, then ALLOW: no ALLOW policy means allow, else one must match. Rules OR, clauses AND,
matches OR, kinds inside a match AND, values OR. What is empty, from the outside in: a policy
without rules never matches, a rule without clauses and a clause without matches always do, a
match without conditions never does. The order of tests inside a match is by cost.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from mesh.model import Action, Authorization, Match, SpiffeId, StringMatch

_Ip = tuple[int, int]  # version, value
_NO_IP: _Ip = (0, 0)  # what does not parse is in no network


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged. `identity` is None where the peer proved none (plaintext)."""

    identity: SpiffeId | None
    source_ip: str
    destination_ip: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`policy` is the key of the policy that decided ("" where none did).

    `dry_run` names policies that would have refused, had they been enforced.
    """

    allowed: bool
    policy: str = ""
    reason: str = ""
    dry_run: tuple[str, ...] = ()


class PolicySet:
    """The effective policies of one workload, compiled once, judged often."""

    def __init__(self, policies: Iterable[Authorization] = ()) -> None:
        compiled = [_Policy(p) for p in policies]
        self._deny = [p for p in compiled if p.deny and not p.dry_run]
        self._allow = [p for p in compiled if not p.deny and not p.dry_run]
        self._dry_deny = [p for p in compiled if p.deny and p.dry_run]
        self._dry_allow = [p for p in compiled if not p.deny and p.dry_run]
        self._empty = not compiled

    def judge(self, subject: Subject) -> Decision:
        """Decide one connection."""
        if self._empty:
            return _ALLOWED
        facts = _Facts(subject)
        denied = _first(self._deny, facts)
        allowed = None if denied else _first(self._allow, facts)
        dry_run = self._dry_run(facts, allowed)
        if denied:
            return Decision(False, denied.key, f"explicitly denied by: {denied.key}", dry_run)
        if allowed:
            return Decision(True, allowed.key, "", dry_run)
        if self._allow:
            return Decision(False, "", "allow policies exist, but none allowed", dry_run)
        return Decision(True, "", "", dry_run) if dry_run else _ALLOWED

    def _dry_run(self, facts: _Facts, allowed: _Policy | None) -> tuple[str, ...]:
        refusing = [p.key for p in self._dry_deny if p.matches(facts)]
        if self._dry_allow and allowed is None and _first(self._dry_allow, facts) is None:
            refusing += [p.key for p in self._dry_allow]
        return tuple(refusing)


_ALLOWED = Decision(True)


def _first(policies: list[_Policy], facts: _Facts) -> _Policy | None:
    for policy in policies:
        if policy.matches(facts):
            return policy
    return None


class _Facts:
    """One subject in the forms that conditions compare; addresses are parsed when first asked."""

    __slots__ = (
        "_destination",
        "_source",
        "_subject",
        "account",
        "namespace",
        "port",
        "principal",
    )

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._source: _Ip | None = None
        self._destination: _Ip | None = None
        identity = subject.identity
        self.port = subject.destination_port
        self.principal = None if identity is None else identity.principal
        self.namespace = "" if identity is None else identity.namespace
        self.account = None if identity is None else (identity.namespace, identity.service_account)

    def source(self) -> _Ip:
        if self._source is None:
            self._source = _parse_ip(self._subject.source_ip)
        return self._source

    def destination(self) -> _Ip:
        if self._destination is None:
            self._destination = _parse_ip(self._subject.destination_ip)
        return self._destination


def _parse_ip(text: str) -> _Ip:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return _NO_IP
    if address.version == 6 and address.ipv4_mapped:  # a v4 peer seen through a dual-stack socket
        return 4, int(address.ipv4_mapped)
    return address.version, int(address)


class _Strings:
    """Values of one kind, OR'ed. An absent value (None) matches nothing, not even a prefix ""."""

    __slots__ = ("_exact", "_prefixes", "_presence", "_suffixes")

    def __init__(self, values: tuple[StringMatch, ...]) -> None:
        self._exact = frozenset(v.value for v in values if v.kind == "exact")
        self._prefixes = tuple(v.value for v in values if v.kind == "prefix")
        self._suffixes = tuple(v.value for v in values if v.kind == "suffix")
        self._presence = any(v.kind == "presence" for v in values)

    def match(self, value: str | None) -> bool:
        if value is None:
            return False
        return (
            value in self._exact
            or (self._presence and value != "")
            or value.startswith(self._prefixes)
            or value.endswith(self._suffixes)
        )


class _Networks:
    """Networks of one kind, OR'ed."""

    __slots__ = ("_nets",)

    def __init__(self, values: tuple[str, ...]) -> None:
        nets = [ipaddress.ip_network(v, strict=False) for v in values]
        self._nets = [
            (n.version, int(n.network_address), n.max_prefixlen - n.prefixlen) for n in nets
        ]

    def match(self, ip: _Ip) -> bool:
        version, value = ip
        return any(v == version and (value ^ base) >> shift == 0 for v, base, shift in self._nets)


class _Match:
    """One match: all kinds that are declared must hold. None is a kind not declared."""

    __slots__ = (
        "_accounts",
        "_destinations",
        "_namespaces",
        "_not_accounts",
        "_not_destinations",
        "_not_namespaces",
        "_not_ports",
        "_not_principals",
        "_not_sources",
        "_ports",
        "_principals",
        "_sources",
    )

    def __init__(self, m: Match) -> None:
        self._ports = frozenset(m.destination_ports)
        self._not_ports = frozenset(m.not_destination_ports)
        self._accounts = frozenset(m.service_accounts)
        self._not_accounts = frozenset(m.not_service_accounts)
        self._namespaces = _Strings(m.namespaces) if m.namespaces else None
        self._not_namespaces = _Strings(m.not_namespaces) if m.not_namespaces else None
        self._principals = _Strings(m.principals) if m.principals else None
        self._not_principals = _Strings(m.not_principals) if m.not_principals else None
        self._sources = _Networks(m.source_ips) if m.source_ips else None
        self._not_sources = _Networks(m.not_source_ips) if m.not_source_ips else None
        self._destinations = _Networks(m.destination_ips) if m.destination_ips else None
        self._not_destinations = _Networks(m.not_destination_ips) if m.not_destination_ips else None

    def matches(self, facts: _Facts) -> bool:
        return self._matches_sets(facts) and self._matches_names(facts) and self._matches_ips(facts)

    def _matches_sets(self, f: _Facts) -> bool:
        if self._ports and f.port not in self._ports:
            return False
        if f.port in self._not_ports:
            return False
        if self._accounts and f.account not in self._accounts:
            return False
        return f.account not in self._not_accounts

    def _matches_names(self, f: _Facts) -> bool:
        if self._principals and not self._principals.match(f.principal):
            return False
        if self._not_principals and self._not_principals.match(f.principal):
            return False
        if self._namespaces and not self._namespaces.match(f.namespace):
            return False
        return not (self._not_namespaces and self._not_namespaces.match(f.namespace))

    def _matches_ips(self, f: _Facts) -> bool:
        if self._sources and not self._sources.match(f.source()):
            return False
        if self._not_sources and self._not_sources.match(f.source()):
            return False
        if self._destinations and not self._destinations.match(f.destination()):
            return False
        return not (self._not_destinations and self._not_destinations.match(f.destination()))


_EMPTY = Match()


class _Policy:
    """One compiled policy."""

    __slots__ = ("_rules", "deny", "dry_run", "key")

    def __init__(self, policy: Authorization) -> None:
        self.key = policy.key
        self.deny = policy.action == Action.DENY
        self.dry_run = policy.dry_run
        # A clause without matches holds always and is left out; one whose matches are all empty
        # holds never and stays as [].
        self._rules = [
            [
                [_Match(m) for m in clause.matches if m != _EMPTY]
                for clause in rule.clauses
                if clause.matches
            ]
            for rule in policy.rules
        ]

    def matches(self, facts: _Facts) -> bool:
        return any(
            all(any(m.matches(facts) for m in clause) for clause in rule) for rule in self._rules
        )

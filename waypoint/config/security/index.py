"""All policies of the mesh that are for waypoints, and what they amount to at their targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mesh.findings import WAYPOINT_ACCEPTED, Condition, Findings
from mesh.manifest import Key
from waypoint.config.security.authentication import read_authentication
from waypoint.config.security.jwks import Jwks, read_jwks
from waypoint.config.security.model import JwtRule, Policy, Provider, Security, Target
from waypoint.config.security.policies import Reading, has_targets, http_only, read_policy
from waypoint.config.status import Status

KINDS: Final = ("AuthorizationPolicy", "RequestAuthentication")
_MAX_MESSAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class TargetState:
    """What became of a target, for statuses.

    `waypoints` ("namespace/name") are those that its traffic passes, a waypoint's Gateway is its
    own. `tcp_ports` are those where connections may carry no HTTP.
    """

    found: bool
    waypoints: tuple[str, ...] = ()
    tcp_ports: tuple[int, ...] = ()


class SecurityIndex:
    """Policies by their targets. In memory and pure; not shared between threads."""

    def __init__(self, root_namespace: str) -> None:
        self._root = root_namespace
        self._readings: dict[Key, Reading] = {}
        self._at: dict[Target, set[Key]] = {}
        self._by_uri: dict[str, set[Key]] = {}
        self._by_provider: dict[str, set[Key]] = {}
        self._providers: Mapping[str, Provider] = {}
        self._jwks: dict[str, Jwks] = {}
        self._checked: dict[str, tuple[str, str]] = {}  # uri: (keys, error)

    # ---- changes: each returns the targets whose Security may be another now -----------------

    def put(self, key: Key, obj: Mapping[str, Any] | None) -> frozenset[Target]:
        """Take in an object, or forget it (None). One that is not for waypoints is forgotten."""
        new = self._read(key, obj)
        old = self._readings.pop(key, None)
        for reading, add in ((old, False), (new, True)):
            if reading is None:
                continue
            for index, names in (
                (self._at, reading.targets),
                (self._by_uri, [uri for _, _, uri in reading.uris]),
                (self._by_provider, _provider_of(reading)),
            ):
                _enter(index, names, key, add)
        if new is not None:
            self._readings[key] = new
        same = old is not None and new is not None and _meaning(old) == _meaning(new)
        changed = () if same else (old, new)
        return frozenset(t for r in changed if r is not None for t in r.targets)

    def set_providers(self, providers: Mapping[str, Provider]) -> frozenset[Target]:
        """Replace the extension providers."""
        old, self._providers = self._providers, dict(providers)
        names = {n for n in {*old, *providers} if old.get(n) != providers.get(n)}
        return self._targets_of(self._by_provider, names)

    def set_jwks(self, jwks: Mapping[str, Jwks]) -> frozenset[Target]:
        """Replace what was fetched; a URI without an entry was not fetched yet."""
        old, self._jwks = self._jwks, dict(jwks)
        uris = {u for u in {*old, *jwks} if old.get(u) != jwks.get(u)}
        for uri in uris:
            self._checked.pop(uri, None)
        return self._targets_of(self._by_uri, uris)

    def _read(self, key: Key, obj: Mapping[str, Any] | None) -> Reading | None:
        if obj is None:
            return None
        if key.kind == "RequestAuthentication":
            return read_authentication(obj, self._root)
        if key.kind == "AuthorizationPolicy" and has_targets(obj):
            return read_policy(obj, self._root)
        return None

    def _targets_of(self, index: Mapping[str, set[Key]], names: set[str]) -> frozenset[Target]:
        keys = {key for name in names for key in index.get(name, ())}
        return frozenset(t for key in keys for t in self._readings[key].targets)

    # ---- questions ---------------------------------------------------------------------------

    def __contains__(self, key: Key) -> bool:
        """Say whether an object is held."""
        return key in self._readings

    def keys(self) -> tuple[Key, ...]:
        """List the objects that are held: those that get a status from here."""
        return tuple(self._readings)

    def targets(self, key: Key) -> tuple[Target, ...]:
        """List what an object is attached to: what its status depends on."""
        reading = self._readings.get(key)
        return reading.targets if reading else ()

    def at(self, target: Target) -> tuple[Key, ...]:
        """List the objects that are attached to a target: whose statuses depend on it."""
        return tuple(sorted(self._at.get(target, ())))

    def jwks_uris(self) -> frozenset[str]:
        """List where keys are to be fetched from."""
        return frozenset(self._by_uri)

    def security(self, *targets: Target) -> Security:
        """Sum up what is attached to any of the targets that cover a service or workload."""
        keys = sorted({key for target in targets for key in self._at.get(target, ())})
        policies: list[Policy] = []
        jwt: list[JwtRule] = []
        for key in keys:
            reading = self._readings[key]
            if reading.policy is not None:
                policies.append(reading.policy)
            jwt += self._with_keys(reading)
        named = {p.provider for p in policies}
        providers = [p for name, p in sorted(self._providers.items()) if name in named]
        return Security(tuple(policies), tuple(jwt), tuple(providers))

    def _with_keys(self, reading: Reading) -> list[JwtRule]:
        rules = list(reading.jwt)
        for i, _, uri in reading.uris:
            keys, error = self._keys(uri)
            if not error:
                rules[i] = replace(rules[i], keys=keys)
        return rules

    def _keys(self, uri: str) -> tuple[str, str]:
        """Look up fetched keys: (JWKS, "") or ("", why there are none)."""
        jwks = self._jwks.get(uri)
        if jwks is None:
            return "", "not fetched yet"
        if jwks.error:
            return "", f"cannot be fetched: {jwks.error}"
        if uri not in self._checked:
            try:
                self._checked[uri] = read_jwks(jwks.text), ""
            except ValueError as e:
                self._checked[uri] = "", str(e)
        return self._checked[uri]

    # ---- statuses ----------------------------------------------------------------------------

    def status(self, key: Key, state: Callable[[Target], TargetState]) -> Status:
        """Say what became of an object that is held."""
        reading = self._readings[key]
        findings = Findings()
        findings.add(reading.findings)
        for i, path, uri in reading.uris:
            error = self._keys(uri)[1]
            if error:
                findings.invalid.append(f"{path}: {uri:.200}: {error:.300}")
                findings.consequences.append(f"tokens of {reading.jwt[i].issuer} are refused")
        for name in _provider_of(reading):
            if name not in self._providers:
                known = ", ".join(sorted(self._providers)) or "none"
                findings.invalid.append(
                    f"spec.provider.name: there is no extension provider {name!r:.200}"
                    f" (known: {known:.500})"
                )
                findings.consequences.append("what the rules match is refused")
        return Status(conditions=(self._condition(reading, findings, state),))

    def _condition(
        self, reading: Reading, findings: Findings, state: Callable[[Target], TargetState]
    ) -> Condition:
        states = [(target, state(target)) for target in reading.targets]
        missing = [str(t) for t, s in states if not s.found]
        unbound = [str(t) for t, s in states if s.found and not s.waypoints]
        bound = [f"{t} at {', '.join(s.waypoints)}" for t, s in states if s.found and s.waypoints]
        parts = [*findings.invalid, *dict.fromkeys(findings.consequences)]
        if bound:
            parts.append(f"enforced for {'; '.join(bound)}")
        if missing:
            parts.append(f"not found, so NOT enforced there: {', '.join(missing)}")
        if unbound:
            parts.append(f"passes no waypoint, so NOT enforced there: {', '.join(unbound)}")
        if not states and not findings:
            parts.append(
                "NOT enforced: it names no waypoint. Bind it by targetRefs to a Service or a"
                " waypoint's Gateway (ztunnel knows no tokens)"
            )
        parts += _notes(reading, states)
        message = "; ".join(parts)
        if len(message) > _MAX_MESSAGE:
            message = message[:_MAX_MESSAGE] + "..."
        if findings.invalid:
            return Condition(WAYPOINT_ACCEPTED, False, "Invalid", message)
        if bound:
            reason = "PartiallyInvalid" if missing or unbound else "Accepted"
            return Condition(WAYPOINT_ACCEPTED, True, reason, message)
        reason = "TargetNotFound" if missing else "AncestorNotBound"
        return Condition(WAYPOINT_ACCEPTED, False, reason, message)


def _notes(reading: Reading, states: list[tuple[Target, TargetState]]) -> list[str]:
    """Say what is worth knowing about a policy that is enforced as asked for."""
    policy = reading.policy
    notes = []
    ports = sorted({port for _, s in states for port in s.tcp_ports})
    if policy is None:
        if reading.jwt and ports:
            notes.append(f"connections without HTTP (ports {_list(ports)}) have no tokens")
        return notes
    if policy.dry_run:
        notes.append(
            "dry run: nobody is asked"
            if policy.action == "CUSTOM"
            else "dry run: not enforced, what it would refuse is logged"
        )
    attributes = http_only(policy)
    if attributes and ports:
        what = f"connections without HTTP (ports {_list(ports)}) have no {', '.join(attributes)}"
        notes.append(
            f"{what}: rules with them are left out there, less is allowed"
            if policy.action == "ALLOW"
            else f"{what}: rules are taken without them there, more is matched"
        )
    return notes


def _list(ports: list[int]) -> str:
    return ", ".join(map(str, ports[:10])) + (", ..." if len(ports) > 10 else "")


def _provider_of(reading: Reading) -> list[str]:
    return [reading.policy.provider] if reading.policy and reading.policy.provider else []


def _meaning(reading: Reading) -> tuple[Any, ...]:
    return reading.targets, reading.policy, reading.jwt, reading.uris


def _enter(index: dict[Any, set[Key]], names: Any, key: Key, add: bool) -> None:
    """Put a key under its names, or take it away."""
    for name in names:
        if add:
            index.setdefault(name, set()).add(key)
        elif name in index:
            index[name].discard(key)
            if not index[name]:
                del index[name]

"""PeerAuthentication (security.istio.io/v1): who may speak plaintext, as DENY policies.

STRICT becomes a reference to one static policy that denies peers without an identity. Modes of
single ports become a converted policy of the PeerAuthentication that names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.findings import (
    ZTUNNEL_ACCEPTED,
    Condition,
    Findings,
    mapping,
    read_selector,
    selects,
    unknown_fields,
)
from mesh.model import Action, Authorization, Clause, Match, Rule, Scope, StringMatch

# '_' cannot be in a Kubernetes name: no user's policy collides.
STATIC_STRICT: Final = "istio_converted_static_strict"
CONVERTED: Final = "converted_peer_authentication_"

_NO_IDENTITY: Final = (StringMatch("presence"),)
_MODES: Final = ("UNSET", "DISABLE", "PERMISSIVE", "STRICT")


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """One parsed object; `strict` None inherits. `selector` None: mesh or namespace level."""

    namespace: str
    name: str
    created: str
    selector: Mapping[str, str] | None
    strict: bool | None
    ports: Mapping[int, bool]  # port: strict
    condition: Condition

    @property
    def age_key(self) -> tuple[str, str, str]:
        """Sort oldest first; an object without a creation time counts as the newest."""
        return (self.created or "~", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Defaults:
    """The mesh's and one namespace's PeerAuthentication, where there are any."""

    mesh: PeerAuthentication | None = None
    namespace: PeerAuthentication | None = None

    @property
    def strict(self) -> bool:
        """Say whether a workload without its own mode is strict."""
        for level in (self.namespace, self.mesh):
            if level is not None and level.strict is not None:
                return level.strict
        return False


def _mode(raw: Any, path: str, findings: Findings) -> bool | None:
    mtls = mapping(raw, path, findings)
    unknown_fields(mtls, ("mode",), path, findings)
    mode = mtls.get("mode", "UNSET")
    if mode not in _MODES:
        findings.invalid.append(f"{path}.mode: {mode!r} is not one of {', '.join(_MODES)}")
        findings.consequences.append(f"{path} is read as STRICT")
        return True
    return {"STRICT": True, "UNSET": None}.get(mode, False)


def _ports(spec: Mapping[str, Any], findings: Findings) -> dict[int, bool]:
    out = {}
    for key, raw in mapping(spec.get("portLevelMtls"), "spec.portLevelMtls", findings).items():
        path = f"spec.portLevelMtls[{key}]"
        if not key.isdigit() or not 1 <= int(key) <= 65535:
            findings.invalid.append(f"{path}: not a port number")
            continue
        strict = _mode(raw, path, findings)
        if strict is not None:
            out[int(key)] = strict
    return out


def parse_peer_authentication(obj: Mapping[str, Any], root_namespace: str) -> PeerAuthentication:
    """Read one object; whatever is wrong is in its condition."""
    findings = Findings()
    metadata = obj["metadata"]
    spec = mapping(obj.get("spec"), "spec", findings)
    unknown_fields(spec, ("selector", "mtls", "portLevelMtls"), "spec", findings)
    selector = read_selector(spec, findings) or None
    ports = _ports(spec, findings)
    if ports and selector is None:
        findings.invalid.append("spec.portLevelMtls: needs a selector")
        findings.consequences.append("modes of single ports are NOT enforced")
        ports = {}
    strict = _mode(spec.get("mtls"), "spec.mtls", findings)
    if selector is not None and metadata["namespace"] == root_namespace:
        findings.invalid.append(
            f"spec.selector: selects nothing in {root_namespace};"
            " write it in the workload's namespace"
        )
        findings.consequences.append("it is NOT enforced")
    accepted = "attached to ztunnel"
    if (spec.get("mtls") or {}) == {"mode": "DISABLE"}:
        accepted += "; DISABLE is PERMISSIVE in ambient: identity is used where the peer has one"
    created = metadata.get("creationTimestamp")
    return PeerAuthentication(
        namespace=metadata["namespace"],
        name=metadata["name"],
        created=created if isinstance(created, str) else "",
        selector=selector,
        strict=strict,
        ports=ports,
        condition=findings.condition(accepted),
    )


def superseded(by: PeerAuthentication) -> Condition:
    """Build the condition of a policy that an older one of the same level keeps from effect."""
    message = f"{by.namespace}/{by.name} is older and covers the same: this one is NOT enforced"
    return Condition(ZTUNNEL_ACCEPTED, False, "Conflicted", message)


Levels = dict[str, tuple[Defaults, tuple[PeerAuthentication, ...]]]


def index_levels(
    policies: Iterable[PeerAuthentication], root_namespace: str
) -> tuple[Levels, dict[tuple[str, str], PeerAuthentication]]:
    """Sort policies into what counts per namespace, oldest first, and who loses to whom.

    Namespaces without any policy use the root namespace's entry.
    """
    oldest: dict[str, PeerAuthentication] = {}
    selecting: dict[str, list[PeerAuthentication]] = {}
    losers: dict[tuple[str, str], PeerAuthentication] = {}
    for policy in sorted(policies, key=lambda p: p.age_key):
        if policy.selector is not None:
            if policy.namespace != root_namespace:
                selecting.setdefault(policy.namespace, []).append(policy)
        elif oldest.setdefault(policy.namespace, policy) is not policy:
            losers[(policy.namespace, policy.name)] = oldest[policy.namespace]
    mesh = oldest.get(root_namespace)
    levels = {
        ns: (
            Defaults(mesh, oldest.get(ns) if ns != root_namespace else None),
            tuple(selecting.get(ns, ())),
        )
        for ns in {root_namespace, *oldest, *selecting}
    }
    return levels, losers


def static_strict(root_namespace: str) -> Authorization:
    """Build the policy that denies every peer without an identity."""
    rule = Rule((Clause((Match(not_principals=_NO_IDENTITY),)),))
    return Authorization(
        STATIC_STRICT, root_namespace, Scope.WORKLOAD_SELECTOR, Action.DENY, (rule,)
    )


def converted(policy: PeerAuthentication, defaults: Defaults) -> Authorization | None:
    """Build the DENY policy of a workload-level PeerAuthentication's ports; None: none needed."""
    strict = defaults.strict if policy.strict is None else policy.strict
    exceptions = tuple(sorted(p for p, s in policy.ports.items() if s is not strict))
    if not exceptions:
        return None
    match = (
        Match(not_principals=_NO_IDENTITY, not_destination_ports=exceptions)
        if strict
        else Match(not_principals=_NO_IDENTITY, destination_ports=exceptions)
    )
    return Authorization(
        CONVERTED + policy.name,
        policy.namespace,
        Scope.WORKLOAD_SELECTOR,
        Action.DENY,
        (Rule((Clause((match,)),)),),
    )


def references(
    labels: Mapping[str, str],
    workload_level: Iterable[PeerAuthentication],
    defaults: Defaults,
    root_namespace: str,
) -> list[str]:
    """List the policies by which a workload's mode is enforced.

    `workload_level`: the namespace's policies with selectors, oldest first; the first one counts.
    """
    strict = defaults.strict
    for policy in workload_level:
        if selects(policy.selector or {}, labels):
            own = converted(policy, defaults)
            if own is not None:
                return [own.key]
            strict = strict if policy.strict is None else policy.strict
            break
    return [f"{root_namespace}/{STATIC_STRICT}"] if strict else []

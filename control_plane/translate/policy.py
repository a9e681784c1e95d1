"""AuthorizationPolicy (security.istio.io/v1) to istio.security.Authorization, for ztunnel.

What L4 cannot know or the author got wrong is read the stricter way and reported:
ALLOW: a rule with any such attribute is left out. DENY: the attribute is left out of its rule,
which then denies more; where nothing else is left to constrain the rule, it is not enforced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mesh.findings import (
    ZTUNNEL_ACCEPTED,
    Condition,
    Findings,
    mapping,
    read_selector,
    sequence,
    unknown_fields,
)
from mesh.model import Action, Authorization, Clause, Match, Rule, Scope
from mesh.policy_values import account, dry_run, negated, network, port, principal, string_match
from waypoint.config.security.policies import has_targets

_L7_SOURCE: Final = ("requestPrincipals", "remoteIpBlocks", "trustDomains")
_L7_OPERATION: Final = ("hosts", "methods", "paths")
_L7_WHEN = re.compile(
    r"request\.headers\[.+\]|request\.auth\.(principal|audiences|presenter|claims\[.+\])"
    r"|remote\.ip|connection\.sni|experimental\.envoy\.filters\..+"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """A translated policy: `selector` None means everything in its scope."""

    authorization: Authorization | None
    selector: Mapping[str, str] | None
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class _Alternative:
    """One of several matches that are OR'ed.

    They differ where a value of a list is bad: `broad` is without that list, `kept` is with the
    good values of it.
    """

    broad: Match
    kept: Match


# ---- values ----------------------------------------------------------------------------------


_Parser = Callable[[str, str], Any]
# Field of the object: (field of Match, parser). "not" + field negates both.
_SOURCE: Final[dict[str, tuple[str, _Parser]]] = {
    "principals": ("principals", principal),
    "namespaces": ("namespaces", string_match),
    "serviceAccounts": ("service_accounts", account),
    "ipBlocks": ("source_ips", network),
}
_OPERATION: Final[dict[str, tuple[str, _Parser]]] = {"ports": ("destination_ports", port)}
_WHEN: Final[dict[str, tuple[str, _Parser]]] = {
    "source.ip": ("source_ips", network),
    "source.namespace": ("namespaces", string_match),
    "source.principal": ("principals", principal),
    "destination.ip": ("destination_ips", network),
    "destination.port": ("destination_ports", port),
}


class _MatchBuilder:
    """Collects the fields of one match, and what is wrong with them."""

    def __init__(self, namespace: str) -> None:
        self.findings = Findings()
        self._namespace = namespace
        self._broad: dict[str, tuple[Any, ...]] = {}
        self._kept: dict[str, tuple[Any, ...]] = {}

    def add(self, raw: Any, path: str, attribute: str, parse: _Parser) -> None:
        """Parse a list of values; a bad one is a finding."""
        before = len(self.findings.invalid)
        values = []
        for i, value in enumerate(sequence(raw, path, self.findings)):
            text = str(value) if isinstance(value, str | int) else ""
            try:
                if not text:
                    raise ValueError("must be text and not empty")
                values.append(parse(text, self._namespace))
            except ValueError as e:
                self.findings.invalid.append(f"{path}[{i}]: {value!r}: {e}"[:400])
        self._kept[attribute] = tuple(values)
        if len(self.findings.invalid) == before:
            self._broad[attribute] = tuple(values)

    def build(self) -> _Alternative:
        """Build the match in both readings."""
        return _Alternative(Match(**self._broad), Match(**self._kept))


# ---- rules -----------------------------------------------------------------------------------


def _fields(
    value: Mapping[str, Any],
    path: str,
    l4: Mapping[str, tuple[str, _Parser]],
    l7: tuple[str, ...],
    namespace: str,
    findings: Findings,
) -> _Alternative:
    """Read a source or an operation."""
    builder = _MatchBuilder(namespace)
    found = builder.findings
    known = {*l4, *map(negated, l4), *l7, *map(negated, l7)}
    unknown_fields(value, known, path, found)
    if not any(value.get(name) for name in known) and not found:
        found.invalid.append(f"{path}: must constrain something")
    for name in l7:
        for field in (name, negated(name)):
            if value.get(field):
                found.unsupported.append(f"{path}.{field}")
    for name, (target, parse) in l4.items():
        builder.add(value.get(name), f"{path}.{name}", target, parse)
        opposite = negated(name)
        builder.add(value.get(opposite), f"{path}.{opposite}", f"not_{target}", parse)
    findings.add(found)
    return builder.build()


def _when(raw: Any, path: str, namespace: str, findings: Findings) -> _Alternative:
    builder = _MatchBuilder(namespace)
    found = builder.findings
    condition = mapping(raw, path, found)
    unknown_fields(condition, ("key", "values", "notValues"), path, found)
    key = condition.get("key")
    if isinstance(key, str) and key in _WHEN:
        target, parse = _WHEN[key]
        builder.add(condition.get("values"), f"{path}.values", target, parse)
        builder.add(condition.get("notValues"), f"{path}.notValues", f"not_{target}", parse)
        if builder.build().kept == Match() and not found:
            found.invalid.append(f"{path}: must have values or notValues")
    elif isinstance(key, str) and _L7_WHEN.fullmatch(key):
        found.unsupported.append(f"{path}.key {key}")
    else:
        found.invalid.append(f"{path}.key: {key!r} is not an attribute")
    findings.add(found)
    return builder.build()


def _groups(
    rule: Mapping[str, Any], path: str, namespace: str, findings: Findings
) -> list[list[_Alternative]]:
    """Read a rule as groups (AND'ed) of alternatives (OR'ed)."""
    unknown_fields(rule, ("from", "to", "when"), path, findings)
    groups = []
    for field, inner, l4, l7 in (
        ("to", "operation", _OPERATION, _L7_OPERATION),
        ("from", "source", _SOURCE, _L7_SOURCE),
    ):
        alternatives = []
        for i, raw in enumerate(sequence(rule.get(field), f"{path}.{field}", findings)):
            where = f"{path}.{field}[{i}]"
            entry = mapping(raw, where, findings)
            unknown_fields(entry, (inner,), where, findings)
            where += f".{inner}"
            value = mapping(entry.get(inner), where, findings)
            alternatives.append(_fields(value, where, l4, l7, namespace, findings))
        if alternatives:
            groups.append(alternatives)
    for i, raw in enumerate(sequence(rule.get("when"), f"{path}.when", findings)):
        groups.append([_when(raw, f"{path}.when[{i}]", namespace, findings)])
    return groups


def _deny_clauses(groups: list[list[_Alternative]], path: str) -> tuple[list[Clause], str]:
    """Leave out what cannot be enforced, so that the rule denies more, but not everything.

    Returns the clauses and what they amount to.
    """
    firm = []
    rest = []
    for alternatives in groups:
        broad = tuple(a.broad for a in alternatives if a.broad != Match())
        kept = tuple(a.kept for a in alternatives if a.kept != Match())
        # An alternative that lost all its constraints is always true, and so is its group.
        if len(broad) == len(alternatives):
            firm.append(Clause(broad))
        elif kept:
            rest.append(Clause(kept))
    if firm:
        return firm, f"{path} is enforced without it: more is denied than asked for"
    if rest:
        return rest, f"of {path} only the rest is enforced: less is denied than asked for"
    return [], f"{path} has nothing else and is NOT enforced"


def _rule(raw: Any, path: str, action: Action, namespace: str, findings: Findings) -> Rule | None:
    found = Findings()
    rule = mapping(raw, path, found)
    groups = _groups(rule, path, namespace, found)
    if not found:
        return Rule(tuple(Clause(tuple(a.kept for a in group)) for group in groups))
    clauses: list[Clause] = []
    if action is Action.ALLOW:
        found.consequences.append(f"{path} is left out: less is allowed than asked for")
    else:
        clauses, consequence = _deny_clauses(groups, path)
        found.consequences.append(consequence)
    findings.add(found)
    return Rule(tuple(clauses)) if clauses else None


# ---- the policy ------------------------------------------------------------------------------


def translate_policy(obj: Mapping[str, Any], root_namespace: str) -> Policy:
    """Translate one AuthorizationPolicy object."""
    findings = Findings()
    metadata = obj["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    spec = mapping(obj.get("spec"), "spec", findings)
    if has_targets(obj):
        return Policy(None, None, None)  # a waypoint's: waypoint.config.security
    text = spec.get("action", "ALLOW")
    if text not in ("ALLOW", "DENY"):
        known = text in ("CUSTOM", "AUDIT")
        message = f"spec.action: {text!r} " + (
            "needs a waypoint (bind it by targetRefs); ztunnel knows ALLOW and DENY"
            if known
            else "is not an action: ALLOW or DENY"
        )
        return Policy(
            None,
            None,
            Condition(
                ZTUNNEL_ACCEPTED,
                False,
                "UnsupportedValue" if known else "Invalid",
                f"{message}: the policy is NOT enforced",
            ),
        )
    action = Action[text]
    unknown_fields(spec, ("action", "rules", "selector", "targetRefs"), "spec", findings)
    selector = read_selector(spec, findings)
    rules = [
        _rule(raw, f"spec.rules[{i}]", action, namespace, findings)
        for i, raw in enumerate(sequence(spec.get("rules"), "spec.rules", findings))
    ]
    if selector is not None:
        scope = Scope.WORKLOAD_SELECTOR
    else:
        scope = Scope.GLOBAL if namespace == root_namespace else Scope.NAMESPACE
    authorization = Authorization(
        name=name,
        namespace=namespace,
        scope=scope,
        action=action,
        rules=tuple(r for r in rules if r is not None),
        dry_run=dry_run(metadata, findings),
    )
    accepted = "attached to ztunnel"
    if authorization.dry_run:
        accepted += "; dry run: not enforced, what it would refuse is logged"
    condition = findings.condition(accepted)
    if action is Action.DENY and rules and not authorization.rules:
        condition = replace(condition, status=False)  # accepted would promise something
    return Policy(authorization, selector, condition)

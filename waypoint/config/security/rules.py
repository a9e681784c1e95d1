"""Rules of an AuthorizationPolicy, read.

What is wrong is read the stricter way: an ALLOW rule with anything wrong in it is left out; in any
other action the wrong part is left out of its rule, which then matches more, in the end everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from mesh.findings import Findings, mapping, sequence, unknown_fields
from mesh.model import StringMatch
from mesh.policy_values import account, negated, network, port, principal, string_match
from waypoint.config.security.model import Alternative, Check, PathTemplate, Rule, Value

_MAX_VALUE: Final = 4096  # characters; Envoy takes request headers of 60 KiB in all
_HEADER_NAME = re.compile(r":?[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, 5.6.2
_CLAIM = re.compile(r"(\[[^\[\]]+\])+")
# What a path never has once Envoy has normalised it.
_NEVER_IN_PATH = re.compile(r"[?#\\]|//|/\.\.?(/|$)")

_Parser = Callable[[str, str], Value]


def _path(value: str, namespace: str) -> Value:
    if not value.startswith(("/", "*")):
        raise ValueError("must start with '/' or '*'")
    if _NEVER_IN_PATH.search(value):
        raise ValueError(
            "can never match: paths are compared without query, '//', '/./' and '/../' resolved"
        )
    if "{*}" not in value and "{**}" not in value:
        return string_match(value, namespace)
    operators = [segment for segment in value.split("/") if "*" in segment]
    if any(o not in ("{*}", "{**}") for o in operators):
        raise ValueError("in a template {*} and {**} are whole segments, and there is no other '*'")
    if "{**}" in operators[:-1]:
        raise ValueError("{**} must be the last operator of a template")
    return PathTemplate(value)


def _request_principal(value: str, namespace: str) -> Value:
    match = string_match(value, namespace)
    if match.kind == "exact" and "/" not in value:
        raise ValueError("can never match: it is compared with ISSUER/SUBJECT of the token")
    return match


def _host(value: str, namespace: str) -> Value:
    match = string_match(value, namespace)
    return StringMatch(match.kind, match.value.lower())


# Field of the object: (attribute, parser). "not" + field negates.
_SOURCE: Final[dict[str, tuple[str, _Parser]]] = {
    "principals": ("source.principal", principal),
    "requestPrincipals": ("request.auth.principal", _request_principal),
    "namespaces": ("source.namespace", string_match),
    "serviceAccounts": ("source.serviceAccount", account),
    "trustDomains": ("source.trustDomain", string_match),
    "ipBlocks": ("source.ip", network),
    "remoteIpBlocks": ("remote.ip", network),
}
_OPERATION: Final[dict[str, tuple[str, _Parser]]] = {
    "hosts": ("request.host", _host),
    "methods": ("request.method", string_match),
    "paths": ("request.path", _path),
    "ports": ("destination.port", port),
}
_WHEN: Final[dict[str, _Parser]] = {
    "source.ip": network,
    "source.namespace": string_match,
    "source.principal": principal,
    "source.serviceAccount": account,
    "source.trustDomain": string_match,
    "remote.ip": network,
    "request.auth.principal": _request_principal,
    "request.auth.audiences": string_match,
    "request.auth.presenter": string_match,
    "destination.ip": network,
    "destination.port": port,
    "connection.sni": string_match,
}
# A connection that carries no HTTP has no such thing.
HTTP_ONLY: Final = frozenset(
    {
        "request.host",
        "request.method",
        "request.path",
        "request.headers",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims",
    }
)


def _values(
    raw: Any, path: str, parse: _Parser, namespace: str, findings: Findings
) -> tuple[Value, ...]:
    """Parse a list; () if anything in it is wrong, as then it cannot be compared at all."""
    before = len(findings.invalid)
    values = []
    if raw == []:
        findings.invalid.append(f"{path}: must not be empty")
    for i, value in enumerate(sequence(raw, path, findings)):
        text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
        try:
            if not text or len(text) > _MAX_VALUE or "\0" in text:
                raise ValueError(f"must be text of 1 to {_MAX_VALUE} characters")
            text.encode()  # half of a surrogate pair is a ValueError
            values.append(parse(text, namespace))
        except ValueError as e:
            findings.invalid.append(f"{path}[{i}]: {value!r:.200}: {e}"[:400])
    return tuple(values) if len(findings.invalid) == before else ()


def _fields(
    value: Mapping[str, Any],
    path: str,
    known: Mapping[str, tuple[str, _Parser]],
    namespace: str,
    findings: Findings,
) -> Alternative:
    """Read a source or an operation."""
    names = {*known, *map(negated, known)}
    unknown_fields(value, names, path, findings)
    if all(value.get(name) is None for name in names) and not set(value) - names:
        findings.invalid.append(f"{path}: must constrain something")
    tests = []
    for name, (attribute, parse) in known.items():
        for field, is_negated in ((name, False), (negated(name), True)):
            values = _values(value.get(field), f"{path}.{field}", parse, namespace, findings)
            if values:
                tests.append(Check(attribute, values, is_negated))
    return tuple(tests)


def _attribute(key: Any, path: str, findings: Findings) -> tuple[str, tuple[str, ...], _Parser]:
    """Read a condition's key: attribute, name and parser; the attribute is "" if it is wrong."""
    if isinstance(key, str):
        if key in _WHEN:
            return key, (), _WHEN[key]
        head, bracket, rest = key.partition("[")
        inner = bracket + rest
        if head == "request.headers" and inner.endswith("]"):
            if _HEADER_NAME.fullmatch(inner[1:-1]):
                return head, (inner[1:-1].lower(),), string_match
            findings.invalid.append(f"{path}.key: {key!r:.200}: not the name of a header")
            return "", (), string_match
        if head == "request.auth.claims" and _CLAIM.fullmatch(inner):
            return head, tuple(inner[1:-1].split("][")), string_match
        if key.startswith("experimental.envoy.filters."):
            findings.invalid.append(f"{path}.key: {key:.200}: metadata of filters is not supported")
            return "", (), string_match
    known = ", ".join([*sorted(_WHEN), "request.headers[NAME]", "request.auth.claims[NAME]"])
    findings.invalid.append(f"{path}.key: {key!r:.200} is not an attribute (known: {known})")
    return "", (), string_match


def _when(raw: Any, path: str, namespace: str, findings: Findings) -> Alternative:
    condition = mapping(raw, path, findings)
    unknown_fields(condition, ("key", "values", "notValues"), path, findings)
    attribute, name, parse = _attribute(condition.get("key"), path, findings)
    if not attribute:
        return ()
    if condition.get("values") is None and condition.get("notValues") is None:
        findings.invalid.append(f"{path}: must have values or notValues")
    tests = []
    for field, is_negated in (("values", False), ("notValues", True)):
        values = _values(condition.get(field), f"{path}.{field}", parse, namespace, findings)
        if values:
            tests.append(Check(attribute, values, is_negated, name))
    return tuple(tests)


def _clauses(
    rule: Mapping[str, Any], path: str, namespace: str, findings: Findings
) -> tuple[tuple[Alternative, ...], ...]:
    unknown_fields(rule, ("from", "to", "when"), path, findings)
    clauses = []
    for field, inner, known in (("from", "source", _SOURCE), ("to", "operation", _OPERATION)):
        alternatives = []
        if rule.get(field) == []:
            findings.invalid.append(f"{path}.{field}: must not be empty")
        for i, raw in enumerate(sequence(rule.get(field), f"{path}.{field}", findings)):
            where = f"{path}.{field}[{i}]"
            entry = mapping(raw, where, findings)
            unknown_fields(entry, (inner,), where, findings)
            where += f".{inner}"
            value = mapping(entry.get(inner), where, findings)
            alternatives.append(_fields(value, where, known, namespace, findings))
        if alternatives:
            clauses.append(tuple(alternatives))
    for i, raw in enumerate(sequence(rule.get("when"), f"{path}.when", findings)):
        clauses.append((_when(raw, f"{path}.when[{i}]", namespace, findings),))
    # An alternative without tests is always true, and so is a clause that has one.
    return tuple(c for c in clauses if all(c))


def _rule(raw: Any, index: int, allow: bool, namespace: str, findings: Findings) -> Rule | None:
    path = f"spec.rules[{index}]"
    found = Findings()
    if not isinstance(raw, Mapping):
        found.invalid.append(f"{path}: must be a mapping")
    clauses = _clauses(raw if isinstance(raw, Mapping) else {}, path, namespace, found)
    findings.add(found)
    if not found:
        return Rule(index, clauses)
    if allow:
        findings.consequences.append(f"{path} is left out: less is allowed than asked for")
        return None
    what = "without what is wrong in it" if clauses else "as if it matched everything"
    findings.consequences.append(f"{path} is enforced {what}: more is matched than asked for")
    return Rule(index, clauses)


def read_rules(
    spec: Mapping[str, Any], allow: bool, namespace: str, findings: Findings
) -> tuple[Rule, ...]:
    """Read spec.rules; `allow` says for which action they are, which decides what is stricter."""
    if spec.get("rules") is not None and not isinstance(spec["rules"], list):
        findings.invalid.append("spec.rules: must be a list")
        findings.consequences.append("nothing is allowed" if allow else "it matches everything")
        return () if allow else (Rule(0),)
    rules = [
        _rule(raw, i, allow, namespace, findings) for i, raw in enumerate(spec.get("rules") or [])
    ]
    return tuple(r for r in rules if r is not None)

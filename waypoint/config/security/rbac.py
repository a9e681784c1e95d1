"""Policies to the rules of Envoy's RBAC engine (config.rbac.v3), for requests and connections.

Facts about the caller come from filter state `wp.peer`: there is no TLS where these rules run. The
caller's address is `remote_ip`: the direct one is Envoy's own internal address there, and no
header is believed as long as the settings of filters.HCM hold.

Some values can be compared in a narrow and in a broad way; which of them is the stricter depends
on whether a match opens or closes. `broad` says which is meant.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from mesh.model import StringMatch
from waypoint.config.regex import literal
from waypoint.config.security.model import Alternative, Check, PathTemplate, Policy, Rule, Value
from waypoint.config.security.rules import HTTP_ONLY

Proto = dict[str, Any]

PEER: Final = "wp.peer"  # filter state: SPIFFE URI of the caller
JWT_FILTER: Final = "envoy.filters.http.jwt_authn"
PAYLOAD: Final = "payload"  # key of the claims in the metadata of JWT_FILTER
_ANY: Final[Proto] = {"any": True}
_ANYTHING: Final[Proto] = {"safe_regex": {"regex": ".+"}}


# ---- comparing texts -------------------------------------------------------------------------


def text_matcher(match: StringMatch, ignore_case: bool = False) -> Proto:
    """Compare a text as a StringMatcher."""
    if match.kind == "presence" or (match.kind != "exact" and not match.value):
        return _ANYTHING
    return {match.kind: match.value, **({"ignore_case": True} if ignore_case else {})}


def _regex(pattern: str) -> Proto:
    return {"safe_regex": {"regex": pattern}}


def _fragment(match: StringMatch, any_character: str) -> str:
    """Write a comparison as a part of a regular expression."""
    body = literal(match.value)
    return {
        "presence": f"{any_character}+",
        "exact": body,
        "prefix": f"{body}{any_character}*",
        "suffix": f"{any_character}*{body}",
    }[match.kind]


def _cidr(value: Value) -> Proto:
    net = ipaddress.ip_network(str(value))
    return {"address_prefix": str(net.network_address), "prefix_len": net.prefixlen}


# ---- facts about the caller ------------------------------------------------------------------


def _peer(matcher: Proto) -> Proto:
    return {"filter_state": {"key": PEER, "string_match": matcher}}


def _principal(value: Value, broad: bool) -> Proto:
    assert isinstance(value, StringMatch)
    if value.kind in ("exact", "prefix"):
        return _peer({value.kind: f"spiffe://{value.value}"})
    return _peer(text_matcher(value))


def _namespace(value: Value, broad: bool) -> Proto:
    assert isinstance(value, StringMatch)
    return _peer(_regex(f"spiffe://[^/]+/ns/{_fragment(value, '[^/]')}/sa/.+"))


def _account(value: Value, broad: bool) -> Proto:
    assert isinstance(value, tuple)
    namespace, name = map(literal, value)
    return _peer(_regex(f"spiffe://[^/]+/ns/{namespace}/sa/{name}"))


def _trust_domain(value: Value, broad: bool) -> Proto:
    assert isinstance(value, StringMatch)
    return _peer(_regex(f"spiffe://{_fragment(value, '[^/]')}/.+"))


def _remote_ip(value: Value, broad: bool) -> Proto:
    return {"remote_ip": _cidr(value)}


# ---- facts about tokens ----------------------------------------------------------------------


def _claim(path: Iterable[str], value: Proto) -> Proto:
    matcher = {
        "filter": JWT_FILTER,
        "path": [{"key": key} for key in (PAYLOAD, *path)],
        "value": value,
    }
    return {"sourced_metadata": {"metadata_matcher": matcher}}


def _claim_value(match: StringMatch) -> Proto:
    """Compare a claim, or any element of it if it is a list.

    true, false and numbers are compared by how they are written.
    """
    if match.kind == "presence":
        return {"present_match": True}
    options: list[Proto] = [{"string_match": text_matcher(match)}]
    if match.kind == "exact" and match.value in ("true", "false"):
        options.append({"bool_match": match.value == "true"})
    elif match.kind == "exact" and re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", match.value):
        options.append({"double_match": {"exact": float(match.value)}})
    lists = [{"list_match": {"one_of": option}} for option in options]
    return {"or_match": {"value_matchers": [*options, *lists]}}


def _claims(name: tuple[str, ...]) -> _Convert:
    def convert(value: Value, broad: bool) -> Proto:
        assert isinstance(value, StringMatch)
        return _claim(name, _claim_value(value))

    return convert


def _issuer_and_subject(match: StringMatch, broad: bool) -> list[tuple[StringMatch, StringMatch]]:
    """Take "issuer/subject" apart.

    Both may hold slashes. The broad reading takes every place where it could be cut; the narrow
    one the last, so that nobody at an issuer "https://a" passes for one at "https://a/b".
    """
    anything = StringMatch("presence")
    text, kind = match.value, match.kind
    cuts = [i for i, c in enumerate(text) if c == "/"]
    pieces = [(text[:i], text[i + 1 :]) for i in (cuts if broad else cuts[-1:])]
    if kind == "presence":
        return [(anything, anything)]
    if kind == "exact":
        return [(StringMatch("exact", i), StringMatch("exact", s)) for i, s in pieces]
    if kind == "prefix":
        out = [
            (StringMatch("exact", i), StringMatch("prefix", s) if s else anything)
            for i, s in pieces
        ]
        return [*out, (StringMatch("prefix", text), anything)]
    out = [
        (StringMatch("suffix", i) if i else anything, StringMatch("exact", s)) for i, s in pieces
    ]
    return out if out and not broad else [*out, (anything, StringMatch("suffix", text))]


def _request_principal(value: Value, broad: bool) -> Proto:
    assert isinstance(value, StringMatch)
    options = [
        _all(
            [
                _claim(["iss"], {"string_match": text_matcher(issuer)}),
                _claim(["sub"], {"string_match": text_matcher(subject)}),
            ],
            "and_ids",
            "ids",
        )
        for issuer, subject in _issuer_and_subject(value, broad)
    ]
    return _all(options, "or_ids", "ids") if options else {"not_id": _ANY}


# ---- facts about requests --------------------------------------------------------------------


def _header(name: str) -> _Convert:
    # Envoy keeps Host under its name in HTTP/2 only.
    name = ":authority" if name == "host" else name

    def convert(value: Value, broad: bool) -> Proto:
        assert isinstance(value, StringMatch)
        if value.kind == "presence":
            return {"header": {"name": name, "present_match": True}}
        if not broad:
            return {"header": {"name": name, "string_match": text_matcher(value)}}
        # Envoy compares each line of that name; a line may hold several values.
        pattern = rf"(?s)(.*,)?\s*{_fragment(value, '.')}\s*(,.*)?"
        return {"header": {"name": name, "string_match": _regex(pattern)}}

    return convert


def _host(value: Value, broad: bool) -> Proto:
    """Compare the host; one without a port is meant with any, and so is it with a final dot."""
    assert isinstance(value, StringMatch)
    if value.kind == "presence":
        matcher = _ANYTHING
    elif value.kind == "prefix" or re.search(r":[0-9]+$", value.value):
        matcher = text_matcher(value, ignore_case=True)
    else:
        matcher = _regex(rf"(?i){_fragment(value, '.')}\.?(:[0-9]+)?")
    return {"header": {"name": ":authority", "string_match": matcher}}


def _method(value: Value, broad: bool) -> Proto:
    assert isinstance(value, StringMatch)
    return {"header": {"name": ":method", "string_match": text_matcher(value)}}


def _path(value: Value, broad: bool) -> Proto:
    """Compare the path without its query."""
    if isinstance(value, PathTemplate):
        operators = {"{**}": ".*", "{*}": "[^/]+"}
        pattern = "/".join(operators.get(s) or literal(s) for s in value.text.split("/"))
        return {"url_path": {"path": _regex(pattern)}}
    assert isinstance(value, StringMatch)
    return {"url_path": {"path": text_matcher(value)}}


def _destination_port(value: Value, broad: bool) -> Proto:
    return {"destination_port": value}


def _destination_ip(value: Value, broad: bool) -> Proto:
    return {"destination_ip": _cidr(value)}


def _sni(value: Value, broad: bool) -> Proto:
    assert isinstance(value, StringMatch)
    return {"requested_server_name": text_matcher(value, ignore_case=True)}


_Convert = Callable[[Value, bool], Proto]
_PRINCIPALS: Final[dict[str, _Convert]] = {
    "source.principal": _principal,
    "source.namespace": _namespace,
    "source.serviceAccount": _account,
    "source.trustDomain": _trust_domain,
    "source.ip": _remote_ip,
    "remote.ip": _remote_ip,
    "request.auth.principal": _request_principal,
    "request.auth.audiences": _claims(("aud",)),
    "request.auth.presenter": _claims(("azp",)),
}
_PERMISSIONS: Final[dict[str, _Convert]] = {
    "request.host": _host,
    "request.method": _method,
    "request.path": _path,
    "destination.port": _destination_port,
    "destination.ip": _destination_ip,
    "connection.sni": _sni,
}


# ---- rules -----------------------------------------------------------------------------------


def _all(items: list[Proto], how: str, inner: str) -> Proto:
    return items[0] if len(items) == 1 else {how: {inner: items}}


def _is_principal(check: Check) -> bool:
    return check.attribute not in _PERMISSIONS


def _check(check: Check, closes: bool) -> Proto:
    """Write one check; `closes`: that it matches refuses (or asks), rather than opens."""
    if check.attribute == "request.headers":
        convert = _header(check.name[0])
    elif check.attribute == "request.auth.claims":
        convert = _claims(check.name)
    else:
        convert = _PRINCIPALS.get(check.attribute) or _PERMISSIONS[check.attribute]
    options = [convert(value, closes != check.negated) for value in check.values]
    if _is_principal(check):
        found = _all(options, "or_ids", "ids")
        return {"not_id": found} if check.negated else found
    found = _all(options, "or_rules", "rules")
    return {"not_rule": found} if check.negated else found


def _clause(alternatives: tuple[Alternative, ...], closes: bool) -> tuple[bool, Proto]:
    """Write a clause; all of its tests are of one side. Returns whether that is the principals'."""
    principal = _is_principal(alternatives[0][0])
    and_, or_, inner = (
        ("and_ids", "or_ids", "ids") if principal else ("and_rules", "or_rules", "rules")
    )
    options = [_all([_check(c, closes) for c in a], and_, inner) for a in alternatives]
    return principal, _all(options, or_, inner)


def without_http(rule: Rule, closes: bool) -> Rule | None:
    """Read a rule for connections that carry no HTTP.

    A rule that opens and has anything of HTTP in it is none. One that closes is taken without that.
    """
    clauses = []
    for clause in rule.clauses:
        kept = tuple(
            tuple(c for c in alternative if c.attribute not in HTTP_ONLY) for alternative in clause
        )
        if kept != clause and not closes:
            return None
        if all(kept):
            clauses.append(kept)
    return Rule(rule.index, tuple(clauses))


def rule_policy(rule: Rule, closes: bool, unless: Proto | None = None) -> Proto:
    """Write one rule as a config.rbac.v3.Policy; `unless` is a permission that undoes it."""
    permissions: list[Proto] = []
    principals: list[Proto] = []
    for clause in rule.clauses:
        principal, found = _clause(clause, closes)
        (principals if principal else permissions).append(found)
    if unless is not None:
        permissions.append({"not_rule": unless})
    return {
        "permissions": [_all(permissions, "and_rules", "rules") if permissions else _ANY],
        "principals": [_all(principals, "and_ids", "ids") if principals else _ANY],
    }


def engine_policies(
    policies: Iterable[Policy], tcp: bool = False, unless: Mapping[str, Proto] | None = None
) -> dict[str, Proto]:
    """Write the rules of policies, by the names that logs show: namespace/name#index.

    `unless` says by provider what undoes a rule that names it.
    """
    out = {}
    for policy in policies:
        closes = policy.action != "ALLOW"
        for rule in policy.rules:
            kept = without_http(rule, closes) if tcp else rule
            if kept is not None:
                undo = (unless or {}).get(policy.provider)
                out[f"{policy.key}#{rule.index}"] = rule_policy(kept, closes, undo)
    return out

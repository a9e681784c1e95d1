"""RequestAuthentication, read into JwtRules and what there is to say about it.

A rule that is wrong keeps its place and loses its keys: its tokens are refused, not believed and
not passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from mesh.findings import Findings, mapping, sequence, unknown_fields
from waypoint.config.security.jwks import NO_KEYS, read_jwks
from waypoint.config.security.model import JwtRule, Target
from waypoint.config.security.policies import Reading, has_targets, read_targets

_FIELDS: Final = (
    "audiences",
    "forwardOriginalToken",
    "fromCookies",
    "fromHeaders",
    "fromParams",
    "issuer",
    "jwks",
    "jwksUri",
    "jwks_uri",  # both spellings are in the CRD
    "outputClaimToHeaders",
    "outputPayloadToHeader",
    "spaceDelimitedClaims",
    "timeout",  # of fetching keys
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9_-]{1,256}")
# Written by HTTP itself, by Envoy or by the mesh: a claim there would change what a request is.
_NOT_FOR_CLAIMS = re.compile(r"(?i):.*|host|content-length|transfer-encoding|connection|te|upgrade")
_T = TypeVar("_T")


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 4096:
        raise ValueError(f"{path}: {value!r:.80}: must be text of 1 to 4096 characters")
    value.encode()  # half of a surrogate pair is a ValueError
    return value


def _header(value: Any, path: str) -> str:
    if not isinstance(value, str) or not _HEADER_NAME.fullmatch(value):
        raise ValueError(f"{path}: {value!r:.80}: not the name of a header (letters, digits, - _)")
    return value


def _output(value: Any, path: str) -> str:
    name = _header(value, path)
    if _NOT_FOR_CLAIMS.fullmatch(name):
        raise ValueError(f"{path}: {name}: this header may not be written from a token")
    return name


def _from_header(value: Any, path: str) -> tuple[str, str]:
    fields = _mapping(value, ("name", "prefix"), path)
    prefix = fields.get("prefix") or ""
    if not isinstance(prefix, str):
        raise ValueError(f"{path}.prefix: must be text")
    return _header(fields.get("name"), f"{path}.name"), prefix


def _claim_header(value: Any, path: str) -> tuple[str, str]:
    fields = _mapping(value, ("header", "claim"), path)
    return _output(fields.get("header"), f"{path}.header"), _text(
        fields.get("claim"), f"{path}.claim"
    )


def _mapping(value: Any, known: tuple[str, ...], path: str) -> Mapping[str, Any]:
    found = Findings()
    fields = mapping(value, path, found)
    unknown_fields(fields, known, path, found)
    if found:
        raise ValueError("; ".join(found.invalid))
    return fields


def _list(
    rule: Mapping[str, Any],
    name: str,
    path: str,
    parse: Callable[[Any, str], _T],
    findings: Findings,
) -> tuple[_T, ...]:
    path = f"{path}.{name}"
    out = []
    for i, value in enumerate(sequence(rule.get(name), path, findings)):
        try:
            out.append(parse(value, f"{path}[{i}]"))
        except ValueError as e:
            findings.invalid.append(str(e)[:400])
    return tuple(out)


def _keys(rule: Mapping[str, Any], path: str, findings: Findings) -> tuple[str, str]:
    """Read where keys come from: the JWKS itself, or its URI."""
    uri = rule.get("jwksUri") or rule.get("jwks_uri")
    text = rule.get("jwks")
    if uri is None and not text:
        findings.invalid.append(f"{path}: must have jwks or jwksUri")
    elif uri is not None and text:
        findings.invalid.append(f"{path}: only one of jwks and jwksUri may be set")
    elif uri is not None:
        if isinstance(uri, str) and re.fullmatch(r"https?://[^\s/]+\S*", uri):
            return NO_KEYS, uri
        findings.invalid.append(f"{path}.jwksUri: {uri!r:.200}: must be an http or https URI")
    else:
        try:
            return read_jwks(text if isinstance(text, str) else ""), ""
        except ValueError as e:
            findings.invalid.append(f"{path}.jwks: {e}")
    return NO_KEYS, ""


def _one(value: Any, name: str, path: str, parse: Callable[[Any, str], str], f: Findings) -> str:
    if value is None or value == "":
        return ""
    try:
        return parse(value, f"{path}.{name}")
    except ValueError as e:
        f.invalid.append(str(e)[:400])
        return ""


def _rule(raw: Any, path: str, policy: str, findings: Findings) -> tuple[JwtRule, str]:
    found = Findings()
    rule = mapping(raw, path, found)
    unknown_fields(rule, _FIELDS, path, found)
    issuer = _one(rule.get("issuer"), "issuer", path, _text, found)
    if not issuer and not found:
        found.invalid.append(f"{path}.issuer: must be set")
    keys, uri = _keys(rule, path, found)
    forward = rule.get("forwardOriginalToken") or False
    if not isinstance(forward, bool):
        found.invalid.append(f"{path}.forwardOriginalToken: must be true or false")
        forward = False
    out = JwtRule(
        policy=policy,
        issuer=issuer,
        keys=keys,
        audiences=_list(rule, "audiences", path, _text, found),
        headers=_list(rule, "fromHeaders", path, _from_header, found),
        params=_list(rule, "fromParams", path, _text, found),
        cookies=_list(rule, "fromCookies", path, _text, found),
        forward=forward,
        payload_header=_one(
            rule.get("outputPayloadToHeader"), "outputPayloadToHeader", path, _output, found
        ),
        claim_headers=_list(rule, "outputClaimToHeaders", path, _claim_header, found),
    )
    extra = _list(rule, "spaceDelimitedClaims", path, _text, found)
    if extra:
        delimited = dict.fromkeys([*out.space_delimited, *extra])
        out = replace(out, space_delimited=tuple(delimited))
    if found:
        found.consequences.append(f"tokens that {path} is for are refused")
        out, uri = replace(out, keys=NO_KEYS), ""
    findings.add(found)
    return out, uri


def read_authentication(obj: Mapping[str, Any], root_namespace: str) -> Reading:
    """Read one RequestAuthentication."""
    findings = Findings()
    metadata = obj["metadata"]
    namespace = metadata["namespace"]
    spec = mapping(obj.get("spec"), "spec", findings)
    unknown_fields(spec, ("jwtRules", "selector", "targetRef", "targetRefs"), "spec", findings)
    targets: tuple[Target, ...] = ()
    if has_targets(obj):
        targets = read_targets(spec, namespace, root_namespace, findings)
    rules: list[JwtRule] = []
    uris = []
    for i, raw in enumerate(sequence(spec.get("jwtRules"), "spec.jwtRules", findings)):
        path = f"spec.jwtRules[{i}]"
        rule, uri = _rule(raw, path, f"{namespace}/{metadata['name']}", findings)
        if uri:
            uris.append((len(rules), f"{path}.jwksUri", uri))
        rules.append(rule)
    return Reading(targets, jwt=tuple(rules), uris=tuple(uris), findings=findings)

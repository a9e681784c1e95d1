"""JwtRules to Envoy's jwt_authn filter.

A request without a token passes (it has no claims, so no policy that asks for one lets it in). A
token that is there, in any place where one is looked for, must be valid: 401 if it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from waypoint.config.security.model import JwtRule
from waypoint.config.security.rbac import PAYLOAD

Proto = dict[str, Any]

NAME: Final = "ambit.jwt"
_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"


def _provider(rule: JwtRule) -> Proto:
    out: Proto = {
        "issuer": rule.issuer,
        "audiences": list(rule.audiences),
        "local_jwks": {"inline_string": rule.keys},
        "forward": rule.forward,
        "payload_in_metadata": PAYLOAD,
        "normalize_payload_in_metadata": {"space_delimited_claims": list(rule.space_delimited)},
        "from_headers": [
            {"name": name, **({"value_prefix": prefix} if prefix else {})}
            for name, prefix in rule.headers
        ],
        "from_params": list(rule.params),
        "from_cookies": list(rule.cookies),
        "claim_to_headers": [
            {"header_name": header, "claim_name": claim} for header, claim in rule.claim_headers
        ],
    }
    if rule.payload_header:
        out["forward_payload_header"] = rule.payload_header
    return {k: v for k, v in out.items() if v not in ([], False)}


def _groups(rules: Iterable[tuple[str, JwtRule]]) -> list[list[str]]:
    """Group providers that look for tokens in the same places, however indirectly."""
    groups: list[tuple[set[tuple[str, str]], list[str]]] = []
    for name, rule in rules:
        places, names = set(rule.locations), [name]
        rest = []
        for group in groups:
            if group[0] & places:
                places |= group[0]
                names = group[1] + names
            else:
                rest.append(group)
        groups = [*rest, (places, names)]
    return [sorted(names) for _, names in groups]


def _any_of(names: Sequence[str]) -> Proto:
    providers = [{"provider_name": name} for name in names]
    return {"requires_any": {"requirements": [*providers, {"allow_missing": {}}]}}


def jwt_filter(rules: Sequence[JwtRule]) -> Proto:
    """Write the filter; there must be at least one rule."""
    named = [(f"{i}:{rule.policy}", rule) for i, rule in enumerate(rules)]
    # In each place a token must suit one of those who look there.
    needs = [_any_of(names) for names in sorted(_groups(named))]
    requirement = needs[0] if len(needs) == 1 else {"requires_all": {"requirements": needs}}
    return {
        "name": NAME,
        "typed_config": {
            "@type": _TYPE,
            "providers": {name: _provider(rule) for name, rule in named},
            "rules": [{"match": {"prefix": "/"}, "requires": requirement}],
        },
    }


def written_headers(rules: Iterable[JwtRule]) -> tuple[str, ...]:
    """Name the headers that say what tokens said: nobody else may set them."""
    names = {header.lower() for rule in rules for header, _ in rule.claim_headers}
    names |= {rule.payload_header.lower() for rule in rules if rule.payload_header}
    return tuple(sorted(names))

"""Which connections without HTTP get a filter chain at all.

Envoy's network filters judge a connection when its first byte comes, and by then a server that
speaks first (a database, SMTP) has been heard. So the same rules stand in the listener's
filter_chain_matcher too, as a predicate over what is known when a connection arrives: who must be
refused gets no chain, and no connection to the application is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from waypoint.config.security.model import Security
from waypoint.config.security.rbac import engine_policies

Proto = dict[str, Any]
_Predicate = Proto | bool  # what is always so or never so needs no predicate

_INPUTS: Final = "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3."
_IP: Final = "type.googleapis.com/envoy.extensions.matching.input_matchers.ip.v3.Ip"


def _input(name: str, **fields: Any) -> Proto:
    return {"name": name, "typed_config": {"@type": _INPUTS + name, **fields}}


def _text(source: Proto, matcher: Proto) -> Proto:
    regex = matcher.get("safe_regex")
    if regex is not None:  # the two APIs differ here
        matcher = {**matcher, "safe_regex": {**regex, "google_re2": {}}}
    return {"single_predicate": {"input": source, "value_match": matcher}}


def _address(source: Proto, cidr: Proto) -> Proto:
    matcher = {"@type": _IP, "cidr_ranges": [cidr], "stat_prefix": "ambit"}
    custom = {"name": "ip", "typed_config": matcher}
    return {"single_predicate": {"input": source, "custom_match": custom}}


def _and(parts: Iterable[_Predicate]) -> _Predicate:
    kept = []
    for part in parts:
        if part is False:
            return False
        if part is not True:
            kept.append(part)
    if len(kept) < 2:
        return kept[0] if kept else True
    return {"and_matcher": {"predicate": kept}}


def _not(part: _Predicate) -> _Predicate:
    return not part if isinstance(part, bool) else {"not_matcher": part}


def _or(parts: Iterable[_Predicate]) -> _Predicate:
    kept = []
    for part in parts:
        if part is True:
            return True
        if part is not False:
            kept.append(part)
    if len(kept) < 2:
        return kept[0] if kept else False
    return {"or_matcher": {"predicate": kept}}


def _predicate(item: Proto) -> _Predicate:
    """Write a permission or principal (of those that a connection has) as a predicate."""
    ((kind, value),) = item.items()
    match kind:
        case "any":
            return True
        case "and_rules" | "and_ids":
            return _and(map(_predicate, next(iter(value.values()))))
        case "or_rules" | "or_ids":
            return _or(map(_predicate, next(iter(value.values()))))
        case "not_rule" | "not_id":
            return _not(_predicate(value))
        case "filter_state":
            return _text(_input("FilterStateInput", key=value["key"]), value["string_match"])
        case "remote_ip":
            return _address(_input("SourceIPInput"), value)
        case "destination_ip":
            return _address(_input("DestinationIPInput"), value)
        case "destination_port":
            return _text(_input("DestinationPortInput"), {"exact": str(value)})
        case "requested_server_name":
            return _text(_input("ServerNameInput"), value)
    raise AssertionError(f"{kind} is not known of a connection")


def _policies(policies: dict[str, Proto]) -> _Predicate:
    return _or(
        _and([_or(map(_predicate, p["permissions"])), _or(map(_predicate, p["principals"]))])
        for p in policies.values()
    )


def admitting(s: Security, denied: dict[str, Proto], on_match: Proto) -> Proto:
    """Wrap what happens to a connection (Matcher.OnMatch) so that only who may connect gets it.

    `denied` are the policies of the DENY stage.
    """
    allowed: _Predicate = _not(_policies(denied))
    if s.of("ALLOW"):
        allowed = _and([allowed, _policies(engine_policies(s.of("ALLOW"), tcp=True))])
    if allowed is True:
        return on_match
    if allowed is False:  # no predicate is an error: take one that never holds
        allowed = _text(_input("DestinationPortInput"), {"exact": "none"})
    return {
        "matcher": {
            "matcher_list": {"matchers": [{"predicate": allowed, "on_match": on_match}]},
        }
    }

"""A VirtualService that hands requests to another one: both together as plain rules.

One level only, as in Istio: a delegate of a delegate is left out, so that no cycle can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from mesh.manifest import Key
from waypoint.config.istio.templates import NO_CHANGE, HttpTemplate, Match, VirtualService
from waypoint.config.reading import Report
from waypoint.config.routing import PathMatch, RouteMatch, TextMatch

_MAX_PAIRS: Final = 20_000  # of a root's matches with its delegate's, per rule of the root

Lookup = Callable[[Key], VirtualService | None]
Reports = Mapping[Key, Report]


def _same_path(root: PathMatch, leaf: PathMatch) -> PathMatch | None:
    """Find the path match that both allow; None if there is none that Envoy can express."""
    if root == leaf:
        return leaf
    if "regex" in (root.kind, leaf.kind) or root.ignore_case != leaf.ignore_case:
        return None
    a, b = (
        (root.value.lower(), leaf.value.lower()) if leaf.ignore_case else (root.value, leaf.value)
    )
    if leaf.kind == "exact":
        fits = a == b if root.kind == "exact" else b.startswith(a)
        return leaf if fits else None
    if root.kind == "exact":
        return root if a.startswith(b) else None
    return leaf if b.startswith(a) else root if a.startswith(b) else None


def _both(root: RouteMatch, leaf: RouteMatch) -> RouteMatch | None:
    """Require two matches at once; None if no request can fit both."""
    path = leaf.path or root.path
    if root.path is not None and leaf.path is not None:
        path = _same_path(root.path, leaf.path)
        if path is None:
            return None
    namespaces = leaf.source_namespaces or root.source_namespaces
    if root.source_namespaces and namespaces != root.source_namespaces:
        return None
    extra: list[tuple[str, TextMatch]] = []
    for name in ("scheme", "method", "authority"):
        one, other = getattr(root, name), getattr(leaf, name)
        if one is not None and other is not None and one != other:
            extra.append((f":{name}", one))  # every header match counts, pseudo headers too
    return RouteMatch(
        path=path,
        method=leaf.method or root.method,
        authority=leaf.authority or root.authority,
        scheme=leaf.scheme or root.scheme,
        headers=tuple(dict.fromkeys((*root.headers, *leaf.headers, *extra))),
        query=tuple(dict.fromkeys((*root.query, *leaf.query))),
        source_namespaces=namespaces,
    )


def _join(*names: str) -> str:
    return "-".join(n for n in names if n)


def _pairs(root: HttpTemplate, leaf: HttpTemplate) -> Iterator[Match | None]:
    """Combine every match of the root with every one of the delegate; None where none can be."""
    if not root.matches or not leaf.matches:
        yield from root.matches or leaf.matches
        return
    for below in leaf.matches:
        for above in root.matches:
            match = _both(above.match, below.match)
            ports = {p for p in (above.port, below.port) if p is not None}
            if match is None or len(ports) > 1:
                yield None
            else:
                name = _join(above.name, below.name)
                yield Match(below.path, match, name, next(iter(ports), None))


def _merged(root: HttpTemplate, leaf: HttpTemplate, report: Report) -> HttpTemplate | None:
    """Let a delegate's rule inherit from the root's; None if nothing fits both."""
    matches = []
    for i, match in enumerate(_pairs(root, leaf)):
        if i >= _MAX_PAIRS:
            report.bad(leaf.path, f"more than {_MAX_PAIRS} combinations with its root's matches")
            break
        if match is not None:
            matches.append(match)
    if not matches and (root.matches or leaf.matches):
        report.bad(
            f"{leaf.path}.match", "contradicts the rule that delegates to it: the rule is left out"
        )
        return None
    headers = leaf
    if leaf.request_headers == NO_CHANGE == leaf.response_headers and not leaf.host:
        headers = root
    return replace(
        leaf,
        name=_join(root.name, leaf.name),
        matches=tuple(matches),
        rewrite=leaf.rewrite or root.rewrite,
        host=headers.host,
        request_headers=headers.request_headers,
        response_headers=headers.response_headers,
        mirrors=leaf.mirrors or root.mirrors,
        timeout=root.timeout if leaf.timeout is None else leaf.timeout,
        retry=leaf.retry or root.retry,
        cors=leaf.cors or root.cors,
        fault=leaf.fault or root.fault,
    )


def expand(
    service: VirtualService, lookup: Lookup, reports: Reports
) -> Iterator[tuple[VirtualService, HttpTemplate]]:
    """Walk the http rules of a VirtualService, with those of its delegates in their places.

    Yields the object that a rule is from. Findings go to the reports of the objects concerned.
    """
    for rule in service.http:
        if rule.closed:
            continue
        if rule.delegate is None:
            yield service, rule
            continue
        mine = reports[service.key]
        key = Key(service.key.kind, *rule.delegate)
        other = lookup(key)
        if other is None:
            mine.bad(f"{rule.path}.delegate", f"there is no {key}: the rule is left out")
            continue
        if other.hosts or other.report.refused:
            mine.bad(f"{rule.path}.delegate", f"{key} has hosts of its own: the rule is left out")
            continue
        for leaf in other.http:
            if leaf.closed:
                continue
            if leaf.delegate is not None:
                reports[key].bad(
                    f"{leaf.path}.delegate", "a delegate cannot delegate: the rule is left out"
                )
                continue
            merged = _merged(rule, leaf, reports[key])
            if merged is not None:
                yield other, merged

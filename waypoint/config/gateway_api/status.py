"""What routes and policies are told, as the specification says it.

Routes, per parent: Accepted, ResolvedRefs, PartiallyInvalid where rules were dropped, and (Istio's)
ResolvedWaypoints. Policies, per ancestor: Accepted, and ResolvedRefs of a BackendTLSPolicy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from mesh.findings import Condition
from mesh.manifest import Key
from mesh.model import Service
from waypoint.config.gateway_api.attach import (
    MAX_RULES,
    Attached,
    Catalogue,
    allows,
    check,
    ports_of,
)
from waypoint.config.gateway_api.policies import TLS_POLICY, Policy, PolicyTarget
from waypoint.config.gateway_api.templates import Parent, Problem, Route
from waypoint.config.reading import Report
from waypoint.config.status import ParentStatus, Status, joined, listed

_NOT_BOUND: Final = (
    "no waypoint serves it: label the Service (or its Namespace) istio.io/use-waypoint; until then"
    " the route has no effect"
)


class Served(Protocol):
    """What is known of a service elsewhere: the waypoints that its traffic passes."""

    @property
    def bound(self) -> tuple[str, ...]:
        """Their names, "namespace/name"."""


State = Callable[[str], Served]


def _notes(report: Report) -> list[str]:
    more = [f"and {report.left_out} more findings"] if report.left_out else []
    return [*report.invalid, *report.unsupported, *more]


# ---- routes ------------------------------------------------------------------------------------


def _refused(parent: Parent, route: Route, catalogue: Catalogue) -> Problem | None:
    """Say why a parent cannot take a route, whatever the route's rules are."""
    if parent.problem is not None:
        return parent.problem
    service = catalogue.service(parent.service)
    if service is None:
        return Problem("NoMatchingParent", f"there is no Service {parent.service}")
    if not service.vips and not service.cidrs:
        return Problem(
            "UnsupportedValue",
            f"{parent.service} is headless: nothing is addressed to it, only to its pods",
        )
    if ports_of(parent, route.key.kind, service, catalogue):
        return None
    named = [
        p
        for p in service.ports
        if parent.port in (None, p.service_port)
        and parent.section in ("", catalogue.port_name(service.key, p.service_port))
    ]
    if not named:
        which = f"port {parent.port}" if parent.port else f"port named {parent.section!r}"
        return Problem("NoMatchingParent", f"{parent.service} has no {which}")
    return Problem(
        "NoMatchingParent",
        f"a {route.key.kind} does not fit the protocol of {_port_list(named, route)} of"
        f" {parent.service} (appProtocol)",
    )


def _port_list(ports: Iterable[Any], route: Route) -> str:
    numbers = [p.service_port for p in ports if not allows(route.key.kind, p.app_protocol)]
    return ("port " if len(numbers) == 1 else "ports ") + ", ".join(map(str, numbers))


def _accepted(
    parent: Parent, route: Route, catalogue: Catalogue, attached: Attached | None
) -> Condition:
    problem = _refused(parent, route, catalogue)
    if problem is None and not route.usable:
        reason = "IncompatibleFilters" if route.incompatible else "UnsupportedValue"
        problem = Problem(
            reason, joined(["no rule can be used", *route.dropped, *_notes(route.report)])
        )
    if problem is None and attached is not None and route.key not in attached.counting:
        losing = attached.losing.get(route.key, {})
        kinds = listed(set(losing.values()))
        problem = Problem("Conflicted", f"{kinds} is attached to the same ports and counts alone")
    if problem is not None:
        return Condition("Accepted", False, problem.reason, problem.message)
    lost = attached.losing.get(route.key, {}) if attached is not None else {}
    limits = [f"on port {port} a {kind} counts instead" for port, kind in sorted(lost.items())]
    message = joined(["attached to the service", *limits, *_notes(route.report)])
    return Condition("Accepted", True, "Accepted", message)


def _resolved(route: Route, catalogue: Catalogue) -> Condition:
    problems = [t.problem for t in route.http if t.problem is not None]
    problems += [p for ref in route.references if (p := check(ref, route, catalogue)) is not None]
    if not problems:
        return Condition("ResolvedRefs", True, "ResolvedRefs", "all references are there")
    return Condition("ResolvedRefs", False, problems[0].reason, joined(p.message for p in problems))


def status_of_route(
    route: Route,
    catalogue: Catalogue,
    attached: Callable[[str], Attached],
    state: State,
) -> Status:
    """Sum up what became of a route at each of its parents that are services."""
    parents = []
    resolved = _resolved(route, catalogue)
    for parent in route.parents:
        known = catalogue.service(parent.service) is not None
        here = attached(parent.service) if known else None
        accepted = _accepted(parent, route, catalogue, here)
        conditions = [accepted, resolved]
        cut: Mapping[int, int] = here.cut.get(route.key, {}) if here is not None else {}
        if accepted.status and (route.dropped or cut):
            beyond = (
                f"{count} matches are left out on port {port} of {parent.service}: more specific or"
                f" older ones are {MAX_RULES} already, which is the most"
                for port, count in sorted(cut.items())
            )
            message = joined([*(f"Dropped Rule {text}" for text in route.dropped), *beyond])
            conditions.append(Condition("PartiallyInvalid", True, "UnsupportedValue", message))
        if accepted.status:
            conditions.append(_waypoints(state(parent.service).bound))
        parents.append(ParentStatus(parent.ref, tuple(conditions)))
    return Status(parents=tuple(parents))


def _waypoints(bound: tuple[str, ...]) -> Condition:
    kind = "ResolvedWaypoints"
    if bound:
        return Condition(kind, True, kind, f"in effect at {listed(bound)}")
    return Condition(kind, False, "NoWaypoint", _NOT_BOUND)


# ---- policies ----------------------------------------------------------------------------------


def _has_port(target: PolicyTarget, service: Service, catalogue: Catalogue) -> bool:
    return any(
        catalogue.port_name(service.key, p.service_port) == target.section for p in service.ports
    )


def _policy_accepted(
    policy: Policy, target: PolicyTarget, catalogue: Catalogue, older: Key | None
) -> Condition:
    service = catalogue.service(target.service)
    if target.problem is not None:
        return Condition("Accepted", False, target.problem.reason, target.problem.message)
    if service is None:
        return Condition(
            "Accepted", False, "TargetNotFound", f"there is no Service {target.service}"
        )
    named = policy.key.kind == TLS_POLICY and target.section
    if named and not _has_port(target, service, catalogue):
        text = f"sectionName: {target.service} has no port named {target.section!r}"
        return Condition("Accepted", False, "TargetNotFound", text)
    if policy.report.invalid:
        return Condition("Accepted", False, "Invalid", joined(_notes(policy.report)))
    if older is not None:
        return Condition("Accepted", False, "Conflicted", f"{older} is older and counts")
    said = [f"in effect for {target.service}"]
    if policy.session is not None:
        said.append("sessions only by rules that send to it alone, not by those that split")
    message = joined([*said, *_notes(policy.report)])
    return Condition("Accepted", True, "Accepted", message)


def status_of_policy(
    policy: Policy,
    catalogue: Catalogue,
    older: Callable[[Policy, PolicyTarget], Key | None],
    ca: Problem | None,
    has_ca: bool,
) -> Status:
    """Sum up what became of a policy at each of its targets; `ca`: what is wrong with its CA."""
    parents = []
    for target in policy.targets:
        accepted = _policy_accepted(policy, target, catalogue, older(policy, target))
        conditions = [accepted]
        if policy.key.kind == TLS_POLICY:
            if accepted.status and not has_ca:
                why = ca.message if ca is not None else "no CA certificate can be used"
                why += ": connections fail"
                conditions = [Condition("Accepted", False, "NoValidCACertificate", why)]
            if ca is None:
                text = "all references are there"
                conditions.append(Condition("ResolvedRefs", True, "ResolvedRefs", text))
            else:
                conditions.append(Condition("ResolvedRefs", False, ca.reason, ca.message))
        parents.append(ParentStatus(_ancestor(target.ref), tuple(conditions)))
    return Status(parents=tuple(parents))


def _ancestor(ref: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**ref, "group": "" if ref.get("group") == "core" else ref.get("group", "")}

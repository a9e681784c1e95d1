"""What DestinationRules and VirtualServices are told: one condition, WaypointAccepted.

True/Accepted: all of it is in effect. True/PartiallyInvalid: it is, but for what the message names.
False: nothing of it is, because of itself (Invalid), because its hosts are no services
(TargetNotFound), or because no waypoint serves them (AncestorNotBound).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from mesh.findings import WAYPOINT_ACCEPTED, Condition
from mesh.manifest import Key
from waypoint.config.istio import hosts
from waypoint.config.istio.destination_rule import DestinationRule
from waypoint.config.istio.rules import Bindings
from waypoint.config.istio.templates import VirtualService
from waypoint.config.reading import Report
from waypoint.config.status import Status, joined, listed
from waypoint.config.traffic import ServiceTraffic

_NOT_BOUND: Final = (
    "no waypoint serves {}: label the Service (or its Namespace) istio.io/use-waypoint; node"
    " proxies do not read this kind"
)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What is known of a service elsewhere.

    `bound`: the waypoints ("namespace/name") that its traffic passes; `senders`: those that send
    to it because of routes; `taken`: by port, the Gateway API route that is attached to it.
    """

    bound: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    taken: Mapping[int, str] = field(default_factory=dict)


_UNSEEN: Final = (
    "waypoints read the VirtualServices of a service's namespace and of their own, as far as"
    " exportTo shows them: not this one for {}"
)

State = Callable[[str], ServiceState]


class View(Protocol):
    """What is known of all objects together (IstioIndex)."""

    root_namespace: str

    def named(self, host: str) -> set[str]:
        """Find the services that a host stands for."""

    def served(self, key: Key) -> set[str]:
        """Find the services whose requests a VirtualService takes."""

    def roots(self, key: Key) -> list[VirtualService]:
        """Find the VirtualServices that delegate to one."""

    def composed(self, key: str) -> tuple[ServiceTraffic, dict[Key, Report]]:
        """Say how a service is talked to, and what each rule is told."""

    def bindings(self, key: str, namespace: str) -> Bindings:
        """Say what a service's VirtualServices come to at a waypoint of a namespace."""


def _refused(reason: str, *parts: str) -> Status:
    """Say that nothing of an object is in effect."""
    return Status((Condition(WAYPOINT_ACCEPTED, False, reason, joined(parts)),))


def _judged(report: Report, accepted: str, *limits: str) -> Status:
    """Say that an object is in effect, but for what its report says and where (`limits`)."""
    if report.refused:
        return _refused("Invalid", report.refused, *report.invalid, *report.unsupported)
    parts = [*report.invalid, *report.unsupported]
    if report.left_out:
        parts.append(f"and {report.left_out} more findings")
    if not parts and not any(limits):
        return Status((Condition(WAYPOINT_ACCEPTED, True, "Accepted", accepted),))
    reason = "PartiallyInvalid" if parts or any(limits) else "Accepted"
    message = joined([*limits, *parts, accepted])
    return Status((Condition(WAYPOINT_ACCEPTED, True, reason, message),))


# ---- DestinationRule ---------------------------------------------------------------------------


def status_of_rule(rule: DestinationRule, view: View, state: State) -> Status:
    """Sum up what became of a DestinationRule."""
    if rule.report.refused:
        return _judged(rule.report, "")
    services = view.named(rule.host)
    if not services:
        return _refused("TargetNotFound", f"spec.host: there is no service {rule.host}")
    told = {key: view.composed(key)[1] for key in sorted(services)}
    counting = [key for key, reports in told.items() if rule.key in reports]
    if not counting:
        return _refused("AncestorNotBound", _why_passed_over(rule, services, view))
    report = Report()
    report.take(rule.report)
    waypoints: set[str] = set()
    used = []
    for key in counting:
        report.take(told[key][rule.key])
        found = state(key)
        if found.bound or found.senders:
            used.append(key)
            waypoints |= {*found.bound, *found.senders}
    if not used:
        return _refused("AncestorNotBound", _NOT_BOUND.format(listed(counting)), *report.invalid)
    return _judged(report, f"in effect for {listed(used)} at {listed(waypoints)}")


def _why_passed_over(rule: DestinationRule, services: set[str], view: View) -> str:
    owner, root = rule.key.namespace, view.root_namespace
    namespaces = {key.partition("/")[0] for key in services}
    if owner not in {*namespaces, root}:
        return (
            f"it is in namespace {owner}, and waypoints read the rules of a service's own namespace"
            f" and of {root}: move it to that of {listed(services)}"
        )
    if not any(hosts.is_visible(rule.export, owner, ns) for ns in namespaces):
        return f"spec.exportTo does not show it to the namespace of {listed(services)}"
    counting = {str(other) for key in services for other in view.composed(key)[1]}
    return f"closer or more specific rules count for its services: {listed(counting)}"


# ---- VirtualService ----------------------------------------------------------------------------


def status_of_virtual(obj: VirtualService, view: View, state: State) -> Status:
    """Sum up what became of a VirtualService."""
    if obj.report.refused:
        return _judged(obj.report, "")
    names = {host for each in (obj, *view.roots(obj.key)) for host in each.hosts}
    if not names:
        return _refused(
            "AncestorNotBound", "spec.hosts is empty, and no VirtualService delegates to it"
        )
    services = view.served(obj.key)
    if not services:
        return _refused("TargetNotFound", f"spec.hosts: there is no service {listed(names)}")
    found = _Places()
    found.report.take(obj.report)
    for key in sorted(services):
        found.look(obj.key, key, view, state(key))
    if not found.used:
        reason = "Invalid" if found.taken else "AncestorNotBound"
        return _refused(reason, *found.limits, *found.report.invalid)
    return _judged(found.report, f"in effect for {listed(found.used)}", *found.limits)


@dataclass(slots=True)
class _Places:
    """What became of a VirtualService at each of its services."""

    report: Report = field(default_factory=Report)
    used: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    unbound: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def look(self, obj: Key, service: str, view: View, found: ServiceState) -> None:
        if not found.bound:
            self.unbound.append(service)
            return
        here = [view.bindings(service, waypoint.partition("/")[0]) for waypoint in found.bound]
        reports = [b.reports[obj] for b in here if obj in b.reports]
        if not reports:
            self.unseen.append(service)
            return
        for mine in reports:
            self.report.take(mine)
        if found.taken:
            self.taken.append(_taken(service, found))
        if not found.taken or any(set(b.ports) - set(found.taken) for b in here):
            self.used.append(f"{service} at {listed(found.bound)}")

    @property
    def limits(self) -> list[str]:
        """Say where it is not in effect, and why."""
        said = list(self.taken)
        if self.unbound:
            said.append(_NOT_BOUND.format(listed(self.unbound)))
        if self.unseen:
            said.append(_UNSEEN.format(listed(self.unseen)))
        return said


def _taken(key: str, state: ServiceState) -> str:
    routes, ports = set(state.taken.values()), sorted(state.taken)
    return (
        f"{key}: {listed(routes)} is attached to port {', '.join(map(str, ports))} and counts there"
        " alone: do not mix both kinds of routes"
    )

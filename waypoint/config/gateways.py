"""Gateways of a waypoint class, read and told what became of them (Gateway API 1.6). Pure.

A waypoint has one kind of listener: protocol HBONE on port 15008. Its allowedRoutes say which
namespaces may send their traffic through it. Any other listener is reported as invalid and takes
nothing from those that are valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.findings import Condition, selects
from mesh.manifest import Key
from mesh.ports import INBOUND_HBONE
from waypoint.config.status import CONTROLLER, Status

WAYPOINT_CLASSES: Final = frozenset({"ambit-waypoint", "istio-waypoint"})
# Pods of a waypoint carry both (also those that somebody else deploys for a Gateway).
GATEWAY_NAME: Final = "gateway.networking.k8s.io/gateway-name"
GATEWAY_CLASS: Final = "gateway.networking.k8s.io/gateway-class-name"
WAYPOINT_FOR: Final = "istio.io/waypoint-for"
NAME_OVERRIDE: Final = "gateway.istio.io/name-override"
SERVICE_ACCOUNT: Final = "gateway.istio.io/service-account"
PROTOCOL: Final = "HBONE"
GROUP: Final = "gateway.networking.k8s.io"
ROUTE_KINDS: Final = ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute")

_TRAFFIC: Final = {
    "service": (True, False),
    "workload": (False, True),
    "all": (True, True),
    "none": (False, False),
}
_DEFAULT_TRAFFIC: Final = "service"
_FROM: Final = ("All", "None", "Same", "Selector")
_MAX_LISTENERS: Final = 64  # of the API


@dataclass(frozen=True, slots=True)
class Allowed:
    """allowedRoutes.namespaces of one listener."""

    origin: str = "Same"
    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # key, operator, values

    def allows(self, own: str, namespace: str, labels: Mapping[str, str]) -> bool:
        """Say whether a namespace may attach to a Gateway in namespace `own`."""
        if self.origin == "Selector":
            return selects(dict(self.labels), labels) and all(
                _holds(e, labels) for e in self.expressions
            )
        return self.origin == "All" or (self.origin == "Same" and namespace == own)


@dataclass(frozen=True, slots=True)
class Listener:
    """One listener. `wrong`: condition type, reason, message of each thing wrong with it."""

    name: str
    allowed: Allowed
    kinds: tuple[tuple[str, str], ...]  # (group, kind) of routes
    wrong: tuple[tuple[str, str, str], ...] = ()

    @property
    def valid(self) -> bool:
        """Whether it is served."""
        return not any(kind in ("Accepted", "Conflicted") for kind, _, _ in self.wrong)


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """One Gateway of a waypoint class."""

    namespace: str
    name: str
    uid: str
    class_name: str
    takes: str  # istio.io/waypoint-for
    listeners: tuple[Listener, ...]
    resource_name: str  # of the objects made for it
    service_account: str
    own_account: bool  # made for it, too
    labels: tuple[tuple[str, str], ...] = ()  # spec.infrastructure
    annotations: tuple[tuple[str, str], ...] = ()
    parameters: str = ""  # name of a ConfigMap
    wrong: tuple[tuple[str, str], ...] = ()  # reason, message: it is not accepted

    @property
    def services(self) -> bool:
        """Whether traffic to Services passes it."""
        return _TRAFFIC[self.takes][0]

    @property
    def workloads(self) -> bool:
        """Whether traffic to pods' own addresses passes it."""
        return _TRAFFIC[self.takes][1]

    @property
    def accepted(self) -> bool:
        """Whether there is something to serve."""
        return not self.wrong and any(listener.valid for listener in self.listeners)

    def allows(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Say whether objects of a namespace may send their traffic through it."""
        return any(
            li.valid and li.allowed.allows(self.namespace, namespace, labels)
            for li in self.listeners
        )


# ---- reading ---------------------------------------------------------------------------------


def is_waypoint_class(name: Any, classes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether Gateways of a class are ours; `classes`: GatewayClass objects by name.

    The two well-known names are, unless a GatewayClass object gives them to another controller.
    """
    found = classes.get(name) if isinstance(name, str) else None
    if found is not None:
        return is_ours(found)
    return name in WAYPOINT_CLASSES


def is_ours(gateway_class: Mapping[str, Any]) -> bool:
    """Say whether a GatewayClass object names this controller."""
    return _mapping(gateway_class.get("spec")).get("controllerName") == CONTROLLER


def read_gateway(
    obj: Mapping[str, Any], gateway_class: Mapping[str, Any] | None = None
) -> GatewayRecord:
    """Read a Gateway of a waypoint class; its GatewayClass may say istio.io/waypoint-for, too."""
    metadata, spec = obj["metadata"], _mapping(obj.get("spec"))
    wrong: list[tuple[str, str]] = []
    annotations = _texts(metadata.get("annotations"))
    class_labels = _texts(_mapping((gateway_class or {}).get("metadata")).get("labels"))
    takes = _texts(metadata.get("labels")).get(WAYPOINT_FOR) or class_labels.get(WAYPOINT_FOR)
    if takes is not None and takes not in _TRAFFIC:
        known = ", ".join(_TRAFFIC)
        wrong.append(("Invalid", f"metadata.labels[{WAYPOINT_FOR}]: {takes!r} is none of {known}"))
        takes = None
    infrastructure = _mapping(spec.get("infrastructure"))
    name = annotations.get(NAME_OVERRIDE) or str(metadata["name"])
    account = annotations.get(SERVICE_ACCOUNT) or name
    if spec.get("addresses"):
        wrong.append(
            ("UnsupportedAddress", "spec.addresses: a waypoint's address is that of its Service")
        )
    return GatewayRecord(
        namespace=str(metadata["namespace"]),
        name=str(metadata["name"]),
        uid=str(metadata.get("uid") or ""),
        class_name=str(spec.get("gatewayClassName") or ""),
        takes=takes or _DEFAULT_TRAFFIC,
        listeners=_listeners(spec.get("listeners")),
        resource_name=name,
        service_account=account,
        own_account=SERVICE_ACCOUNT not in annotations,
        labels=tuple(sorted(_texts(infrastructure.get("labels")).items())),
        annotations=tuple(sorted(_texts(infrastructure.get("annotations")).items())),
        parameters=_parameters(infrastructure.get("parametersRef"), wrong),
        wrong=tuple(wrong),
    )


def _parameters(raw: Any, wrong: list[tuple[str, str]]) -> str:
    if raw is None:
        return ""
    ref = _mapping(raw)
    name = ref.get("name")
    if ref.get("group", "") == "" and ref.get("kind") == "ConfigMap" and isinstance(name, str):
        return name
    text = 'spec.infrastructure.parametersRef: only a ConfigMap (group "") of the same namespace'
    wrong.append(("InvalidParameters", text))
    return ""


def _listeners(raw: Any) -> tuple[Listener, ...]:
    out: list[Listener] = []
    taken = False  # the one port of a waypoint
    for item in (raw if isinstance(raw, list) else [])[:_MAX_LISTENERS]:
        listener = _listener(_mapping(item))
        if listener.valid and taken:
            text = f"another listener has port {INBOUND_HBONE} already; a waypoint has one"
            wrong = (*listener.wrong, ("Conflicted", "ProtocolConflict", text))
            listener = Listener(listener.name, listener.allowed, listener.kinds, wrong)
        taken = taken or listener.valid
        out.append(listener)
    return tuple(out)


def _listener(raw: Mapping[str, Any]) -> Listener:
    wrong = []
    protocol, port = raw.get("protocol"), raw.get("port")
    if protocol != PROTOCOL:
        text = f"protocol {protocol!r}: a waypoint's listener has protocol {PROTOCOL}"
        wrong.append(("Accepted", "UnsupportedProtocol", text))
    elif port != INBOUND_HBONE:
        text = f"port {port!r}: a waypoint listens on {INBOUND_HBONE}"
        wrong.append(("Accepted", "PortUnavailable", text))
    routes = _mapping(raw.get("allowedRoutes"))
    kinds, unknown = _kinds(routes.get("kinds"))
    if unknown:
        text = f"allowedRoutes.kinds: {', '.join(unknown)} cannot be attached to a waypoint"
        wrong.append(("ResolvedRefs", "InvalidRouteKinds", text))
    try:
        allowed = _allowed(_mapping(routes.get("namespaces")))
    except ValueError as e:
        allowed = Allowed("None")
        wrong.append(("Accepted", "Invalid", f"allowedRoutes.namespaces.{e}; nothing may attach"))
    return Listener(str(raw.get("name") or ""), allowed, kinds, tuple(wrong))


def _kinds(raw: Any) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    if not isinstance(raw, list) or not raw:
        return tuple((GROUP, kind) for kind in ROUTE_KINDS), []
    known, unknown = [], []
    for entry in raw:
        kind = _mapping(entry).get("kind")
        if _mapping(entry).get("group", GROUP) == GROUP and kind in ROUTE_KINDS:
            known.append((GROUP, str(kind)))
        else:
            unknown.append(str(kind)[:100])
    return tuple(dict.fromkeys(known)), unknown


def _allowed(raw: Mapping[str, Any]) -> Allowed:
    origin = raw.get("from", "Same")
    if origin not in _FROM:
        raise ValueError(f"from: {origin!r} is none of {', '.join(_FROM)}")
    if origin != "Selector":
        return Allowed(str(origin))
    selector = raw.get("selector")
    if not isinstance(selector, Mapping):
        raise ValueError("selector: missing, and from: Selector needs it")
    labels = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []
    if not isinstance(labels, Mapping) or not isinstance(expressions, list):
        raise ValueError("selector: matchLabels must be a mapping, matchExpressions a list")
    read = tuple(_expression(_mapping(e)) for e in expressions)
    return Allowed("Selector", tuple((str(k), str(v)) for k, v in labels.items()), read)


def _expression(raw: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    key, operator, values = raw.get("key"), raw.get("operator"), raw.get("values") or []
    if not isinstance(key, str) or not isinstance(values, list):
        raise ValueError("selector.matchExpressions: key must be text, values a list")
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
        raise ValueError(f"selector.matchExpressions: operator {operator!r} does not exist")
    return key, operator, tuple(str(v) for v in values)


def _holds(expression: tuple[str, str, tuple[str, ...]], labels: Mapping[str, str]) -> bool:
    key, operator, values = expression
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    return (key in labels) == (operator == "Exists")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in _mapping(value).items()}


# ---- telling ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deployed:
    """What is there of a Gateway's objects.

    `problem` stands in the way of making them, `parameters` is what is wrong with its ConfigMap;
    "" is nothing.
    """

    hostname: str = ""  # of its Service, once that exists
    pods: int = 0
    ready: int = 0
    problem: str = ""
    parameters: str = ""


def gateway_status(
    gateway: GatewayRecord, deployed: Deployed, attached: Mapping[str, int] | None = None
) -> Status:
    """Say what became of a Gateway; `attached`: routes by listener."""
    accepted, programmed = _accepted(gateway, deployed), _programmed(gateway, deployed)
    addresses = [{"type": "Hostname", "value": deployed.hostname}] if deployed.hostname else []
    listeners = [
        _listener_status(li, programmed, (attached or {}).get(li.name, 0))
        for li in gateway.listeners
    ]
    return Status((accepted, programmed), fields={"addresses": addresses, "listeners": listeners})


def _accepted(gateway: GatewayRecord, deployed: Deployed) -> Condition:
    if deployed.parameters:
        text = f"{deployed.parameters}; what was made before stays as it is"
        return Condition("Accepted", False, "InvalidParameters", text)
    if gateway.wrong:
        text = "; ".join(message for _, message in gateway.wrong)
        return Condition("Accepted", False, gateway.wrong[0][0], text)
    bad = [li.name for li in gateway.listeners if not li.valid]
    if not gateway.accepted:
        text = f"spec.listeners: none of them has protocol {PROTOCOL} and port {INBOUND_HBONE}"
        return Condition("Accepted", False, "ListenersNotValid", text)
    if bad:
        text = f"these listeners are not served: {', '.join(bad)}"
        return Condition("Accepted", True, "ListenersNotValid", text)
    return Condition("Accepted", True, "Accepted", "a waypoint serves this Gateway")


def _programmed(gateway: GatewayRecord, deployed: Deployed) -> Condition:
    if not gateway.accepted:
        return Condition("Programmed", False, "Invalid", "it is not accepted")
    if deployed.problem:
        return Condition("Programmed", False, "NoResources", deployed.problem)
    if not deployed.hostname:
        text = f"Service {gateway.namespace}/{gateway.resource_name} has no address yet"
        return Condition("Programmed", False, "AddressNotAssigned", text)
    if not deployed.ready:
        text = f"none of its {deployed.pods} pods is ready"
        return Condition("Programmed", False, "Pending", text)
    return Condition("Programmed", True, "Programmed", "its pods serve")


def _listener_status(listener: Listener, programmed: Condition, attached: int) -> dict[str, Any]:
    wrong = {kind: (reason, message) for kind, reason, message in listener.wrong}
    conditions = []
    for kind, reason, text in (
        ("Accepted", "Accepted", "served"),
        ("ResolvedRefs", "ResolvedRefs", "nothing it refers to is missing"),
    ):
        found = wrong.get(kind)
        conditions.append(
            Condition(kind, False, *found) if found else Condition(kind, True, reason, text)
        )
    conflict = wrong.get("Conflicted")
    if conflict:
        conditions[0] = Condition("Accepted", False, *conflict)
        conditions.append(Condition("Conflicted", True, *conflict))
    else:
        conditions.append(Condition("Conflicted", False, "NoConflicts", "it has its port alone"))
    if listener.valid:
        conditions.append(programmed)
    else:
        conditions.append(Condition("Programmed", False, "Invalid", "it is not accepted"))
    return {
        "name": listener.name,
        "supportedKinds": [{"group": group, "kind": kind} for group, kind in listener.kinds],
        "attachedRoutes": attached,
        "conditions": tuple(sorted(conditions, key=lambda c: c.type)),
    }


def class_status(gateway_class: Mapping[str, Any], features: tuple[str, ...] = ()) -> Status:
    """Say what became of a GatewayClass that names this controller."""
    fields = {"supportedFeatures": [{"name": f} for f in sorted(features)]} if features else {}
    if _mapping(gateway_class.get("spec")).get("parametersRef") is not None:
        text = "spec.parametersRef: not supported; use spec.infrastructure of each Gateway"
        return Status((Condition("Accepted", False, "InvalidParameters", text),), fields=fields)
    accepted = Condition("Accepted", True, "Accepted", "Gateways of this class become waypoints")
    return Status((accepted,), fields=fields)


def key_of(gateway: GatewayRecord) -> Key:
    """Name the Gateway object."""
    return Key("Gateway", gateway.namespace, gateway.name)

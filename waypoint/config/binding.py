"""Which waypoint an object's traffic passes, and what happens where it cannot. Pure.

A Service or Pod names a waypoint by label, or its Namespace does for all of them; the object's own
word counts before its Namespace's, and `none` means no waypoint. What names a waypoint passes that
waypoint or nothing: where the waypoint is missing, is not ready or does not let the object's
namespace attach, node proxies are told a waypoint that they cannot reach, and refuse the traffic
(docs/decisions/0011-missing-waypoints.md). The annotation ambit.io/waypoint-missing: allow, on the
object or its Namespace, lets it go directly instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from mesh.findings import Condition
from mesh.model import Gateway as Address
from mesh.ports import INBOUND_HBONE
from waypoint.config.gateways import GATEWAY_NAME, GatewayRecord

USE: Final = "istio.io/use-waypoint"
USE_NAMESPACE: Final = "istio.io/use-waypoint-namespace"
MISSING: Final = "ambit.io/waypoint-missing"
LABELS: Final = (USE, USE_NAMESPACE)  # what is read of labels; of annotations it is MISSING
WAYPOINT_BOUND: Final = "istio.io/WaypointBound"

NONE: Final = "none"
# No Service has a name below this one: what is told to pass it is refused, and the node proxy's
# log says why in the name itself.
_NOWHERE: Final = "not-allowed.waypoint.ambit.io"
Traffic = Literal["service", "workload"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What one object's metadata says about waypoints. "" says nothing."""

    name: str = ""
    namespace: str = ""
    missing: str = ""  # allow, refuse


SILENT: Final = Wish()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The waypoint that an object is to use."""

    namespace: str
    name: str
    inherited: bool  # the Namespace says so, not the object
    open: bool  # without the waypoint, traffic goes directly

    @property
    def key(self) -> tuple[str, str]:
        """Of the Gateway."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Attachment:
    """What became of it.

    `gateway` serves the object, () if none does; `address` is what node proxies are told, None
    where traffic goes directly; `condition` None: there is nothing to say.
    """

    gateway: tuple[str, str] | tuple[()] = ()
    address: Address | None = None
    condition: Condition | None = None


FREE: Final = Attachment()


def read_wish(metadata: Mapping[str, Any]) -> Wish:
    """Read an object's labels and annotations."""
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if GATEWAY_NAME in labels:
        return Wish(NONE)  # a waypoint is reached as it is
    name = str(labels.get(USE) or "")
    missing = str(annotations.get(MISSING) or "")
    if not name and not missing:
        return SILENT
    return Wish(name, str(labels.get(USE_NAMESPACE) or "") if name else "", missing)


def wanted(own: Wish, around: Wish, namespace: str) -> Wanted | None:
    """Decide by the object's own wish and that of its Namespace; None: no waypoint."""
    said = own if own.name else around
    if said.name in ("", NONE):
        return None
    return Wanted(
        namespace=said.namespace or namespace,
        name=said.name,
        inherited=said is not own,
        open=(own.missing or around.missing) == "allow",
    )


def attach(
    want: Wanted | None,
    traffic: Traffic,
    namespace: str,
    labels: Mapping[str, str],
    gateway: GatewayRecord | None,
    ready: bool,
    cluster_domain: str,
) -> Attachment:
    """Bind an object of a namespace (with those labels) to the waypoint that it wants.

    `gateway` is that waypoint, None if there is none of that name; `ready`: it has a ready pod.
    """
    if want is None:
        return FREE
    found = _attach(want, traffic, namespace, labels, gateway, ready, cluster_domain)
    if want.inherited and traffic == "workload":
        # Its Namespace's Services say the same: a line on every pod would be noise.
        return replace(found, condition=None)
    return found


def _attach(
    want: Wanted,
    traffic: Traffic,
    namespace: str,
    labels: Mapping[str, str],
    gateway: GatewayRecord | None,
    ready: bool,
    cluster_domain: str,
) -> Attachment:
    what = f"{want.namespace}/{want.name}"
    if gateway is None:
        text = f"there is no waypoint {what}: no Gateway of that name and of a waypoint class"
        return _closed(want, _hostname(want, want.name, cluster_domain), "WaypointIsNotReady", text)
    if not (gateway.services if traffic == "service" else gateway.workloads):
        if want.inherited:
            return FREE  # the Namespace's label speaks of the traffic that the waypoint takes
        text = (
            f"waypoint {what} takes no {traffic} traffic (istio.io/waypoint-for:"
            f" {gateway.takes}): nothing of this object passes it, its traffic goes directly"
        )
        return Attachment(condition=_condition(False, "UnsupportedTrafficType", text))
    if not gateway.accepted:
        text = f"waypoint {what} is not accepted; see the status of the Gateway"
        return _closed(want, _nowhere(want), "WaypointIsNotReady", text)
    if not gateway.allows(namespace, labels):
        text = (
            f"waypoint {what} does not let namespace {namespace} attach"
            " (spec.listeners[].allowedRoutes.namespaces of the Gateway)"
        )
        return _closed(want, _nowhere(want), "AttachmentDenied", text)
    address = _hostname(want, gateway.resource_name, cluster_domain)
    if not ready:
        text = f"waypoint {what} has no pod that is ready"
        return _closed(want, address, "WaypointIsNotReady", text, want.key)
    said = f"attached to waypoint {what}"
    return Attachment(want.key, address, _condition(True, "WaypointAccepted", said))


def _closed(
    want: Wanted,
    address: Address,
    reason: str,
    text: str,
    gateway: tuple[str, str] | tuple[()] = (),
) -> Attachment:
    """Refuse the traffic, or let it go where that is asked for."""
    if want.open:
        text += f"; {MISSING}: allow lets traffic go directly meanwhile, without its rules"
        return Attachment(gateway, None, _condition(False, reason, text))
    text += f"; traffic is refused until then (annotation {MISSING}: allow opens it)"
    return Attachment(gateway, address, _condition(False, reason, text))


def _condition(status: bool, reason: str, message: str) -> Condition:
    return Condition(WAYPOINT_BOUND, status, reason, message)


def _hostname(want: Wanted, service: str, cluster_domain: str) -> Address:
    return Address(
        INBOUND_HBONE,
        namespace=want.namespace,
        hostname=f"{service}.{want.namespace}.svc.{cluster_domain}",
    )


def _nowhere(want: Wanted) -> Address:
    name = f"{want.name}.{want.namespace}.{_NOWHERE}"
    return Address(INBOUND_HBONE, namespace=want.namespace, hostname=name)

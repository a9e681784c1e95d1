"""Waypoints as commands make and show them: Gateways, their status, who uses them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cli.output import table
from mesh.errors import ConfigError, NotFound
from mesh.ports import INBOUND_HBONE, LABEL_DATAPLANE_MODE
from waypoint.config.binding import USE, USE_NAMESPACE
from waypoint.config.gateways import (
    GROUP,
    PROTOCOL,
    WAYPOINT_FOR,
    is_waypoint_class,
    read_gateway,
)

Object = dict[str, Any]

API_VERSION: Final = f"{GROUP}/v1"
TRAFFIC: Final = ("service", "workload", "all", "none")
DEFAULT_NAME: Final = "waypoint"
DEFAULT_CLASS: Final = "istio-waypoint"
OTHER_CLASS: Final = "ambit-waypoint"
LISTENER: Final = "mesh"
_SHOWN: Final = 10  # names in one line
# RFC 1035, as for a Service: one is made of the Gateway's name.
_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123


# ---- making ----------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """Return the name of a waypoint to be made; raises ConfigError."""
    if name == "none":
        raise ConfigError(f"--name none: as a label, {USE}: none means no waypoint; choose another")
    if not _LABEL.fullmatch(name):
        raise ConfigError(
            f"--name {name!r}: a Service of that name is made: use up to 63 lower-case letters,"
            " digits and '-', and begin with a letter"
        )
    return name


def check_namespace(name: str) -> str:
    """Return the name of a namespace; raises ConfigError."""
    if not _NAMESPACE.fullmatch(name):
        raise ConfigError(
            f"--namespace {name!r}: use up to 63 lower-case letters, digits and '-' inside"
        )
    return name


def manifest(
    name: str, namespace: str = "", traffic: str | None = None, class_name: str = DEFAULT_CLASS
) -> Object:
    """Build a waypoint's Gateway. `traffic`: one of TRAFFIC, or None for what its class says."""
    metadata: Object = {"name": check_name(name)}
    if namespace:
        metadata["namespace"] = check_namespace(namespace)
    if traffic:
        metadata["labels"] = {WAYPOINT_FOR: traffic}
    listener = {"name": LISTENER, "port": INBOUND_HBONE, "protocol": PROTOCOL}
    spec = {"gatewayClassName": class_name, "listeners": [listener]}
    return {"apiVersion": API_VERSION, "kind": "Gateway", "metadata": metadata, "spec": spec}


def choose_class(classes: Iterable[Object]) -> str:
    """Pick the class of a new waypoint: istio-waypoint, unless another controller has that."""
    known = {o["metadata"]["name"]: o for o in classes}
    return DEFAULT_CLASS if is_waypoint_class(DEFAULT_CLASS, known) else OTHER_CLASS


def laid_over(old: Object, new: Object) -> Object:
    """Lay a waypoint over the Gateway that is there, as server-side apply would.

    What the new one says counts; other labels, annotations, listeners and fields of it stay.
    """
    meta, spec = old["metadata"], old.get("spec") or {}
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != WAYPOINT_FOR}
    labels |= new["metadata"].get("labels") or {}
    (ours,) = new["spec"]["listeners"]
    listeners = [
        {**li, **ours} if li.get("name") == LISTENER else li for li in spec.get("listeners") or []
    ]
    if not any(li.get("name") == LISTENER for li in listeners):
        listeners.append(ours)
    metadata = {**meta, "labels": labels} if labels or meta.get("labels") else meta
    return {**old, "metadata": metadata, "spec": {**spec, **new["spec"], "listeners": listeners}}


def enrolment(namespace: Object, waypoint: str, overwrite: bool) -> dict[str, str | None]:
    """Labels to set (None: to remove) so that a namespace uses its waypoint; {} when it does.

    Raises ConfigError where it uses another one.
    """
    name, labels = namespace["metadata"]["name"], namespace["metadata"].get("labels") or {}
    present, place = labels.get(USE), labels.get(USE_NAMESPACE)
    if present == waypoint and place in (None, name):
        return {}
    if present and not overwrite:
        where = f"{place}/{present}" if place else present
        raise ConfigError(
            f"namespace {name} uses another waypoint already ({USE}: {where}), and nothing was"
            " changed; --overwrite replaces it"
        )
    return {USE: waypoint} | ({USE_NAMESPACE: None} if place else {})


def is_ambient(namespace: Object) -> bool:
    """Say whether pods of a namespace are in the mesh unless they say otherwise."""
    labels = namespace["metadata"].get("labels") or {}
    return bool(labels.get(LABEL_DATAPLANE_MODE) == "ambient")


# ---- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """A waypoint's Gateway and what its status says.

    `accepted` and `programmed`: True, False, or Unknown where nobody has looked at its newest
    form; `reason` and `message` belong to the condition that counts.
    """

    namespace: str
    name: str
    class_name: str
    traffic: str
    accepted: str
    programmed: str
    reason: str
    message: str

    @property
    def key(self) -> str:
        """NS/NAME."""
        return f"{self.namespace}/{self.name}"

    @property
    def ready(self) -> bool:
        """Whether it serves, in the form that is written.

        One that is refused may go on serving in the form that it had before.
        """
        return self.programmed == "True" and self.accepted != "False"

    @property
    def settled(self) -> bool:
        """Whether waiting changes nothing: it is ready, or it was refused."""
        return self.ready or self.accepted == "False"

    def structured(self) -> dict[str, str]:
        """As JSON and YAML show it."""
        out: dict[str, str] = {
            {"class_name": "class", "traffic": "trafficType"}.get(k, k): v
            for k, v in asdict(self).items()
        }
        return out


def view(gateway: Object, classes: Iterable[Object] = ()) -> View:
    """Read a Gateway of a waypoint class."""
    known = {o["metadata"]["name"]: o for o in classes}
    record = read_gateway(gateway, known.get((gateway.get("spec") or {}).get("gatewayClassName")))
    accepted, programmed = (_condition(gateway, t) for t in ("Accepted", "Programmed"))
    counts = accepted if accepted["status"] == "False" else programmed
    return View(
        record.namespace,
        record.name,
        record.class_name,
        record.takes,
        accepted["status"],
        programmed["status"],
        counts["reason"],
        counts["message"],
    )


_UNSEEN: Final = {
    "status": "Unknown",
    "reason": "Pending",
    "message": "the control plane has not looked at it yet",
}


def _condition(gateway: Object, kind: str) -> Mapping[str, str]:
    """Read a condition; one of an older form of the object, or of no controller, says nothing."""
    generation = gateway["metadata"].get("generation", 1)
    for one in (gateway.get("status") or {}).get("conditions") or []:
        if one.get("type") == kind and one.get("observedGeneration", 0) >= generation:
            return {k: str(one.get(k) or "") for k in ("status", "reason", "message")}
    return _UNSEEN


def select(
    gateways: Sequence[Object], classes: Sequence[Object], namespace: str, names: Sequence[str]
) -> list[Object]:
    """Pick the waypoints of these names, or all, sorted; raises NotFound for one not there."""
    known = {o["metadata"]["name"]: o for o in classes}
    there = {o["metadata"]["name"]: o for o in gateways}
    for name in names:
        found = there.get(name)
        if found is None:
            have = [n for n, o in sorted(there.items()) if _is_waypoint(o, known)]
            raise NotFound(
                f"no waypoint {namespace}/{name} ({_listed(have, 'there is none')});"
                " ambit waypoint list -A shows all"
            )
        if not _is_waypoint(found, known):
            raise NotFound(not_a_waypoint(found))
    wanted = [there[n] for n in dict.fromkeys(names)] if names else gateways
    ours = [o for o in wanted if _is_waypoint(o, known)]
    return sorted(ours, key=lambda o: (o["metadata"]["namespace"], o["metadata"]["name"]))


def not_a_waypoint(gateway: Object) -> str:
    """Say so of a Gateway of another class."""
    meta, class_name = gateway["metadata"], (gateway.get("spec") or {}).get("gatewayClassName")
    return f"Gateway {meta['namespace']}/{meta['name']} is of class {class_name}: no waypoint"


def _is_waypoint(gateway: Object, classes: Mapping[str, Object]) -> bool:
    return is_waypoint_class((gateway.get("spec") or {}).get("gatewayClassName"), classes)


def uses(objects: Iterable[Object], namespace: str, name: str) -> list[Object]:
    """Pick the Namespaces, Services and Pods whose own labels send traffic to a waypoint."""
    found = []
    for obj in objects:
        meta = obj["metadata"]
        own = meta["name"] if obj["kind"] == "Namespace" else meta["namespace"]
        labels = meta.get("labels") or {}
        if labels.get(USE) == name and (labels.get(USE_NAMESPACE) or own) == namespace:
            found.append(obj)
    return sorted(found, key=called)


def called(obj: Object) -> str:
    """Name an object: KIND NS/NAME."""
    meta = obj["metadata"]
    place = f"{meta['namespace']}/" if meta.get("namespace") else ""
    return f"{obj['kind']} {place}{meta['name']}"


def _listed(names: Sequence[str], none: str) -> str:
    return f"there are: {some(names)}" if names else none


def some(names: Sequence[str]) -> str:
    """Join the first ten names, and say how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# ---- showing ---------------------------------------------------------------------------------


def listing(views: Sequence[View], everywhere: bool) -> str:
    """Render `ambit waypoint list`."""
    rows = [[v.namespace, v.name, v.class_name, v.traffic, v.programmed] for v in views]
    return _cut(["NAMESPACE", "NAME", "CLASS", "TRAFFIC TYPE", "PROGRAMMED"], rows, everywhere)


def statuses(views: Sequence[View], everywhere: bool) -> str:
    """Render the table of `ambit waypoint status`."""
    rows = [[v.namespace, v.name, v.programmed, v.reason, v.message] for v in views]
    return _cut(["NAMESPACE", "NAME", "PROGRAMMED", "REASON", "MESSAGE"], rows, everywhere)


def _cut(headings: list[str], rows: list[list[str]], everywhere: bool) -> str:
    first = 0 if everywhere else 1
    return table(headings[first:], [row[first:] for row in rows])

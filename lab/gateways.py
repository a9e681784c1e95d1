"""Waypoints of a lab: the objects that a Gateway stands for, made as a cluster's leader does. Pure.

What they run is a process of this machine instead of an image.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lab.layout import CP_V4, Layout
from lab.volumes import FILES
from lab.workloads import namespace_of
from mesh.errors import BadInput
from mesh.ports import DEFAULT_CLUSTER_ID, DEFAULT_TRUST_DOMAIN, XDS_CA_TLS
from waypoint.config.gateways import GATEWAY_NAME, GatewayRecord, is_waypoint_class, read_gateway
from waypoint.config.infrastructure import (
    MANAGED,
    MANAGED_BY,
    PARTS,
    TOKEN_VOLUME,
    Runtime,
    objects,
)

Object = dict[str, Any]

COMPONENT: Final = "waypoint"  # in Settings.env
TMP_VOLUME: Final = "tmp"  # of the Deployment: an emptyDir
# Of what is made, fields that others fill in or change while ours says nothing of them.
_KEPT: Final = {
    "Deployment": ("replicas",),
    "Service": ("clusterIP", "clusterIPs", "ipFamilies"),
}


@dataclass(slots=True)
class Plan:
    """What to write and what to delete."""

    apply: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def runtime(layout: Layout, env: Mapping[str, str]) -> Runtime:
    """Say how a waypoint's process is started in a lab."""
    # With the pod's other files, to go with them: at its end a lab's processes are killed.
    own = {"RUN_DIR": f"$({FILES})/{TMP_VOLUME}"}
    return Runtime(
        command=(sys.executable, "-m", "waypoint.agent.app"),
        control_plane=f"https://{CP_V4}:{XDS_CA_TLS}",
        trust_domain=DEFAULT_TRUST_DOMAIN,
        cluster_id=DEFAULT_CLUSTER_ID,
        token=f"$({FILES})/{TOKEN_VOLUME}/istio-token",
        root=str(layout.root_cert),
        env=tuple(sorted({**own, **env}.items())),
    )


def is_waypoint(gateway: Object, everything: Collection[Object]) -> bool:
    """Say whether a Gateway is one of ours."""
    classes = {o["metadata"]["name"]: o for o in everything if o["kind"] == "GatewayClass"}
    return is_waypoint_class((gateway.get("spec") or {}).get("gatewayClassName"), classes)


def plan(everything: Collection[Object], how: Runtime) -> Plan:
    """Compare the Gateways with what was made for them."""
    out = Plan()
    present = {_key(o): o for o in everything}
    alive: set[tuple[str, str]] = set()
    for gateway in (o for o in everything if o["kind"] == "Gateway"):
        if not is_waypoint(gateway, everything) or "uid" not in gateway["metadata"]:
            continue
        record = read_gateway(gateway, present.get(("GatewayClass", "", _class(gateway))))
        alive.add((record.namespace, record.name))
        if not record.accepted:
            continue
        try:
            for made in objects(record, how, _parameters(record, present)):
                out.apply.append(_keep(made, present.get(_key(made))))
        except BadInput as e:
            out.problems.append(f"Gateway {record.namespace}/{record.name}: {e}")
    for obj in everything:
        labels = obj["metadata"].get("labels") or {}
        ours = labels.get(MANAGED) == MANAGED_BY and obj["kind"] in PARTS.values()
        if ours and (namespace_of(obj), labels.get(GATEWAY_NAME)) not in alive:
            out.delete.append(obj)
    return out


def _class(gateway: Object) -> str:
    return str((gateway.get("spec") or {}).get("gatewayClassName"))


def _parameters(
    record: GatewayRecord, present: Mapping[tuple[str, str, str], Object]
) -> Mapping[str, str] | None:
    if not record.parameters:
        return None
    found = present.get(("ConfigMap", record.namespace, record.parameters))
    if found is None:
        raise BadInput(f"there is no ConfigMap {record.namespace}/{record.parameters}")
    return found.get("data") or {}


def _keep(made: Object, old: Object | None) -> Object:
    was = (old or {}).get("spec") or {}
    kept = {
        name: was[name]
        for name in _KEPT.get(made["kind"], ())
        if name in was and name not in made["spec"]
    }
    return {**made, "spec": {**made["spec"], **kept}} if kept else made


def _key(obj: Object) -> tuple[str, str, str]:
    return obj["kind"], obj["metadata"].get("namespace") or "", obj["metadata"]["name"]

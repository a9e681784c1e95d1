"""What an installation will do: which objects go in, in which order, and which go. Pure.

Objects that are there and are not ours are left alone: CRDs of Istio, a GatewayClass of another
controller. What an earlier version installed and this one does not have is removed at the end,
when nothing needs it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from cli.cluster.inventory import Inventory
from cli.cluster.objects import Object, Ref, in_order, is_ours, rank, ref

# What people call the workloads, in the order in which an upgrade replaces them: newer proxies
# find a control plane that knows them.
COMPONENTS: Final = {
    "ambit-control-plane": "control plane",
    "ambit-node-agent": "node agent",
    "ztunnel": "ztunnel",
}
_LATE: Final = "ztunnel"
_KEPT: Final = ("Namespace", "CustomResourceDefinition")
_CRD: Final = "CustomResourceDefinition"
_WORKLOADS: Final = ("Deployment", "DaemonSet")


@dataclass(frozen=True, slots=True)
class Step:
    """Objects to apply, then objects to wait for."""

    title: str
    objects: tuple[Object, ...]
    wait: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """`before` is the inventory while it is carried out, `after` when all went well."""

    steps: tuple[Step, ...]
    prune: tuple[Ref, ...]
    left_alone: tuple[tuple[Ref, str], ...]
    before: Inventory
    after: Inventory

    @property
    def objects(self) -> list[Object]:
        """Everything that will be applied, in order."""
        return [obj for step in self.steps for obj in step.objects]


def build(
    rendered: Iterable[Object],
    crds: Sequence[Object],
    gateway_api: Sequence[Object],
    live: Mapping[Ref, Object | None],
    new: Inventory,
    old: Inventory | None,
) -> Plan:
    """Plan an installation, or an upgrade when there is an old inventory.

    `live` holds what is there under the names of all objects given; `new` says what is being
    installed, its objects are filled in here.
    """
    known = old.crds if old else frozenset[str]()
    known_extras = old.extras if old else frozenset[Ref]()
    left: list[tuple[Ref, str]] = []
    definitions: list[Object] = []
    for obj in [*crds, *gateway_api]:
        there = live.get(ref(obj))
        if obj["kind"] != _CRD:
            continue
        if there is None or is_ours(there) or obj["metadata"]["name"] in known:
            definitions.append(obj)
        else:
            left.append((ref(obj), "it is there already, from somebody else"))
    if any(obj in definitions for obj in gateway_api):
        beside = [obj for obj in gateway_api if obj["kind"] != _CRD]
        definitions += [
            obj for obj in beside if live.get(ref(obj)) is None or ref(obj) in known_extras
        ]
    objects: list[Object] = []
    for obj in in_order(rendered):
        there = live.get(ref(obj))
        if obj["kind"] == "GatewayClass" and there is not None and not is_ours(there):
            controller = (there.get("spec") or {}).get("controllerName")
            left.append((ref(obj), f"it belongs to {controller}"))
        else:
            objects.append(obj)
    names = frozenset(ref(obj) for obj in objects)
    ours = frozenset(o["metadata"]["name"] for o in definitions if o["kind"] == _CRD)
    extras = frozenset(ref(o) for o in definitions if o["kind"] != _CRD)
    after = replace(new, objects=names, crds=known | ours, extras=known_extras | extras)
    before = replace(after.with_objects(old.objects if old else ()), complete=False)
    return Plan(
        steps=_steps(definitions, objects, is_upgrade=bool(old and old.objects and old.complete)),
        prune=prune(old.objects if old else (), names),
        left_alone=tuple(left),
        before=before,
        after=after,
    )


def prune(old: Iterable[Ref], new: Iterable[Ref]) -> tuple[Ref, ...]:
    """List what is left over, in the order in which it can go."""
    kept = {r.same for r in new}
    gone = [r for r in old if r.same not in kept and r.kind not in _KEPT]
    return tuple(sorted(gone, key=lambda r: (-rank(r), r)))


def component(of: Ref) -> str:
    """What people call a workload."""
    return COMPONENTS.get(of.name, of.name)


def _steps(
    definitions: Sequence[Object], objects: Sequence[Object], is_upgrade: bool
) -> tuple[Step, ...]:
    namespaces = [o for o in objects if o["kind"] == "Namespace"]
    workloads = [o for o in objects if o["kind"] in _WORKLOADS]
    limit = rank(Ref("apps/v1", "Deployment", "", ""))
    before = [o for o in objects if o["kind"] != "Namespace" and rank(ref(o)) < limit]
    last = [o for o in objects if rank(ref(o)) >= limit and o["kind"] not in _WORKLOADS]
    first = [*namespaces, *definitions]
    crds = tuple(ref(o) for o in definitions if o["kind"] == _CRD)
    steps = [
        Step("namespace and resource definitions", tuple(first), crds),
        Step("accounts, access rules and services", tuple(before)),
    ]
    if is_upgrade:
        names = list(COMPONENTS)
        workloads.sort(key=lambda o: names.index(o["metadata"]["name"]))
        steps += [Step(component(ref(o)), (o,), (ref(o),)) for o in workloads]
        steps.append(Step("classes and monitors", tuple(last)))
    else:
        # ztunnel mounts what the control plane writes first; a pod that waits for a mount is tried
        # again in longer and longer steps, so it is not made before.
        early = tuple(o for o in workloads if o["metadata"]["name"] != _LATE)
        late = tuple(o for o in workloads if o["metadata"]["name"] == _LATE)
        leader = tuple(ref(o) for o in early if o["kind"] == "Deployment")
        others = tuple(ref(o) for o in (*early, *late) if ref(o) not in leader)
        steps.append(Step("control plane and node agent", early, leader))
        steps.append(Step("ztunnel", (*late, *last), others))
    return tuple(step for step in steps if step.objects)


# ---- showing ---------------------------------------------------------------------------------


def describe(plan: Plan, live: Mapping[Ref, Object | None], changed: Iterable[Ref]) -> list[str]:
    """Lines that say what will be done: + created, ~ changed, - removed, = left alone.

    What stays as it is is only counted.
    """
    differs = set(changed)
    lines, same = [], 0
    for obj in plan.objects:
        named = ref(obj)
        if live.get(named) is None:
            lines.append(f"  + {named}")
        elif named in differs:
            lines.append(f"  ~ {named}")
        else:
            same += 1
    lines += [f"  - {named}" for named in plan.prune]
    lines += [f"  = {named}: {why}" for named, why in plan.left_alone]
    if same:
        lines.append(f"    {same} objects are as they should be")
    return lines


def differs(live: Object, would_be: Object) -> bool:
    """Whether applying changes an object, by what the server says it would be."""
    return _essence(live) != _essence(would_be)


def _essence(obj: Object) -> Object:
    noise = ("managedFields", "resourceVersion", "generation")
    metadata = {k: v for k, v in obj["metadata"].items() if k not in noise}
    return {**{k: v for k, v in obj.items() if k != "status"}, "metadata": metadata}

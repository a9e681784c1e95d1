"""What an installation does is planned before anything is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.chart.load import load
from cli.cluster import inventory
from cli.cluster.inventory import Inventory
from cli.cluster.objects import Object, Ref, in_order, rank, ref
from cli.cluster.plan import Plan, build, describe, differs, prune
from cli.cluster.settings import render
from mesh.errors import BadInput

CRDS = load().crds()
GATEWAY_CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "gateways.gateway.networking.k8s.io"},
}
GUARD: Object = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicy",
    "metadata": {"name": "safe-upgrades"},
}
CLASS = "gateway.networking.k8s.io/v1/GatewayClass"
NEW = Inventory("istio-system", "0.2.0", "demo", {"tag": "x"})


def rendered(*served: str) -> list[Object]:
    chart = load()
    return list(render(chart, chart.values([chart.profile("demo")]), served).objects)


def with_labels(obj: Object, **labels: str) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "labels": labels}}


def plan(
    live: dict[Ref, Object | None] | None = None,
    old: Inventory | None = None,
    gateway_api: tuple[Object, ...] = (),
    objects: list[Object] | None = None,
) -> Plan:
    return build(objects or rendered(CLASS), CRDS, gateway_api, live or {}, NEW, old)


def test_a_fresh_installation_makes_ztunnel_when_its_mounts_are_there() -> None:
    """CRDs first, because the rest may need them; what the control plane writes, ztunnel mounts."""
    made = plan()
    assert [step.title for step in made.steps] == [
        "namespace and resource definitions",
        "accounts, access rules and services",
        "control plane and node agent",
        "ztunnel",
    ]
    first, middle, early, late = made.steps
    assert [o["kind"] for o in first.objects] == ["Namespace"] + ["CustomResourceDefinition"] * len(
        CRDS
    )
    assert {of.kind for of in first.wait} == {"CustomResourceDefinition"}
    assert middle.wait == ()
    assert [of.name for of in early.wait] == ["ambit-control-plane"]
    assert [of.name for of in late.wait] == ["ambit-node-agent", "ztunnel"]
    assert [o["kind"] for o in late.objects][-2:] == ["GatewayClass", "GatewayClass"]
    assert made.prune == ()
    assert made.before == replace(made.after, complete=False)
    assert len(made.after.objects) == len(rendered(CLASS))


def test_an_upgrade_replaces_the_control_plane_before_its_clients() -> None:
    """Each is waited for: a broken version stops before it has reached every node."""
    old = plan().after
    made = plan(old=old)
    titles = [step.title for step in made.steps[2:]]
    assert titles == ["control plane", "node agent", "ztunnel", "classes and monitors"]
    assert [len(step.wait) for step in made.steps[2:]] == [1, 1, 1, 0]


def test_what_broke_off_goes_on_as_it_began() -> None:
    """Nothing runs yet that would have to be replaced with care."""
    made = plan(old=plan().before)
    assert made.steps[-1].title == "ztunnel"


def test_what_this_version_does_not_have_goes_at_the_end() -> None:
    """Never the namespace or a CRD, and not what only moved to another API version."""
    gone = Ref("v1", "ConfigMap", "istio-system", "old")
    workload = Ref("apps/v1", "DaemonSet", "istio-system", "old")
    moved = Ref("apps/v1beta1", "DaemonSet", "istio-system", "ztunnel")
    kept = Ref("v1", "Namespace", "", "other")
    old = Inventory(
        "istio-system", "0.1.0", "demo", objects=frozenset({gone, workload, moved, kept})
    )
    made = plan(old=old)
    assert made.prune == (workload, gone)
    # Broken off halfway, the next attempt still knows them.
    assert {gone, workload} <= made.before.objects
    assert gone not in made.after.objects


def test_an_uninstalled_mesh_comes_back_as_if_it_were_new() -> None:
    """Its inventory has CRDs, but no objects."""
    old = Inventory("istio-system", "", "demo", crds=frozenset({"x"}))
    made = plan(old=old)
    assert made.steps[-1].title == "ztunnel"
    assert "x" in made.after.crds


def test_crds_of_others_are_left_alone_and_ours_are_updated() -> None:
    """Istio's own are never touched."""
    theirs, *ours = CRDS
    live: dict[Ref, Object | None] = {ref(crd): crd for crd in ours}
    live[ref(theirs)] = with_labels(theirs, app="istio")
    made = plan(live)
    names = [crd["metadata"]["name"] for crd in ours]
    assert [o["metadata"]["name"] for o in made.steps[0].objects[1:]] == names
    assert made.left_alone == ((ref(theirs), "it is there already, from somebody else"),)
    assert made.after.crds == set(names)


def test_the_gateway_api_comes_whole_or_not_at_all() -> None:
    """What guards its CRDs comes and goes with them."""
    made = plan(gateway_api=(GATEWAY_CRD, GUARD))
    assert {GATEWAY_CRD["metadata"]["name"]} <= made.after.crds
    assert made.after.extras == {ref(GUARD)}
    there = plan({ref(GATEWAY_CRD): GATEWAY_CRD}, gateway_api=(GATEWAY_CRD, GUARD))
    assert GUARD not in there.objects
    assert there.after.extras == frozenset()
    again = plan(
        {ref(GATEWAY_CRD): GATEWAY_CRD, ref(GUARD): GUARD}, made.after, (GATEWAY_CRD, GUARD)
    )
    assert GATEWAY_CRD in again.objects
    assert GUARD in again.objects
    without = plan({ref(GATEWAY_CRD): GATEWAY_CRD}, made.after)
    assert without.after.extras == {ref(GUARD)}
    assert without.after.crds == made.after.crds


def test_a_gateway_class_of_another_controller_stays() -> None:
    """Its controllerName could not be changed anyway."""
    objects = rendered(CLASS)
    waypoint = next(o for o in objects if o["kind"] == "GatewayClass")
    live: dict[Ref, Object | None] = {
        ref(waypoint): {**with_labels(waypoint), "spec": {"controllerName": "istio.io/x"}}
    }
    made = plan(live, objects=objects)
    assert made.left_alone == ((ref(waypoint), "it belongs to istio.io/x"),)
    assert waypoint not in made.objects


def test_the_plan_is_shown_with_what_changes() -> None:
    """What stays is counted only."""
    objects = rendered()
    first, second = objects[0], objects[1]
    old = Inventory(
        "istio-system", "0.1.0", "demo", objects=frozenset({Ref("v1", "Pod", "a", "b")})
    )
    live: dict[Ref, Object | None] = {ref(first): first, ref(second): second}
    lines = describe(plan(live, old, objects=objects), live, [ref(first)])
    assert f"  ~ {ref(first)}" in lines
    assert "  - Pod a/b" in lines
    assert sum(line.startswith("  + ") for line in lines) == len(objects) - 2 + len(CRDS)
    assert lines[-1] == "    1 objects are as they should be"


def test_bookkeeping_is_no_change() -> None:
    """Only what somebody meant counts."""
    one: Object = {"metadata": {"name": "a", "resourceVersion": "1"}, "spec": 1, "status": 1}
    assert not differs(one, {**one, "metadata": {"name": "a", "managedFields": []}, "status": 2})
    assert differs(one, {**one, "spec": 2})


_REFS = st.builds(
    Ref,
    st.sampled_from(["v1", "apps/v1", "apps/v2"]),
    st.sampled_from(["Namespace", "ConfigMap", "DaemonSet", "X", "CustomResourceDefinition"]),
    st.sampled_from(["", "a"]),
    st.sampled_from(["x", "y"]),
)


@given(st.sets(_REFS), st.sets(_REFS))
def test_prune_takes_what_is_old_and_only_that(old: set[Ref], new: set[Ref]) -> None:
    """Whatever was installed and is wanted still survives."""
    gone = prune(old, new)
    assert set(gone) <= old - new
    assert not {r.same for r in gone} & {r.same for r in new}
    ranks = [rank(r) for r in gone]
    assert ranks == sorted(ranks, reverse=True)


def test_objects_are_sorted_so_that_needs_come_first() -> None:
    """Unknown kinds come last, for they may need a CRD."""
    kinds = ["PodMonitor", "DaemonSet", "ServiceAccount", "Namespace", "ClusterRoleBinding"]
    objects: list[Object] = [
        {"apiVersion": "v1", "kind": k, "metadata": {"name": "x"}} for k in kinds
    ]
    sorted_kinds = [o["kind"] for o in in_order(objects)]
    assert sorted_kinds == [
        "Namespace", "ServiceAccount", "ClusterRoleBinding", "DaemonSet", "PodMonitor",
    ]  # fmt: skip


# ---- the inventory ---------------------------------------------------------------------------


def test_the_inventory_comes_back_as_it_was() -> None:
    """Through a ConfigMap."""
    made = plan(gateway_api=(GATEWAY_CRD, GUARD)).after
    assert inventory.parse_untrusted(inventory.dump(made)) == made


@pytest.mark.parametrize(
    "change",
    [
        {"objects": None},
        {"objects": "[[1,2,3,4]]"},
        {"objects": '[["a"]]'},
        {"objects": "{"},
        {"values": "[]"},
        {"crds": "7"},
        {"version": None},
        {"extras": '"x"'},
    ],
)
def test_an_inventory_beyond_reading_is_named(change: dict[str, Any]) -> None:
    """With what to do about it."""
    config_map = inventory.dump(NEW)
    data = {**config_map["data"], **change}
    config_map["data"] = {k: v for k, v in data.items() if v is not None}
    with pytest.raises(BadInput, match=r"ConfigMap istio-system/ambit-install.*delete it"):
        inventory.parse_untrusted(config_map)


def test_a_cut_inventory_never_reads_as_a_smaller_one() -> None:
    """A lost object would never be removed again."""
    config_map = inventory.dump(plan().after)
    text = config_map["data"]["objects"]
    for end in range(0, len(text), 7):
        config_map["data"]["objects"] = text[:end]
        with pytest.raises(BadInput):
            inventory.parse_untrusted(config_map)

"""An uninstallation: pods are released node by node first, then everything else goes.

ztunnel and the control plane stay until the nodes are clean: a pod that is still captured needs
them. What could not be cleaned is said, and the next uninstallation tries again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from cli.chart.load import Chart, load
from cli.cluster import look
from cli.cluster.carry import explain_workload, pods_of
from cli.cluster.checks import NOTE, WARN
from cli.cluster.console import Console
from cli.cluster.inventory import GONE, NAME, Inventory, dump
from cli.cluster.kube import Kube
from cli.cluster.objects import (
    INSTALLER,
    MANAGED_BY,
    Object,
    Ref,
    helm_release,
    in_order,
    is_node_ready,
    ref,
)
from cli.cluster.purge import purge
from cli.cluster.removal import AGENT, CNI, cleaning, named, removable
from cli.cluster.settings import render
from mesh.errors import ConfigError, MeshError

_TURN: Final = 0.3  # seconds between looks
_GONE: Final = 60.0  # seconds for pods to be gone after their workload was deleted


def uninstall(options: argparse.Namespace) -> int:
    """Uninstall as the options say; returns the command's exit code."""
    chart, console = load(), Console()
    kube = Kube.connect(options.kubeconfig, options.context)
    inventory = _find(kube, chart)
    if inventory is None:
        console.line(f"Nothing that `ambit install` installed is in {kube.host}.")
        return 0
    _announce(console, inventory, options.purge)
    if not options.yes and not console.ask("Go on?"):
        console.line("Nothing was changed.")
        return 1
    unreachable: tuple[str, ...] = ()
    cleaner = _cleaner(kube, chart, inventory)
    inventory = inventory.with_objects(ref(obj) for obj in cleaner)
    if options.skip_nodes:
        console.mark(WARN, "nodes are left as they are: captured pods there have no network")
    elif next(kube.list("v1", "Node"), None) is not None:
        unreachable = _clean_nodes(kube, cleaner, console, options.timeout)
    for node in unreachable:
        console.mark(WARN, f"node {node} is not ready and was not cleaned")
    _remove(kube, inventory, console)
    if options.purge:
        purge(kube, inventory, console, options.yes, keep_namespace=bool(unreachable))
    else:
        kube.apply(dump(replace(inventory, version=GONE, objects=frozenset())))
        kept = f"namespace {inventory.namespace}, the CA's key, CRDs and policies"
        console.mark(NOTE, f"kept: {kept}; --purge removes them")
    if unreachable:
        console.line(
            f"    next: when {', '.join(unreachable)} is back, ambit uninstall"
            f"{' --purge' if options.purge else ''} once more"
        )
        return 3
    console.line(f"Ambit is gone from {kube.host} ({console.elapsed():.1f} s).")
    return 0


def _find(kube: Kube, chart: Chart) -> Inventory | None:
    """Find what is installed: by the inventory, and by labels where that is incomplete or lost.

    Raises ConfigError for what another tool installed.
    """
    found = look.inventories(kube)
    if len(found) > 1:
        places = ", ".join(i.namespace for i in found)
        raise ConfigError(
            f"there are inventories in {places}: delete ConfigMap {NAME} of all but one"
        )
    agents = list(kube.list("apps/v1", "DaemonSet", labelSelector=f"app={AGENT}"))
    for release in sorted({helm_release(agent) for agent in agents} - {""}):
        raise ConfigError(
            f"Ambit is there as Helm release {release}: helm upgrade it with"
            " --set nodeAgent.cleanup=true, wait for the DaemonSet, then helm uninstall it"
        )
    namespace = found[0].namespace if found else ""
    labelled = _labelled(kube, chart)
    if not found and not labelled:
        return None
    if not found:
        namespace = next((of.namespace for of in labelled if of.namespace), "istio-system")
        return Inventory(namespace, chart.version, "default", objects=frozenset(labelled))
    return found[0].with_objects(labelled)


def _labelled(kube: Kube, chart: Chart) -> list[Ref]:
    """List objects of the chart's kinds that carry the installer's label."""
    sets = {"monitoring": {"podMonitor": True, "serviceMonitor": True}}
    sets |= {"networkPolicy": {"enabled": True}, "resourceQuota": {"enabled": True}}
    served = ["gateway.networking.k8s.io/v1/GatewayClass"]
    kinds = {
        (o["apiVersion"], o["kind"]) for o in render(chart, chart.values([sets]), served).objects
    }
    selector = f"{MANAGED_BY}={INSTALLER}"
    return [
        ref(obj)
        for api_version, kind in sorted(kinds)
        if kind != "Namespace"
        for obj in kube.list(api_version, kind, labelSelector=selector)
    ]


def _announce(console: Console, inventory: Inventory, everything: bool) -> None:
    console.line(
        f"Ambit {inventory.version or '(uninstalled, but not purged)'} in"
        f" {inventory.namespace}. The plan:"
    )
    console.line("  - release every pod and clean every node")
    for of in removable(inventory.objects):
        console.line(f"  - {of}")
    if everything:
        console.line("  - the CA's key, root certificates in all namespaces, marks on pods")
        for name in sorted(inventory.crds):
            console.line(f"  - CustomResourceDefinition {name}, if nobody's objects are left of it")
        if inventory.created_namespace:
            console.line(f"  - Namespace {inventory.namespace}, if nobody's objects are left in it")


# ---- nodes -----------------------------------------------------------------------------------


def _clean_nodes(
    kube: Kube, cleaner: Sequence[Object], console: Console, timeout: float
) -> tuple[str, ...]:
    """Turn the node agents to cleaning and wait; returns the nodes that do not answer."""
    for obj in cleaner:
        kube.apply(obj)
    agent = next(ref(obj) for obj in cleaner if obj["kind"] == "DaemonSet")
    deadline, begun = time.monotonic() + timeout, time.monotonic()
    while True:
        daemon_set = kube.get(agent)
        pods = pods_of(kube, daemon_set) if daemon_set else []
        state = cleaning(daemon_set, pods, list(kube.list("v1", "Node")))
        if state.done:
            console.done(f"clean nodes: {len(state.clean)}", time.monotonic() - begun)
            return state.unreachable
        console.doing(f"cleaning nodes: {len(state.clean)} clean, busy: {', '.join(state.busy)}")
        if time.monotonic() > deadline:
            why = explain_workload(kube, daemon_set) if daemon_set else []
            raise MeshError(
                f"nodes not clean within {timeout:.0f} s: {', '.join(state.busy) or 'unknown'};"
                " nothing was removed yet. Try again, leave them with --skip-nodes, or take the"
                " agents back with ambit install\n" + "\n".join(f"  {line}" for line in why)
            )
        time.sleep(_TURN)


def _cleaner(kube: Kube, chart: Chart, inventory: Inventory) -> list[Object]:
    """Render the node agent in its cleanup form, with the image that is on the nodes already."""
    there = kube.get(Ref("apps/v1", "DaemonSet", inventory.namespace, AGENT))
    agent: dict[str, object] = {"cleanup": True}
    if there is not None:
        spec = there["spec"]["template"]["spec"]
        agent["image"] = spec["containers"][0]["image"]
    layers = [
        chart.profile(inventory.profile) if inventory.profile in chart.profiles() else {},
        inventory.values,
        {"namespace": inventory.namespace, "nodeAgent": agent},
    ]
    try:
        values = chart.values(layers)
    except ConfigError:  # set for a chart that had other values
        values = chart.values(layers[-1:])
    return [
        obj
        for obj in in_order(render(chart, values, []).objects)
        if obj["kind"] == "Namespace" or obj["metadata"]["name"] in (AGENT, CNI)
    ]


# ---- objects ---------------------------------------------------------------------------------


def _remove(kube: Kube, inventory: Inventory, console: Console) -> None:
    begun = time.monotonic()
    gone = removable(inventory.objects)
    workloads = [of for of in gone if of.kind in ("Deployment", "DaemonSet")]
    pods = [pod for of in workloads if (obj := kube.get(of)) for pod in pods_of(kube, obj)]
    removed = sum(kube.delete(of) for of in workloads)
    _wait_gone(kube, pods, console)
    removed += sum(kube.delete(of) for of in gone if of not in workloads)
    console.done(f"removed {removed} objects", time.monotonic() - begun)


def _wait_gone(kube: Kube, pods: Iterable[Object], console: Console) -> None:
    """Wait for pods to end, but not for those of nodes that do not answer."""
    ready = {n["metadata"]["name"] for n in kube.list("v1", "Node") if is_node_ready(n)}
    left = [ref(p) for p in pods if (p.get("spec") or {}).get("nodeName") in ready]
    deadline = time.monotonic() + _GONE
    while left and time.monotonic() < deadline:
        left = [of for of in left if kube.get(of) is not None]
        if left:
            console.doing(f"{len(left)} pods are ending")
            time.sleep(_TURN)
    if left:
        console.mark(WARN, f"still ending: {named(left)}")

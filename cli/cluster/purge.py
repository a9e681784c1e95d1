"""Removes what an uninstallation keeps by default. Nothing of Istio's or anybody else's goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from cli.cluster.checks import NOTE, WARN
from cli.cluster.console import Console
from cli.cluster.inventory import GONE, NAME, Inventory, dump
from cli.cluster.kube import STRATEGIC, Kube
from cli.cluster.objects import Object, Ref, ref
from cli.cluster.removal import (
    CA_SECRET,
    LEASE,
    ROOT_CERT,
    named,
    pod_patch,
    strangers,
    wrote,
)
from mesh.errors import Unavailable
from mesh.kube.api import ApiError

_TURN: Final = 0.3  # seconds between looks
_GONE: Final = 60.0  # seconds for a namespace or a CRD to be gone
_CRD: Final = "apiextensions.k8s.io/v1"
_GATEWAY: Final = ".gateway.networking.k8s.io"


def purge(
    kube: Kube, inventory: Inventory, console: Console, yes: bool, keep_namespace: bool
) -> None:
    """Remove CA, root certificates, marks on pods, CRDs and the namespace; says what stays."""
    namespace = inventory.namespace
    removed = _remove_written(kube, namespace, console)
    console.done(f"removed the CA's key, the leader's lease and root certificates: {removed}")
    marks = _remove_marks(kube)
    if marks:
        console.done(f"took our marks off {marks} pods")
    kept = _remove_definitions(kube, inventory, console, yes)
    if keep_namespace:
        kube.apply(dump(replace(inventory, version=GONE, objects=frozenset(), crds=kept)))
        console.mark(NOTE, f"kept: namespace {namespace}, until all nodes are clean")
        return
    if kept:
        names = ", ".join(f"CustomResourceDefinition {name}" for name in sorted(kept))
        console.mark(NOTE, f"kept: {names}")
    kube.delete(Ref("v1", "ConfigMap", namespace, NAME))
    _remove_namespace(kube, inventory, console)


def _remove_written(kube: Kube, namespace: str, console: Console) -> int:
    """Remove what our processes made: only where it is theirs."""
    found = list(kube.list("v1", "ConfigMap", fieldSelector=f"metadata.name={ROOT_CERT}"))
    for of in (
        Ref("v1", "Secret", namespace, CA_SECRET),
        Ref("coordination.k8s.io/v1", "Lease", namespace, LEASE),
    ):
        if (obj := kube.get(of)) is not None:
            found.append(obj)
    removed = 0
    for obj in found:
        if wrote(obj):
            removed += kube.delete(ref(obj), uid=obj["metadata"]["uid"])
        else:
            console.mark(NOTE, f"left: {ref(obj)}, which Ambit did not make")
    return removed


def _remove_marks(kube: Kube) -> int:
    marks = 0
    for pod in kube.list("v1", "Pod"):
        patch = pod_patch(pod)
        if patch is not None:
            marks += kube.patch(ref(pod), patch, content=STRATEGIC, sub="status") is not None
    return marks


# ---- definitions -----------------------------------------------------------------------------


def _remove_definitions(
    kube: Kube, inventory: Inventory, console: Console, yes: bool
) -> frozenset[str]:
    """Remove the CRDs that came with the mesh; returns the names of those that stay."""
    kept, removed = set[str](), 0
    for name in sorted(inventory.crds):
        crd = kube.get(Ref(_CRD, "CustomResourceDefinition", "", name))
        if crd is None:
            continue
        left = [ref(obj) for obj in _objects_of(kube, crd)]
        if left:
            console.mark(WARN, f"CustomResourceDefinition {name} has objects: {named(left)}")
            if yes or not console.ask("Delete them with their definition?"):
                console.line(f"    next: kubectl delete crd {name}, when they may go")
                kept.add(name)
                continue
        removed += kube.delete(ref(crd))
    if not any(name.endswith(_GATEWAY) for name in kept):
        for of in sorted(inventory.extras):
            kube.delete(of)
    if removed:
        console.done(f"removed {removed} resource definitions")
    return frozenset(kept)


def _objects_of(kube: Kube, crd: Object) -> Iterator[Object]:
    spec = crd["spec"]
    version = next(v["name"] for v in spec["versions"] if v.get("served"))
    yield from kube.list(f"{spec['group']}/{version}", spec["names"]["kind"])


# ---- the namespace ---------------------------------------------------------------------------


def _remove_namespace(kube: Kube, inventory: Inventory, console: Console) -> None:
    namespace = inventory.namespace
    if not inventory.created_namespace:
        # Applied without a field, whatever we alone had set is taken back: labels, annotations.
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        console.mark(NOTE, f"left: namespace {namespace}, which was there before")
        return
    others = strangers(_inside(kube, namespace))
    if others:
        console.mark(NOTE, f"left: namespace {namespace}, for it has {named(others)}")
        return
    of = Ref("v1", "Namespace", "", namespace)
    kube.delete(of)
    deadline = time.monotonic() + _GONE
    while kube.get(of) is not None:
        console.doing(f"namespace {namespace} is ending")
        if time.monotonic() > deadline:
            console.mark(WARN, f"namespace {namespace} is still ending")
            return
        time.sleep(_TURN)
    console.done(f"removed namespace {namespace}")


def _inside(kube: Kube, namespace: str) -> Iterator[Object]:
    """Yield every object in a namespace, of every kind that can be listed."""
    for api_version, kind in kube.listable():
        try:
            yield from kube.list(api_version, kind, namespace)
        except (ApiError, Unavailable):
            continue  # an aggregated API whose server is away says nothing

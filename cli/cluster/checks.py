"""Whether a cluster can take the mesh: what is found is judged here. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cli.cluster.inventory import Inventory
from cli.cluster.objects import (
    INSTALLER,
    MANAGED_BY,
    Object,
    Ref,
    helm_release,
    is_node_ready,
    labels,
    ref,
)
from cli.cluster.objects import is_ours as _is_ours

_OLDEST_SERVER: Final = (1, 30)  # appArmorProfile in pods' security contexts
_OLDEST_KERNEL: Final = (5, 10)  # sk_lookup came with 5.9; without it pods are captured by nftables
_GATEWAY_API: Final = "gateway.networking.k8s.io/v1/GatewayClass"
_GATEWAY_API_RELEASE: Final = "gateway.networking.k8s.io/bundle-version"  # annotation

OK: Final = "ok"
NOTE: Final = "note"
WARN: Final = "warning"
ERROR: Final = "error"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `next` is what to do about it, "" where nothing is to be done."""

    level: str
    what: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. `denied`: VERB RESOURCE; `installed`: inventories in any namespace."""

    version: str
    api_versions: frozenset[str]
    nodes: tuple[Object, ...]
    denied: tuple[str, ...]
    live: tuple[Object, ...]
    suspects: tuple[Object, ...]
    installed: tuple[Inventory, ...]


def judge(facts: Facts, namespace: str, brings_gateway_api: bool) -> list[Check]:
    """Judge; an ERROR means that installing would do harm or cannot work."""
    return [
        *_server(facts),
        *_permissions(facts.denied),
        *_nodes(facts.nodes),
        *_others(facts, namespace),
        *_gateway_api(facts.api_versions, brings_gateway_api),
    ]


def _version(text: str) -> tuple[int, int] | None:
    match = re.match(r"v?(\d{1,4})\.(\d{1,4})", text)
    return (int(match[1]), int(match[2])) if match else None


def _server(facts: Facts) -> list[Check]:
    found = _version(facts.version)
    if found is not None and (0, 0) < found < _OLDEST_SERVER:  # 0.0: built without a version
        oldest = ".".join(map(str, _OLDEST_SERVER))
        return [Check(ERROR, f"Kubernetes {facts.version}: {oldest} is needed", "upgrade it")]
    return [Check(OK, f"Kubernetes {facts.version}")]


def _permissions(denied: Sequence[str]) -> list[Check]:
    if not denied:
        return [Check(OK, "this account may do all that is needed")]
    what = f"this account may not: {', '.join(denied)}"
    return [Check(ERROR, what, "use an account with the role cluster-admin")]


def _nodes(nodes: Iterable[Object]) -> list[Check]:
    found, kernels, linux = [], Counter[str](), 0
    for node in nodes:
        name = node["metadata"]["name"]
        info = (node.get("status") or {}).get("nodeInfo") or {}
        if info.get("operatingSystem", "linux") != "linux":
            what = f"node {name} runs {info['operatingSystem']}"
            found.append(Check(NOTE, f"{what}: its pods stay outside the mesh"))
            continue
        linux += 1
        kernel = str(info.get("kernelVersion", "?"))
        kernels[".".join(kernel.split(".")[:2])] += 1
        version = _version(kernel)
        if version is not None and version < _OLDEST_KERNEL:
            what = f"node {name} has kernel {kernel}: pods will be captured by nftables, not eBPF"
            found.append(Check(WARN, what, "use kernel 5.10 or later for the faster way"))
        if not is_node_ready(node):
            found.append(Check(WARN, f"node {name} is not ready: the mesh will wait for it"))
        runtime = str(info.get("containerRuntimeVersion", ""))
        if runtime and not runtime.startswith("containerd://"):
            what = f"node {name} runs {runtime}: only containerd has been tried"
            found.append(Check(WARN, what, "set nodeAgent.criSocket to its CRI socket"))
    if not linux:
        found.append(Check(WARN, "there is no Linux node: nothing will run", "add a node"))
    else:
        what = ", ".join(f"{n} with kernel {kernel}" for kernel, n in sorted(kernels.items()))
        found.insert(0, Check(OK, f"{linux} Linux nodes: {what}"))
    return found


def _others(facts: Facts, namespace: str) -> list[Check]:
    found = []
    for inventory in facts.installed:
        if inventory.namespace != namespace:
            what = f"Ambit {inventory.version} is installed in {inventory.namespace} already"
            found.append(
                Check(ERROR, what, f"use --set namespace={inventory.namespace}, or uninstall it")
            )
    releases = {helm_release(obj) for obj in facts.live} - {""}
    for release in sorted(releases):
        what = f"Ambit is there as Helm release {release}"
        found.append(Check(ERROR, what, "upgrade it with helm, or helm uninstall it first"))
    strangers = [obj for obj in facts.live if _is_strange(obj)]
    if strangers:
        names = ", ".join(str(ref(obj)) for obj in strangers)
        what = f"there already, and not from Ambit: {names}"
        found.append(Check(ERROR, what, "remove them, or use another --set namespace="))
    suspects = [obj for obj in facts.suspects if not _is_ours(obj)]
    if suspects:
        names = ", ".join(str(ref(obj)) for obj in suspects)
        what = f"Istio's node agent would capture the same pods: {names}"
        found.append(Check(ERROR, what, "uninstall Istio's ambient mode first"))
    return found


def _is_strange(obj: Object) -> bool:
    """Whether an object has one of our names and is neither ours nor one that we may share."""
    if obj["kind"] in ("Namespace", "CustomResourceDefinition", "GatewayClass"):
        return False
    if _GATEWAY_API_RELEASE in (obj["metadata"].get("annotations") or {}):
        return False  # came beside its definitions, from whoever installed them
    return not _is_ours(obj) and labels(obj).get(MANAGED_BY) != INSTALLER


def _gateway_api(served: frozenset[str], brings: bool) -> list[Check]:
    if _GATEWAY_API in served:
        return [Check(OK, "the Gateway API is installed")]
    if brings:
        return [Check(OK, "the Gateway API will be installed")]
    return [
        Check(
            NOTE,
            "the Gateway API is not installed: the mesh's L4 needs none of it, waypoints do",
            "give --gateway-api-crds PATH (the folder config/crd/standard of the Gateway API's"
            " release, or its standard-install.yaml), or kubectl apply that and install again",
        )
    ]


def may_go_on(checks: Iterable[Check]) -> bool:
    """Whether nothing found forbids it."""
    return all(check.level != ERROR for check in checks)


def needed_rights(objects: Iterable[Ref]) -> list[tuple[str, str]]:
    """List (api version, kind) whose objects will be created, changed and removed."""
    kinds = {(of.api_version, of.kind) for of in objects}
    return sorted(kinds | {("v1", "ConfigMap"), ("v1", "Pod")})

"""The objects the mesh tests share: two nodes, a captured namespace, an uncaptured one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TOOL = str(Path(__file__).parent / "tool.py")
PORTS = (9000, 9001, 9002, 9003, 9004, 9005)


def namespace(name: str, captured: bool = True) -> dict[str, Any]:
    labels = {"istio.io/dataplane-mode": "ambient"} if captured else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def pod(
    ns: str, name: str, on: str, command: list[str], probe: int | None = None
) -> list[dict[str, Any]]:
    """A pod with a service account of its own name."""
    container: dict[str, Any] = {"name": "app", "command": command}
    if probe:
        container["ports"] = [{"containerPort": probe}]
        container["readinessProbe"] = {"tcpSocket": {"port": probe}, "periodSeconds": 1}
    meta = {"name": name, "namespace": ns, "labels": {"app": name}}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": ns},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"serviceAccountName": name, "nodeName": on, "containers": [container]},
        },
    ]


def server(ns: str, name: str, on: str) -> list[dict[str, Any]]:
    """A pod that runs `tool.py serve`, and its dual-stack service."""
    return [
        *pod(ns, name, on, [sys.executable, TOOL, "serve"], probe=9000),
        service(ns, name, PORTS),
    ]


def client(ns: str, name: str, on: str) -> list[dict[str, Any]]:
    return pod(ns, name, on, ["sleep", "infinity"])


def service(ns: str, name: str, ports: tuple[int, ...]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": ns},
        "spec": {
            "selector": {"app": name},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": f"tcp-{p}", "port": p, "targetPort": p} for p in ports],
        },
    }


def policy(
    ns: str,
    name: str,
    app: str | None,
    action: str,
    rules: list[dict[str, Any]],
    dry_run: bool = False,
) -> dict[str, Any]:
    spec: dict[str, Any] = {"action": action, "rules": rules}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {
            "name": name,
            "namespace": ns,
            "annotations": {"istio.io/dry-run": "true"} if dry_run else {},
        },
        "spec": spec,
    }


def principal(ns: str, sa: str) -> str:
    return f"cluster.local/ns/{ns}/sa/{sa}"


def shop() -> list[dict[str, Any]]:
    """client and near (node1), server and other (node2), outsider (not captured, node1)."""
    return [
        node("node1"),
        node("node2"),
        namespace("mesh"),
        namespace("plain", captured=False),
        *client("mesh", "client", "node1"),
        *server("mesh", "near", "node1"),
        *server("mesh", "server", "node2"),
        *client("mesh", "other", "node2"),
        *client("plain", "outsider", "node1"),
        *server("plain", "legacy", "node2"),
    ]


def line(text: str) -> dict[str, Any]:
    """The last JSON line of a tool's output."""
    value: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return value

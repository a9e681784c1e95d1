"""The lab's objects put client and servers where the rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bench.objects import manifest
from bench.rows import SERVERS


def _objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(manifest(["direct", "mesh"], Path("/tmp/nginx.conf"))))


def test_one_server_is_beside_the_client_and_one_is_not() -> None:
    """samenode shares the client's node, across does not."""
    nodes = {
        (o["metadata"]["namespace"], o["metadata"]["name"]): o["spec"]["nodeName"]
        for o in _objects()
        if o["kind"] == "Pod"
    }
    for namespace in ("direct", "mesh"):
        client = nodes[namespace, "client"]
        assert nodes[namespace, SERVERS["samenode"]] == client
        assert nodes[namespace, SERVERS["across"]] != client


def test_only_the_mesh_namespace_is_enrolled() -> None:
    """The label is what makes a contender part of the mesh."""
    labels = {
        o["metadata"]["name"]: o["metadata"]["labels"]
        for o in _objects()
        if o["kind"] == "Namespace"
    }
    assert labels == {"direct": {}, "mesh": {"istio.io/dataplane-mode": "ambient"}}

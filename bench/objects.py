"""What the labs hold: Kubernetes objects, made as YAML. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from bench.load import BODY_BYTES, HTTP_PORT, IPERF_PORT
from bench.pods import SERVER_CPU, pinned
from bench.rows import SERVERS
from mesh.ports import LABEL_DATAPLANE_MODE

NEAR: Final = "near"  # node of the client and of the server beside it
FAR: Final = "far"
CLIENT: Final = "client"
_NODE_OF: Final = {CLIENT: NEAR, "server-near": NEAR, "server-across": FAR}


def nginx_config(scratch: Path) -> str:
    """Configure the HTTP server: one worker, a fixed body from memory, no log."""
    temp = "\n".join(
        f"    {name}_temp_path {scratch};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {scratch}/nginx.pid;
error_log stderr;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
{temp}
    server {{
        listen 0.0.0.0:{HTTP_PORT} backlog=4096;
        location / {{ default_type text/plain; return 200 "{"x" * BODY_BYTES}"; }}
    }}
}}
"""


def _pod(namespace: str, name: str, containers: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": _NODE_OF[name],
            "serviceAccountName": "server" if name in SERVERS.values() else "client",
            "containers": [
                {"name": container, "image": "none", "command": command}
                for container, command in containers.items()
            ],
        },
    }


def _namespace(name: str, nginx_conf: Path) -> list[dict[str, Any]]:
    labels = {LABEL_DATAPLANE_MODE: "ambient"} if name == "mesh" else {}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    ]
    for account in ("client", "server"):
        made.append(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": name},
            }
        )
    made.append(_pod(name, CLIENT, {"wait": ["sleep", "infinity"]}))
    nginx = ["nginx", "-c", str(nginx_conf), "-e", "stderr"]
    iperf = ["iperf3", "-s", "-p", str(IPERF_PORT)]
    for server in SERVERS.values():
        servers = {"http": pinned(SERVER_CPU, nginx), "iperf": pinned(SERVER_CPU, iperf)}
        made.append(_pod(name, server, servers))
    return made


def manifest(namespaces: list[str], nginx_conf: Path) -> str:
    """Write the YAML of one lab: two nodes, and in each namespace a client and two servers."""
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}} for node in (NEAR, FAR)
    ]
    for namespace in namespaces:
        made += _namespace(namespace, nginx_conf)
    return yaml.safe_dump_all(made, sort_keys=False)

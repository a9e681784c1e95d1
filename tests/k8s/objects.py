"""Objects that the tests in a cluster share."""

from __future__ import annotations

from typing import Any

from tests.k8s.cluster.images import BOX

Object = dict[str, Any]
_SERVE = (
    "import http.server, socket\n"
    "class Server(http.server.ThreadingHTTPServer):\n"
    "    address_family = socket.AF_INET6\n"
    "class Handler(http.server.BaseHTTPRequestHandler):\n"
    "    protocol_version = 'HTTP/1.1'\n"
    "    def do_GET(self):\n"
    "        text = f'{socket.gethostname()} {self.client_address[0]}\\n'.encode()\n"
    "        self.send_response(200)\n"
    "        self.send_header('Content-Length', str(len(text)))\n"
    "        self.end_headers()\n"
    "        self.wfile.write(text)\n"
    "    def log_message(self, *_): pass\n"
    "Server(('::', 8080), Handler).serve_forever()\n"
)


def namespace(name: str, **labels: str) -> Object:
    meta = {"name": name, "labels": {k.replace("__", "/"): v for k, v in labels.items()}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


def container(command: list[str], **fields: Any) -> Object:
    return {
        "name": "main",
        "image": BOX,
        "imagePullPolicy": "Never",
        "command": command,
        **fields,
    }


def pod(ns: str, name: str, node: str = "", **fields: Any) -> Object:
    """A pod that sleeps; fields: of its spec."""
    spec = {"terminationGracePeriodSeconds": 0, **({"nodeName": node} if node else {}), **fields}
    spec.setdefault("containers", [container(["sleep", "infinity"])])
    meta = {"namespace": ns, "name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def web(**fields: Any) -> Object:
    """A container that answers HTTP on 8080, both families, with its pod's name and its caller."""
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    return container(["python3", "-c", _SERVE], **{"readinessProbe": probe, **fields})


def workload(kind: str, ns: str, name: str, replicas: int = 0, **spec: Any) -> Object:
    """A Deployment, StatefulSet or DaemonSet of web pods; spec: of its pods."""
    labels = {"app": name}
    body: Object = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [web()], **spec},
        },
    }
    if replicas:
        body["replicas"] = replicas
    if kind == "StatefulSet":
        body["serviceName"] = name
    meta = {"namespace": ns, "name": name}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": meta, "spec": body}


def service(ns: str, name: str, headless: bool = False) -> Object:
    spec: Object = {
        "selector": {"app": name},
        "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    }
    if headless:
        spec["clusterIP"] = "None"
    meta = {"namespace": ns, "name": name}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}

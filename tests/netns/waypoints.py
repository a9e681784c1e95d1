"""Labs with waypoints: the objects, a server that says what it saw, and requests by curl.

    from tests.netns.waypoints import Shop, shop      # a fixture of your module makes a Shop

    with Lab("t-wp-mine") as lab:
        lab.up(shop())                     # namespace `shop`: client, echo-v1, echo-v2, waypoint
        shop = Shop(lab)
        answer = shop.ask("/path", headers={"x-user": "me"})
        assert answer.status == 200 and answer.seen["pod"].startswith("echo-v1")

What a test applies takes effect a moment later: `shop.until(lambda: ...)` asks until it is so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lab import Lab
from tests.netns.mesh_objects import client, namespace, node

NS: Final = "shop"
WAYPOINT: Final = "waypoint"
PORT: Final = 80  # of every echo Service, appProtocol http
PATIENCE: Final = 15.0

_FORMAT: Final = "\\n%{json}"  # curl's own variables, as the last line


def gateway(
    ns: str = NS, name: str = WAYPOINT, traffic: str | None = None, **fields: Any
) -> dict[str, Any]:
    """A waypoint's Gateway."""
    labels = {"istio.io/waypoint-for": traffic} if traffic else {}
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": ns, "labels": labels},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [listener], **fields},
    }


def echo(
    name: str,
    ns: str = NS,
    on: str = "node2",
    app: str = "echo",
    version: str = "v1",
    replicas: int = 1,
    args: Sequence[str] = (),
) -> dict[str, Any]:
    """A Deployment of lab.apps.echo; its pods have the labels app and version."""
    labels = {"app": app, "version": version}
    container = {
        "name": "app",
        "command": [sys.executable, "-m", "lab.apps.echo", "--version", version, *args],
        "ports": [{"containerPort": 8080, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": ns},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"nodeSelector": {"kubernetes.io/hostname": on}, "containers": [container]},
            },
        },
    }


def service(
    name: str,
    selector: Mapping[str, str],
    ns: str = NS,
    protocol: str = "http",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    port: int = PORT,
) -> dict[str, Any]:
    """A Service of one port to the servers' 8080."""
    ports = [{"name": protocol, "port": port, "targetPort": 8080, "appProtocol": protocol}]
    metadata = {
        "name": name,
        "namespace": ns,
        "labels": dict(labels or {}),
        "annotations": dict(annotations or {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": dict(selector), "ports": ports},
    }


def shop(waypoint: str | None = WAYPOINT) -> list[dict[str, Any]]:
    """client (node1); echo = echo-v1 + echo-v2 (node2), also as services of their own; waypoint.

    The namespace uses the waypoint.
    """
    space = namespace(NS)
    if waypoint:
        space["metadata"]["labels"]["istio.io/use-waypoint"] = waypoint
    return [
        node("node1"),
        node("node2"),
        space,
        *([gateway(name=waypoint)] if waypoint else []),
        *client(NS, "client", "node1"),
        echo("echo-v1", version="v1"),
        echo("echo-v2", version="v2"),
        service("echo", {"app": "echo"}),
        service("echo-v1", {"app": "echo", "version": "v1"}),
        service("echo-v2", {"app": "echo", "version": "v2"}),
    ]


@dataclass(frozen=True)
class Answer:
    """What curl got. status 0: no HTTP answer, `error` says why."""

    status: int
    body: str = ""
    headers: Mapping[str, list[str]] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    @property
    def seen(self) -> dict[str, Any]:
        """What the server says of itself and of the request (lab.apps.echo)."""
        value: dict[str, Any] = json.loads(self.body)
        return value


class Shop:
    """Asks in a lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def ask(
        self,
        path: str = "/",
        *curl: str,
        host: str = f"echo.{NS}",
        port: int = PORT,
        headers: Mapping[str, str] | None = None,
        who: str = f"{NS}/client",
        timeout: float = 10,
    ) -> Answer:
        """One request by curl from a pod; `curl` are further options of it."""
        given = [word for k, v in (headers or {}).items() for word in ("-H", f"{k}: {v}")]
        marks = "\n--\n%{http_code}\n%{time_total}\n%{errormsg}\n%{header_json}"
        command = ["curl", "-sS", "--path-as-is", "--max-time", str(timeout), "-w", marks]
        url = f"http://{host}:{port}{path}"
        done = self.lab.exec(who, [*command, *given, *curl, url], timeout=timeout + 10)
        body, _, rest = done.stdout.rpartition("\n--\n")
        code, seconds, error, raw = [*rest.split("\n", 3), "", "", "", ""][:4]
        found = json.loads(raw) if raw.strip() else {}
        return Answer(
            int(code or 0), body, found, error or done.stderr.strip(), float(seconds or 0)
        )

    def asks(self, times: int, path: str = "/", **options: Any) -> list[Answer]:
        """The same request again and again, each on a connection of its own."""
        return [self.ask(path, **options) for _ in range(times)]

    def until(self, seen: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Ask until it is so; fails with the last thing seen."""
        deadline = time.monotonic() + seconds
        while not (value := seen()):
            assert time.monotonic() < deadline, f"not within {seconds} s; last seen: {value!r}"
            time.sleep(0.05)
        return value

    def condition(
        self, kind: str, name: str, type_: str, ns: str | None = NS, parent: int | None = None
    ) -> dict[str, Any]:
        """A condition of an object's status ({} if it has none); parent: of a route's parents."""
        status = self.lab.get(kind, ns, name).get("status") or {}
        if parent is not None:
            parents = status.get("parents") or []
            status = parents[parent] if parent < len(parents) else {}
        found = [c for c in status.get("conditions") or [] if c["type"] == type_]
        return dict(found[0]) if found else {}

    def waypoint(self, name: str = WAYPOINT, ns: str = NS) -> str:
        """NS/POD of a waypoint's first pod."""
        return f"{ns}/{self.lab.pod(f'{ns}/{name}')['metadata']['name']}"

    def admin(self, path: str, name: str = WAYPOINT, ns: str = NS) -> str:
        """A page of the waypoint's Envoy (/config_dump, /stats, /clusters, ...)."""
        done = self.lab.exec(
            f"{ns}/{name}", ["curl", "-sS", "--max-time", "10", f"http://127.0.0.1:15000{path}"]
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

"""A mesh of a few services, fed with objects of Gateway API as text or by their spec."""

from __future__ import annotations

from typing import Any

from mesh.findings import Condition
from mesh.manifest import Key
from mesh.model import Port, Service
from waypoint.config.gateway_api import GatewayApiIndex
from waypoint.config.istio import ServiceState
from waypoint.config.routing import HttpRule, TcpRule

NS = "shop"
WAYPOINT = f"{NS}/wp"
BOUND = ServiceState(bound=(WAYPOINT,))
HTTP, GRPC, TCP, TLS, UNKNOWN = 1, 3, 4, 5, 0


def skey(name: str, namespace: str = NS) -> str:
    return f"{namespace}/{name}.{namespace}.svc.cluster.local"


def service(
    name: str, namespace: str = NS, *ports: tuple[int, int], vips: tuple[str, ...] = ("10.0.0.1",)
) -> Service:
    """A service; ports are (number, protocol)."""
    return Service(
        name=name,
        namespace=namespace,
        hostname=f"{name}.{namespace}.svc.cluster.local",
        vips=vips,
        ports=tuple(Port(n, 8080, protocol) for n, protocol in ports or ((80, HTTP),)),
    )


def to_service(name: str, namespace: str = "", **more: Any) -> dict[str, Any]:
    """A parentRef."""
    ref = {"group": "", "kind": "Service", "name": name, **more}
    return {**ref, "namespace": namespace} if namespace else ref


def to(name: str, port: int = 80, **more: Any) -> dict[str, Any]:
    """A backendRef."""
    return {"name": name, "port": port, **more}


class Mesh:
    """An index with services web, api and db of namespace shop, and web of namespace other."""

    def __init__(self, *services: Service) -> None:
        self.index = GatewayApiIndex()
        for each in services or (
            service("web"),
            service("api", NS, (80, HTTP), (90, GRPC)),
            service("db", NS, (80, HTTP), (5432, TCP), (443, TLS), (99, UNKNOWN)),
            service("web", "other"),
        ):
            names = {p.service_port: f"port-{p.service_port}" for p in each.ports}
            self.index.put_service(each.key, each, names)

    def put(
        self, kind: str, spec: Any, name: str = "r", namespace: str = NS, created: str = ""
    ) -> Key:
        metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
        key = Key(kind, namespace, name)
        self.index.put(key, {"kind": kind, "metadata": metadata, "spec": spec})
        return key

    def http(self, name: str = "web", port: int = 80, namespace: str = NS) -> tuple[HttpRule, ...]:
        """The http rules of a port; () is none at all."""
        routes = self.index.routes(skey(name, namespace)).get(port)
        return (routes.http or ()) if routes else ()

    def tcp(self, name: str = "db", port: int = 5432) -> tuple[TcpRule, ...]:
        routes = self.index.routes(skey(name)).get(port)
        return (routes.tcp or ()) if routes else ()

    def conditions(
        self, key: Key, parent: int = 0, state: ServiceState = BOUND
    ) -> dict[str, Condition]:
        """What an object is told of one parent, by type."""
        status = self.index.status(key, lambda _: state)
        return {c.type: c for c in status.parents[parent].conditions}


def route(*rules: Any, parents: Any = None, **more: Any) -> dict[str, Any]:
    """A route of web (or of `parents`); a rule without backends goes to web."""
    filled = [
        {**r, "backendRefs": [to("web")]} if isinstance(r, dict) and "backendRefs" not in r else r
        for r in rules
    ]
    return {"parentRefs": parents or [to_service("web")], "rules": filled, **more}

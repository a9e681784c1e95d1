"""A mesh of a few services, fed with DestinationRules and VirtualServices as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from mesh.findings import Condition
from mesh.manifest import Key
from mesh.model import Port, Service
from waypoint.config.istio import IstioIndex, ServiceState
from waypoint.config.routing import HttpRule, Routes, TcpRule

ROOT = "istio-system"
NS = "shop"
WAYPOINT = f"{NS}/wp"


def hostname(name: str, namespace: str = NS) -> str:
    return f"{name}.{namespace}.svc.cluster.local"


def service(name: str, namespace: str = NS, ports: tuple[int, ...] = (80,)) -> Service:
    return Service(
        name=name,
        namespace=namespace,
        hostname=hostname(name, namespace),
        ports=tuple(Port(p, 8080) for p in ports),
    )


class Mesh:
    """An index with services; objects are given as text or as their spec."""

    def __init__(self, *services: Service) -> None:
        self.index = IstioIndex(ROOT)
        for each in services or (service("web"), service("api", ports=(80, 90)), service("db")):
            self.index.put_service(each.key, each)

    def put(self, text: str) -> Key:
        """Apply one object; returns its key."""
        return self.apply(yaml.safe_load(text))

    def apply(self, obj: dict[str, Any]) -> Key:
        metadata = obj["metadata"]
        metadata.setdefault("namespace", NS)
        key = Key(obj["kind"], metadata["namespace"], metadata["name"])
        self.index.put(key, obj)
        return key

    def virtual(self, spec: Any, name: str = "vs", namespace: str = NS, created: str = "") -> Key:
        metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
        return self.apply({"kind": "VirtualService", "metadata": metadata, "spec": spec})

    def rule(self, spec: Any, name: str = "dr", namespace: str = NS, created: str = "") -> Key:
        metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
        return self.apply({"kind": "DestinationRule", "metadata": metadata, "spec": spec})

    def routes(self, name: str = "web", namespace: str = NS) -> dict[int, Routes]:
        return self.index.routes(f"{namespace}/{hostname(name, namespace)}", NS)

    def http(self, name: str = "web", port: int = 80) -> tuple[HttpRule, ...]:
        """The http rules of a port; () is none at all."""
        routes = self.routes(name).get(port)
        return (routes.http or ()) if routes else ()

    def tcp(self, name: str = "web", port: int = 80) -> tuple[TcpRule, ...]:
        routes = self.routes(name).get(port)
        return (routes.tcp or ()) if routes else ()

    def condition(
        self, key: Key, state: ServiceState | None = None, **by_service: ServiceState
    ) -> Condition:
        """What an object is told, where every service is bound to one waypoint unless said."""
        default = ServiceState(bound=(WAYPOINT,)) if state is None else state
        states: Mapping[str, ServiceState] = {
            f"{NS}/{hostname(n)}": s for n, s in by_service.items()
        }
        status = self.index.status(key, lambda s: states.get(s, default))
        (condition,) = status.conditions
        assert condition.type == "WaypointAccepted"
        return condition


def to(name: str, **more: Any) -> dict[str, Any]:
    """A route entry to a service."""
    weight = {"weight": more.pop("weight")} if "weight" in more else {}
    return {"destination": {"host": name, **more}, **weight}


def one_rule(**rule: Any) -> dict[str, Any]:
    """A VirtualService of one http rule for web, which goes to it unless it says otherwise."""
    acts = {"route", "redirect", "directResponse", "delegate"} & set(rule)
    return {"hosts": ["web"], "http": [rule if acts else {**rule, "route": [to("web")]}]}

"""A control plane's waypoints without sockets: objects in, snapshots and statuses out."""

from __future__ import annotations

from typing import Any

from cp_support import pod, service

from control_plane.registry import Registry
from control_plane.resources import Snapshot
from control_plane.translate.pods import MeshConfig
from control_plane.waypoints.state import Waypoints
from mesh.manifest import CLUSTER_SCOPED, Key
from mesh.model import Authorization, Service, Workload
from mesh.model.convert import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    address_untrusted,
    authorization_untrusted,
)
from mesh.xds.delta import Resource
from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from waypoint.config.envoy import translate
from waypoint.config.envoy.pack import unpack
from waypoint.config.status import Status

SHORT = {"cds": CLUSTER, "eds": ENDPOINTS, "lds": LISTENER, "rds": ROUTES}
BOUND = "istio.io/WaypointBound"
AMBIENT = {"dataplane_mode": "ambient", "use_waypoint": "wp"}
CART = "outbound|80||cart.shop.svc.cluster.local"
PAY = "outbound|80||pay.shop.svc.cluster.local"
CART_ROUTES = "inbound-vip|80|http|cart.shop.svc.cluster.local"
CONFIG = MeshConfig("istio-system", "cluster.local", "Kubernetes", "cluster.local")


def key_of(obj: dict[str, Any]) -> Key:
    meta = obj["metadata"]
    namespace = "" if obj["kind"] in CLUSTER_SCOPED else meta.get("namespace", "default")
    return Key(obj["kind"], namespace, meta["name"])


def gateway(name: str = "wp", ns: str = "shop", **spec: Any) -> dict[str, Any]:
    listener = {"name": "mesh", "port": 15008, "protocol": "HBONE"}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": ns, "uid": f"uid-{name}", "labels": {}},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [listener], **spec},
    }


def namespace(name: str = "shop", **labels: str) -> dict[str, Any]:
    spelled = {f"istio.io/{k.replace('_', '-')}": v for k, v in labels.items()}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": spelled},
    }


class Counting:
    """The real translation, and how often it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append(name.removesuffix("_resources"))
            return getattr(translate, name)(*args)

        return call

    def drain(self) -> list[str]:
        calls, self.calls = sorted(self.calls), []
        return calls


class World:
    """Takes objects as the engine does."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.registry = Registry(CONFIG)
        self.translator = Counting()
        self.waypoints = Waypoints(CONFIG, self.registry, self.translator)
        self.statuses: dict[Key, Status] = {}
        self.now = 100.0
        self.reached: dict[str, int] = {}  # by waypoint, what its pods have answered for
        self.apply(*objects)

    def apply(self, *objects: dict[str, Any]) -> None:
        self._update({key_of(o): o for o in objects}, set())

    def delete(self, *objects: dict[str, Any]) -> None:
        self._update({}, {key_of(o) for o in objects})

    def later(self, seconds: float = 10.0) -> None:
        """Time passes and nothing else happens."""
        self.now += seconds
        self._update({}, set())

    def _update(self, changed: dict[Key, Any], gone: set[Key]) -> None:
        self.registry.update(changed, gone, self.now)
        guards = self.waypoints.update(changed, gone, now=self.now)
        if guards:
            self.registry.guard(guards)
        self.registry.rebind(self.waypoints.release(self.now, self.reached.get))
        for key, status in self.waypoints.statuses.drain().items():
            if status is None:
                self.statuses.pop(key, None)
            else:
                self.statuses[key] = status

    # ---- looking ---------------------------------------------------------------------------

    def snapshot(self, name: str = "shop/wp") -> Snapshot:
        return self.waypoints.snapshots[name]

    def names(self, short: str, name: str = "shop/wp") -> set[str]:
        return set(self.snapshot(name).of(SHORT[short]))

    def resource(self, short: str, resource: str, name: str = "shop/wp") -> dict[str, Any]:
        """A resource as proto-JSON."""
        found = self.snapshot(name).of(SHORT[short])[resource]
        return unpack(found.type_url, found.payload)

    def changed(self, before: Snapshot, name: str = "shop/wp") -> dict[str, set[str]]:
        """What differs between then and now, by short type."""
        out = {}
        for short, url in SHORT.items():
            old: dict[str, Resource] = dict(before.of(url))
            new = dict(self.snapshot(name).of(url))
            differs = {
                n
                for n in old.keys() | new.keys()
                if (old.get(n) and old[n].version) != (new.get(n) and new[n].version)
            }
            if differs:
                out[short] = differs
        return out

    def address(self, name: str) -> Workload | Service:
        return address_untrusted(self.registry.snapshot.of(ADDRESS_TYPE)[name].payload)

    def policies(self) -> dict[str, Authorization]:
        found = self.registry.snapshot.of(AUTHORIZATION_TYPE)
        return {n: authorization_untrusted(r.payload) for n, r in found.items()}

    def condition(
        self, kind: str, name: str, type_: str, ns: str = "shop"
    ) -> tuple[bool, str] | None:
        """(status, reason) of a condition, None if there is none."""
        status = self.statuses.get(Key(kind, ns, name))
        found = [c for c in status.conditions if c.type == type_] if status else []
        return (found[0].status, found[0].reason) if found else None


# ---- objects ---------------------------------------------------------------------------------


def wp_pod(name: str = "wp-1", ip: str = "10.244.1.99", ready: bool = True) -> dict[str, Any]:
    found = pod(
        name,
        account="wp",
        ip=ip,
        labels={"gateway.networking.k8s.io/gateway-name": "wp"},
        enrolled=False,
    )
    found["status"]["conditions"][0]["status"] = str(ready)
    return found


def wp_service() -> dict[str, Any]:
    labels = {"gateway.networking.k8s.io/gateway-name": "wp"}
    found = service("wp", "10.96.0.99", labels)
    return {**found, "metadata": {**found["metadata"], "labels": labels}}


def shop(*more: dict[str, Any]) -> World:
    """Two services of a pod each, bound to a waypoint by their namespace."""
    return World(
        namespace(**AMBIENT),
        gateway(),
        wp_pod(),
        wp_service(),
        service("cart", "10.96.0.7", {"app": "cart"}),
        service("pay", "10.96.0.8", {"app": "pay"}),
        pod("cart-1", ip="10.244.1.5", labels={"app": "cart"}),
        pod("pay-1", ip="10.244.1.6", labels={"app": "pay"}),
        *more,
    )


def rule(host: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": host, "namespace": "shop"},
        "spec": {"host": host, **spec},
    }


def http_route(name: str = "r", **spec: Any) -> dict[str, Any]:
    parents = [{"group": "", "kind": "Service", "name": "cart"}]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop", "generation": 1},
        "spec": {"parentRefs": parents, **spec},
    }

"""Which Services and Pods pass which waypoint, kept current as labels and Gateways change."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from control_plane.translate.pods import PodRecord
from control_plane.waypoints.holding import GatewayKey, Holds
from mesh.manifest import Key
from mesh.model import Gateway as Address
from waypoint.config.binding import (
    FREE,
    SILENT,
    Attachment,
    Traffic,
    Wanted,
    Wish,
    attach,
    read_wish,
)
from waypoint.config.binding import wanted as combine
from waypoint.config.gateways import (
    GATEWAY_NAME,
    GatewayRecord,
    is_ours,
    is_waypoint_class,
    read_gateway,
)

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
KINDS: Final = frozenset({"Gateway", "GatewayClass", "Namespace"})
_UNREADABLE: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Bindings:
    """All wishes and all Gateways of a waypoint class. Feed it objects, then settle()."""

    def __init__(self, cluster_domain: str) -> None:
        self._cluster_domain = cluster_domain
        self.gateways: dict[GatewayKey, GatewayRecord] = {}
        self.classes: dict[str, Object] = {}
        self._gateway_objects: dict[GatewayKey, Object] = {}
        self._labels: dict[str, dict[str, str]] = {}  # of Namespaces
        self._around: dict[str, Wish] = {}  # what Namespaces say
        self._own: dict[str, dict[Key, Wish]] = defaultdict(dict)  # by namespace
        self._wanted: dict[Key, Wanted] = {}
        self._wanting: dict[GatewayKey, set[Key]] = defaultdict(set)
        self._bound: dict[Key, Attachment] = {}  # without those that are free
        self._served: dict[GatewayKey, set[Key]] = defaultdict(set)
        self._pods: dict[GatewayKey, dict[str, bool]] = defaultdict(dict)  # name: ready
        self._dirty: set[Key] = set()
        self._fresh: set[Key] = set()  # not seen before the last settle()
        self._before: dict[Key, Attachment] = {}  # what node proxies are told still
        self.holds = Holds()
        self._rebound: set[Key] = set()
        self._changed: set[GatewayKey] = set()

    # ---- what is there -----------------------------------------------------------------------

    def take(self, key: Key, obj: Object | None) -> None:
        """Take in a Gateway, GatewayClass or Namespace."""
        if key.kind == "Namespace":
            self._take_namespace(key.name, obj)
        elif key.kind == "Gateway":
            where = (key.namespace, key.name)
            if obj is None:
                self._gateway_objects.pop(where, None)
            else:
                self._gateway_objects[where] = obj
            self._read(where)
        elif key.kind == "GatewayClass":
            if obj is None:
                self.classes.pop(key.name, None)
            else:
                self.classes[key.name] = obj
            for where in list(self._gateway_objects):
                self._read(where)

    def _take_namespace(self, name: str, obj: Object | None) -> None:
        metadata = (obj or {}).get("metadata") or {}
        labels = {str(k): str(v) for k, v in (metadata.get("labels") or {}).items()}
        wish = read_wish(metadata)
        if labels == self._labels.get(name, {}) and wish == self._around.get(name, SILENT):
            return
        if obj is None:
            self._labels.pop(name, None)
            self._around.pop(name, None)
        else:
            self._labels[name], self._around[name] = labels, wish
        for key in self._own.get(name, {}):
            self._want(key)
            self._dirty.add(key)  # allowedRoutes may select by these labels

    def _read(self, where: GatewayKey) -> None:
        obj, old = self._gateway_objects.get(where), self.gateways.get(where)
        new = None
        if obj is not None:
            class_name = (obj.get("spec") or {}).get("gatewayClassName")
            if is_waypoint_class(class_name, self.classes):
                try:
                    new = read_gateway(obj, self.classes.get(str(class_name)))
                except _UNREADABLE:
                    log.exception("Gateway %s/%s: cannot be read", *where)
                    new = old
        if new == old:
            return
        if new is None:
            del self.gateways[where]
        else:
            self.gateways[where] = new
        self._touch(where)

    def _touch(self, where: GatewayKey) -> None:
        self._changed.add(where)
        self._dirty |= self._wanting.get(where, set())

    def put_pod(self, old: PodRecord | None, new: PodRecord | None) -> None:
        """Take in a change of a pod, which may be one of a waypoint's own."""
        for pod, there in ((old, False), (new, True)):
            name = pod.labels.get(GATEWAY_NAME) if pod is not None else None
            if pod is None or name is None:
                continue
            where = (pod.namespace, name)
            here, was = self._pods[where], self.ready(where)
            if there and not pod.terminal:
                here[pod.name] = pod.workload is not None and pod.workload.healthy
            else:
                here.pop(pod.name, None)
            if self.ready(where) != was:
                self._dirty |= self._wanting.get(where, set())
            self._changed.add(where)

    def put(self, key: Key, wish: Wish | None) -> None:
        """Take in what a Service or Pod says; None: it is gone."""
        here = self._own[key.namespace]
        if wish is None:
            here.pop(key, None)
        elif here.get(key) == wish:
            return
        else:
            if key not in here:
                self._fresh.add(key)
            here[key] = wish
        self._want(key)

    def _want(self, key: Key) -> None:
        own = self._own[key.namespace].get(key)
        around = self._around.get(key.namespace, SILENT)
        new = None if own is None else combine(own, around, key.namespace)
        old = self._wanted.get(key)
        if new == old:
            return
        self._dirty.add(key)
        if old is not None:
            self._wanting[old.key].discard(key)
            del self._wanted[key]
        if new is not None:
            self._wanting[new.key].add(key)
            self._wanted[key] = new

    # ---- what follows ------------------------------------------------------------------------

    def settle(self, now: float) -> set[Key]:
        """Bind anew what was touched; returns what is bound otherwise than before."""
        changed = set()
        for key in self._dirty:
            new = self._attach(key)
            old = self._bound.get(key, FREE)
            if new == old:
                continue
            changed.add(key)
            self._hold(key, old, new, now)
            if old.gateway:
                self._served[old.gateway].discard(key)
            if new.gateway:
                self._served[new.gateway].add(key)
            if new == FREE:
                del self._bound[key]
            else:
                self._bound[key] = new
        self._dirty.clear()
        self._fresh.clear()
        self._rebound |= changed
        return changed

    def _hold(self, key: Key, old: Attachment, new: Attachment, now: float) -> None:
        """Go on as before until the waypoint listens, where that was directly."""
        told = self._before.pop(key, old)
        self.holds.drop(key)
        ready = new.condition is None or new.condition.status
        direct = told.address is None and key not in self._fresh
        if direct and new.address is not None and new.gateway and ready:
            self._before[key] = told
            self.holds.hold(key, new.gateway, now)

    def release(self, now: float, reached: Callable[[GatewayKey], int | None]) -> set[Key]:
        """Name the bindings that node proxies are to be told of now (see Holds)."""
        out = self.holds.release(now, reached)
        for key in out:
            self._before.pop(key, None)
        return out

    def address(self, key: Key) -> Address | None:
        """What node proxies are told of the waypoint of a Service or Pod."""
        return self._before.get(key, self.of(key)).address

    def _attach(self, key: Key) -> Attachment:
        want = self._wanted.get(key)
        if want is None:
            return FREE
        traffic: Traffic = "service" if key.kind == "Service" else "workload"
        return attach(
            want,
            traffic,
            key.namespace,
            self._labels.get(key.namespace, {}),
            self.gateways.get(want.key),
            self.ready(want.key),
            self._cluster_domain,
        )

    def drain(self) -> tuple[set[Key], set[GatewayKey]]:
        """Name what is bound otherwise, and the Gateways that are others, since the last call."""
        out = self._rebound, self._changed
        self._rebound, self._changed = set(), set()
        return out

    def wanted(self, key: Key) -> Wanted | None:
        """The waypoint that a Service or Pod is to use, there or not."""
        return self._wanted.get(key)

    def of(self, key: Key) -> Attachment:
        """Where a Service or Pod is bound."""
        return self._bound.get(key, FREE)

    def served(self, gateway: GatewayKey) -> set[Key]:
        """What is bound to a Gateway."""
        return self._served.get(gateway, set())

    def bound(self) -> Iterator[tuple[Key, Attachment]]:
        """Everything about which there is something to say."""
        return iter(self._bound.items())

    def ready(self, gateway: GatewayKey) -> bool:
        """Say whether a Gateway has a pod that serves."""
        return any(self._pods.get(gateway, {}).values())

    def pods(self, gateway: GatewayKey) -> tuple[int, int]:
        """How many pods a Gateway has, and how many of them are ready."""
        here = self._pods.get(gateway, {})
        return len(here), sum(here.values())

    def pod_names(self, gateway: GatewayKey) -> tuple[str, ...]:
        """The pods of a Gateway, ready or not."""
        return tuple(self._pods.get(gateway, ()))

    def own_classes(self) -> Iterator[Object]:
        """GatewayClass objects that name this controller."""
        return (c for c in self.classes.values() if is_ours(c))

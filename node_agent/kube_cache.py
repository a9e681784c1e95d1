"""Pods of this node and all namespaces, as the API server last said."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mesh.kube.api import Api
from mesh.kube.kinds import Kind, unpack
from mesh.kube.reflector import Reflector
from mesh.manifest import Key
from node_agent.metrics import Metrics
from node_agent.pod_object import NAMESPACES, PodObject, pods_of, read

log = logging.getLogger(__name__)


class KubeCache:
    """Two reflectors' sink. Reads are safe from any thread."""

    def __init__(self, api: Api, node: str, metrics: Metrics, changed: Callable[[], None]) -> None:
        """`changed` is called, from any thread, after what is read here has changed."""
        self._changed = changed
        self._metrics = metrics
        self._lock = threading.Lock()
        self._packed: dict[str, dict[Key, bytes]] = {"Pod": {}, "Namespace": {}}
        self._pods: dict[Key, PodObject] = {}
        self._by_uid: dict[str, PodObject] = {}
        self._namespaces: dict[str, Mapping[str, Any]] = {}
        self._reflectors = [
            Reflector(api, kind, self, self) for kind in (pods_of(node), NAMESPACES)
        ]

    def start(self) -> None:
        """Begin to list and watch."""
        for reflector in self._reflectors:
            reflector.start()

    def close(self) -> None:
        """End soon."""
        for reflector in self._reflectors:
            reflector.stop()

    @property
    def synced(self) -> bool:
        """Whether everything has been listed once."""
        return all(reflector.listed for reflector in self._reflectors)

    @property
    def problem(self) -> str:
        """Why the API server is not followed at present, "" when it is."""
        return "; ".join(r.problem for r in self._reflectors if r.problem)

    # ---- reading -------------------------------------------------------------------------------

    def pods(self) -> list[PodObject]:
        """Give every pod of the node."""
        with self._lock:
            return list(self._pods.values())

    def pod(self, uid: str) -> PodObject | None:
        """Give a pod by the uid that the runtime knows."""
        with self._lock:
            return self._by_uid.get(uid)

    def namespace(self, name: str) -> Mapping[str, Any] | None:
        """Give a Namespace object."""
        with self._lock:
            return self._namespaces.get(name)

    # ---- Sink and Observer of the reflectors ---------------------------------------------------

    def replace(self, kind: Kind, objects: Mapping[Key, bytes]) -> None:
        """Take a whole list."""
        with self._lock:
            packed = self._packed[kind.name]
            gone = [key for key in packed if key not in objects]
            new = {key: data for key, data in objects.items() if packed.get(key) != data}
            for key in gone:
                self._remove(key)
            for key, data in new.items():
                self._put(key, data)
        if gone or new:
            self._changed()

    def put(self, kind: Kind, key: Key, data: bytes) -> None:
        """Take a new or changed object."""
        with self._lock:
            if self._packed[kind.name].get(key) == data:
                return
            self._put(key, data)
        self._changed()

    def remove(self, kind: Kind, key: Key) -> None:
        """Let an object go."""
        with self._lock:
            self._remove(key)
        self._changed()

    def watch_restarted(self, kind: str) -> None:
        """Count."""
        self._metrics.watches.labels(kind, "restarted").inc()

    def relisted(self, kind: str) -> None:
        """Count."""
        self._metrics.watches.labels(kind, "relisted").inc()

    def _put(self, key: Key, data: bytes) -> None:
        self._packed[key.kind][key] = data
        obj = unpack(data)
        if key.kind == "Namespace":
            self._namespaces[key.name] = obj
            return
        before = self._pods.get(key)
        pod = self._pods[key] = read(obj)
        if before is not None and before.uid != pod.uid:
            self._forget(before)
        self._by_uid[pod.uid] = pod

    def _remove(self, key: Key) -> None:
        self._packed[key.kind].pop(key, None)
        if key.kind == "Namespace":
            self._namespaces.pop(key.name, None)
            return
        pod = self._pods.pop(key, None)
        if pod is not None:
            self._forget(pod)

    def _forget(self, pod: PodObject) -> None:
        if self._by_uid.get(pod.uid) is pod:
            del self._by_uid[pod.uid]

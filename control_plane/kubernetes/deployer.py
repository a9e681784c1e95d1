"""The objects of Gateways, by server-side apply: only by the leader, only what differs.

One thread applies what a Gateway asks for when it changes, and again now and then: what somebody
deleted or changed comes back, at the cost of writes that change nothing. What goes with a Gateway
is the garbage collector's (ownerReferences).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from control_plane.kubernetes.naming import FIELD_MANAGER
from control_plane.metrics import Counter
from control_plane.waypoints.deploying import Gateways, Trouble
from control_plane.waypoints.holding import GatewayKey
from mesh.errors import BadInput, Unavailable
from mesh.kube.api import APPLY, Api, ApiError
from mesh.kube.kinds import Kind
from waypoint.config.gateways import GatewayRecord
from waypoint.config.infrastructure import Runtime, objects

log = logging.getLogger(__name__)

Object = dict[str, Any]

KINDS: Final = {
    k.name: k
    for k in (
        Kind("ServiceAccount", "serviceaccounts"),
        Kind("Service", "services"),
        Kind("Deployment", "deployments", "apps"),
        Kind("HorizontalPodAutoscaler", "horizontalpodautoscalers", "autoscaling", ("v2",)),
        Kind("PodDisruptionBudget", "poddisruptionbudgets", "policy"),
    )
}
_CONFIG_MAP: Final = Kind("ConfigMap", "configmaps")
AGAIN: Final = 60.0  # seconds until what is as it should be is applied again
_RETRY: Final = 5.0  # after a failure
_IDLE: Final = 0.5  # seconds between looks at who leads
_TIMEOUT: Final = 8.0


@dataclass(slots=True)
class _Wanted:
    gateway: GatewayRecord
    due: float = 0.0
    applied: str = ""  # what was applied last, as text


class ClusterDeployer:
    """Implements control_plane.waypoints.deploying.Deployer. `news` is called with new troubles."""

    def __init__(
        self,
        api: Api,
        runtime: Runtime,
        leading: Callable[[], bool],
        writes: Counter,
        news: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._runtime = runtime
        self._leading = leading
        self._writes = writes
        self._news = news
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._wanted: dict[GatewayKey, _Wanted] = {}
        self._troubles: dict[GatewayKey, Trouble] = {}
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="deployer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        with self._lock:
            self._stop = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_TIMEOUT + 1)

    def want(self, gateways: Gateways) -> None:
        """See Deployer."""
        with self._lock:
            for key in [k for k in self._wanted if k not in gateways]:
                del self._wanted[key]
                self._troubles.pop(key, None)
            for key, gateway in gateways.items():
                old = self._wanted.get(key)
                if old is None:
                    self._wanted[key] = _Wanted(gateway)
                elif old.gateway != gateway:
                    old.gateway, old.due = gateway, 0.0
            self._changed.notify_all()

    def troubles(self) -> Mapping[GatewayKey, Trouble]:
        """See Deployer."""
        with self._lock:
            return dict(self._troubles)

    # ---- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._stop:
                    return
                due = min(self._wanted.values(), key=lambda w: w.due, default=None)
                pause = None if due is None else due.due - self._clock()
                if due is None or pause is None or pause > 0 or not self._leading():
                    self._changed.wait(_IDLE if pause is None or pause <= 0 else min(pause, _IDLE))
                    continue
            self._bring_in_line(due)

    def _bring_in_line(self, wanted: _Wanted) -> None:
        gateway = wanted.gateway
        trouble = self._try(wanted) if gateway.accepted else None
        key = (gateway.namespace, gateway.name)
        with self._lock:
            if wanted.gateway == gateway:  # else it is due at once
                wanted.due = self._clock() + (_RETRY if trouble else AGAIN)
            same = self._troubles.get(key) == trouble
            if trouble is None:
                self._troubles.pop(key, None)
            elif key in self._wanted:
                self._troubles[key] = trouble
        if not same:
            if trouble is not None:
                log.warning("Gateway %s/%s: %s", *key, trouble.parameters or trouble.problem)
            self._news()

    def _try(self, wanted: _Wanted) -> Trouble | None:
        gateway = wanted.gateway
        if not self._runtime.image:
            return Trouble(problem="no image to run: set --waypoint-image of the control plane")
        try:
            made = objects(gateway, self._runtime, self._parameters(gateway))
        except BadInput as e:
            return Trouble(parameters=str(e))
        except (ApiError, Unavailable) as e:
            return Trouble(problem=f"ConfigMap {gateway.parameters} cannot be read: {e}")
        return self._apply(wanted, made)

    def _parameters(self, gateway: GatewayRecord) -> Mapping[str, str] | None:
        if not gateway.parameters:
            return None
        path = _CONFIG_MAP.path("v1", gateway.namespace, gateway.parameters)
        try:
            data = self._api.request("GET", path, timeout=_TIMEOUT).get("data")
        except ApiError as e:
            if e.status != 404:
                raise
            name = f"{gateway.namespace}/{gateway.parameters}"
            raise BadInput(f"there is no ConfigMap {name}") from e
        return data if isinstance(data, dict) else None

    def _apply(self, wanted: _Wanted, made: list[Object]) -> Trouble | None:
        """Write all; the first refusal ends it."""
        for obj in made:
            kind, metadata = KINDS[obj["kind"]], obj["metadata"]
            path = kind.path(kind.versions[0], metadata["namespace"], metadata["name"])
            # Forced: these objects are ours, and what users want otherwise is in the parameters.
            query = {"fieldManager": FIELD_MANAGER, "force": "true"}
            try:
                self._api.request(
                    "PATCH", path, query=query, body=obj, content_type=APPLY, timeout=_TIMEOUT
                )
            except (ApiError, Unavailable) as e:
                self._writes.inc(kind.name, "refused")
                return Trouble(
                    problem=f"{kind.name} {metadata['namespace']}/{metadata['name']}: {e}"
                )
            self._writes.inc(kind.name, "ok")
        text = json.dumps(made, sort_keys=True)
        if wanted.applied != text:
            log.info(
                "waypoint %s/%s: %d objects applied",
                wanted.gateway.namespace,
                wanted.gateway.name,
                len(made),
            )
            wanted.applied = text
        return None

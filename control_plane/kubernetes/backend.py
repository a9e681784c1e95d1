"""A mesh in a cluster: wires source, statuses, callers, CA and leadership, nothing else."""

from __future__ import annotations

import asyncio
import datetime
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from control_plane.ca.current import CurrentCa
from control_plane.kubernetes.ca import CaSettings, ClusterCa
from control_plane.kubernetes.deployer import ClusterDeployer
from control_plane.kubernetes.election import LeaderElection
from control_plane.kubernetes.events import Events
from control_plane.kubernetes.kinds import KINDS
from control_plane.kubernetes.naming import COMPONENT, LEASE
from control_plane.kubernetes.referenced import ReferencedObjects
from control_plane.kubernetes.roots import RootMaps, waypoint_namespaces
from control_plane.kubernetes.source import KubernetesSource
from control_plane.kubernetes.status import StatusApplier
from control_plane.kubernetes.tokens import ReviewedTokens
from control_plane.metrics import Metrics
from control_plane.options import ClusterOptions, Options
from control_plane.waypoints.providers import NAME as MESH_CONFIG
from control_plane.waypoints.providers import configmap_kind
from mesh.kube.api import Api
from mesh.manifest import Key
from mesh.ports import XDS_CA_TLS
from waypoint.config.infrastructure import Runtime

log = logging.getLogger(__name__)

_LOOK: Final = 0.05  # seconds between looks at whether everything is read
_SAY: Final = 10.0  # seconds between lines about what is waited for


class _Counting:
    """Turns what reflectors do into metrics (mesh.kube.reflector.Observer)."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def watch_restarted(self, kind: str) -> None:
        """See Observer."""
        self._metrics.watch_restarts.inc(kind)

    def relisted(self, kind: str) -> None:
        """See Observer."""
        self._metrics.relists.inc(kind)


class ClusterSource:
    """The objects, with the CA's problems beside the source's own (control_plane.engine.Source)."""

    def __init__(self, objects: KubernetesSource, more: Callable[[], list[str]]) -> None:
        self._objects = objects
        self._more = more

    def changes(
        self, known: Mapping[Key, int]
    ) -> tuple[dict[Key, tuple[int, dict[str, Any]]], set[Key]]:
        """See Source."""
        return self._objects.cache.changes(known)

    def watch(self, timeout: float) -> bool:
        """See Source."""
        return self._objects.cache.watch(timeout)

    def problems(self) -> list[str]:
        """See Source."""
        return [*self._objects.problems(), *self._more()]


def waypoint_runtime(options: Options, where: ClusterOptions) -> Runtime:
    """Say how waypoints are started in this cluster."""
    return Runtime(
        command=("/usr/bin/ambit-waypoint",),
        control_plane=f"https://istiod.{where.namespace}.svc:{XDS_CA_TLS}",
        trust_domain=options.trust_domain,
        cluster_id=options.cluster_id,
        image=where.waypoint_image,
        pull_policy=where.waypoint_pull_policy,
        pull_secrets=where.waypoint_pull_secrets,
    )


class KubernetesBackend:
    """Implements control_plane.backend.Backend. Raises ConfigError without a configuration."""

    def __init__(
        self,
        options: Options,
        where: ClusterOptions,
        current: CurrentCa,
        metrics: Metrics,
        news: Callable[[], None],
        clock: Callable[[], datetime.datetime],
    ) -> None:
        self._current = current
        self._api = Api.load(where.kubeconfig)
        counting = _Counting(metrics)
        kinds = (*KINDS, configmap_kind(options.root_namespace))
        self._objects = KubernetesSource(self._api, kinds, counting)
        self._election = LeaderElection(self._api, where.namespace, LEASE, where.pod)
        leading = self._election.leading
        self._status = StatusApplier(self._api, self._objects, leading, metrics.writes)
        runtime = waypoint_runtime(options, where)
        self._deployer = ClusterDeployer(self._api, runtime, leading, metrics.writes, news)
        self._tokens = ReviewedTokens(self._api, options.token_audience, metrics.token_reviews)
        read = threading.Event()
        maps = RootMaps(
            self._api, where.namespace, self._waypoints, leading, metrics.writes, counting, read
        )
        self._ca = ClusterCa(
            self._api,
            CaSettings(where.namespace, options.trust_domain, options.max_ttl, where.root_overlap),
            current,
            maps,
            Events(self._api, where.namespace, COMPONENT),
            leading,
            counting,
            clock,
            read,
        )
        mesh = Key("ConfigMap", options.root_namespace, MESH_CONFIG)
        self._referenced = ReferencedObjects(self._api, self._objects.cache, [mesh])
        self.source = ClusterSource(
            self._objects, lambda: [*self._ca.problems, *self._referenced.problems()]
        )
        self.refer = self._referenced.want
        self.status = self._status
        self.deployer = self._deployer
        self.verifier = self._tokens
        self._measure(metrics)

    def _measure(self, metrics: Metrics) -> None:
        """Gauges that are read when they are asked for."""
        metrics.leader.set_function(lambda: float(self._election.leading()))
        metrics.status_pending.set_function(lambda: float(self._status.pending))
        metrics.source_problems.set_function(lambda: float(len(self.source.problems())))
        for kind in KINDS:
            count = partial(self._objects.cache.count, kind.name)
            metrics.objects.labels(kind.name).set_function(count)

    def _waypoints(self) -> set[str]:
        read = self._objects.cache.objects
        return waypoint_namespaces(read("Gateway"), read("GatewayClass"), read("Namespace"))

    async def start(self) -> None:
        """See Backend. Waits for the API server for as long as it takes."""
        log.info("API server %s; candidate %s", self._api.address, self._election.identity)
        self._objects.start()
        self._ca.start()
        self._election.start()
        self._status.start()
        self._deployer.start()
        self._referenced.start()
        said = time.monotonic()
        while not (self._objects.synced and self._current.ready):
            await asyncio.sleep(_LOOK)
            if time.monotonic() - said > _SAY:
                said = time.monotonic()
                waiting = [*self._objects.missing, *([] if self._current.ready else ["the CA"])]
                log.warning(
                    "waiting for %s: %s", ", ".join(waiting), "; ".join(self.source.problems())
                )

    async def stop(self) -> None:
        """See Backend. The lease goes first: the next leader need not wait."""
        await asyncio.to_thread(self._election.stop)
        await asyncio.to_thread(self._status.stop)
        await asyncio.to_thread(self._deployer.stop)
        await asyncio.to_thread(self._referenced.stop)
        await asyncio.to_thread(self._ca.stop)
        await asyncio.to_thread(self._objects.close)
        self._tokens.close()
        self._api.close()

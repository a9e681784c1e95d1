"""TrafficPolicy to what a cluster and its routes make of it."""

from __future__ import annotations

from typing import Any

from waypoint.config.traffic import TrafficPolicy

Proto = dict[str, Any]


def cluster_fields(policy: TrafficPolicy) -> Proto:
    """Fields of envoy.config.cluster.v3.Cluster."""
    lb = {"least_request": "LEAST_REQUEST", "round_robin": "ROUND_ROBIN", "random": "RANDOM"}
    return {"lb_policy": lb.get(policy.balancing, "LEAST_REQUEST")}


def hash_policy(policy: TrafficPolicy) -> list[Proto]:
    """RouteAction.hash_policy: what requests are told apart by."""
    return []

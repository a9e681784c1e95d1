"""One waypoint's model to all resources of its Envoy.

The finer functions depend on nothing but their arguments, which are compared by value: who keeps
their results translates again only what changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from mesh.xds.types import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from waypoint.config.envoy.clusters import assignment_dicts, backend_dicts, pod_dicts
from waypoint.config.envoy.inner import (
    Piece,
    main_internal,
    pack_piece,
    pod_chains,
    service_chains,
)
from waypoint.config.envoy.names import CONNECT_ORIGINATE, CONNECT_TERMINATE, MAIN_INTERNAL
from waypoint.config.envoy.pack import pack
from waypoint.config.envoy.routes import pod_route_configuration, route_configuration
from waypoint.config.envoy.tunnels import (
    connect_originate,
    connect_terminate,
    internal_cluster,
    originate_cluster,
)
from waypoint.config.locality import NOWHERE, Place
from waypoint.config.model import Backend, Bound, BoundWorkload, Waypoint

Resources = Mapping[str, Mapping[str, bytes]]  # type URL: name: packed


def backend_resources(backend: Backend) -> Resources:
    """Clusters and assignments of a service that is sent to."""
    out: dict[str, dict[str, bytes]] = defaultdict(dict)
    for type_url, name, resource in backend_dicts(backend):
        out[type_url][name] = pack(type_url, resource)
    return out


def placed_resources(backend: Backend, place: Place) -> Resources:
    """Assignments of a service as pods of a waypoint at a place see them, where that counts."""
    return {ENDPOINTS: {n: pack(ENDPOINTS, a) for n, a in assignment_dicts(backend, place)}}


def bound_resources(waypoint: Waypoint, bound: Bound) -> tuple[Piece, Resources]:
    """What a bound service brings to main_internal, and its route configurations."""
    chains = service_chains(waypoint, bound)
    out: dict[str, bytes] = {}
    for port in bound.service.ports:
        if port.service_port in chains.http:
            routes = route_configuration(bound, port)
            out[routes["name"]] = pack(ROUTES, routes)
    return pack_piece(chains), {ROUTES: out}


def workload_resources(waypoint: Waypoint, pod: BoundWorkload) -> tuple[Piece, Resources]:
    """What a bound pod brings to main_internal, and its cluster and routes."""
    out: dict[str, dict[str, bytes]] = defaultdict(dict)
    for type_url, name, resource in pod_dicts(pod):
        out[type_url][name] = pack(type_url, resource)
    routes = pod_route_configuration(pod)
    out[ROUTES][routes["name"]] = pack(ROUTES, routes)
    return pack_piece(pod_chains(waypoint, pod)), out


def listener_resources(waypoint: Waypoint, pieces: Iterable[Piece]) -> Resources:
    """All listeners, and the clusters that they belong to."""
    return {
        LISTENER: {
            CONNECT_TERMINATE: pack(LISTENER, connect_terminate(waypoint)),
            MAIN_INTERNAL: pack(LISTENER, main_internal(pieces)),
            CONNECT_ORIGINATE: pack(LISTENER, connect_originate(waypoint)),
        },
        CLUSTER: {
            MAIN_INTERNAL: pack(CLUSTER, internal_cluster()),
            CONNECT_ORIGINATE: pack(CLUSTER, originate_cluster(waypoint)),
        },
    }


def waypoint_resources(
    waypoint: Waypoint,
    bound: Sequence[Bound],
    backends: Sequence[Backend],
    workloads: Sequence[BoundWorkload] = (),
    place: Place = NOWHERE,
) -> Resources:
    """Everything, at once, for pods of the waypoint at a place."""
    out: dict[str, dict[str, bytes]] = defaultdict(dict)
    pieces: list[Piece] = []

    def take(found: Resources) -> None:
        for type_url, named in found.items():
            out[type_url] |= named

    for backend in backends:
        take(backend_resources(backend))
        take(placed_resources(backend, place) if place else {})
    for service in bound:
        piece, found = bound_resources(waypoint, service)
        pieces.append(piece)
        take(found)
    for pod in workloads:
        piece, found = workload_resources(waypoint, pod)
        pieces.append(piece)
        take(found)
    take(listener_resources(waypoint, pieces))
    return out

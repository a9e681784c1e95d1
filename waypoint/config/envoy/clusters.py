"""Services that are sent to: a cluster and its endpoints for each port, and each subset in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from mesh.model import Locality, Port
from mesh.xds.types import CLUSTER, ENDPOINTS
from waypoint.config.envoy.names import (
    CONNECT_ORIGINATE,
    ORIGINAL_DST,
    TUNNEL,
    cluster_name,
    workload_name,
)
from waypoint.config.envoy.policies import cluster_fields
from waypoint.config.locality import NOWHERE, Place, Preference, groups_of, preference_of
from waypoint.config.model import Backend, BoundWorkload, Endpoint
from waypoint.config.routing import BackendRef
from waypoint.config.traffic import Subset, TrafficPolicy

Proto = dict[str, Any]


def backend_dicts(backend: Backend) -> Iterator[tuple[str, str, Proto]]:
    """Yield (type, name, resource) of a service's clusters and assignments."""
    for port in backend.service.ports:
        for ref, _, policy in _parts(backend, port):
            name = cluster_name(ref)
            yield CLUSTER, name, cluster(name, port.app_protocol, policy)
    for name, found in assignment_dicts(backend):
        yield ENDPOINTS, name, found


def assignment_dicts(backend: Backend, place: Place | None = None) -> Iterator[tuple[str, Proto]]:
    """Yield (name, assignment) for the pods of a waypoint at a place.

    Only those that depend on the place; None: all, for pods of which nothing is known.
    """
    endpoints = dict(backend.endpoints)
    for port in backend.service.ports:
        here = endpoints.get(port.service_port, ())
        for ref, subset, policy in _parts(backend, port):
            preference = preference_of(backend.service, policy)
            if place is not None and (preference is None or not preference.keys):
                continue
            name = cluster_name(ref)
            chosen = [e for e in here if subset is None or _has(e, subset)]
            yield name, assignment(name, chosen, preference, place or NOWHERE)


def _parts(
    backend: Backend, port: Port
) -> Iterator[tuple[BackendRef, Subset | None, TrafficPolicy]]:
    """Yield the port as a whole, then its subsets that routes refer to."""
    key, number = backend.service.key, port.service_port
    yield BackendRef(key, number), None, backend.traffic.at(number)
    for ref in backend.used:
        if ref.subset and ref.port == number:
            subset = backend.traffic.subset(ref.subset)
            if subset is not None:
                yield ref, subset, subset.at(number)


def _has(endpoint: Endpoint, subset: Subset) -> bool:
    return set(subset.labels) <= set(endpoint.labels)


def cluster(name: str, protocol: int, policy: TrafficPolicy) -> Proto:
    """envoy.config.cluster.v3.Cluster whose endpoints come over EDS."""
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "ads": {}}},
        **cluster_fields(policy, protocol),
    }


def assignment(
    name: str,
    endpoints: Iterable[Endpoint],
    preference: Preference | None = None,
    place: Place = NOWHERE,
) -> Proto:
    """Build envoy.config.endpoint.v3.ClusterLoadAssignment of those endpoints that are ready."""
    weighted = preference is not None and bool(preference.distribute)
    groups = []
    for group in groups_of((e for e in endpoints if e.healthy), preference, place):
        found: Proto = (
            {} if group.locality == Locality() else {"locality": _locality(group.locality)}
        )
        found["lb_endpoints"] = [lb_endpoint(e) for e in group.endpoints]
        if weighted:  # else Envoy counts endpoints
            found["load_balancing_weight"] = group.weight
        if group.priority:
            found["priority"] = group.priority
        groups.append(found)
    return {"cluster_name": name, "endpoints": groups}


def _locality(place: Locality) -> Proto:
    return {"region": place.region, "zone": place.zone, "sub_zone": place.subzone}


def join(ip: str, port: int) -> str:
    """Host and port as a URL has them."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def lb_endpoint(endpoint: Endpoint) -> Proto:
    """One endpoint: by HBONE through connect_originate where it has an identity, else plain TCP."""
    where = join(endpoint.address, endpoint.port)
    about = {
        "workload": endpoint.workload,
        "namespace": endpoint.namespace,
        "canonical_service": endpoint.canonical_service,
        "canonical_revision": endpoint.canonical_revision,
        "cluster": endpoint.cluster,
    }
    if endpoint.identity:
        address: Proto = {
            "envoy_internal_address": {
                "server_listener_name": CONNECT_ORIGINATE,
                "endpoint_id": where,
            }
        }
        about["san"] = endpoint.identity
    else:
        socket = {"address": endpoint.address, "port_value": endpoint.port}
        address = {"socket_address": socket}
    metadata: Proto = {TUNNEL: {k: v for k, v in about.items() if v}}
    if endpoint.identity and endpoint.port:
        metadata[ORIGINAL_DST] = {"local": where}
    out: Proto = {"endpoint": {"address": address}, "metadata": {"filter_metadata": metadata}}
    if endpoint.weight > 1:
        out["load_balancing_weight"] = endpoint.weight
    return out


def pod_dicts(pod: BoundWorkload) -> Iterator[tuple[str, str, Proto]]:
    """Yield the cluster of a pod that is addressed by its own address, at any port.

    In the mesh, connect_originate learns from filter state which port was asked for (inner.py);
    outside of it, the connection goes where it was going.
    """
    name = workload_name(pod.uid, "")
    out = cluster(name, 0, TrafficPolicy())
    del out["eds_cluster_config"]
    if pod.endpoint.identity:
        here = replace(pod.endpoint, healthy=True)  # who asks for one pod means that one
        out |= {"type": "STATIC", "load_assignment": assignment(name, [here])}
    else:
        del out["transport_socket"]
        out |= {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}
    yield CLUSTER, name, out

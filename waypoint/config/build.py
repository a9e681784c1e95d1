"""From services, pods and what is attached to them to the model that one waypoint serves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mesh.model import Port, Service, SpiffeId, Tunnel, Workload
from waypoint.config.access_logs import AccessLog
from waypoint.config.gateways import GatewayRecord
from waypoint.config.model import Backend, BoundWorkload, Endpoint, Waypoint
from waypoint.config.routing import BackendRef, Routes, WeightedBackend
from waypoint.config.security import OPEN, Security
from waypoint.config.traffic import DEFAULT, ServiceTraffic

_ALLOW_ALL = 1  # istio.workload.LoadBalancing.HealthPolicy
_IPV6_ONLY = 2  # istio.workload.IPFamilies

Labels = tuple[tuple[str, str], ...]


def make_waypoint(
    gateway: GatewayRecord,
    trust_domain: str,
    cluster_id: str,
    cluster_domain: str,
    access_logs: tuple[AccessLog, ...] = (),
) -> Waypoint:
    """Describe a Gateway as its Envoy's configuration sees it."""
    return Waypoint(
        namespace=gateway.namespace,
        name=gateway.name,
        identity=SpiffeId(trust_domain, gateway.namespace, gateway.service_account),
        cluster_id=cluster_id,
        cluster_domain=cluster_domain,
        services=gateway.services,
        workloads=gateway.workloads,
        access_logs=access_logs,
    )


def refs_of(routes: Routes) -> Iterator[BackendRef]:
    """Everything that routes send to."""
    for http in routes.http or ():
        yield from _refs(http.backends)
        yield from (mirror.ref for mirror in http.mirrors)
    for tcp in routes.tcp or ():
        yield from _refs(tcp.backends)


def _refs(backends: Iterable[WeightedBackend]) -> Iterator[BackendRef]:
    return (b.ref for b in backends if b.ref is not None)


def make_backend(
    service: Service,
    members: Iterable[tuple[Workload, Labels]],
    traffic: ServiceTraffic = DEFAULT,
    used: Iterable[BackendRef] = (),
) -> Backend:
    """Collect a service's endpoints; labels are those of the pods: subsets select by them."""
    ports: dict[int, list[Endpoint]] = {p.service_port: [] for p in service.ports}
    balancing = service.load_balancing
    every = balancing is not None and balancing.health_policy == _ALLOW_ALL
    for workload, labels in members:
        address = _address(workload, service)
        if not address:
            continue
        for port in workload.services.get(service.key, ()):
            if port.target_port and port.service_port in ports:
                found = _endpoint(workload, address, port.target_port, labels)
                if every and not found.healthy:
                    found = replace(found, healthy=True)
                ports[port.service_port].append(found)
    return Backend(
        service=service,
        traffic=traffic,
        endpoints=tuple(
            (number, tuple(sorted(found, key=lambda e: (e.address, e.port))))
            for number, found in sorted(ports.items())
        ),
        used=tuple(sorted(set(used))),
    )


def make_bound_workload(
    workload: Workload, ports: Iterable[Port], security: Security = OPEN
) -> BoundWorkload:
    """Describe a pod that is addressed by its own address; `ports`: what is declared about it."""
    declared = {p.target_port: p.app_protocol for p in ports if p.target_port and p.app_protocol}
    return BoundWorkload(
        uid=workload.uid,
        addresses=workload.addresses,
        endpoint=_endpoint(workload, next(iter(workload.addresses), ""), 0, ()),
        ports=tuple(sorted(declared.items())),
        security=security,
    )


def _address(workload: Workload, service: Service) -> str:
    """Choose one of a workload's addresses: of the service's family, else the first it has."""
    v6 = service.ip_families == _IPV6_ONLY
    of_family = (a for a in workload.addresses if (":" in a) == v6)
    return next(of_family, next(iter(workload.addresses), ""))


def _endpoint(workload: Workload, address: str, port: int, labels: Labels) -> Endpoint:
    return Endpoint(
        address=address,
        port=port,
        identity=str(workload.identity) if workload.tunnel is Tunnel.HBONE else "",
        healthy=workload.healthy,
        locality=workload.locality,
        node=workload.node,
        weight=workload.capacity,
        labels=labels,
        workload=workload.workload_name or workload.name,
        namespace=workload.namespace,
        canonical_service=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        cluster=workload.cluster_id,
    )

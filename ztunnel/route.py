"""Where a pod's connection goes: the outbound decision, in the order that the field has agreed on.

1. A service with that VIP or CIDR: through its waypoint if it has one, else to its endpoints.
2. A workload with that address: through its waypoint, unless it is the waypoint that calls; else
   straight to it.
3. Neither: plain TCP to where the client asked.
Over HBONE where the endpoint speaks it, else plainly. What must be passed through a waypoint and
cannot is refused: nothing goes around a policy because its place is down.

Pure. Every answer notes what it rested on, so that a change makes workers forget only if it could
change an answer they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from mesh.errors import MeshError
from mesh.model import Gateway, LoadBalancing, Service, Tunnel, Workload, WorkloadType
from mesh.ports import INBOUND_HBONE
from ztunnel.ipc import Endpoint, Peer, Route, ServiceRef
from ztunnel.state import Effects, State, address_key, declared_port, endpoint_port

CONNECT_FLAG: Final = "CONNECT"

# istio.workload.LoadBalancing: Mode, HealthPolicy, IPFamilies.
_STRICT: Final = 1
_FAILOVER: Final = 2
_PASSTHROUGH: Final = 3
_ALLOW_ALL: Final = 1
_IPV4_ONLY: Final = 1
_IPV6_ONLY: Final = 2

_MAX_USES: Final = 100_000


class Unroutable(MeshError):
    """No way to the destination; the text is for the access log."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An endpoint candidate: where it is and on which port."""

    workload: Workload
    ip: str
    port: int


class Uses:
    """Names and addresses that answers given out rest on, since they were last forgotten."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._too_many = False

    def add(self, name: str) -> None:
        """Note one."""
        if len(self._names) >= _MAX_USES:
            self._too_many = True
        else:
            self._names.add(name)

    def stale(self, effects: Effects) -> bool:
        """Say whether an answer may be wrong after a change."""
        if not self._names:
            return False
        return self._too_many or effects.cidrs or not self._names.isdisjoint(effects.touched)

    def clear(self) -> None:
        """All answers were forgotten."""
        self._names.clear()
        self._too_many = False


class Router:
    """Answers the workers' questions from the state."""

    def __init__(self, state: State, network: str = "") -> None:
        self._state = state
        self._network = network
        self.uses = Uses()

    # ---- questions ---------------------------------------------------------------------------

    def route(self, source: Workload, ip: str, port: int) -> Route:
        """Decide where `source`'s connection to ip:port goes."""
        self.uses.add(address_key(self._network, ip))
        service = self._state.service_at(self._network, ip, source.namespace)
        if service is not None:
            return self._to_service(source, service, ip, port)
        workload = self._state.workload_at(self._network, ip)
        if workload is None:
            return Route(passthrough=True)
        self.uses.add(workload.uid)
        try:
            if workload.waypoint and not self._is_waypoint(source, workload.waypoint):
                return Route(self._through(source, workload.waypoint, ip, port))
            return Route((self._endpoint(_Chosen(workload, ip, port), ()),))
        except Unroutable as e:
            return Route(error=str(e), flag=CONNECT_FLAG)

    def peer(self, ip: str) -> Peer:
        """Who is at this address, as far as is known."""
        self.uses.add(address_key(self._network, ip))
        workload = self._state.workload_at(self._network, ip)
        if workload is None:
            return Peer()
        self.uses.add(workload.uid)
        return peer_of(workload)

    def unknown(self, ip: str, namespace: str) -> bool:
        """Say whether nothing is known of this address (on-demand xDS: worth asking)."""
        return (
            self._state.service_at(self._network, ip, namespace) is None
            and self._state.workload_at(self._network, ip) is None
        )

    def waypoint_unknown(self, source: Workload, ip: str) -> str:
        """Name the waypoint that a route to `ip` needs and that is not known; "" if there is none.

        The name is that of an xDS resource or alias (on-demand xDS).
        """
        service = self._state.service_at(self._network, ip, source.namespace)
        target = service or self._state.workload_at(self._network, ip)
        if target is None or target.waypoint is None:
            return ""
        gateway = target.waypoint
        if not gateway.hostname:
            known = (
                self._state.service_at(gateway.network, gateway.address, source.namespace)
                or self._state.workload_at(gateway.network, gateway.address)
            )  # fmt: skip
            return "" if known else address_key(gateway.network, gateway.address)
        key = f"{gateway.namespace}/{gateway.hostname}"
        known = self._state.services.get(key) or self._state.workload_with_hostname(
            gateway.namespace, gateway.hostname
        )
        return "" if known else key

    # ---- services ----------------------------------------------------------------------------

    def _to_service(self, source: Workload, service: Service, ip: str, port: int) -> Route:
        self.uses.add(service.key)
        ref = ServiceRef(service.name, service.namespace, service.hostname)
        try:
            if service.waypoint:
                return Route(self._through(source, service.waypoint, ip, port), ref)
            balancing = service.load_balancing or LoadBalancing()
            if balancing.mode == _PASSTHROUGH:
                return Route(service=ref, passthrough=True)
            if declared_port(service, port) is None:
                text = f"service {service.key} has no port {port}"
                raise Unroutable(f"no healthy upstream: {_join(ip, port)} ({text})")
            chosen = self._select(source, service, ip, lambda w: endpoint_port(w, service, port))
            if not chosen:
                text = f"service {service.key} has no healthy endpoint"
                raise Unroutable(f"no healthy upstream: {_join(ip, port)} ({text})")
            sans = service.subject_alt_names
            return Route(tuple(self._endpoint(c, sans) for c in chosen), ref)
        except Unroutable as e:
            return Route(service=ref, error=str(e), flag=CONNECT_FLAG)

    def _select(
        self, source: Workload, service: Service, ip: str, port_of: Callable[[Workload], int]
    ) -> list[_Chosen]:
        """Choose the usable endpoints of the best locality."""
        balancing = service.load_balancing or LoadBalancing()
        usable = []
        for w in self._state.endpoints(service.key):
            if w.network != source.network:  # needs a network gateway
                continue
            if not w.healthy and balancing.health_policy != _ALLOW_ALL:
                continue
            port, address = port_of(w), _address(w, ip, service.ip_families)
            if port and address:
                usable.append(_Chosen(w, address, port))
        if balancing.mode not in (_STRICT, _FAILOVER) or not usable:
            return usable
        scopes = balancing.routing_preference
        ranks = [_rank(source, c.workload, scopes) for c in usable]
        best = len(scopes) if balancing.mode == _STRICT else max(ranks)
        return [c for c, rank in zip(usable, ranks, strict=True) if rank == best]

    # ---- waypoints ---------------------------------------------------------------------------

    def _through(
        self, source: Workload, gateway: Gateway, ip: str, port: int
    ) -> tuple[Endpoint, ...]:
        """HBONE to a waypoint, which is told the original destination."""
        candidates, sans = self._gateway(source, gateway, ip)
        if not candidates:
            name = gateway.hostname or gateway.address
            raise Unroutable(
                f"unknown waypoint: {gateway.namespace}/{name} is not there or has no healthy"
                " endpoint; traffic that must pass it is not sent around it"
            )
        return tuple(
            Endpoint(
                address=(ip, port),
                hbone=True,
                tunnel_address=(c.ip, c.port),
                authority=_join(ip, port),
                identities=(str(c.workload.identity), *sans),
                weight=c.workload.capacity,
                peer=peer_of(c.workload),
                spread=True,
            )
            for c in candidates
        )

    def _gateway(
        self, source: Workload, gateway: Gateway, ip: str
    ) -> tuple[list[_Chosen], tuple[str, ...]]:
        port = gateway.hbone_port or INBOUND_HBONE
        if gateway.hostname:
            key = f"{gateway.namespace}/{gateway.hostname}"
            self.uses.add(key)
            service = self._state.services.get(key)
            workload = (
                None
                if service
                else self._state.workload_with_hostname(gateway.namespace, gateway.hostname)
            )
        else:
            self.uses.add(address_key(gateway.network, gateway.address))
            service = self._state.service_at(gateway.network, gateway.address, source.namespace)
            workload = self._state.workload_at(gateway.network, gateway.address)
        if service is not None:
            found = service

            def port_of(w: Workload) -> int:
                # A waypoint behind an application tunnel need not declare the port.
                return endpoint_port(w, found, port) or (port if w.application_tunnel_port else 0)

            return self._select(source, found, ip, port_of), found.subject_alt_names
        if workload is None or workload.network != source.network:
            return [], ()
        self.uses.add(workload.uid)
        address = _address(workload, gateway.address or ip, 0)
        return ([_Chosen(workload, address, port)] if address else []), ()

    def _is_waypoint(self, source: Workload, gateway: Gateway) -> bool:
        candidates, _ = self._gateway(source, gateway, next(iter(source.addresses), ""))
        return any(c.workload.uid == source.uid for c in candidates)

    # ---- endpoints ---------------------------------------------------------------------------

    def _endpoint(self, chosen: _Chosen, sans: Iterable[str]) -> Endpoint:
        w = chosen.workload
        hbone = w.tunnel == Tunnel.HBONE
        return Endpoint(
            address=(chosen.ip, chosen.port),
            hbone=hbone,
            tunnel_address=(chosen.ip, INBOUND_HBONE),
            authority=_join(chosen.ip, chosen.port),
            identities=(str(w.identity), *sans) if hbone else (),
            weight=w.capacity,
            peer=peer_of(w),
        )


def _join(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _address(w: Workload, asked: str, families: int) -> str:
    """Choose the address to reach a workload at, of the family that was asked for if it can be.

    "" when it has none that the service allows (a workload known by host name only needs DNS).
    """
    if asked in w.addresses:
        return asked
    allowed = [
        a
        for a in w.addresses
        if not (families == _IPV4_ONLY and ":" in a)
        and not (families == _IPV6_ONLY and ":" not in a)
    ]
    same = (a for a in allowed if (":" in a) == (":" in asked))
    return next(same, allowed[0] if allowed else "")


_SCOPES: Final[dict[int, Callable[[Workload], str]]] = {
    1: lambda w: w.locality.region,
    2: lambda w: w.locality.zone,
    3: lambda w: w.locality.subzone,
    4: lambda w: w.node,
    5: lambda w: w.cluster_id,
    6: lambda w: w.network,
}


def _rank(source: Workload, w: Workload, scopes: tuple[int, ...]) -> int:
    """Count the leading scopes that agree; a scope this build does not know ends the count."""
    rank = 0
    for scope in scopes:
        of = _SCOPES.get(scope)
        if of is None or of(source) != of(w):
            break
        rank += 1
    return rank


_TYPES: Final = {
    WorkloadType.DEPLOYMENT: "deployment",
    WorkloadType.CRONJOB: "cronjob",
    WorkloadType.POD: "pod",
    WorkloadType.JOB: "job",
}


def peer_of(w: Workload) -> Peer:
    """A workload as labels, logs and baggage name it."""
    return Peer(
        uid=w.uid,
        workload=w.workload_name or w.name,
        pod=w.name,
        namespace=w.namespace,
        identity=str(w.identity),
        workload_type=_TYPES[w.workload_type],
        canonical_service=w.canonical_name,
        canonical_revision=w.canonical_revision,
        cluster=w.cluster_id,
        region=w.locality.region,
        zone=w.locality.zone,
    )

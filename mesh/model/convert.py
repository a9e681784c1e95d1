"""Model values to and from the xDS messages of mesh/pb.

The `_untrusted` functions read what a peer sent: anything malformed raises BadInput naming the
resource, and nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError

from mesh.errors import BadInput
from mesh.model.policy import Action, Authorization, Clause, Match, Rule, Scope, StringMatch
from mesh.model.workload import (
    Gateway,
    LoadBalancing,
    Locality,
    Port,
    Service,
    Tunnel,
    Workload,
    WorkloadType,
)
from mesh.pb import authorization_pb2 as apb
from mesh.pb import workload_pb2 as wpb
from mesh.ports import DEFAULT_TRUST_DOMAIN

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"


def _packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _text_untrusted(raw: bytes, what: str) -> str:
    if len(raw) not in (4, 16):
        raise BadInput(f"{what}: an address has 4 or 16 bytes, not {len(raw)}")
    return str(ipaddress.ip_address(raw))


# ---- workloads and services ------------------------------------------------------------------


def _gateway_pb(gw: Gateway) -> wpb.GatewayAddress:
    if gw.address:
        return wpb.GatewayAddress(
            address=wpb.NetworkAddress(network=gw.network, address=_packed(gw.address)),
            hbone_mtls_port=gw.hbone_port,
        )
    return wpb.GatewayAddress(
        hostname=wpb.NamespacedHostname(namespace=gw.namespace, hostname=gw.hostname),
        hbone_mtls_port=gw.hbone_port,
    )


def _gateway_untrusted(pb: wpb.GatewayAddress, what: str) -> Gateway:
    if pb.WhichOneof("destination") == "address":
        return Gateway(
            hbone_port=pb.hbone_mtls_port,
            network=pb.address.network,
            address=_text_untrusted(pb.address.address, what),
        )
    return Gateway(
        hbone_port=pb.hbone_mtls_port,
        namespace=pb.hostname.namespace,
        hostname=pb.hostname.hostname,
    )


def _ports_pb(ports: Iterable[Port]) -> list[wpb.Port]:
    return [
        wpb.Port(
            service_port=p.service_port,
            target_port=p.target_port,
            app_protocol=p.app_protocol,  # type: ignore[arg-type]
        )
        for p in ports
    ]


def _ports(pbs: Iterable[wpb.Port]) -> tuple[Port, ...]:
    return tuple(Port(p.service_port, p.target_port, int(p.app_protocol)) for p in pbs)


def workload_to_pb(w: Workload) -> wpb.Address:
    """Build the Address resource of a workload."""
    pb = wpb.Workload(
        uid=w.uid,
        name=w.name,
        namespace=w.namespace,
        addresses=[_packed(a) for a in w.addresses],
        hostname=w.hostname,
        network=w.network,
        tunnel_protocol=int(w.tunnel),  # type: ignore[arg-type]
        trust_domain="" if w.trust_domain == DEFAULT_TRUST_DOMAIN else w.trust_domain,
        service_account="" if w.service_account == "default" else w.service_account,
        node=w.node,
        canonical_name=w.canonical_name,
        canonical_revision=w.canonical_revision,
        workload_type=int(w.workload_type),  # type: ignore[arg-type]
        workload_name=w.workload_name,
        native_tunnel=w.native_tunnel,
        services={k: wpb.PortList(ports=_ports_pb(v)) for k, v in sorted(w.services.items())},
        authorization_policies=w.authorization_policies,
        status=0 if w.healthy else 1,  # type: ignore[arg-type]
        cluster_id=w.cluster_id,
        network_mode=1 if w.host_network else 0,  # type: ignore[arg-type]
    )
    if w.waypoint:
        pb.waypoint.CopyFrom(_gateway_pb(w.waypoint))
    if w.network_gateway:
        pb.network_gateway.CopyFrom(_gateway_pb(w.network_gateway))
    if w.locality != Locality():
        pb.locality.CopyFrom(
            wpb.Locality(region=w.locality.region, zone=w.locality.zone, subzone=w.locality.subzone)
        )
    if w.capacity != 1:
        pb.capacity.value = w.capacity
    if w.application_tunnel_port:
        pb.application_tunnel.CopyFrom(
            wpb.ApplicationTunnel(
                protocol=wpb.ApplicationTunnel.PROXY, port=w.application_tunnel_port
            )
        )
    return wpb.Address(workload=pb)


def service_to_pb(s: Service) -> wpb.Address:
    """Build the Address resource of a service."""
    addresses = [wpb.NetworkAddress(network=s.network, address=_packed(v)) for v in s.vips]
    for cidr in s.cidrs:
        net = ipaddress.ip_network(cidr)
        addresses.append(
            wpb.NetworkAddress(
                network=s.network, address=net.network_address.packed, length=net.prefixlen
            )
        )
    pb = wpb.Service(
        name=s.name,
        namespace=s.namespace,
        hostname=s.hostname,
        addresses=addresses,
        ports=_ports_pb(s.ports),
        subject_alt_names=s.subject_alt_names,
        ip_families=s.ip_families,  # type: ignore[arg-type]
        canonical=s.canonical,
    )
    if s.waypoint:
        pb.waypoint.CopyFrom(_gateway_pb(s.waypoint))
    if s.load_balancing:
        lb = s.load_balancing
        pb.load_balancing.CopyFrom(
            wpb.LoadBalancing(
                routing_preference=lb.routing_preference,  # type: ignore[arg-type]
                mode=lb.mode,  # type: ignore[arg-type]
                health_policy=lb.health_policy,  # type: ignore[arg-type]
            )
        )
    return wpb.Address(service=pb)


def _workload_untrusted(pb: wpb.Workload) -> Workload:
    what = f"workload {pb.uid!r}"
    if not pb.uid:
        raise BadInput(f"workload {pb.namespace}/{pb.name} has no uid")
    return Workload(
        uid=pb.uid,
        name=pb.name,
        namespace=pb.namespace,
        addresses=tuple(_text_untrusted(a, what) for a in pb.addresses),
        service_account=pb.service_account or "default",
        trust_domain=pb.trust_domain or DEFAULT_TRUST_DOMAIN,
        tunnel=Tunnel.HBONE if pb.tunnel_protocol == wpb.HBONE else Tunnel.NONE,
        node=pb.node,
        network=pb.network,
        hostname=pb.hostname,
        cluster_id=pb.cluster_id,
        canonical_name=pb.canonical_name,
        canonical_revision=pb.canonical_revision,
        workload_name=pb.workload_name,
        workload_type=WorkloadType(pb.workload_type)
        if pb.workload_type in (0, 1, 2, 3)
        else WorkloadType.POD,
        healthy=pb.status == wpb.HEALTHY,
        native_tunnel=pb.native_tunnel,
        host_network=pb.network_mode == wpb.HOST_NETWORK,
        waypoint=_gateway_untrusted(pb.waypoint, what) if pb.HasField("waypoint") else None,
        network_gateway=_gateway_untrusted(pb.network_gateway, what)
        if pb.HasField("network_gateway")
        else None,
        services={k: _ports(v.ports) for k, v in pb.services.items()},
        authorization_policies=tuple(pb.authorization_policies),
        locality=Locality(pb.locality.region, pb.locality.zone, pb.locality.subzone),
        capacity=pb.capacity.value if pb.HasField("capacity") else 1,
        application_tunnel_port=pb.application_tunnel.port
        if pb.application_tunnel.protocol == wpb.ApplicationTunnel.PROXY
        else 0,
    )


def _service_untrusted(pb: wpb.Service) -> Service:
    what = f"service {pb.namespace}/{pb.hostname}"
    if not pb.hostname:
        raise BadInput(f"service {pb.namespace}/{pb.name} has no hostname")
    vips, cidrs, network = [], [], ""
    for a in pb.addresses:
        text = _text_untrusted(a.address, what)
        network = a.network
        if a.HasField("length"):
            try:
                cidrs.append(str(ipaddress.ip_network(f"{text}/{a.length}", strict=False)))
            except ValueError as e:
                raise BadInput(f"{what}: {e}") from e
        else:
            vips.append(text)
    lb = None
    if pb.HasField("load_balancing"):
        lb = LoadBalancing(
            tuple(int(s) for s in pb.load_balancing.routing_preference),
            int(pb.load_balancing.mode),
            int(pb.load_balancing.health_policy),
        )
    return Service(
        name=pb.name,
        namespace=pb.namespace,
        hostname=pb.hostname,
        vips=tuple(vips),
        cidrs=tuple(cidrs),
        network=network,
        ports=_ports(pb.ports),
        subject_alt_names=tuple(pb.subject_alt_names),
        waypoint=_gateway_untrusted(pb.waypoint, what) if pb.HasField("waypoint") else None,
        load_balancing=lb,
        ip_families=int(pb.ip_families),
        canonical=pb.canonical,
    )


def address_untrusted(raw: bytes) -> Workload | Service:
    """Decode one Address resource; raises BadInput."""
    try:
        pb = wpb.Address.FromString(raw)
    except DecodeError as e:
        raise BadInput(f"not an Address resource: {e}") from e
    kind = pb.WhichOneof("type")
    if kind == "workload":
        return _workload_untrusted(pb.workload)
    if kind == "service":
        return _service_untrusted(pb.service)
    raise BadInput("an Address resource that is neither workload nor service")


# ---- policies --------------------------------------------------------------------------------


def _string_pb(m: StringMatch) -> apb.StringMatch:
    if m.kind == "presence":
        return apb.StringMatch(presence=empty_pb2.Empty())
    pb = apb.StringMatch()
    setattr(pb, m.kind, m.value)
    return pb


def _string(pb: apb.StringMatch, what: str) -> StringMatch:
    kind = pb.WhichOneof("match_type")
    if kind is None:
        raise BadInput(f"{what}: a string match of no kind")
    return StringMatch(kind, "" if kind == "presence" else getattr(pb, kind))


def _net_pb(net: str) -> apb.Address:
    n = ipaddress.ip_network(net)
    return apb.Address(address=n.network_address.packed, length=n.prefixlen)


def _net(pb: apb.Address, what: str) -> str:
    try:
        text = f"{_text_untrusted(pb.address, what)}/{pb.length}"
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError as e:
        raise BadInput(f"{what}: {e}") from e


def _match_pb(m: Match) -> apb.Match:
    account = apb.ServiceAccountMatch
    return apb.Match(
        namespaces=[_string_pb(s) for s in m.namespaces],
        not_namespaces=[_string_pb(s) for s in m.not_namespaces],
        principals=[_string_pb(s) for s in m.principals],
        not_principals=[_string_pb(s) for s in m.not_principals],
        service_accounts=[account(namespace=n, serviceAccount=a) for n, a in m.service_accounts],
        not_service_accounts=[
            account(namespace=n, serviceAccount=a) for n, a in m.not_service_accounts
        ],
        source_ips=[_net_pb(n) for n in m.source_ips],
        not_source_ips=[_net_pb(n) for n in m.not_source_ips],
        destination_ips=[_net_pb(n) for n in m.destination_ips],
        not_destination_ips=[_net_pb(n) for n in m.not_destination_ips],
        destination_ports=m.destination_ports,
        not_destination_ports=m.not_destination_ports,
    )


def _match(pb: apb.Match, what: str) -> Match:
    return Match(
        namespaces=tuple(_string(s, what) for s in pb.namespaces),
        not_namespaces=tuple(_string(s, what) for s in pb.not_namespaces),
        principals=tuple(_string(s, what) for s in pb.principals),
        not_principals=tuple(_string(s, what) for s in pb.not_principals),
        service_accounts=tuple((a.namespace, a.serviceAccount) for a in pb.service_accounts),
        not_service_accounts=tuple(
            (a.namespace, a.serviceAccount) for a in pb.not_service_accounts
        ),
        source_ips=tuple(_net(a, what) for a in pb.source_ips),
        not_source_ips=tuple(_net(a, what) for a in pb.not_source_ips),
        destination_ips=tuple(_net(a, what) for a in pb.destination_ips),
        not_destination_ips=tuple(_net(a, what) for a in pb.not_destination_ips),
        destination_ports=tuple(pb.destination_ports),
        not_destination_ports=tuple(pb.not_destination_ports),
    )


def authorization_to_pb(a: Authorization) -> apb.Authorization:
    """Build the Authorization resource."""
    return apb.Authorization(
        name=a.name,
        namespace=a.namespace,
        scope=int(a.scope),  # type: ignore[arg-type]
        action=int(a.action),  # type: ignore[arg-type]
        dry_run=a.dry_run,
        rules=[
            apb.Rule(
                clauses=[apb.Clause(matches=[_match_pb(m) for m in c.matches]) for c in r.clauses]
            )
            for r in a.rules
        ],
    )


def authorization_untrusted(raw: bytes) -> Authorization:
    """Decode one Authorization resource; raises BadInput."""
    try:
        pb = apb.Authorization.FromString(raw)
    except DecodeError as e:
        raise BadInput(f"not an Authorization resource: {e}") from e
    what = f"authorization {pb.namespace}/{pb.name}"
    if pb.scope not in (0, 1, 2) or pb.action not in (0, 1):
        raise BadInput(f"{what}: unknown scope {pb.scope} or action {pb.action}")
    return Authorization(
        name=pb.name,
        namespace=pb.namespace,
        scope=Scope(pb.scope),
        action=Action(pb.action),
        dry_run=pb.dry_run,
        rules=tuple(
            Rule(tuple(Clause(tuple(_match(m, what) for m in c.matches)) for c in r.clauses))
            for r in pb.rules
        ),
    )

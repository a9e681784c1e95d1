"""The config dump, in the form of Istio's ztunnel: what istioctl and `ambit ztunnel` read. Pure."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mesh.ca.held import CertificateFacts
from mesh.ca.store import Identity
from mesh.model import (
    Action,
    Authorization,
    Gateway,
    LoadBalancing,
    Match,
    Scope,
    Service,
    StringMatch,
    Tunnel,
    Workload,
    WorkloadType,
)
from ztunnel.ipc import Connection
from ztunnel.pods import LocalPod
from ztunnel.state import State

Json = dict[str, Any]
Connections = Mapping[str, list[tuple[Connection, int, int]]]

_SCOPES: Final = {
    Scope.GLOBAL: "Global",
    Scope.NAMESPACE: "Namespace",
    Scope.WORKLOAD_SELECTOR: "WorkloadSelector",
}
_LB_SCOPES: Final = ("", "Region", "Zone", "Subzone", "Node", "Cluster", "Network")
_LB_MODES: Final = ("Standard", "Strict", "Failover", "Passthrough")


def config_dump(
    state: State,
    identities: Iterable[Identity],
    pods: Iterable[LocalPod],
    connections: Connections,
    config: Mapping[str, object],
    version: str,
    now: float,
) -> Json:
    """Build the whole dump; `now` is unix seconds."""
    return {
        "workloads": [workload(w) for _, w in sorted(state.workloads.items())],
        "services": [service(s, state) for _, s in sorted(state.services.items())],
        "policies": [policy(p) for _, p in sorted(state.policies.items())],
        "certificates": [
            certificate(i, now) for i in sorted(identities, key=lambda each: each.name)
        ],
        "workloadState": {
            pod.uid: _pod(pod, connections.get(pod.uid, []))
            for pod in sorted(pods, key=lambda p: (p.namespace, p.name))
        },
        "config": dict(config),
        "version": {"version": version, "component": "ambit-ztunnel"},
    }


def workload(w: Workload) -> Json:
    """Render one workload."""
    out: Json = {
        "uid": w.uid,
        "name": w.name,
        "namespace": w.namespace,
        "workloadIps": list(w.addresses),
        "protocol": "HBONE" if w.tunnel == Tunnel.HBONE else "TCP",
        "networkMode": "HostNetwork" if w.host_network else "Standard",
        "serviceAccount": w.service_account,
        "trustDomain": w.trust_domain,
        "network": w.network,
        "node": w.node,
        "hostname": w.hostname,
        "clusterId": w.cluster_id,
        "canonicalName": w.canonical_name,
        "canonicalRevision": w.canonical_revision,
        "workloadName": w.workload_name,
        "workloadType": WorkloadType(w.workload_type).name.lower(),
        "nativeTunnel": w.native_tunnel,
        "authorizationPolicies": list(w.authorization_policies),
        "services": sorted(w.services),
        "status": "Healthy" if w.healthy else "Unhealthy",
        "capacity": w.capacity,
        "locality": {
            "region": w.locality.region,
            "zone": w.locality.zone,
            "subzone": w.locality.subzone,
        },
    }
    if w.waypoint:
        out["waypoint"] = _gateway(w.waypoint)
    if w.network_gateway:
        out["networkGateway"] = _gateway(w.network_gateway)
    if w.application_tunnel_port:
        out["applicationTunnel"] = {"protocol": "PROXY", "port": w.application_tunnel_port}
    return out


def _gateway(g: Gateway) -> Json:
    to = f"{g.namespace}/{g.hostname}" if g.hostname else f"{g.network}/{g.address}"
    return {"destination": to, "hboneMtlsPort": g.hbone_port}


def service(s: Service, state: State) -> Json:
    """Render one service with its endpoints."""
    out: Json = {
        "name": s.name,
        "namespace": s.namespace,
        "hostname": s.hostname,
        "vips": [f"{s.network}/{vip}" for vip in s.vips],
        "ports": {str(p.service_port): p.target_port for p in s.ports},
        "endpoints": {
            w.uid: {
                "workloadUid": w.uid,
                "port": {str(p.service_port): p.target_port for p in w.services[s.key]},
                "status": "Healthy" if w.healthy else "Unhealthy",
            }
            for w in sorted(state.endpoints(s.key), key=lambda each: each.uid)
        },
        "subjectAltNames": list(s.subject_alt_names),
        "canonical": s.canonical,
    }
    if s.cidrs:
        out["cidrVips"] = [f"{s.network}/{cidr}" for cidr in s.cidrs]
    if s.waypoint:
        out["waypoint"] = _gateway(s.waypoint)
    if s.load_balancing:
        out["loadBalancer"] = _balancing(s.load_balancing)
    return out


def _balancing(lb: LoadBalancing) -> Json:
    return {
        "mode": _LB_MODES[lb.mode] if lb.mode < len(_LB_MODES) else str(lb.mode),
        "routingPreferences": [
            _LB_SCOPES[i] if i < len(_LB_SCOPES) else str(i) for i in lb.routing_preference
        ],
        "healthPolicy": "AllowAll" if lb.health_policy else "OnlyHealthy",
    }


def policy(p: Authorization) -> Json:
    """Render one policy."""
    return {
        "name": p.name,
        "namespace": p.namespace,
        "scope": _SCOPES[p.scope],
        "action": "Deny" if p.action == Action.DENY else "Allow",
        "dryRun": p.dry_run,
        "rules": [[[_match(m) for m in c.matches] for c in r.clauses] for r in p.rules],
    }


def _match(m: Match) -> Json:
    out: Json = {}
    for name in Match.__slots__:
        values = getattr(m, name)
        if values:
            first, *rest = name.split("_")
            out[first + "".join(part.capitalize() for part in rest)] = [_value(v) for v in values]
    return out


def _value(v: object) -> object:
    if isinstance(v, StringMatch):
        return {v.kind.capitalize(): v.value if v.kind != "presence" else []}
    if isinstance(v, tuple):
        return {"namespace": v[0], "serviceAccount": v[1]}
    return v


def certificate(identity: Identity, now: float) -> Json:
    """Render one identity's certificate; never its key."""
    held = identity.held
    return {
        "identity": identity.name,
        "state": identity.state(now),
        "certChain": [_certificate(c) for c in held.chain] if held else [],
        "rootCerts": [_certificate(c) for c in held.roots] if held else [],
        **({"error": identity.error} if identity.error else {}),
    }


def _certificate(c: CertificateFacts) -> Json:
    return {
        "pem": base64.b64encode(c.pem.encode()).decode(),
        "serialNumber": c.serial,
        "validFrom": _time(c.not_before),
        "expirationTime": _time(c.not_after),
    }


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pod(pod: LocalPod, connections: list[tuple[Connection, int, int]]) -> Json:
    live: dict[str, list[Json]] = {"inbound": [], "outbound": []}
    for conn, sent, recv in connections:
        live[conn.direction].append(_connection(conn, sent, recv))
    return {
        "state": "Up" if pod.serving else "Pending",
        "info": {
            "name": pod.name,
            "namespace": pod.namespace,
            "serviceAccount": pod.service_account,
        },
        "connections": live,
    }


def _connection(conn: Connection, sent: int, recv: int) -> Json:
    outbound = conn.direction == "outbound"
    return {
        "src": _join(conn.src),
        "originalDst": _join(conn.original),
        "actualDst": _join(conn.hbone if outbound and conn.hbone else conn.dst),
        "protocol": "HBONE" if conn.secure else "TCP",
        "srcIdentity": conn.source.identity if conn.secure else None,
        "dstIdentity": conn.destination.identity if conn.secure else None,
        "bytesSent": sent,
        "bytesRecv": recv,
    }


def _join(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

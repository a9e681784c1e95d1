"""Kubernetes Services to the model, and which pods they select on which ports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from control_plane.translate.pods import MeshConfig, PodRecord, addresses_of
from mesh.findings import selects
from mesh.model import LoadBalancing, Port, Service
from waypoint.config.binding import SILENT, Wish, read_wish

DISTRIBUTION: Final = "networking.istio.io/traffic-distribution"

# istio.workload.LoadBalancing: scopes, modes and health policies by number.
_REGION, _ZONE, _SUBZONE, _NODE, _NETWORK = 1, 2, 3, 4, 6
_STRICT, _FAILOVER = 1, 2
_ALLOW_ALL = 1
_PREFERENCES: Final = {
    "preferclose": (_NETWORK, _REGION, _ZONE, _SUBZONE),
    "prefersamezone": (_NETWORK, _REGION, _ZONE),
    "prefersamenode": (_NETWORK, _REGION, _ZONE, _SUBZONE, _NODE),
}
# istio.workload.AppProtocol, by Service appProtocol or the port name's first word.
_PROTOCOLS: Final = {
    "http": 1,
    "http2": 2,
    "h2c": 2,
    "kubernetes.io/h2c": 2,
    "grpc": 3,
    "grpc-web": 3,
    "tcp": 4,
    "mongo": 4,
    "mysql": 4,
    "redis": 4,
    "tls": 5,
    "https": 5,
}
_FAMILIES: Final = {(True, False): 1, (False, True): 2, (True, True): 3}


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One Service: its resource, its selector ({} selects nothing), the names of its ports."""

    service: Service
    selector: Mapping[str, str]
    target_names: Mapping[int, str]  # service port: container port name
    port_names: Mapping[int, str]  # service port: its own name, where it has one
    wish: Wish = SILENT  # for a waypoint

    @property
    def publishes_unready(self) -> bool:
        """Say whether members that are not ready are members in full."""
        balancing = self.service.load_balancing
        return balancing is not None and balancing.health_policy == _ALLOW_ALL

    def matches(self, pod: PodRecord) -> bool:
        """Say whether a pod of the same namespace backs this service."""
        return bool(self.selector) and selects(self.selector, pod.labels)

    def ports_on(self, pod: PodRecord) -> tuple[Port, ...]:
        """Resolve the ports on one pod; a name that the pod does not have is left out."""
        if not self.target_names:
            return self.service.ports
        out = []
        for port in self.service.ports:
            name = self.target_names.get(port.service_port)
            target = port.target_port if name is None else pod.named_ports.get(name)
            if target is not None:
                out.append(Port(port.service_port, target, port.app_protocol))
        return tuple(out)


def _port_number(value: Any) -> int | None:
    return value if isinstance(value, int) and 1 <= value <= 65535 else None


def _ports(spec: Mapping[str, Any]) -> tuple[tuple[Port, ...], dict[int, str], dict[int, str]]:
    """Read the ports, the names of their targets, and their own names."""
    ports, targets, names = [], {}, {}
    for raw in spec.get("ports") or []:
        if not isinstance(raw, Mapping) or raw.get("protocol", "TCP") != "TCP":
            continue
        number = _port_number(raw.get("port"))
        if number is None:
            continue
        target = raw.get("targetPort") or number
        if isinstance(target, str) and target.isdigit():
            target = int(target)
        if isinstance(target, str):
            targets[number] = target
        if raw.get("name"):
            names[number] = str(raw["name"])
        word = str(raw.get("name") or "").split("-")[0]
        protocol = _PROTOCOLS.get(str(raw.get("appProtocol") or word).lower(), 0)
        ports.append(Port(number, _port_number(target) or 0, protocol))
    return tuple(ports), targets, names


def _vips(spec: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[str, ...]:
    values = list(spec.get("clusterIPs") or [spec.get("clusterIP")])
    balancer = status.get("loadBalancer")
    if isinstance(balancer, Mapping):
        values += [i.get("ip") for i in balancer.get("ingress") or [] if isinstance(i, Mapping)]
    return addresses_of(values)  # "None" (headless) and "" are no addresses


def _load_balancing(spec: Mapping[str, Any], metadata: Mapping[str, Any]) -> LoadBalancing | None:
    health = _ALLOW_ALL if spec.get("publishNotReadyAddresses") is True else 0
    if spec.get("internalTrafficPolicy") == "Local":
        return LoadBalancing((_NODE,), _STRICT, health)
    annotation = (metadata.get("annotations") or {}).get(DISTRIBUTION)
    preference = _PREFERENCES.get(str(spec.get("trafficDistribution") or annotation).lower())
    if preference:
        return LoadBalancing(preference, _FAILOVER, health)
    return LoadBalancing((), 0, health) if health else None


def _families(spec: Mapping[str, Any], vips: tuple[str, ...]) -> int:
    families = spec.get("ipFamilies")
    if isinstance(families, list) and families:
        return _FAMILIES.get(("IPv4" in families, "IPv6" in families), 0)
    return _FAMILIES.get((any("." in v for v in vips), any(":" in v for v in vips)), 0)


def translate_service(obj: Mapping[str, Any], config: MeshConfig) -> ServiceRecord | None:
    """Read one Service object; None for an ExternalName, which is only a DNS alias."""
    metadata, spec = obj["metadata"], obj.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return None
    namespace, name = metadata["namespace"], metadata["name"]
    ports, targets, names = _ports(spec)
    vips = _vips(spec, obj.get("status") or {})
    selector = spec.get("selector")
    return ServiceRecord(
        service=Service(
            name=name,
            namespace=namespace,
            hostname=f"{name}.{namespace}.svc.{config.cluster_domain}",
            vips=vips,
            ports=ports,
            load_balancing=_load_balancing(spec, metadata),
            ip_families=_families(spec, vips),
            canonical=True,
        ),
        selector=selector if isinstance(selector, Mapping) else {},
        target_names=targets,
        port_names=names,
        wish=read_wish(metadata),
    )

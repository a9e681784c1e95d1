"""EndpointSlices: which addresses back a Service, as whoever writes the slices has it.

Where a Service has slices they are the truth about its members and their ports (that is Kubernetes,
where a controller writes them, and hand-written ones for Services without a selector). Where it has
none its selector is (that is the lab). Pure.

An endpoint is known by its address; targetRef tells pods apart that share one (the node's), and
keeps an entry that is not up to date from naming the pod that has the address now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from control_plane.translate.pods import MeshConfig, PodRecord, addresses_of
from mesh.manifest import Key
from mesh.model import Port, Workload, WorkloadType

SERVICE_NAME: Final = "kubernetes.io/service-name"
ServiceKey = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address. `pod`: the pod ("namespace", "name") it is said to be of, `uid` that pod's."""

    address: str
    ready: bool
    pod: tuple[str, str] | None
    uid: str
    node: str

    def is_of(self, pod: PodRecord) -> bool:
        """Say whether a pod that has this address is the one that is meant."""
        if self.pod is None:
            return pod.workload is not None and not pod.workload.host_network
        if self.uid and pod.uid and self.uid != pod.uid:
            return False
        return self.pod == (pod.namespace, pod.name)


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """One EndpointSlice. ports: number by name, TCP; None is whatever port the Service has."""

    namespace: str
    name: str
    service: ServiceKey
    ports: Mapping[str, int | None]
    endpoints: tuple[Endpoint, ...]

    def ports_for(self, ports: tuple[Port, ...], names: Mapping[int, str]) -> dict[int, Port]:
        """Resolve a Service's ports (and their names, by number) on these endpoints."""
        out = {}
        for port in ports:
            name = names.get(port.service_port, "")
            if name in self.ports:
                target = self.ports[name] or port.service_port
                out[port.service_port] = Port(port.service_port, target, port.app_protocol)
        return out


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []


def _endpoint(raw: Mapping[str, Any], namespace: str) -> Endpoint | None:
    # "No semantics are defined for additional addresses beyond the first" (discovery.k8s.io/v1).
    addresses = addresses_of(list(raw.get("addresses") or [])[:1])
    if not addresses:
        return None
    conditions = raw.get("conditions")
    ready = conditions.get("ready") if isinstance(conditions, Mapping) else None
    ref = raw.get("targetRef")
    pod, uid = None, ""
    if isinstance(ref, Mapping) and ref.get("kind") == "Pod" and ref.get("name"):
        pod = (str(ref.get("namespace") or namespace), str(ref["name"]))
        uid = str(ref.get("uid") or "")
    # Unknown means ready (discovery.k8s.io/v1).
    return Endpoint(addresses[0], ready is not False, pod, uid, str(raw.get("nodeName") or ""))


def translate_slice(obj: Mapping[str, Any]) -> SliceRecord | None:
    """Read one EndpointSlice; None for one of no Service, or of DNS names."""
    metadata = obj["metadata"]
    service = (metadata.get("labels") or {}).get(SERVICE_NAME)
    if not service or obj.get("addressType") == "FQDN":
        return None
    namespace = metadata["namespace"]
    ports: dict[str, int | None] = {}
    for port in _mappings(obj.get("ports")):
        number = port.get("port")
        if (port.get("protocol") or "TCP") == "TCP":
            ports[str(port.get("name") or "")] = number if isinstance(number, int) else None
    endpoints = (_endpoint(raw, namespace) for raw in _mappings(obj.get("endpoints")))
    return SliceRecord(
        namespace=namespace,
        name=metadata["name"],
        service=(namespace, str(service)),
        ports=ports,
        endpoints=tuple(e for e in endpoints if e is not None),
    )


class EndpointIndex:
    """All slices, by Service and by address."""

    def __init__(self) -> None:
        self._slices: dict[Key, SliceRecord] = {}
        self._services: dict[ServiceKey, set[Key]] = {}
        self._addresses: dict[str, dict[Key, Endpoint]] = defaultdict(dict)

    def get(self, key: Key) -> SliceRecord | None:
        """What a slice said last."""
        return self._slices.get(key)

    def has(self, service: ServiceKey) -> bool:
        """Say whether slices rule a Service's members."""
        return service in self._services

    def put(self, key: Key, new: SliceRecord | None) -> tuple[set[str], set[ServiceKey]]:
        """Replace a slice; returns the addresses it touches and the Services that came or went."""
        old = self._slices.pop(key, None)
        if old is not None:
            self._remove(key, old)
        if new is not None:
            self._slices[key] = new
            self._services.setdefault(new.service, set()).add(key)
            for endpoint in new.endpoints:
                self._addresses[endpoint.address][key] = endpoint
        was, now = ({r.service} if r else set() for r in (old, new))
        flipped = {s for s in was ^ now if len(self._services.get(s, ())) == (s in now)}
        if old and new and (old.service, old.ports) == (new.service, new.ports):
            touched = set(old.endpoints) ^ set(new.endpoints)
        else:
            touched = {e for r in (old, new) if r for e in r.endpoints}
        return {e.address for e in touched}, flipped

    def _remove(self, key: Key, old: SliceRecord) -> None:
        slices = self._services[old.service]
        slices.discard(key)
        if not slices:
            del self._services[old.service]
        for endpoint in old.endpoints:
            here = self._addresses[endpoint.address]
            here.pop(key, None)
            if not here:
                del self._addresses[endpoint.address]

    def at(self, address: str) -> Iterator[tuple[SliceRecord, Endpoint]]:
        """Every slice's entry for an address, in the order of their names."""
        for key, endpoint in sorted(self._addresses.get(address, {}).items()):
            yield self._slices[key], endpoint

    def addresses_of(self, service: ServiceKey) -> set[str]:
        """Every address that backs a Service."""
        keys = self._services.get(service, ())
        return {e.address for key in keys for e in self._slices[key].endpoints}


def plain_workload(
    found: SliceRecord,
    endpoint: Endpoint,
    services: Mapping[str, tuple[Port, ...]],
    config: MeshConfig,
) -> Workload:
    """Make the workload of an address that no pod has. It is not captured, and has no identity.

    Others may have the address as well (the node's own, another network's): it names nobody.
    """
    uid = f"discovery.k8s.io/EndpointSlice/{found.namespace}/{found.name}/{endpoint.address}"
    return Workload(
        uid=f"{config.cluster_id}/{uid}",
        name=found.name,
        namespace=found.namespace,
        addresses=(endpoint.address,),
        trust_domain=config.trust_domain,
        node=endpoint.node,
        cluster_id=config.cluster_id,
        canonical_name=found.service[1],
        canonical_revision="latest",
        workload_name=found.name,
        workload_type=WorkloadType.POD,
        host_network=True,
        services=services,
    )

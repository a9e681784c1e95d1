"""Services: addresses, endpoints, the node's rules (kube-proxy's role), names. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lab.errors import LabError
from lab.layout import SERVICES_V4, SERVICES_V6
from mesh.ports import CLUSTER_DOMAIN

Object = dict[str, Any]

_V4: Final = ipaddress.IPv4Network(SERVICES_V4)
_V6: Final = ipaddress.IPv6Network(SERVICES_V6)
_RESERVED: Final = 256  # first addresses, for those asked for by number (cluster DNS)
_PROTOCOLS: Final = {"TCP": "tcp", "UDP": "udp"}


@dataclass(frozen=True, slots=True, order=True)
class Backend:
    """One port of one pod."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Port:
    """One port of one virtual address, and who answers there."""

    address: str
    protocol: str  # tcp, udp
    port: int
    backends: tuple[Backend, ...]


def is_headless(service: Object) -> bool:
    """Say whether a service is only a name."""
    return bool((service.get("spec") or {}).get("clusterIP") == "None")


def _families(spec: Object) -> list[str]:
    if spec.get("ipFamilies"):
        return list(spec["ipFamilies"])
    if spec.get("ipFamilyPolicy") in ("PreferDualStack", "RequireDualStack"):
        return ["IPv4", "IPv6"]
    return ["IPv4"]


def with_addresses(service: Object, taken: Collection[str]) -> Object | None:
    """Return the service with its cluster addresses filled in; None when there is nothing to do.

    The address follows from the name, as long as nobody else has it: a service deleted and
    applied again, or edited by hand, keeps its address.
    """
    spec = dict(service.get("spec") or {})
    if spec.get("type") == "ExternalName" or is_headless(service):
        return None
    families = _families(spec)
    have = list(spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else []))
    present = {"IPv6" if ":" in a else "IPv4": a for a in have}
    if all(f in present for f in families) and spec.get("clusterIPs"):
        return None
    meta = service["metadata"]
    seed = f"{meta.get('namespace', 'default')}/{meta['name']}"
    wanted = [present.get(f) or _pick(seed, f, taken) for f in families]
    spec |= {"clusterIP": wanted[0], "clusterIPs": wanted, "ipFamilies": families}
    return {**service, "spec": spec}


def _pick(seed: str, family: str, taken: Collection[str]) -> str:
    network: ipaddress.IPv4Network | ipaddress.IPv6Network = _V6 if family == "IPv6" else _V4
    size = network.num_addresses - _RESERVED - 1
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") % size
    for i in range(size):
        address = str(network[_RESERVED + (start + i) % size])
        if address not in taken:
            return address
    raise LabError(f"Service {seed}: all addresses of {network} are taken; delete a Service")


def addresses(service: Object) -> list[str]:
    """List a service's virtual addresses."""
    spec = service.get("spec") or {}
    have = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    return [a for a in have if a != "None"]


def pod_addresses(pod: Object) -> list[str]:
    """List a pod's addresses."""
    status = pod.get("status") or {}
    found = [entry["ip"] for entry in status.get("podIPs") or [] if entry.get("ip")]
    return found or ([status["podIP"]] if status.get("podIP") else [])


def is_ready(pod: Object) -> bool:
    """Say whether a pod's Ready condition is true."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def selected(service: Object, pods: Iterable[Object]) -> list[Object]:
    """List the pods a service's selector means; none without a selector."""
    selector = (service.get("spec") or {}).get("selector") or {}
    namespace = service["metadata"].get("namespace", "default")
    if not selector:
        return []
    return [
        pod
        for pod in pods
        if pod["metadata"].get("namespace", "default") == namespace
        and selector.items() <= (pod["metadata"].get("labels") or {}).items()
    ]


def _target_port(pod: Object, port: Object) -> int | None:
    target: int | str = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    if str(target).isdigit():
        return int(target)
    for container in (pod.get("spec") or {}).get("containers") or []:
        for declared in container.get("ports") or []:
            if declared.get("name") == target:
                return int(declared["containerPort"])
    return None


def _backends(service: Object, port: Object, pods: list[Object], v6: bool) -> tuple[Backend, ...]:
    every = (service.get("spec") or {}).get("publishNotReadyAddresses")
    found = set()
    for pod in pods:
        target = _target_port(pod, port)
        if target is None or not (every or is_ready(pod)):
            continue
        found |= {Backend(a, target) for a in pod_addresses(pod) if (":" in a) == v6}
    return tuple(sorted(found))


def ports(services: Iterable[Object], pods: Collection[Object]) -> list[Port]:
    """List what is served at virtual addresses; `pods` are those that exist."""
    found = []
    for service in services:
        members = selected(service, pods)
        for address in addresses(service):
            for port in (service.get("spec") or {}).get("ports") or []:
                protocol = _PROTOCOLS.get(str(port.get("protocol", "TCP")))
                if protocol:
                    backends = _backends(service, port, members, ":" in address)
                    found.append(Port(address, protocol, int(port["port"]), backends))
    return found


def rules(served: Iterable[Port], local: Iterable[str]) -> str:
    """Write a node's nftables rules; `local` are its own pods' addresses."""
    dnat = [_dnat(port) for port in served if port.backends]
    hairpin = {
        family: ", ".join(f"{a} . {a}" for a in sorted(local) if (":" in a) == (family == "ip6"))
        for family in ("ip", "ip6")
    }
    # A pod that reaches itself through its own service must not see itself as the client.
    masquerade = [
        f"{family} saddr . {family} daddr {{ {pairs} }} masquerade"
        for family, pairs in hairpin.items()
        if pairs
    ]
    reject = [f"ip daddr {SERVICES_V4} reject", f"ip6 daddr {SERVICES_V6} reject"]
    chains = [
        _chain("services", "", dnat),
        _chain("prerouting", "type nat hook prerouting priority dstnat;", ["jump services"]),
        _chain("output", "type nat hook output priority -100;", ["jump services"]),
        _chain("postrouting", "type nat hook postrouting priority srcnat;", masquerade),
        _chain("forward", "type filter hook forward priority filter;", reject),
        _chain("local", "type filter hook output priority filter;", reject),
    ]
    # Named first, so that deleting it works the first time, too: the change is one transaction.
    table = "table inet lab-services"
    return f"{table}\ndelete {table}\n{table} {{\n" + "".join(chains) + "}\n"


def _chain(name: str, head: str, body: list[str]) -> str:
    lines = [line for line in (head, *body) if line]
    return f"  chain {name} {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"


def _dnat(port: Port) -> str:
    v6 = ":" in port.address
    match = f"{'ip6' if v6 else 'ip'} daddr {port.address} {port.protocol} dport {port.port}"
    to = f"dnat {'ip6' if v6 else 'ip'} to"
    if len(port.backends) == 1:
        only = port.backends[0]
        return f"{match} {to} {f'[{only.address}]' if v6 else only.address}:{only.port}"
    entries = ", ".join(f"{i} : {b.address} . {b.port}" for i, b in enumerate(port.backends))
    return f"{match} {to} numgen random mod {len(port.backends)} map {{ {entries} }}"


def host_names(services: Iterable[Object], pods: Collection[Object]) -> str:
    """Write the cluster's names as hosts(5) lines."""
    lines = []
    for service in services:
        meta = service["metadata"]
        name = f"{meta['name']}.{meta.get('namespace', 'default')}.svc.{CLUSTER_DOMAIN}"
        for address in addresses(service):
            lines.append(f"{address} {name}")
        if is_headless(service):
            every = (service.get("spec") or {}).get("publishNotReadyAddresses")
            for pod in selected(service, pods):
                if every or is_ready(pod):
                    lines += [f"{a} {n}" for a in pod_addresses(pod) for n in _names(pod, name)]
    return "".join(f"{line}\n" for line in sorted(lines))


def _names(pod: Object, service: str) -> list[str]:
    spec = pod.get("spec") or {}
    if spec.get("hostname") and spec.get("subdomain") == service.partition(".")[0]:
        return [service, f"{spec['hostname']}.{service}"]
    return [service]


def resolv_conf(namespace: str, nameserver: str) -> str:
    """Write a pod's resolv.conf, as kubelet does for dnsPolicy ClusterFirst."""
    svc = f"svc.{CLUSTER_DOMAIN}"
    search = f"{namespace}.{svc} {svc} {CLUSTER_DOMAIN}"
    return f"search {search}\nnameserver {nameserver}\noptions ndots:5\n"


def hosts(name: str, own: Iterable[str], aliases: Iterable[Mapping[str, Any]] = ()) -> str:
    """Write a pod's hosts file; `aliases` are the spec's hostAliases."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{name}" for address in own]
    lines += [f"{a['ip']}\t{' '.join(a.get('hostnames') or [])}" for a in aliases]
    return "\n".join(lines) + "\n"

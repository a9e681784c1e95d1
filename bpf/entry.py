"""One pod's entry in the maps: from what the agent knows to bytes, and back."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from bpf.layout import Layout
from mesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PodCapture:
    """What the hooks know about one pod.

    `addresses`: the pod's own, at most one IPv4 and one IPv6. `node_addresses`: where the node's
    probes come from, at most 8; they reach `probe_ports` (at most 16) without the proxy.
    """

    uid: str
    netns_cookie: int
    addresses: tuple[str, ...]
    node_addresses: tuple[str, ...]
    probe_ports: tuple[int, ...]


def key_of(address: str) -> bytes:
    """struct ip: 16 bytes, IPv4 mapped. Raises ValueError."""
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def text_of(key: bytes) -> str:
    """The address in a struct ip."""
    ip = ipaddress.IPv6Address(key)
    return str(ip.ipv4_mapped or ip)


def encode(layout: Layout, pod: PodCapture) -> bytes:
    """struct pod; raises ConfigError naming the pod when it does not fit."""
    try:
        return _encode(layout, pod)
    except ValueError as e:
        raise ConfigError(f"pod {pod.uid}: {e}; the hooks cannot capture it") from e


def _encode(layout: Layout, pod: PodCapture) -> bytes:
    values: dict[str, Any] = {"cookie": pod.netns_cookie, "uid": pod.uid.encode()}
    for address in pod.addresses:
        ip = ipaddress.ip_address(address)
        field = f"ip{ip.version}__a"
        if field in values:
            raise ValueError(f"more than one IPv{ip.version} address in {pod.addresses}")
        values[field] = key_of(address)
    if not pod.addresses:
        raise ValueError("it has no address")
    room = sum(1 for name in layout.fields if name.startswith("node."))
    if len(pod.node_addresses) > room:
        raise ValueError(f"over {room} node addresses: {', '.join(pod.node_addresses)}")
    for i, address in enumerate(pod.node_addresses):
        values[f"node__{i}__a"] = key_of(address)
    for port in pod.probe_ports:
        if not 0 < port < 65536:
            raise ValueError(f"probe port {port} is no TCP port")
    values["probe"] = pod.probe_ports
    return layout.pack(**values)


def decode(layout: Layout, raw: bytes) -> PodCapture:
    """What `encode` was given."""
    own = [layout.bytes_of(raw, f"{n}.a") for n in ("ip4", "ip6")]
    nodes = [layout.bytes_of(raw, n) for n in layout.fields if n.startswith("node.")]
    return PodCapture(
        uid=layout.bytes_of(raw, "uid").rstrip(b"\0").decode(),
        netns_cookie=layout.ints(raw, "cookie")[0],
        addresses=tuple(text_of(a) for a in own if any(a)),
        node_addresses=tuple(text_of(a) for a in nodes if any(a)),
        probe_ports=tuple(p for p in layout.ints(raw, "probe") if p),
    )

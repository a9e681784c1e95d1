"""Wires: the fabric between nodes, nodes, pods.

A pod has a point-to-point link to its node and /32 and /128 addresses, so that all it sends is
routed by the node (the node's service rules see both directions of a connection).
"""

from __future__ import annotations

from typing import Final

from lab import netns
from lab.layout import (
    CP_V4,
    CP_V6,
    NETNS,
    SERVICES_V4,
    SERVICES_V6,
    Layout,
    NodeAddress,
)

_BRIDGE: Final = "fabric"
_LINK_LOCAL: Final = "fe80::1"  # the node on every pod's link
_FORWARDING: Final = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
}


def make_fabric(layout: Layout) -> None:
    """Make the fabric's bridge and the control plane's namespace on it."""
    netns.create(layout.prefix)
    netns.links(layout.prefix, [f"link add {_BRIDGE} type bridge", f"link set {_BRIDGE} up"])
    netns.create(layout.control_plane_netns)
    _plug(layout, "cp", layout.control_plane_netns, CP_V4, CP_V6)


def make_node(layout: Layout, node: str, address: NodeAddress) -> None:
    """Make a node's namespace on the fabric, forwarding."""
    name = layout.node_netns(node)
    netns.create(name)
    netns.inside(NETNS / name, lambda: netns.write_sysctls(_FORWARDING))
    _plug(layout, f"n{address.index}", name, address.v4, address.v6)
    # What the service rules did not rewrite has to come as far as the rule that rejects it.
    netns.links(name, [f"route add {SERVICES_V4} dev eth0", f"route add {SERVICES_V6} dev eth0"])


def connect_nodes(layout: Layout, nodes: dict[str, NodeAddress]) -> None:
    """Tell every node and the control plane who has which pods."""
    for node in [*nodes, ""]:
        name = layout.node_netns(node) if node else layout.control_plane_netns
        commands = []
        for other, address in nodes.items():
            if other != node:
                commands.append(f"route replace {address.pods_v4} via {address.v4} dev eth0")
                commands.append(f"route replace {address.pods_v6} via {address.v6} dev eth0")
        if commands:
            netns.links(name, commands)


def make_pod(layout: Layout, node: str, address: NodeAddress, pod: str, number: int) -> None:
    """Make a pod's namespace (`pod` is its name) with eth0, wired to its node."""
    netns.create(pod)
    link, v4, v6 = f"pod{number}", address.pod_v4(number), address.pod_v6(number)
    netns.links(
        layout.node_netns(node),
        [
            f"link add {link} type veth peer name eth0 netns {pod}",
            f"address add {address.gateway}/32 dev {link}",
            f"address add {_LINK_LOCAL}/64 dev {link} nodad",
            f"link set {link} up",
            # `src`: the node dials its pods as the node.
            f"route add {v4} dev {link} src {address.v4}",
            f"route add {v6} dev {link} src {address.v6}",
        ],
    )
    netns.links(
        pod,
        [
            f"address add {v4}/32 dev eth0",
            f"address add {v6}/128 dev eth0 nodad",
            "link set eth0 up",
            f"route add {address.gateway} dev eth0 src {v4}",
            f"route add default via {address.gateway} dev eth0 src {v4}",
            f"route add ::/0 via {_LINK_LOCAL} dev eth0 src {v6}",
        ],
    )


def _plug(layout: Layout, port: str, name: str, v4: str, v6: str) -> None:
    netns.links(
        layout.prefix,
        [
            f"link add {port} type veth peer name eth0 netns {name}",
            f"link set {port} master {_BRIDGE}",
            f"link set {port} up",
        ],
    )
    netns.links(
        name,
        [
            f"address add {v4}/16 dev eth0",
            f"address add {v6}/64 dev eth0 nodad",
            "link set eth0 up",
        ],
    )

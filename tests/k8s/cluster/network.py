"""The fabric: a bridge in the control plane's namespace, a veth and routes for each node."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from tests.k8s.cluster.layout import CP_V4, CP_V6, Layout, NodeLayout
from tests.k8s.cluster.processes import run

_FORWARD = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.all.accept_dad=0",
)


def make(layout: Layout) -> None:
    """Everything but the nodes."""
    netns = layout.cp_netns
    _add_netns(netns)
    _ip(
        netns,
        [
            "link add br0 type bridge",
            f"addr add {CP_V4}/24 dev br0",
            f"addr add {CP_V6}/64 dev br0 nodad",
            "link set br0 up",
        ],
    )
    for node in layout.nodes:
        _ip(netns, [f"route add {cidr} via {via}" for cidr, via in _routes(node)])


def add_node(layout: Layout, node: NodeLayout) -> None:
    """The node's namespace, wired to the bridge, with routes to the other nodes' pods."""
    _add_netns(node.netns)
    v4, v6 = node.addresses
    port = _port(node)
    run(["ip", "link", "add", port, "netns", layout.cp_netns, "type", "veth", "peer", "name",
         "eth0", "netns", node.netns])  # fmt: skip
    _ip(layout.cp_netns, [f"link set {port} master br0 up"])
    # A network card keeps its address over a reboot; neighbours would else send to the former one
    # for half a minute.
    mac = "02:00:" + ":".join(f"{int(part):02x}" for part in v4.split("."))
    _ip(
        node.netns,
        [
            f"link set eth0 address {mac}",
            f"addr add {v4}/24 dev eth0",
            f"addr add {v6}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {CP_V4}",
            f"route add default via {CP_V6}",
            *[
                f"route add {cidr} via {via}"
                for other in layout.nodes
                if other.name != node.name
                for cidr, via in _routes(other)
            ],
        ],
    )


def unplug(layout: Layout, node: NodeLayout) -> None:
    """Cut the node's wire, if there is one."""
    words = ["ip", "-n", layout.cp_netns, "link", "del", _port(node)]
    subprocess.run(words, capture_output=True, check=False)


def remove(names: Iterable[str]) -> None:
    """Drop namespaces; what is wired to them goes with them."""
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _port(node: NodeLayout) -> str:
    """The bridge's end of the node's wire."""
    return f"to-{node.name}"


def _routes(node: NodeLayout) -> list[tuple[str, str]]:
    return list(zip(node.pod_cidrs, node.addresses, strict=True))


def _add_netns(name: str) -> None:
    run(["ip", "netns", "add", name])
    _ip(name, ["link set lo up"])
    run(["ip", "netns", "exec", name, "sysctl", "-qw", *_FORWARD])


def _ip(netns: str, lines: list[str]) -> None:
    run(["ip", "-n", netns, "-force", "-batch", "-"], data="\n".join(lines).encode())

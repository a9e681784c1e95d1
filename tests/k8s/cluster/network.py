"""The fabric: a bridge in the control plane's namespace, a veth and routes for each node."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

from tests.k8s.cluster.layout import CP, Layout, NodeLayout
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
            *(_address(one, "br0") for one in layout.of_families(CP)),
            "link set br0 up",
        ],
    )
    for node in layout.nodes:
        _ip(netns, [f"route add {cidr} via {via}" for cidr, via in _routes(node)])


def add_node(layout: Layout, node: NodeLayout) -> None:
    """The node's namespace, wired to the bridge, with routes to the other nodes' pods."""
    _add_netns(node.netns)
    port = _port(node)
    run(["ip", "link", "add", port, "netns", layout.cp_netns, "type", "veth", "peer", "name",
         "eth0", "netns", node.netns])  # fmt: skip
    _ip(layout.cp_netns, [f"link set {port} master br0 up"])
    # A network card keeps its address over a reboot; neighbours would else send to the former one
    # for half a minute.
    mac = f"02:00:00:00:00:{10 + node.number:02x}"
    _ip(
        node.netns,
        [
            f"link set eth0 address {mac}",
            *(_address(one, "eth0") for one in node.addresses),
            "link set eth0 up",
            *(f"route add default via {one}" for one in layout.of_families(CP)),
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


def _address(address: str, device: str) -> str:
    """Add an address of the fabric."""
    is_v6 = ":" in address
    return f"addr add {address}/{64 if is_v6 else 24} dev {device}{' nodad' if is_v6 else ''}"


def _routes(node: NodeLayout) -> list[tuple[str, str]]:
    return list(zip(node.pod_cidrs, node.addresses, strict=True))


def _add_netns(name: str) -> None:
    run(["ip", "netns", "add", name])
    _ip(name, ["link set lo up"])
    run(["ip", "netns", "exec", name, "sysctl", "-qw", *_FORWARD])


def _ip(netns: str, lines: list[str]) -> None:
    run(["ip", "-n", netns, "-force", "-batch", "-"], data="\n".join(lines).encode())

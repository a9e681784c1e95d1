"""Redirection by nftables inside the pod, where the kernel hooks cannot be used.

Two cases: a hook does not load on this kernel, or the proxy opens its own listeners (any ztunnel
that knows only the common ZDS contract). The ports and marks are those of Istio's in-pod rules, so
such a proxy finds what it expects:

    in   TCP not to 15008 and not the proxy's own          REDIRECT 15006
    out  TCP not to loopback and not the proxy's own       REDIRECT 15001

The proxy connects to the application with the client's address as its source (IP_TRANSPARENT)
and the mark 0x539. The answers would leave for the real client; so the connection is marked 0x111
when its first packet comes in over lo, its answers get that mark, and a routing rule keeps what is
so marked inside the pod.

Only SYNs are redirected: conntrack starts when these rules do, and would otherwise take a packet
from the middle of an older connection for a new one and break it. For the same reason `draining`
keeps the chains while a pod leaves: without them the kernel stops translating the redirected
connections that are still open.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import subprocess
from collections.abc import Iterable
from typing import Final

from mesh.ports import INBOUND_HBONE, INBOUND_PLAIN, OUTBOUND, PACKET_MARK
from node_agent import rtnl
from node_agent.sandbox import StepError, inside
from node_agent.source import DesiredPod

TABLE: Final = "ambit"
CONNECTION_MARK: Final = 0x111
MARK_MASK: Final = 0xFFF
ROUTE_TABLE: Final = 100
_NFT_TIMEOUT: Final = 10.0  # seconds
_COUNTER: Final = re.compile(r"counter (outbound|inbound) \{\s*packets (\d+)")
_SYN: Final = "tcp flags & (fin | syn | rst | ack) == syn"

# A table that exists must be there to be deleted: add it first (nft(8), idempotent replacement).
REMOVAL: Final = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def ruleset(
    node_addresses: Iterable[str], probe_ports: Iterable[int], draining: bool = False
) -> str:
    """Give the nft program that captures a pod; `draining`: that only keeps open connections."""
    body = _MARKS + _chain("inbound", "prerouting") + _chain("outbound", "output")
    if not draining:
        accepts = "".join(_accept_probes(node_addresses, sorted(set(probe_ports))))
        body = (
            _MARKS
            + _chain("inbound", "prerouting", accepts + _INBOUND)
            + _chain("outbound", "output", _OUTBOUND)
        )
    return (
        f"{REMOVAL}table inet {TABLE} {{\n"
        "\tcounter outbound { }\n\tcounter inbound { }\n"
        f"{body}}}\n"
    )


def install(pod: DesiredPod, netns: int, node_addresses: Iterable[str]) -> None:
    """Capture a pod by rules in its own namespace. Idempotent."""
    with inside(netns):
        _route_marked(pod.addresses, present=True)
        _nft("-f", "-", text=ruleset(node_addresses, pod.probe_ports))


def drain(netns: int) -> None:
    """Redirect no new connection; those that are open go on."""
    with inside(netns):
        if _present():
            _nft("-f", "-", text=ruleset((), (), draining=True))


def remove(netns: int) -> None:
    """Take every rule out. Nothing there is fine."""
    with inside(netns):
        if _present():
            _nft("-f", "-", text=REMOVAL)
            _route_marked(("0.0.0.0", "::"), present=False)


def counters(netns: int) -> tuple[int, int]:
    """Give how many connections were redirected: (outbound, inbound); 0 without rules."""
    listing = ""
    with inside(netns), contextlib.suppress(StepError):
        listing = _nft("list", "counters", "table", "inet", TABLE)
    found = dict(_COUNTER.findall(listing))
    return int(found.get("outbound", 0)), int(found.get("inbound", 0))


def _chain(name: str, hook: str, rules: str = "") -> str:
    return (
        f"\tchain {name} {{\n\t\ttype nat hook {hook} priority -100; policy accept;\n{rules}\t}}\n"
    )


_MARKS: Final = f"""\
	chain mark_in {{
		type filter hook prerouting priority -150; policy accept;
		meta mark & {MARK_MASK:#x} == {PACKET_MARK:#x} \
ct mark set ct mark & {0xFFFFFFFF ^ MARK_MASK:#x} | {CONNECTION_MARK:#x}
	}}
	chain mark_out {{
		type route hook output priority -150; policy accept;
		ct mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} meta mark set ct mark
	}}
"""

_INBOUND: Final = "".join(
    f"\t\t{far} tcp dport != {INBOUND_HBONE} {_SYN} meta mark & {MARK_MASK:#x} != "
    f"{PACKET_MARK:#x} counter name inbound redirect to :{INBOUND_PLAIN}\n"
    for far in ("ip daddr != 127.0.0.0/8", "ip6 daddr != ::1")
)

_OUTBOUND: Final = (
    f"\t\tct mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} accept\n"
    # The application to the pod's own address: not ours to carry.
    '\t\toifname "lo" ip daddr != 127.0.0.0/8 accept\n'
    '\t\toifname "lo" ip6 daddr != ::1 accept\n'
) + "".join(
    f"\t\t{far} {_SYN} meta mark & {MARK_MASK:#x} != {PACKET_MARK:#x} "
    f"counter name outbound redirect to :{OUTBOUND}\n"
    for far in ("ip daddr != 127.0.0.0/8", "ip6 daddr != ::1")
)


def _accept_probes(node_addresses: Iterable[str], ports: list[int]) -> Iterable[str]:
    """Word the exemption of health probes: from the node itself to a port declared for probing."""
    if not ports:
        return
    listed = ", ".join(str(port) for port in ports)
    for address in node_addresses:
        family = "ip" if ipaddress.ip_address(address).version == 4 else "ip6"
        yield f"\t\t{family} saddr {address} tcp dport {{ {listed} }} accept\n"


def _route_marked(addresses: Iterable[str], present: bool) -> None:
    """Keep packets with the connection mark inside the pod, for each family it has."""
    versions = {ipaddress.ip_address(a).version for a in addresses}
    for version in sorted(versions):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        try:
            rtnl.set_local_default(family, ROUTE_TABLE, present)
            rtnl.set_mark_rule(family, CONNECTION_MARK, MARK_MASK, ROUTE_TABLE, present)
        except OSError as error:
            if present:
                raise StepError("RedirectFailed", f"IPv{version} rule in pod: {error}") from error


def _present() -> bool:
    try:
        _nft("list", "table", "inet", TABLE)
    except StepError:
        return False
    return True


def _nft(*arguments: str, text: str = "") -> str:
    """Run nft in the calling thread's namespace."""
    try:
        done = subprocess.run(
            ["nft", *arguments], input=text, capture_output=True, text=True, timeout=_NFT_TIMEOUT
        )
    except FileNotFoundError as error:
        raise StepError("RedirectFailed", "nft is not installed: install nftables") from error
    except subprocess.TimeoutExpired as error:
        raise StepError("RedirectFailed", f"nft hung for {_NFT_TIMEOUT:.0f} s") from error
    if done.returncode:
        first = done.stderr.strip().splitlines()[:1] or [f"exit code {done.returncode}"]
        raise StepError("RedirectFailed", f"nft: {first[0]}")
    return done.stdout

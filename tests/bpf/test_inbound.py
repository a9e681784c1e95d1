"""Connections to a captured pod."""

from __future__ import annotations

import socket

import pytest
from hook_rig import NODE4, NODE6, WORLD4, WORLD6, Rig, connect, drained, sh

from bpf.datapath import Datapath
from mesh.errors import ConfigError
from mesh.ports import INBOUND_HBONE, INBOUND_PLAIN, OUTBOUND

pytestmark = pytest.mark.root
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def _of(rig: Rig, version: int) -> tuple[str, str, str]:
    if version == 4:
        return rig.a.ipv4, WORLD4, NODE4
    return rig.a.ipv6, WORLD6, NODE6


def _shown(address: str) -> str:
    """As a dual-stack socket shows it."""
    return address if ":" in address else f"::ffff:{address}"


@VERSIONS
@pytest.mark.parametrize("port", [1, 80, 9090, OUTBOUND, INBOUND_PLAIN, 65535])
def test_every_port_leads_to_the_proxy(
    rig: Rig, datapath: Datapath, version: int, port: int
) -> None:
    """Whether an app listens there or not; the proxy sees the true addresses of both ends."""
    pod, world, _ = _of(rig, version)
    server = rig.a.inbound()
    rig.a.serve(socket.AF_INET6, "::", 80, lambda s, _: "app", app=True)
    rig.a.capture(datapath, server)
    rig.from_world(lambda: drained(connect((pod, port))))
    who, to, peer = server.seen[-1]
    assert (who, to, peer[0]) == ("proxy", (_shown(pod), port), _shown(world))
    assert datapath.pod_counters("uid-a") == (0, 1)


@VERSIONS
def test_hbone_is_not_steered(rig: Rig, datapath: Datapath, version: int) -> None:
    """15008 has a listener of its own."""
    pod, _, _ = _of(rig, version)
    rig.a.serve(socket.AF_INET6, "::", INBOUND_HBONE, lambda s, _: "hbone")
    rig.a.capture(datapath, rig.a.inbound())
    assert rig.from_world(lambda: drained(connect((pod, INBOUND_HBONE)))) == "'hbone'"


@VERSIONS
def test_only_the_node_reaches_probe_ports_and_no_others(
    rig: Rig, datapath: Datapath, version: int
) -> None:
    """A probe goes straight to the app; the node's other connections and others' do not."""
    pod, _, _ = _of(rig, version)
    for port in (8080, 8081):
        rig.a.serve(socket.AF_INET6, "::", port, lambda s, _: "app", app=True)
    rig.a.capture(datapath, rig.a.inbound(), probe_ports=(1, 2, 3, 8080))
    assert rig.from_node(lambda: drained(connect((pod, 8080)))) == "'app'"
    assert "proxy" in rig.from_node(lambda: drained(connect((pod, 8081))))
    assert "proxy" in rig.from_world(lambda: drained(connect((pod, 8080))))


@VERSIONS
def test_without_the_proxys_listener_nothing_enters(
    rig: Rig, datapath: Datapath, version: int
) -> None:
    """Fail closed: refused, although the app listens."""
    pod, _, _ = _of(rig, version)
    rig.a.serve(socket.AF_INET6, "::", 80, lambda s, _: "app", app=True)
    listener = rig.a.inbound()
    rig.a.capture(datapath, listener)
    listener.stop()
    with pytest.raises(ConnectionRefusedError):
        rig.from_world(lambda: connect((pod, 80)))


@VERSIONS
def test_an_address_the_pod_was_not_captured_with_is_refused(
    rig: Rig, datapath: Datapath, version: int
) -> None:
    """A second address must not be a way around the proxy."""
    address = "10.78.0.77" if version == 4 else "fd78::77"
    prefix = "24" if version == 4 else "64"
    rig.a.serve(socket.AF_INET6, "::", 80, lambda s, _: "app", app=True)
    rig.a.capture(datapath, rig.a.inbound())
    sh("ip", "-n", rig.a.netns, "addr", "add", f"{address}/{prefix}", "dev", "eth0", "nodad")
    try:
        with pytest.raises(ConnectionRefusedError):
            rig.from_world(lambda: connect((address, 80)))
    finally:
        sh("ip", "-n", rig.a.netns, "addr", "del", f"{address}/{prefix}", "dev", "eth0")


def test_a_released_pod_is_reached_directly(rig: Rig, datapath: Datapath) -> None:
    """And what was steered before goes on."""
    rig.a.serve(socket.AF_INET6, "::", 80, lambda s, _: "app", app=True)
    rig.a.capture(datapath, rig.a.inbound())
    assert "proxy" in rig.from_world(lambda: drained(connect((rig.a.ipv4, 80))))
    datapath.release("uid-a")
    datapath.release("uid-a")
    assert rig.from_world(lambda: drained(connect((rig.a.ipv4, 80)))) == "'app'"


def test_a_listener_from_another_namespace_is_refused(rig: Rig, datapath: Datapath) -> None:
    """The kernel would take it, and every connection would time out."""
    with pytest.raises(ConfigError, match="namespace"):
        rig.a.capture(datapath, rig.b.inbound())
    assert datapath.captured() == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"probe_ports": tuple(range(1, 18))},
        {"node_addresses": tuple(f"10.0.0.{i}" for i in range(1, 10))},
        {"addresses": ("10.78.0.11", "10.78.0.12")},
        {"uid": "u" * 200},
        {"addresses": ("10.78.0.300",)},
        {"probe_ports": (70000,)},
        {"addresses": ()},
    ],
    ids=["17 ports", "9 nodes", "two addresses", "long uid", "no address", "no port", "none"],
)
def test_a_pod_that_does_not_fit_is_refused_by_name(
    rig: Rig, datapath: Datapath, changes: dict[str, object]
) -> None:
    """And leaves nothing half captured."""
    listener = rig.a.inbound()
    with pytest.raises(ConfigError, match="pod u"):
        rig.a.capture(datapath, listener, **changes)
    assert datapath.captured() == {}
    assert rig.from_world(lambda: _refused((rig.a.ipv4, 80)))


def _refused(to: tuple[str, int]) -> bool:
    try:
        connect(to).close()
    except ConnectionRefusedError:
        return True
    return False

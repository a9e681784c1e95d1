"""What an app sees of a client that a relay speaks for."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hook_rig import Rig, Server, connect, drained, speak_for

from bpf.datapath import Datapath

pytestmark = pytest.mark.root
APP = 7005


def _tell(s: socket.socket, accepted: Any) -> Any:
    return accepted[:2], s.getpeername()[:2]


def _app(rig: Rig, family: int, address: str) -> Server:
    return rig.a.serve(family, address, APP, _tell, app=True)


def _relay(to: tuple[str, int], client: tuple[str, int], source_port: int = 0) -> str:
    s = socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET)
    s.settimeout(3)
    speak_for(s, *client)
    if source_port:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((to[0], source_port))
    s.connect(to)
    assert s.getpeername()[:2] == to
    return drained(s)


@pytest.mark.parametrize(
    ("family", "listen_on", "to", "client", "shown"),
    [
        (socket.AF_INET, "0.0.0.0", "{0.ipv4}", "192.0.2.7", "192.0.2.7"),
        (socket.AF_INET6, "::", "{0.ipv4}", "192.0.2.7", "::ffff:192.0.2.7"),
        (socket.AF_INET6, "::", "{0.ipv6}", "2001:db8::7", "2001:db8::7"),
        (socket.AF_INET6, "::1", "::1", "2001:db8::7", "2001:db8::7"),
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
    ],
    ids=["v4", "v4 at dual stack", "v6", "v6 loopback", "mapped client"],
)
def test_accept_and_getpeername_show_the_client(
    rig: Rig, datapath: Datapath, family: int, listen_on: str, to: str, client: str, shown: str
) -> None:
    """Address and port, in the form of the app's own socket."""
    _app(rig, family, listen_on)
    rig.a.capture(datapath, rig.a.inbound())
    address = to.format(rig.a)
    told = rig.a.proxy(lambda: _relay((address, APP), (client, 5555)))
    assert told == repr(((shown, 5555), (shown, 5555)))


@pytest.mark.parametrize("version", [4, 6])
def test_a_failed_connection_leaves_its_client_to_nobody(
    rig: Rig, datapath: Datapath, version: int
) -> None:
    """The next connection with the same ports is shown as what it is."""
    own, client = (rig.a.ipv4, "192.0.2.7") if version == 4 else (rig.a.ipv6, "2001:db8::7")
    rig.a.capture(datapath, rig.a.inbound())
    with pytest.raises(ConnectionRefusedError):
        rig.a.proxy(lambda: _relay((own, APP), (client, 5555), 41000))
    _app(rig, socket.AF_INET6, "::")

    def other() -> str:
        s = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
        s.settimeout(3)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((own, 41000))
        s.connect((own, APP))
        return drained(s)

    seen = own if version == 6 else f"::ffff:{own}"
    assert rig.a.do(other) == repr(((seen, 41000), (seen, 41000)))


def test_two_ports_of_the_app_and_one_source_port_do_not_mix(rig: Rig, datapath: Datapath) -> None:
    """The whole 4-tuple names a connection: a shared local port is common under load."""
    rig.a.capture(datapath, rig.a.inbound())
    for port in (7006, 7007):
        rig.a.open(rig.a.cgroup, lambda p=port: _bound(rig.a.ipv4, p)).close()
    first = rig.a.open(rig.a.cgroup, lambda: _listener(rig.a.ipv4, 7006))
    second = rig.a.open(rig.a.cgroup, lambda: _listener(rig.a.ipv4, 7007))
    third = rig.a.open(rig.a.cgroup, lambda: _listener(rig.a.ipv4, 7008))
    with first, second, third:

        def work() -> None:
            """The backlog of 7006 is full, so its third connection stays unestablished."""
            held = [_pending(rig.a.ipv4, 7006, 41000 + i, f"192.0.2.{i + 1}") for i in range(4)]
            assert len(held) == 4
            _pending(rig.a.ipv4, 7007, 41003, "192.0.2.77").settimeout(2)
            _plain(rig.a.ipv4, 7008, 41003)

        rig.a.proxy(work)
        second.settimeout(2)
        third.settimeout(2)
        assert second.accept()[1] == ("192.0.2.77", 5555)
        assert third.accept()[1] == (rig.a.ipv4, 41003)


def _listener(address: str, port: int) -> socket.socket:
    s = _bound(address, port)
    s.listen(1)
    return s


def _bound(address: str, port: int) -> socket.socket:
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    return s


def _pending(address: str, port: int, source_port: int, client: str) -> socket.socket:
    s = _bound(address, source_port)
    s.setblocking(False)
    speak_for(s, client, 5555)
    s.connect_ex((address, port))
    return s


def _plain(address: str, port: int, source_port: int) -> None:
    s = _bound(address, source_port)
    s.settimeout(2)
    s.connect((address, port))


@pytest.mark.parametrize("raw", [b"", bytes(8), bytes(16), b"\x0a\x00" + bytes(14)])
def test_a_malformed_real_source_is_refused(rig: Rig, datapath: Datapath, raw: bytes) -> None:
    """Too short, or of no known family."""

    def work() -> None:
        socket.socket().setsockopt(socket.IPPROTO_IP, 0x5A17, raw)

    rig.a.capture(datapath, rig.a.inbound())
    with pytest.raises(OSError, match=r"permitted|available|Invalid"):
        rig.a.proxy(work)


def test_a_client_without_a_relay_is_shown_as_it_is(rig: Rig, datapath: Datapath) -> None:
    """The pod talking to itself."""
    _app(rig, socket.AF_INET, "0.0.0.0")
    rig.a.capture(datapath, rig.a.inbound())

    def work() -> tuple[str, Any]:
        s = connect((rig.a.ipv4, APP))
        own = s.getsockname()
        return drained(s), own

    told, own = rig.a.do(work)
    assert told == repr((own, own))

"""Connections a captured pod opens."""

from __future__ import annotations

import errno
import select
import socket

import pytest
from hook_rig import AWAY4, AWAY6, NODE4, Rig, connect, drained, listen, original

from bpf.datapath import Datapath
from mesh.ports import OUTBOUND, SO_REAL_SOURCE

pytestmark = pytest.mark.root
MAPPED = f"::ffff:{AWAY4}"


def _visit(to: tuple[str, int], family: int = 0) -> tuple[str, object, object]:
    s = connect(to, family)
    peer, own = s.getpeername()[:2], s.getsockname()[:2]
    return drained(s), peer, own


@pytest.mark.parametrize(
    ("to", "shown", "pod_address"),
    [(AWAY4, AWAY4, "{0.ipv4}"), (AWAY6, AWAY6, "{0.ipv6}"), (MAPPED, AWAY4, "::ffff:{0.ipv4}")],
    ids=["v4", "v6", "mapped"],
)
def test_the_proxy_gets_the_connection_and_the_app_sees_what_it_asked_for(
    rig: Rig, datapath: Datapath, to: str, shown: str, pod_address: str
) -> None:
    """Original destination at the proxy; getpeername and getsockname true at the app."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())
    told, peer, own = rig.a.do(lambda: _visit((to, 4321)))
    assert told == repr((shown, 4321))
    assert peer == (to, 4321)
    assert own[0] == pod_address.format(rig.a)
    assert datapath.pod_counters("uid-a") == (1, 0)


@pytest.mark.parametrize("to", [AWAY4, AWAY6, MAPPED], ids=["v4", "v6", "mapped"])
def test_a_non_blocking_connect_is_captured_once(rig: Rig, datapath: Datapath, to: str) -> None:
    """EINPROGRESS, then connected; the hook ran once."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())

    def work() -> str:
        s = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
        s.setblocking(False)
        assert s.connect_ex((to, 80)) in (errno.EINPROGRESS, 0)
        assert select.select([], [s], [], 3)[1]
        assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert s.connect_ex((to, 80)) in (0, errno.EISCONN)
        assert s.getpeername()[:2] == (to, 80)
        s.settimeout(3)
        return drained(s)

    assert rig.a.do(work) == repr((to.removeprefix("::ffff:"), 80))
    assert datapath.pod_counters("uid-a") == (1, 0)


def test_data_sent_with_the_syn_is_captured(rig: Rig, datapath: Datapath) -> None:
    """MSG_FASTOPEN connects inside sendto()."""
    rig.a.serve(socket.AF_INET, "127.0.0.1", OUTBOUND, lambda s, _: (original(s), s.recv(100)))
    rig.a.capture(datapath, rig.a.inbound())

    def work() -> str:
        s = socket.socket()
        s.sendto(b"early", socket.MSG_FASTOPEN, (AWAY4, 80))  # blocking: waits for the handshake
        s.settimeout(3)
        return drained(s)

    assert rig.a.do(work) == repr(((AWAY4, 80), b"early"))


@pytest.mark.parametrize("to", [AWAY4, AWAY6, MAPPED], ids=["v4", "v6", "mapped"])
def test_a_socket_bound_to_a_device_is_captured(rig: Rig, datapath: Datapath, to: str) -> None:
    """SO_BINDTODEVICE eth0 would keep it from loopback."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())

    def work() -> str:
        s = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
        s.settimeout(3)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        s.connect((to, 80))
        return drained(s)

    assert rig.a.do(work) == repr((to.removeprefix("::ffff:"), 80))


@pytest.mark.parametrize("version", [4, 6])
def test_a_socket_bound_to_the_pods_address_is_captured(
    rig: Rig, datapath: Datapath, version: int
) -> None:
    """bind() before connect() keeps the source, also over loopback."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())
    own, to = (rig.a.ipv4, AWAY4) if version == 4 else (rig.a.ipv6, AWAY6)

    def work() -> tuple[str, str]:
        s = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6)
        s.settimeout(3)
        s.bind((own, 0))
        s.connect((to, 80))
        name = s.getsockname()[0]
        return drained(s), name

    assert rig.a.do(work) == (repr((to, 80)), own)


@pytest.mark.parametrize("to", ["127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "own4", "own6"])
def test_what_stays_inside_the_pod_is_left_alone(rig: Rig, datapath: Datapath, to: str) -> None:
    """Loopback, the unspecified address and the pod's own addresses reach the pod's app."""
    rig.a.outbound()
    rig.a.serve(socket.AF_INET6, "::", 7001, lambda s, _: "app", app=True)
    rig.a.capture(datapath, rig.a.inbound())
    address = {"own4": rig.a.ipv4, "own6": rig.a.ipv6}.get(to, to)
    assert rig.a.do(lambda: drained(connect((address, 7001)))) == "'app'"
    assert datapath.pod_counters("uid-a") == (0, 0)


def test_a_socket_used_again_forgets_its_first_destination(rig: Rig, datapath: Datapath) -> None:
    """AF_UNSPEC disconnects; the next connect() of the same socket is judged anew."""
    rig.a.outbound()
    rig.a.serve(socket.AF_INET6, "::", 7001, lambda s, _: "app", app=True)
    rig.a.capture(datapath, rig.a.inbound())

    def work() -> tuple[object, object]:
        import ctypes

        s = connect((AWAY4, 80))
        s.settimeout(3)
        libc = ctypes.CDLL(None)
        assert libc.connect(s.fileno(), bytes(16), 16) == 0
        s.connect((AWAY4, 81))
        first = s.getpeername()
        assert libc.connect(s.fileno(), bytes(16), 16) == 0
        s.connect(("127.0.0.1", 7001))
        return first, s.getpeername()

    assert rig.a.do(work) == ((AWAY4, 81), ("127.0.0.1", 7001))


def test_a_pod_that_is_not_captured_is_untouched(rig: Rig, datapath: Datapath) -> None:
    """Its connections go where they were sent, although the hooks are attached above it."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())
    with rig.b.open(rig.cgroup / "b", lambda: listen(socket.AF_INET, "0.0.0.0", 7002)) as s:
        s.settimeout(3)
        peer = rig.b.do(lambda: connect((rig.b.ipv4, 7002)).getpeername())
        assert peer == (rig.b.ipv4, 7002)
    with pytest.raises(ConnectionRefusedError):
        rig.b.do(lambda: connect((NODE4, 4)))


def test_the_proxy_is_never_captured(rig: Rig, datapath: Datapath) -> None:
    """A relay inside a captured pod's namespace reaches the real destination."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())
    with pytest.raises(ConnectionRefusedError):
        rig.a.proxy(lambda: connect((NODE4, 4)))
    assert datapath.pod_counters("uid-a") == (0, 0)
    assert rig.a.do(lambda: drained(connect((NODE4, 4)))) == repr((NODE4, 4))


@pytest.mark.parametrize("to", [AWAY4, AWAY6, MAPPED], ids=["v4", "v6", "mapped"])
def test_without_the_proxys_listener_nothing_leaves(rig: Rig, datapath: Datapath, to: str) -> None:
    """Fail closed: refused at once, not sent out."""
    rig.a.capture(datapath, rig.a.inbound())
    with pytest.raises(ConnectionRefusedError):
        rig.a.do(lambda: connect((to, 80)))


def test_only_accepted_captured_sockets_have_an_original_destination(
    rig: Rig, datapath: Datapath
) -> None:
    """Somebody who connects to the outbound listener by himself brings none."""
    v4, _ = rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())
    rig.a.do(lambda: drained(connect(("127.0.0.1", OUTBOUND))))
    assert isinstance(v4.seen[-1], OSError)
    with pytest.raises(OSError, match=r"Protocol not available|No such file"):
        rig.a.do(lambda: original(connect((AWAY4, 80))))


def test_udp_is_left_alone(rig: Rig, datapath: Datapath) -> None:
    """Only TCP is captured."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())

    def work() -> object:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect((AWAY4, 53))
        return s.getpeername()

    assert rig.a.do(work) == (AWAY4, 53)
    assert datapath.pod_counters("uid-a") == (0, 0)


def test_an_app_cannot_say_whom_it_speaks_for(rig: Rig, datapath: Datapath) -> None:
    """SO_REAL_SOURCE is the proxy's alone."""
    rig.a.capture(datapath, rig.a.inbound())
    raw = socket.AF_INET.to_bytes(2, "little") + bytes(14)

    def work() -> None:
        socket.socket().setsockopt(socket.IPPROTO_IP, SO_REAL_SOURCE, raw)

    with pytest.raises(OSError, match=r"not permitted|not available"):
        rig.a.do(work)


def test_many_connections_at_once_keep_their_destinations(rig: Rig, datapath: Datapath) -> None:
    """Each of 400 concurrent connections arrives with its own original destination."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())

    def work() -> list[tuple[int, str]]:
        sockets = []
        for port in range(1, 401):
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex((AWAY4, port))
            sockets.append((port, s))
        for _, s in sockets:
            s.settimeout(5)
        return [(port, drained(s)) for port, s in sockets]

    assert all(told == repr((AWAY4, port)) for port, told in rig.a.do(work))

"""The hooks on this kernel: what is captured, what is not, and that failing means refusing."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import Datapath, PodCapture, netns_cookie, sources
from bpf.features import probe
from mesh.errors import ConfigError, Unsupported
from tests.bpf.rig import NODE4, PROBE, V4, V6, Rig, names, original

pytestmark = pytest.mark.root


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig("dp") as r:
        yield r


def test_connects_reach_the_outbound_listener_with_their_destination(rig: Rig) -> None:
    """IPv4, IPv6 and v4-mapped: SO_ORIGINAL_DST answers, the application sees what it asked for."""
    out4, out6, _ = rig.capture()
    peer, own = rig.in_pod(names("192.0.2.1", 81))
    assert (peer, own[0]) == (("192.0.2.1", 81), V4)
    assert original(out4.accept()[0]) == ("192.0.2.1", 81)

    peer, own = rig.in_pod(names("2001:db8::1", 82))
    assert (peer, own[0]) == (("2001:db8::1", 82), V6)
    assert original(out6.accept()[0]) == ("2001:db8::1", 82)

    def mapped() -> tuple[object, object]:
        with socket.socket(socket.AF_INET6) as s:
            s.connect(("::ffff:192.0.2.7", 83))
            return s.getpeername()[:2], s.getsockname()[0]

    assert rig.in_pod(mapped) == (("::ffff:192.0.2.7", 83), f"::ffff:{V4}")
    assert original(out4.accept()[0]) == ("192.0.2.7", 83)


def test_unusual_ways_to_connect_are_captured_too(rig: Rig) -> None:
    """Non-blocking, bound to a device, and TCP fast open."""
    out4, _, _ = rig.capture()

    def non_blocking() -> int:
        with socket.socket() as s:
            s.setblocking(False)
            code = s.connect_ex(("192.0.2.1", 80))
            time.sleep(0.1)
            return code if code != errno.EINPROGRESS else s.getsockopt(1, socket.SO_ERROR)

    def bound() -> None:
        with socket.socket() as s:
            s.settimeout(2)
            s.setsockopt(socket.SOL_SOCKET, 25, b"eth0\0")  # SO_BINDTODEVICE
            s.connect(("192.0.2.2", 80))

    def fast_open() -> None:
        with socket.socket() as s:
            s.sendto(b"x", socket.MSG_FASTOPEN, ("192.0.2.3", 80))

    assert rig.in_pod(non_blocking) == 0
    rig.in_pod(bound)
    rig.in_pod(fast_open)
    assert [original(out4.accept()[0])[0] for _ in range(3)] == [
        "192.0.2.1",
        "192.0.2.2",
        "192.0.2.3",
    ]


def test_what_is_not_to_be_captured_is_not(rig: Rig) -> None:
    """Loopback, the pod's own address, the proxy's sockets, and a pod before and after capture."""
    rig.open()
    app = rig.listen("::", 8080)
    assert rig.in_pod(names(V4, 8080))[0] == (V4, 8080)
    app.accept()
    rig.capture()
    for host in ("127.0.0.1", V4, V6):
        rig.in_pod(names(host, 8080))
        app.accept()
    with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
        rig.in_pod(names(NODE4, 9), group="proxy")
    assert rig.datapath is not None
    assert rig.datapath.pod_counters("uid-1") == (0, 0)
    rig.datapath.release("uid-1")
    with pytest.raises(ConnectionRefusedError):
        rig.in_pod(names(NODE4, 9))


@pytest.mark.parametrize("host", [V4, V6])
def test_any_inbound_port_is_steered_with_its_addresses(rig: Rig, host: str) -> None:
    """Also where nothing listens; the accepted socket shows the asked-for port and the client."""
    _, _, inbound = rig.capture()
    rig.listen("::", 8080)
    for port in (8080, 9999):
        rig.from_node(host, port)
        s, peer = inbound.accept()
        assert s.getsockname()[0].removeprefix("::ffff:") == host
        assert s.getsockname()[1] == port
        assert peer[0].removeprefix("::ffff:") in (NODE4, "fd09::1")


def test_hbone_and_probes_pass_by(rig: Rig) -> None:
    """15008 meets its own listener; a node address reaches a probe port and no other."""
    _, _, inbound = rig.capture()
    hbone, app = rig.listen("::", 15008), rig.listen("::", PROBE)
    rig.from_node(V4, 15008)
    hbone.accept()
    rig.from_node(V4, PROBE)
    app.accept()
    rig.from_node(V4, PROBE + 1)
    inbound.accept()


@pytest.mark.parametrize("listener", ["::", V4])
def test_the_application_sees_the_real_client(rig: Rig, listener: str) -> None:
    """accept() and getpeername() of IPv4 and dual-stack applications."""
    rig.capture()
    app = rig.listen(listener, 8080)
    rig.relay(V4, 8080, ("10.244.9.9", 1234))
    s, peer = app.accept()
    assert peer[0].removeprefix("::ffff:") == "10.244.9.9"
    assert s.getpeername()[1] == 1234
    if listener == "::":
        rig.relay(V6, 8080, ("fd77::7", 4321))
        assert app.accept()[1][:2] == ("fd77::7", 4321)


def test_only_the_proxy_may_say_who_a_client_is(rig: Rig) -> None:
    """SO_REAL_SOURCE from a pod's own cgroup is refused."""
    rig.capture()
    rig.listen("::", 8080)
    with pytest.raises(PermissionError):
        rig.in_pod(lambda: rig.relay(V4, 8080, ("1.2.3.4", 5)) and None)


def test_a_listener_that_is_gone_refuses(rig: Rig) -> None:
    """Both ways fail closed: refused, never passed to the application or the network."""
    out4, _, inbound = rig.capture()
    rig.listen("::", 8080)
    inbound.close()
    with pytest.raises(ConnectionRefusedError):
        rig.from_node(V4, 8080)
    out4.close()
    with pytest.raises(ConnectionRefusedError):
        rig.in_pod(names("192.0.2.1", 80))


def test_the_hooks_outlive_their_loader(rig: Rig) -> None:
    """A process that opened, captured and was killed leaves everything working."""
    out4 = rig.listen("127.0.0.1", 15001)
    inbound = rig.listen("::", 15006)
    pid = os.fork()
    if pid == 0:
        d = Datapath.open(rig.pins, rig.cgroup, rig.cgroup / "proxy")
        d.capture(rig.pod(), rig.ns, inbound.fileno())
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    rig.in_pod(names("192.0.2.1", 81))
    assert original(out4.accept()[0]) == ("192.0.2.1", 81)
    rig.from_node(V4, 1)
    inbound.accept()
    assert rig.open().captured() == {"uid-1": rig.pod()}


def test_opening_again_is_quick_and_light(rig: Rig) -> None:
    """The second opening compiles nothing; the process never holds bcc."""
    rig.open().close()
    code = (
        "import sys, time; from pathlib import Path; from bpf import Datapath;"
        "a = time.monotonic();"
        f"Datapath.open(Path('{rig.pins}'), Path('{rig.cgroup}'), Path('{rig.cgroup}/proxy'));"
        "print(time.monotonic() - a, 'bcc' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, has_bcc = out.stdout.split()
    assert float(seconds) < 0.5
    assert has_bcc == "False"
    rig.open()


def test_another_build_takes_over_without_a_failed_connect(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs are swapped under their links while connects go on."""
    out4, _, _ = rig.capture()
    failures: list[OSError] = []
    stop = threading.Event()

    def drain() -> None:
        while not stop.is_set():
            try:
                s = out4.accept()[0]
                assert original(s)[0] == "192.0.2.1"
                s.close()
            except TimeoutError:
                pass
            except OSError as e:
                if not stop.is_set():
                    failures.append(e)

    out4.settimeout(0.2)
    drainer = threading.Thread(target=drain, daemon=True)
    drainer.start()
    pid = os.fork()
    if pid == 0:
        rig.enter("pod")
        bad = 0
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                from bpf.datapath import in_netns

                in_netns(rig.ns, names("192.0.2.1", 81))
            except OSError:
                bad += 1
        os._exit(min(bad, 100))
    time.sleep(0.3)
    text = sources.text()
    monkeypatch.setattr(sources, "text", lambda: text + "\n/* another build */\n")
    rig.open()
    _, status = os.waitpid(pid, 0)
    stop.set()
    drainer.join()
    assert os.waitstatus_to_exitcode(status) == 0
    assert not failures
    assert rig.datapath is not None
    assert rig.datapath.captured() == {"uid-1": rig.pod()}


def test_dead_namespaces_are_collected(rig: Rig) -> None:
    """A pod whose namespace is gone leaves nothing after collect()."""
    rig.capture()
    assert rig.datapath is not None
    assert rig.datapath.collect() == 0
    for s in rig.sockets:
        s.close()
    subprocess.run(["ip", "netns", "del", rig.pod_ns], check=True)
    os.close(rig.ns)
    deadline = time.monotonic() + 10
    while rig.datapath.collect() == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    rig.ns = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert rig.datapath.captured() == {}
    assert list((rig.pins / "pods").iterdir()) == []


def test_release_and_reuse_of_an_address(rig: Rig) -> None:
    """Releasing an old pod does not take the address of the new one that has it."""
    _, _, inbound = rig.capture()
    d = rig.datapath
    assert d is not None
    old = rig.pod()
    with Rig("dp2") as second:
        cookie = netns_cookie(second.ns)
        new = PodCapture("uid-2", cookie, old.addresses, old.node_addresses, ())
        listener = second.listen("::", 15006)
        d.capture(new, second.ns, listener.fileno())
        d.release("uid-1")
        assert set(d.captured()) == {"uid-2"}
        d.release("uid-2")
    d.release("nobody")
    inbound.close()


def test_two_nodes_side_by_side(rig: Rig) -> None:
    """Another node's hooks on the same kernel see nothing of this one."""
    out4, _, _ = rig.capture()
    with Rig("dp3") as other:
        other_out, _, _ = other.capture()
        rig.in_pod(names("192.0.2.1", 81))
        assert original(out4.accept()[0]) == ("192.0.2.1", 81)
        other_out.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other_out.accept()


def test_a_pod_that_does_not_fit_is_refused(rig: Rig) -> None:
    """Too many probe ports or two addresses of a family: one clear error, nothing captured."""
    d = rig.open()
    inbound = rig.listen("::", 15006)
    p = rig.pod()
    for bad in (
        PodCapture("u", p.netns_cookie, p.addresses, (), tuple(range(1, 18))),
        PodCapture("u", p.netns_cookie, (V4, "10.9.0.3"), (), ()),
    ):
        with pytest.raises(ConfigError, match="u"):
            d.capture(bad, rig.ns, inbound.fileno())
    assert d.captured() == {}


def test_a_hook_that_does_not_load_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says hook, cause and way out; the probe says which hooks do load."""
    monkeypatch.setenv("AMBIT_DISABLE_HOOKS", "sk_lookup")
    with pytest.raises(Unsupported, match=r"sk_lookup.*AMBIT_DISABLE_HOOKS.*nftables"):
        rig.open()
    found = {f.hook: f.available for f in probe()}
    assert found.pop("sk_lookup") is False
    assert all(found.values())


def test_remove_leaves_nothing(rig: Rig) -> None:
    """Detached at once, nothing pinned."""
    rig.capture()
    Datapath.remove(rig.pins)
    assert not Path(rig.pins).exists()
    with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
        rig.in_pod(names(NODE4, 9))

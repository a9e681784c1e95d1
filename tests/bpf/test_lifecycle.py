"""Pods come and go, builds and owners change, while connections go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hook_rig import (
    AWAY4,
    AWAY6,
    WORLD4,
    Load,
    Rig,
    Server,
    connect,
    drained,
    environment,
    fork,
    original,
    sh,
    until,
)

from bpf import sources
from bpf.datapath import Datapath, PodCapture
from bpf.features import probe
from bpf.pins import Pins
from mesh.errors import ConfigError, Unsupported
from mesh.ports import OUTBOUND

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]


def test_release_and_capture_under_load_break_no_connection(rig: Rig, datapath: Datapath) -> None:
    """Every connect either goes to the proxy or to where it was sent; none fails, none hangs."""
    rig.a.outbound()
    listener = rig.a.inbound()
    rig.b.serve(socket.AF_INET6, "::", 7100, lambda s, _: "direct", app=True)
    address = rig.b.ipv4
    load = Load(lambda: drained(connect((address, 7100))))
    running = rig.a.start(load)
    held = rig.a.start(lambda: _held(address))
    for _ in range(25):
        rig.a.capture(datapath, listener)
        time.sleep(0.02)
        datapath.release("uid-a")
        time.sleep(0.02)
    load.stop()
    assert set(running.result()) == {"'direct'", repr((address, 7100))}
    assert held.result() == (address, 7100)


def _held(address: str) -> object:
    """A connection opened while captured keeps its peer after the release."""
    s = until(lambda: _captured_socket(address), "a captured connection")
    time.sleep(1)
    return s.getpeername()


def _captured_socket(address: str) -> socket.socket | None:
    s = connect((address, 7100))
    if s.recv(100) == repr((address, 7100)).encode():
        return s
    s.close()
    return None


def test_a_new_build_loses_no_connect_and_no_captured_pod(
    fresh: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs are swapped under connections both ways; older sockets keep what they remember."""
    rig, first = fresh, fresh.open()
    rig.a.outbound()
    listener = rig.a.inbound()
    entry = rig.a.capture(first, listener)
    pod = rig.a.ipv4
    out, inward = Load(lambda: drained(connect((AWAY4, 80)))), Load(lambda: _who(pod))
    outcomes, arrivals = rig.a.start(out), rig.load_from_world(inward)
    reader, writer = os.pipe()
    held = rig.a.start(lambda: _peer_when(reader))
    until(lambda: first.pod_counters("uid-a")[0] > 5, "load")
    text = sources.text()
    monkeypatch.setattr(sources, "text", lambda: text + "/* another build, the same layout */")
    second = rig.open()
    rig.a.capture(second, listener)
    os.write(writer, b"x")
    assert held.result() == (AWAY4, 80)
    out.stop()
    inward.stop()
    assert set(outcomes.result()) == {repr((AWAY4, 80))}
    assert set(arrivals.result()) == {"proxy"}
    assert second.captured() == {"uid-a": entry}
    _another_layout(rig, listener, entry)
    for opened in (first, second):
        opened.close()
    os.close(reader)
    os.close(writer)


def _another_layout(rig: Rig, listener: Server, entry: PodCapture) -> None:
    """New maps: the pod stays captured both ways before and after the agent captures it again."""
    pod = rig.a.ipv4
    out, inward = Load(lambda: drained(connect((AWAY4, 80)))), Load(lambda: _who(pod))
    outcomes, arrivals = rig.a.start(out), rig.load_from_world(inward)
    with environment(AMBIT_BPF_DEFINES="MAX_FLOWS=8192"):
        third = rig.open()
        assert third.captured() == {"uid-a": entry}
        rig.open().close()
        assert _who_from_world(rig, pod) == "proxy"
        rig.a.capture(third, listener)
        third.close()
    out.stop()
    inward.stop()
    assert set(arrivals.result()) == {"proxy"}
    # A connect between two hooks of different maps is captured, but its destination is lost.
    seen = outcomes.result()
    assert sum(seen.values()) - seen[repr((AWAY4, 80))] <= max(2, 0.01 * sum(seen.values()))
    assert len(list(rig.pins.glob("build-*"))) == len(list(rig.pins.glob("maps-*"))) == 1


def _who(pod: str) -> str:
    return "proxy" if "proxy" in drained(connect((pod, 80))) else "app"


def _who_from_world(rig: Rig, pod: str) -> str:
    return rig.from_world(lambda: _who(pod))


def _peer_when(reader: int) -> object:
    """The peer of a connection opened now, asked for later."""
    s = connect((AWAY4, 80))
    os.read(reader, 1)
    return s.getpeername()


def test_an_owner_that_starts_again_finds_its_pods(rig: Rig, datapath: Datapath) -> None:
    """Everything of a capture is read back from the pins, counters too."""
    rig.a.outbound()
    entry = rig.a.capture(datapath, rig.a.inbound())
    rig.a.do(lambda: drained(connect((AWAY6, 80))))
    again = rig.open()
    assert again.captured() == {"uid-a": entry}
    assert again.pod_counters("uid-a") == (1, 0)
    assert again.pod_counters("uid-z") == (0, 0)
    before = again.counters()["connect6_captured"]
    rig.a.do(lambda: drained(connect((AWAY6, 80))))
    assert again.counters()["connect6_captured"] == before + 1
    again.release("uid-a")
    again.close()
    assert datapath.captured() == {}


def test_capturing_again_changes_what_changed(rig: Rig, datapath: Datapath) -> None:
    """Probe ports, listener and namespace of a uid can change; nothing old is left."""
    first = rig.a.inbound()
    rig.a.capture(datapath, first)
    second = rig.b.inbound()
    with open(f"/run/netns/{rig.b.netns}") as f:
        entry = rig.b.entry(uid="uid-a", probe_ports=(1,))
        datapath.capture(entry, f.fileno(), second.listener.fileno())
        datapath.capture(entry, f.fileno(), second.listener.fileno())
    assert datapath.captured() == {"uid-a": entry}
    with pytest.raises(ConnectionRefusedError):
        rig.from_world(lambda: connect((rig.a.ipv4, 80)))
    assert "proxy" in rig.from_world(lambda: drained(connect((rig.b.ipv4, 80))))
    assert len(list((rig.pins / "pods").iterdir())) == 1


def test_a_half_done_capture_is_collected(rig: Rig, datapath: Datapath) -> None:
    """An agent killed between the maps and the link leaves no pod half captured for ever."""
    listener = rig.a.inbound()
    entry = rig.a.capture(datapath, listener)
    (rig.pins / "pods" / str(entry.netns_cookie)).unlink()
    assert datapath.collect() == 1
    assert datapath.captured() == {}
    rig.a.capture(datapath, listener)
    assert datapath.collect() == 0


def test_a_proxy_cgroup_made_again_is_followed(rig: Rig, datapath: Datapath) -> None:
    """Its id changes with every make; until the hooks know, its connects would be captured."""
    rig.a.capture(datapath, rig.a.inbound())
    rig.proxy_cgroup.rmdir()
    rig.proxy_cgroup.mkdir()
    datapath.collect()
    before = datapath.pod_counters("uid-a")
    with pytest.raises(ConnectionRefusedError):
        rig.a.proxy(lambda: connect((WORLD4, 4)))
    assert datapath.pod_counters("uid-a") == before


def test_proxies_that_are_named_are_exempt(fresh: Rig) -> None:
    """Two at once, as in an upgrade; they stay so for the next agent, the oldest give way."""
    rig = fresh
    datapath = Datapath.open(rig.pins, rig.cgroup, None)
    rig.a.capture(datapath, rig.a.inbound())
    second = rig.cgroup / "proxy2"
    second.mkdir()

    def is_exempt(cgroup: Path) -> bool:
        before = datapath.pod_counters("uid-a")
        with pytest.raises(ConnectionRefusedError):
            fork(cgroup, rig.a.netns, lambda: connect((WORLD4, 4))).result()
        return datapath.pod_counters("uid-a") == before

    assert not is_exempt(rig.proxy_cgroup)
    datapath.exempt(rig.proxy_cgroup.stat().st_ino)
    datapath.exempt(second.stat().st_ino)
    assert is_exempt(rig.proxy_cgroup)
    datapath.close()
    datapath = Datapath.open(rig.pins, rig.cgroup, None)
    datapath.collect()
    assert is_exempt(rig.proxy_cgroup)
    assert is_exempt(second)
    for other in range(1_000_001, 1_000_008):
        datapath.exempt(other)
    assert not is_exempt(rig.proxy_cgroup)
    assert is_exempt(second)
    datapath.close()
    second.rmdir()


def test_hooks_move_to_the_cgroup_asked_for(fresh: Rig) -> None:
    """Opened for another cgroup, the same pins let go of the first one."""
    rig = fresh
    rig.a.outbound()
    other = Datapath.open(rig.pins, rig.agent_cgroup, rig.proxy_cgroup)
    other.close()
    datapath = rig.open()
    rig.a.capture(datapath, rig.a.inbound())
    assert rig.a.do(lambda: drained(connect((AWAY4, 80)))) == repr((AWAY4, 80))
    datapath.close()
    assert not [p for p in (rig.pins / "hooks").iterdir() if p.name.endswith("-new")]


def test_more_pods_than_there_is_room_for_are_refused(fresh: Rig) -> None:
    """MAX_PODS given by AMBIT_BPF_DEFINES; the pod that is in stays in."""
    rig = fresh
    with environment(AMBIT_BPF_DEFINES="MAX_PODS=1"):
        datapath = rig.open()
        rig.a.capture(datapath, rig.a.inbound())
        with pytest.raises(ConfigError, match=r"uid-b.*MAX_PODS"):
            rig.b.capture(datapath, rig.b.inbound())
        assert set(datapath.captured()) == {"uid-a"}
        assert "proxy" in rig.from_world(lambda: drained(connect((rig.a.ipv4, 80))))
        datapath.close()


def test_removing_detaches_at_once_and_leaves_nothing(fresh: Rig) -> None:
    """While a pod is captured and a connection open; a second removal is fine."""
    rig, datapath = fresh, fresh.open()
    rig.a.serve(socket.AF_INET, "127.0.0.1", OUTBOUND, lambda s, _: (original(s), s.recv(9)))
    rig.a.serve(socket.AF_INET6, "::", 80, lambda s, _: "app", app=True)
    rig.a.capture(datapath, rig.a.inbound())
    datapath.close()
    Datapath.remove(rig.pins)
    Datapath.remove(rig.pins)
    assert not rig.pins.exists()
    assert rig.from_world(lambda: drained(connect((rig.a.ipv4, 80)))) == "'app'"
    with pytest.raises(ConnectionRefusedError):
        rig.a.do(lambda: connect((WORLD4, 4)))


def test_a_process_that_opened_stays_small(rig: Rig, datapath: Datapath) -> None:
    """bcc's 150 MB never enter it."""
    code = (
        "import sys; from pathlib import Path; from bpf.datapath import Datapath;"
        f"d = Datapath.open(Path({str(rig.pins)!r}), Path({str(rig.cgroup)!r}),"
        f" Path({str(rig.proxy_cgroup)!r}));"
        "print(next(l for l in open('/proc/self/status') if 'VmRSS' in l).split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) < 30_000


def test_the_command_shows_and_removes(fresh: Rig) -> None:
    """What an operator types: show, remove, and show again."""
    rig, datapath = fresh, fresh.open()
    rig.a.capture(datapath, rig.a.inbound())
    datapath.close()

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bpf", *words], capture_output=True, text=True, cwd=ROOT
        )

    shown = command("show", str(rig.pins))
    assert shown.returncode == 0, shown.stderr
    assert "uid-a" in shown.stdout
    assert rig.a.ipv4 in shown.stdout
    assert "attached" in shown.stdout
    assert command("remove", str(rig.pins)).returncode == 0
    assert not rig.pins.exists()
    gone = command("show", str(rig.pins))
    assert gone.returncode == 1
    assert str(rig.pins) in gone.stderr
    assert "features" in command("--help").stdout


def test_a_second_opener_waits_for_the_first(fresh: Rig) -> None:
    """Two at once end with one set of hooks; both are usable."""
    rig = fresh
    opened: list[Datapath] = []
    threads = [threading.Thread(target=lambda: opened.append(rig.open())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 2
    assert Pins(rig.pins).hooks.is_dir()
    for datapath in opened:
        assert datapath.captured() == {}
        datapath.close()


def test_two_nodes_side_by_side_see_nothing_of_each_other(
    rig: Rig, datapath: Datapath, fresh: Rig
) -> None:
    """The same addresses in two worlds; what one removes the other keeps; nothing is left."""
    rig.a.outbound()
    rig.a.capture(datapath, rig.a.inbound())
    other = fresh.open()
    fresh.a.outbound()
    fresh.a.capture(other, fresh.a.inbound(), uid="uid-x")
    assert fresh.a.do(lambda: drained(connect((AWAY4, 80)))) == repr((AWAY4, 80))
    assert set(datapath.captured()) == {"uid-a"}
    assert set(other.captured()) == {"uid-x"}
    assert datapath.pod_counters("uid-a") == (0, 0)
    other.close()
    fresh.remove()
    assert rig.a.do(lambda: drained(connect((AWAY4, 80)))) == repr((AWAY4, 80))
    assert datapath.pod_counters("uid-a") == (1, 0)
    assert not fresh.cgroup.exists()
    assert not fresh.pins.exists()
    assert not list(Path("/run/netns").glob(f"{fresh.tag}-*"))


def test_a_killed_owner_leaves_its_pods_captured(rig: Rig, datapath: Datapath) -> None:
    """kill -9 right after the capture."""
    rig.a.outbound()
    listener = rig.a.inbound()

    def owner() -> None:
        rig.a.capture(rig.open(), listener)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(AssertionError, match="died"):
        fork(None, None, owner).result()
    assert set(datapath.captured()) == {"uid-a"}
    assert rig.a.do(lambda: drained(connect((AWAY4, 80)))) == repr((AWAY4, 80))
    assert _who_from_world(rig, rig.a.ipv4) == "proxy"


def test_pods_of_dead_namespaces_are_collected(rig: Rig, datapath: Datapath) -> None:
    """Entry, link and addresses go once the namespace is gone, not before."""
    pod = rig.extra_pod()
    listener = pod.inbound()
    pod.capture(datapath, listener)
    rig.a.capture(datapath, rig.a.inbound())
    assert datapath.collect() == 0
    listener.stop()
    sh("ip", "netns", "del", pod.netns)
    until(lambda: datapath.collect() == 1, "the namespace is dead", 10)
    assert set(datapath.captured()) == {"uid-a"}
    assert len(list((rig.pins / "pods").iterdir())) == 1


def test_an_address_follows_its_new_pod(rig: Rig, datapath: Datapath) -> None:
    """Releasing an old pod late does not take the address of the new one that has it."""
    rig.a.capture(datapath, rig.a.inbound())
    rig.b.capture(datapath, rig.b.inbound(), addresses=(rig.a.ipv4, rig.b.ipv6))
    datapath.release("uid-a")
    assert set(datapath.captured()) == {"uid-b"}
    with pytest.raises(ConnectionRefusedError):  # nothing of b is listed for its own IPv4
        rig.from_world(lambda: connect((rig.b.ipv4, 80)))
    assert _who_from_world(rig, rig.b.ipv6) == "proxy"


def test_opening_what_is_pinned_compiles_nothing(rig: Rig, datapath: Datapath) -> None:
    """A third of a second would already be a compiler's work; it takes milliseconds."""
    with environment(BCC_KERNEL_SOURCE="/nonexistent"):
        began = time.monotonic()
        rig.open().close()
    assert time.monotonic() - began < 0.3
    assert "bcc" not in sys.modules


def test_a_hook_that_does_not_load_is_named(rig: Rig) -> None:
    """Hook, cause and way out, although good programs are pinned; the probe tells the others."""
    with environment(AMBIT_DISABLE_HOOKS="sk_lookup,getsockname6"):
        with pytest.raises(Unsupported, match=r"getsockname6.*AMBIT_DISABLE_HOOKS.*nftables"):
            rig.open()
        found = {f.hook: f for f in probe()}
    assert {hook for hook, f in found.items() if not f.available} == {"sk_lookup", "getsockname6"}
    assert "nftables" in found["sk_lookup"].way_out
    assert found["connect4"].way_out == ""
    assert {h.name for h in sources.HOOKS} == set(found)


def test_the_verifiers_words_reach_the_operator() -> None:
    """A program it refuses: the cause quotes what it said."""
    code = (
        "import os; from bpf import kernel_headers, sources, loader;"
        "os.environ['BCC_KERNEL_SOURCE'] = str(kernel_headers.find());"
        "from bcc import BPF;"
        "b = BPF(text='int f(struct bpf_sock_addr *ctx) { return 7; }');"
        "print(loader.load_one(b, sources.Hook('connect4', 'f', 18, 10), None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "verifier's last words" in done.stdout, done.stderr
    assert "R0" in done.stdout

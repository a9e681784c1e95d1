"""A node of two pods for the hooks' tests: namespaces, cgroups, pins. Everything is removed.

The test's own process stands outside the node's cgroup: as a client it is never captured. What a
pod, the proxy or the agent does runs in a fork that joins the cgroup and the namespace first.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bpf.datapath import Datapath, PodCapture, netns_cookie
from mesh.ports import INBOUND_PLAIN, OUTBOUND, SO_ORIGINAL_DST, SO_REAL_SOURCE

T = TypeVar("T")
BPFFS = Path("/sys/fs/bpf")
CLONE_NEWNET = 0x40000000
AWAY4, AWAY6 = "203.0.113.9", "2001:db8:9::9"  # nobody answers there: only a hook can
NODE4, NODE6 = "10.78.0.1", "fd78::1"
WORLD4, WORLD6 = "10.78.0.99", "fd78::99"
_serial = itertools.count(1)


def cgroup_root() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise AssertionError("no cgroup2 mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def sh(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def until(condition: Callable[[], Any], what: str, seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return value


def enter(cgroup: Path | None, netns: str | None) -> None:
    """Move this (forked) process."""
    if cgroup:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    if netns:
        with open(f"/run/netns/{netns}") as f:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(f.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@dataclass
class Child:
    """A fork; what its function returns or raises comes back by `result`."""

    pid: int
    channel: socket.socket
    killed: bool = False

    def result(self, timeout: float = 20.0) -> Any:
        self.channel.settimeout(timeout)
        raw = b""
        while part := self.channel.recv(65536):
            raw += part
        os.waitpid(self.pid, 0)
        self.killed = True
        self.channel.close()
        assert raw, "the forked process died"
        ok, value = pickle.loads(raw)
        if not ok:
            raise value
        return value

    def kill(self) -> None:
        if not self.killed:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.killed = True
            self.channel.close()


def fork(cgroup: Path | None, netns: str | None, do: Callable[[], Any]) -> Child:
    """Run `do` there; not waiting for it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return Child(pid, ours)
    try:
        ours.close()
        try:
            enter(cgroup, netns)
            answer = (True, do())
        except Exception as e:
            traceback.clear_frames(e.__traceback__)
            answer = (False, e)
        theirs.sendall(pickle.dumps(answer))
    finally:
        os._exit(0)


def listen(family: int, address: str, port: int, v6only: bool = False) -> socket.socket:
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    s.bind((address, port))
    s.listen(4096)
    return s


def connect(to: tuple[str, int], family: int = 0, timeout: float = 3.0) -> socket.socket:
    s = socket.socket(family or (socket.AF_INET6 if ":" in to[0] else socket.AF_INET))
    s.settimeout(timeout)
    try:
        s.connect(to)
    except OSError:
        s.close()
        raise
    return s


def original(s: socket.socket) -> tuple[str, int]:
    """SO_ORIGINAL_DST as a proxy reads it."""
    if s.family == socket.AF_INET:
        raw = s.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
        assert len(raw) == 16
        assert int.from_bytes(raw[:2], sys.byteorder) == socket.AF_INET
        return socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")
    raw = s.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
    assert len(raw) == 28
    assert int.from_bytes(raw[:2], sys.byteorder) == socket.AF_INET6
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big")


def speak_for(s: socket.socket, address: str, port: int) -> None:
    """SO_REAL_SOURCE as a relay sets it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = family.to_bytes(2, sys.byteorder) + port.to_bytes(2, "big")
    ip = socket.inet_pton(family, address)
    raw += ip + bytes(8) if family == socket.AF_INET else bytes(4) + ip + bytes(4)
    s.setsockopt(socket.IPPROTO_IP, SO_REAL_SOURCE, raw)


class Server:
    """Accepts in a thread of the test and answers each connection with what `tell` says of it."""

    def __init__(self, listener: socket.socket, tell: Callable[[socket.socket, Any], Any]) -> None:
        self.listener = listener
        self.seen: list[Any] = []
        self._tell = tell
        self._over = False
        listener.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over:
            try:
                s, peer = self.listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with s:
                try:
                    told = self._tell(s, peer)
                except OSError as e:
                    told = e
                self.seen.append(told)
                with contextlib.suppress(OSError):
                    s.sendall(repr(told).encode())

    def stop(self) -> None:
        self._over = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join()
        self.listener.close()


def drained(s: socket.socket) -> str:
    """What a Server told; closes the socket."""
    with s:
        raw = b""
        while part := s.recv(4096):
            raw += part
        return raw.decode()


@dataclass
class Pod:
    name: str
    netns: str
    cgroup: Path
    ipv4: str
    ipv6: str
    rig: Rig

    def do(self, work: Callable[[], T]) -> T:
        """As one of the pod's processes."""
        return fork(self.cgroup, self.netns, work).result()

    def start(self, work: Callable[[], Any]) -> Child:
        return self.rig.keep(fork(self.cgroup, self.netns, work))

    def proxy(self, work: Callable[[], T]) -> T:
        """As a relay worker inside the pod's namespace."""
        return fork(self.rig.proxy_cgroup, self.netns, work).result()

    def open(self, cgroup: Path, make: Callable[[], socket.socket]) -> socket.socket:
        """Have a socket made there; the test holds it, its cgroup stays its maker's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

        def work() -> None:
            with make() as s:
                socket.send_fds(theirs, [b"x"], [s.fileno()])

        with ours, theirs:
            fork(cgroup, self.netns, work).result()
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=fds[0])

    def serve(
        self,
        family: int,
        address: str,
        port: int,
        tell: Callable[[socket.socket, Any], Any],
        app: bool = False,
    ) -> Server:
        """Serve in the pod, on a socket of the agent, or of the app."""
        cgroup = self.cgroup if app else self.rig.agent_cgroup
        server = Server(self.open(cgroup, lambda: listen(family, address, port)), tell)
        self.rig.servers.append(server)
        return server

    def outbound(self) -> tuple[Server, Server]:
        """The proxy's outbound listeners; each tells the original destination."""
        return (
            self.serve(socket.AF_INET, "127.0.0.1", OUTBOUND, lambda s, _: original(s)),
            self.serve(socket.AF_INET6, "::1", OUTBOUND, lambda s, _: original(s)),
        )

    def inbound(self) -> Server:
        """The proxy's inbound listener; tells (where it was going, from whom)."""
        return self.serve(
            socket.AF_INET6,
            "::",
            INBOUND_PLAIN,
            lambda s, peer: ("proxy", s.getsockname()[:2], peer[:2]),
        )

    def entry(self, **changes: Any) -> PodCapture:
        with open(f"/run/netns/{self.netns}") as f:
            cookie = netns_cookie(f.fileno())
        values: dict[str, Any] = {
            "uid": f"uid-{self.name}",
            "netns_cookie": cookie,
            "addresses": (self.ipv4, self.ipv6),
            "node_addresses": (NODE4, NODE6),
            "probe_ports": (8080, 9090),
        }
        return PodCapture(**(values | changes))

    def capture(self, datapath: Datapath, listener: Server, **changes: Any) -> PodCapture:
        entry = self.entry(**changes)
        with open(f"/run/netns/{self.netns}") as f:
            datapath.capture(entry, f.fileno(), listener.listener.fileno())
        return entry


class Load:
    """Work for `start`: `once` again and again until `stop`; how often each outcome came."""

    def __init__(self, once: Callable[[], str]) -> None:
        self._once = once
        self._reader, self._writer = os.pipe()

    def __call__(self) -> dict[str, int]:
        outcomes: dict[str, int] = {}
        while not select.select([self._reader], [], [], 0)[0]:
            try:
                outcome = self._once()
            except OSError as e:
                outcome = type(e).__name__
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        return outcomes

    def stop(self) -> None:
        os.write(self._writer, b"x")

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class Rig:
    """One node: a bridge in the node's namespace, pods a and b, and a world outside."""

    def __init__(self) -> None:
        self.tag = f"ambit-b-{os.getpid()}-{next(_serial)}"
        self.node, self.world = f"{self.tag}-n", f"{self.tag}-w"
        self.cgroup = cgroup_root() / self.tag
        self.proxy_cgroup = self.cgroup / "proxy"
        self.agent_cgroup = self.cgroup / "agent"
        self.pins = BPFFS / self.tag
        self.servers: list[Server] = []
        self._children: list[Child] = []
        self._extra = 0
        for folder in (self.cgroup, self.proxy_cgroup, self.agent_cgroup):
            folder.mkdir()
        lines = ["link add br0 type bridge", "link set br0 up", "link set lo up"]
        lines += [f"addr add {NODE4}/24 dev br0", f"addr add {NODE6}/64 dev br0 nodad"]
        sh("ip", "netns", "add", self.node)
        self._batch(self.node, lines)
        self._wire(self.world, "w", WORLD4, WORLD6)
        self.a, self.b = self._pod("a", 11), self._pod("b", 12)

    def _batch(self, netns: str, lines: Sequence[str]) -> None:
        done = subprocess.run(
            ["ip", "-n", netns, "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr

    def _wire(self, netns: str, port: str, ipv4: str, ipv6: str) -> None:
        sh("ip", "netns", "add", netns)
        self._batch(
            self.node,
            [
                f"link add v{port} type veth peer name eth0 netns {netns}",
                f"link set v{port} master br0 up",
            ],
        )
        lines = ["link set lo up", "link set eth0 up", f"addr add {ipv4}/24 dev eth0"]
        lines += [f"addr add {ipv6}/64 dev eth0 nodad", f"route add default via {NODE4}"]
        self._batch(netns, [*lines, f"route add default via {NODE6}"])

    def _pod(self, name: str, number: int) -> Pod:
        pod = Pod(
            name,
            f"{self.tag}-p-{name}",
            self.cgroup / name,
            f"10.78.0.{number}",
            f"fd78::{number}",
            self,
        )
        pod.cgroup.mkdir()
        self._wire(pod.netns, name, pod.ipv4, pod.ipv6)
        return pod

    def extra_pod(self) -> Pod:
        """One that a test may destroy."""
        self._extra += 1
        return self._pod(f"x{self._extra}", 100 + self._extra)

    def keep(self, child: Child) -> Child:
        self._children.append(child)
        return child

    def load_from_world(self, load: Load) -> Child:
        return self.keep(fork(None, self.world, load))

    def from_world(self, work: Callable[[], T]) -> T:
        return fork(None, self.world, work).result()

    def from_node(self, work: Callable[[], T]) -> T:
        return fork(None, self.node, work).result()

    def open(self) -> Datapath:
        return Datapath.open(self.pins, self.cgroup, self.proxy_cgroup)

    def quiet(self) -> None:
        """End what a test started."""
        for child in self._children:
            child.kill()
        for server in self.servers:
            server.stop()
        self._children.clear()
        self.servers.clear()

    def remove(self) -> None:
        self.quiet()
        Datapath.remove(self.pins)
        for netns in Path("/run/netns").glob(f"{self.tag}-*"):
            subprocess.run(["ip", "netns", "del", netns.name], capture_output=True)
        for folder in sorted(self.cgroup.glob("*/"), reverse=True):
            until(lambda f=folder: _gone(f), f"{folder} is empty")
        until(lambda: _gone(self.cgroup), f"{self.cgroup} is empty")


def _gone(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for k, v in before.items():
            if v is None:
                os.environ.pop(k, None)
            else:
                os.environ[k] = v

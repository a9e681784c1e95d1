"""A pod, its node and a proxy for the hook tests: two namespaces, three cgroups, one pin folder."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from bpf import Datapath, PodCapture, netns_cookie
from bpf.datapath import in_netns

T = TypeVar("T")
V4, V6, NODE4, NODE6 = "10.9.0.2", "fd09::2", "10.9.0.1", "fd09::1"
PROBE = 7777
SO_REAL_SOURCE = 0x5A17


def cgroup2() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise AssertionError("no cgroup2 is mounted: the hooks cannot be tested here")


def sh(command: str, check: bool = True) -> None:
    subprocess.run(command, shell=True, check=check, capture_output=not check)


class Rig:
    """Context manager; `name` makes namespaces, cgroups and pins its own."""

    def __init__(self, name: str) -> None:
        self.name = f"ambit-b-{name}"
        self.pod_ns, self.node_ns = f"{self.name}-p", f"{self.name}-n"
        self.pins = Path("/sys/fs/bpf") / self.name
        self.cgroup = cgroup2() / self.name
        self.sockets: list[socket.socket] = []
        self.datapath: Datapath | None = None

    def __enter__(self) -> Rig:
        self.clean()
        for folder in (self.cgroup, self.cgroup / "pod", self.cgroup / "proxy", self.cgroup / "x"):
            folder.mkdir()
        p, n = self.pod_ns, self.node_ns
        sh(f"ip netns add {p} && ip netns add {n}")
        sh(f"ip link add eth0 netns {p} type veth peer name h0 netns {n}")
        for ns, dev, four, six in ((p, "eth0", V4, V6), (n, "h0", NODE4, NODE6)):
            sh(f"ip -n {ns} link set lo up; ip -n {ns} addr add {four}/24 dev {dev}")
            sh(f"ip -n {ns} addr add {six}/64 dev {dev} nodad; ip -n {ns} link set {dev} up")
        sh(f"ip -n {p} route add default via {NODE4}; ip -n {p} -6 route add default via {NODE6}")
        self.ns = os.open(f"/run/netns/{p}", os.O_RDONLY)
        self.node = os.open(f"/run/netns/{n}", os.O_RDONLY)
        self.enter("proxy")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.enter(None)
        for s in self.sockets:
            s.close()
        if self.datapath:
            self.datapath.close()
        os.close(self.ns)
        os.close(self.node)
        self.clean()

    def clean(self) -> None:
        for ns in (self.pod_ns, self.node_ns):
            sh(f"ip netns del {ns}", check=False)
        Datapath.remove(self.pins)
        for folder in (self.cgroup / "pod", self.cgroup / "proxy", self.cgroup / "x", self.cgroup):
            for _ in range(50):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.02)
                else:
                    break

    def enter(self, group: str | None) -> None:
        """Move this process into one of the rig's cgroups, or out of them."""
        folder = self.cgroup / group if group else cgroup2()
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    def open(self) -> Datapath:
        self.datapath = Datapath.open(self.pins, self.cgroup, self.cgroup / "proxy")
        return self.datapath

    def listen(self, host: str, port: int) -> socket.socket:
        """A listener in the pod's namespace; "::" is dual stack."""

        def make() -> socket.socket:
            s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in host:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            s.bind((host, port))
            s.listen(256)
            s.settimeout(5)
            return s

        s = in_netns(self.ns, make)
        self.sockets.append(s)
        return s

    def capture(self) -> tuple[socket.socket, socket.socket, socket.socket]:
        """Open, make the listeners, capture the pod: (outbound v4, outbound v6, inbound)."""
        datapath = self.datapath or self.open()
        out4, out6 = self.listen("127.0.0.1", 15001), self.listen("::1", 15001)
        inbound = self.listen("::", 15006)
        datapath.capture(self.pod(), self.ns, inbound.fileno())
        return out4, out6, inbound

    def pod(self, uid: str = "uid-1") -> PodCapture:
        return PodCapture(uid, netns_cookie(self.ns), (V4, V6), (NODE4, NODE6), (PROBE,))

    def in_pod(self, do: Callable[[], T], group: str = "pod") -> T:
        """Run in a child in the pod's namespace and cgroup; its result or its exception."""
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.enter(group)
                value: Any = in_netns(self.ns, do)
                code = 0
            except BaseException as e:
                value = e
            os.write(w, pickle.dumps((code, value)))
            os._exit(0)
        os.close(w)
        with os.fdopen(r, "rb") as f:
            code, value = pickle.loads(f.read())
        os.waitpid(pid, 0)
        if code:
            raise value
        return value  # type: ignore[no-any-return]

    def from_node(self, host: str, port: int) -> socket.socket:
        s = in_netns(self.node, lambda: socket.create_connection((host, port), 3))
        self.sockets.append(s)
        return s

    def relay(self, host: str, port: int, source: tuple[str, int]) -> socket.socket:
        """What a relay does: say who the client is, connect to the application."""

        def make() -> socket.socket:
            s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            s.settimeout(3)
            s.setsockopt(socket.SOL_IP, SO_REAL_SOURCE, sockaddr(*source))
            s.connect((host, port))
            return s

        s = in_netns(self.ns, make)
        self.sockets.append(s)
        return s


def sockaddr(host: str, port: int) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    if ":" in host:
        head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0)
        return head + socket.inet_pton(socket.AF_INET6, host) + bytes(4)
    return (
        struct.pack("=H", socket.AF_INET)
        + struct.pack("!H", port)
        + socket.inet_aton(host)
        + bytes(8)
    )


def original(s: socket.socket) -> tuple[str, int]:
    """SO_ORIGINAL_DST."""
    if s.family == socket.AF_INET:
        raw = s.getsockopt(socket.SOL_IP, 80, 16)
        return socket.inet_ntoa(raw[4:8]), int.from_bytes(raw[2:4], "big")
    raw = s.getsockopt(socket.IPPROTO_IPV6, 80, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big")


def names(host: str, port: int) -> Callable[[], tuple[Any, Any]]:
    """Connect; (peer, own) addresses as the application sees them."""

    def do() -> tuple[Any, Any]:
        with socket.create_connection((host, port), 3) as s:
            return s.getpeername()[:2], s.getsockname()[:2]

    return do


PYTHON = sys.executable

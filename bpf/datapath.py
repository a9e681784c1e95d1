"""The kernel side of one node: capture pods, release them, and say what is captured.

Everything lives in the kernel under one folder of pins and outlives this process. An agent that is
stopped, killed or replaced leaves captured pods captured; the next one opens the same pins.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from bpf import libbpf, loader, sources
from bpf.layout import Layout
from bpf.libbpf import Map
from bpf.pins import Pins
from mesh.errors import ConfigError, Unsupported

MAX_PROBES: Final = 16
MAX_NODE_ADDRESSES: Final = 4
_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h
_CLONE_NEWNET: Final = 0x40000000
_INDEX0: Final = (0).to_bytes(4, "little")
_SK_LOOKUP: Final = next(h for h in sources.HOOKS if h.per_pod)
_MAPS: Final = ("pods", "by_address", "stats", "listeners", "config", "meta")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PodCapture:
    """What the hooks know about one pod.

    `addresses`: the pod's own, at most one IPv4 and one IPv6. `node_addresses`: where the node's
    probes come from, at most 4; they reach `probe_ports` (at most 16) without the proxy.
    """

    uid: str
    netns_cookie: int
    addresses: tuple[str, ...]
    node_addresses: tuple[str, ...]
    probe_ports: tuple[int, ...]


def _key(address: str) -> bytes:
    """struct ip: 16 bytes, IPv4 mapped."""
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else b"\0" * 10 + b"\xff\xff" + ip.packed


def _text(key: bytes) -> str:
    ip = ipaddress.IPv6Address(key)
    return str(ip.ipv4_mapped or ip)


def in_netns(netns_fd: int, do: Callable[[], _T]) -> _T:
    """Run `do` in a network namespace, in a thread of its own: setns is per thread."""
    result: list[_T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            _setns(netns_fd)
            result.append(do())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=body, name="in-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _setns(fd: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        e = ctypes.get_errno()
        raise OSError(e, f"setns: {os.strerror(e)}")


def netns_cookie(netns_fd: int) -> int:
    """The kernel's cookie of a network namespace (SO_NETNS_COOKIE)."""

    def ask() -> int:
        with socket.socket() as s:
            return int.from_bytes(s.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")

    return in_netns(netns_fd, ask)


class Datapath:
    """One node's hooks, opened. Not thread-safe; several may be open on different pins."""

    def __init__(self, pins: Pins, meta: dict[str, Any]) -> None:
        """Take over what is pinned; use `open`."""
        self._pins = pins
        self._maps_dir = pins.maps(sources.layout_digest())
        self._pod = Layout(**meta["layouts"]["pod"])
        self._stats = Layout(**meta["layouts"]["pod_stats"])
        self._config = Layout(**meta["layouts"]["config"])
        self._counters = list(meta["counters"])
        self._map = {name: Map.pinned(self._maps_dir / name) for name in _MAPS}
        self._cpus = libbpf.possible_cpus()
        self._events = Map.pinned(self._maps_dir / "counters", (self._cpus))
        self._lookup = libbpf.obj_get(pins.build(sources.digest()) / _SK_LOOKUP.name)

    @classmethod
    def open(cls, pins: Path, cgroup: Path, proxy_cgroup: Path) -> Datapath:
        """Load and attach, or take over what is pinned.

        `pins` is a folder of a bpf filesystem (mounted when absent). `cgroup` is the node's
        cgroup2 folder above pods, agent and proxy. Connections made by tasks in `proxy_cgroup`
        are never captured, and only they may set SO_REAL_SOURCE.
        Raises Unsupported naming the hook, the cause and the way out.
        """
        p = Pins(pins)
        p.make()
        maps, build = p.maps(sources.layout_digest()), p.build(sources.digest())
        meta = _read_meta(maps) if (build / _SK_LOOKUP.name).exists() else None
        if meta is None or meta.get("build") != sources.digest() or loader.disabled():
            meta = _load(maps, build)
        datapath = cls(p, meta)
        datapath._map["config"].set(
            _INDEX0, datapath._config.pack(proxy_cgroup=proxy_cgroup.stat().st_ino)
        )
        datapath._adopt_former_maps()
        datapath._attach(cgroup, build)
        for old in p.others("build", build) + p.others("maps", maps):
            Pins(old).remove()
        return datapath

    @classmethod
    def peek(cls, pins: Path) -> Datapath:
        """Open what is pinned without loading or attaching anything; OSError when nothing is."""
        meta = _read_meta(Pins(pins).maps(sources.layout_digest()))
        if meta is None:
            raise OSError(f"{pins}: nothing of this build is pinned there")
        return cls(Pins(pins), meta)

    def _attach(self, cgroup: Path, build: Path) -> None:
        """Link every hook, or put this build under the links that are there."""
        target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for hook in sources.HOOKS:
                if hook.per_pod:
                    continue
                program = libbpf.obj_get(build / hook.name)
                try:
                    self._link(self._pins.hooks / hook.name, program, target, hook)
                except OSError as e:
                    raise Unsupported(
                        f"hook {hook.name} does not attach to {cgroup}: {e}; {loader.WAY_OUT}"
                    ) from e
                finally:
                    os.close(program)
        finally:
            os.close(target)
        for pin in self._pins.pods.iterdir():  # pods captured under a former build
            with contextlib.suppress(OSError):
                self._relink(pin, self._lookup)

    @staticmethod
    def _relink(pin: Path, program: int) -> None:
        link = libbpf.obj_get(pin)
        try:
            libbpf.link_update(link, program)
        finally:
            os.close(link)

    @classmethod
    def _link(cls, pin: Path, program: int, target: int, hook: sources.Hook) -> None:
        """Attach and pin, or update what is pinned; a defunct link is made anew."""
        if pin.exists():
            try:
                cls._relink(pin, program)
                return
            except OSError:
                pin.unlink()
        link = libbpf.link_create(program, target, hook.attach_type)
        try:
            libbpf.obj_pin(link, pin)
        finally:
            os.close(link)

    def _adopt_former_maps(self) -> None:
        """Another layout's pods: take them over before its hooks are replaced.

        Their listeners cannot be copied; until the agent calls `capture` again, inbound
        connections of those pods are refused (never let through).
        """
        for old in self._pins.others("maps", self._maps_dir):
            meta = _read_meta(old)
            if meta is None:
                continue
            layout, source = Layout(**meta["layouts"]["pod"]), Map.pinned(old / "pods")
            for key in source.snapshot():
                raw = source.get(key)
                if raw is not None:
                    self._write(_decode(layout, raw))
            source.close()

    def _write(self, pod: PodCapture) -> None:
        raw = self._encode(pod)
        cookie = pod.netns_cookie.to_bytes(8, "little")
        if self._map["stats"].get(cookie) is None:
            self._map["stats"].set(cookie, self._stats.pack())
        for address in pod.addresses:
            self._map["by_address"].set(_key(address), raw)
        self._map["pods"].set(cookie, raw)

    def _encode(self, pod: PodCapture) -> bytes:
        by_version = {4: "", 6: ""}
        for address in pod.addresses:
            version = ipaddress.ip_address(address).version
            if by_version[version]:
                raise ConfigError(
                    f"pod {pod.uid}: more than one IPv{version} address {pod.addresses};"
                    " the hooks know one of each family"
                )
            by_version[version] = address
        if len(pod.node_addresses) > MAX_NODE_ADDRESSES:
            raise ConfigError(f"node has over {MAX_NODE_ADDRESSES} addresses: {pod.node_addresses}")
        if len(pod.probe_ports) > MAX_PROBES:
            raise ConfigError(f"pod {pod.uid}: over {MAX_PROBES} probe ports: {pod.probe_ports}")
        values: dict[str, Any] = {
            "cookie": pod.netns_cookie,
            "uid": pod.uid.encode(),
            "probe": pod.probe_ports,
        }
        if by_version[4]:
            values["ip4__a"] = _key(by_version[4])
        if by_version[6]:
            values["ip6__a"] = _key(by_version[6])
        for i, address in enumerate(pod.node_addresses):
            values[f"node__{i}__a"] = _key(address)
        return self._pod.pack(**values)

    def capture(self, pod: PodCapture, netns_fd: int, inbound_fd: int) -> None:
        """Capture a pod, or bring its entry up to date; idempotent.

        `netns_fd` is its network namespace, `inbound_fd` the [::]:15006 listener living there.
        Raises ConfigError when the pod does not fit (too many addresses, probe ports).
        """
        old = self.captured().get(pod.uid)
        if old and (old.netns_cookie, old.addresses) != (pod.netns_cookie, pod.addresses):
            self.release(pod.uid)
        for address in pod.addresses:
            self._map["listeners"].set(_key(address), inbound_fd.to_bytes(8, "little"))
        self._write(pod)
        self._link(self._pins.pods / str(pod.netns_cookie), self._lookup, netns_fd, _SK_LOOKUP)

    def release(self, uid: str) -> None:
        """Stop capturing a pod; what is connected stays connected. An unknown uid is fine."""
        pod = self.captured().get(uid)
        if pod is None:
            return
        cookie = pod.netns_cookie.to_bytes(8, "little")
        self._map["pods"].delete(cookie)
        self._unlink(self._pins.pods / str(pod.netns_cookie))
        for address in pod.addresses:
            key = _key(address)
            raw = self._map["by_address"].get(key)
            # A new pod may have the address by now: only what is this pod's goes.
            if raw is not None and _decode(self._pod, raw).uid == uid:
                self._map["by_address"].delete(key)
                self._map["listeners"].delete(key)
        self._map["stats"].delete(cookie)

    @staticmethod
    def _unlink(pin: Path) -> None:
        if not pin.exists():
            return
        with contextlib.suppress(OSError):
            link = libbpf.obj_get(pin)
            try:
                libbpf.link_detach(link)
            finally:
                os.close(link)
        pin.unlink(missing_ok=True)

    def captured(self) -> dict[str, PodCapture]:
        """Give every captured pod by uid, read from the pins."""
        found = {}
        for key in self._map["pods"].snapshot():
            raw = self._map["pods"].get(key)
            if raw is not None:
                pod = _decode(self._pod, raw)
                found[pod.uid] = pod
        return found

    def counters(self) -> dict[str, int]:
        """Give the totals of events by name, e.g. `connect4_captured`."""
        totals = {}
        for i, name in enumerate(self._counters):
            raw = self._events.get(i.to_bytes(4, "little")) or b""
            totals[name] = sum(
                int.from_bytes(raw[j : j + 8], "little") for j in range(0, len(raw), 8)
            )
        return totals

    def pod_counters(self, uid: str) -> tuple[int, int]:
        """Give (outbound connections captured, inbound steered) of one pod since its capture."""
        pod = self.captured().get(uid)
        raw = self._map["stats"].get(pod.netns_cookie.to_bytes(8, "little")) if pod else None
        if raw is None:
            return 0, 0
        return self._stats.ints(raw, "outbound")[0], self._stats.ints(raw, "inbound")[0]

    def collect(self) -> int:
        """Forget pods whose network namespace is gone; how many."""
        dead = []
        for uid, pod in self.captured().items():
            pin = self._pins.pods / str(pod.netns_cookie)
            try:
                link = libbpf.obj_get(pin)
            except OSError:
                continue  # being captured right now
            try:
                if libbpf.link_netns(link) == 0:
                    dead.append(uid)
            finally:
                os.close(link)
        for uid in dead:
            self.release(uid)
        return len(dead)

    def close(self) -> None:
        """Close what this process holds; the pins, and with them the capture, stay."""
        for m in [*self._map.values(), self._events]:
            m.close()
        os.close(self._lookup)

    @staticmethod
    def remove(pins: Path) -> None:
        """Detach and unpin everything below `pins`."""
        for folder in (Pins(pins).hooks, Pins(pins).pods):
            if folder.is_dir():
                for pin in folder.iterdir():
                    Datapath._unlink(pin)
        Pins(pins).remove()


def _decode(layout: Layout, raw: bytes) -> PodCapture:
    own = [layout.bytes_of(raw, f"{n}.a") for n in ("ip4", "ip6")]
    nodes = [layout.bytes_of(raw, f"node.{i}.a") for i in range(MAX_NODE_ADDRESSES)]
    return PodCapture(
        uid=layout.bytes_of(raw, "uid").rstrip(b"\0").decode(),
        netns_cookie=layout.ints(raw, "cookie")[0],
        addresses=tuple(_text(a) for a in own if any(a)),
        node_addresses=tuple(_text(a) for a in nodes if any(a)),
        probe_ports=tuple(p for p in layout.ints(raw, "probe") if p),
    )


def _read_meta(maps: Path) -> dict[str, Any] | None:
    try:
        m = Map.pinned(maps / "meta")
    except OSError:
        return None
    try:
        text = (m.get(_INDEX0) or b"").rstrip(b"\0")
    finally:
        m.close()
    return json.loads(text) if text else None


def _load(maps: Path, build: Path) -> dict[str, Any]:
    """Compile and pin; the description is written last, so a half-done load is done again."""
    Pins(build).remove()
    answer = loader.run(loader.Job(maps, build))
    for hook, cause in answer["hooks"].items():
        if cause:
            Pins(build).remove()
            raise Unsupported(f"hook {hook} does not load: {cause}; {loader.WAY_OUT}")
    meta = {
        "build": sources.digest(),
        "layouts": answer["layouts"],
        "counters": answer["counters"],
    }
    m = Map.pinned(maps / "meta")
    try:
        m.set(_INDEX0, json.dumps(meta).encode().ljust(m.value_size, b"\0"))
    finally:
        m.close()
    return meta

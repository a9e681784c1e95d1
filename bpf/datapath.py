"""The kernel side of one node: capture pods, release them, and say what is captured.

Everything lives in the kernel under one folder of pins and outlives this process. An agent that is
stopped, killed or replaced leaves captured pods captured; the next one opens the same pins.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

from bpf import libbpf, loader, sources
from bpf.entry import PodCapture, decode, encode, key_of
from bpf.layout import Layout
from bpf.libbpf import Map
from bpf.pins import Pins
from mesh import netns
from mesh.errors import ConfigError, Unsupported

__all__ = ["Datapath", "PodCapture", "netns_cookie"]

_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h
_INDEX0: Final = (0).to_bytes(4, sys.byteorder)
_SK_LOOKUP: Final = next(h for h in sources.HOOKS if h.per_pod)
_MAPS: Final = ("pods", "by_address", "stats", "listeners", "config", "meta")


def netns_cookie(netns_fd: int) -> int:
    """The kernel's cookie of a network namespace (SO_NETNS_COOKIE)."""

    def ask() -> int:
        with socket.socket() as s:
            return _cookie_of(s.fileno())

    return netns.inside(netns_fd, ask)


def _cookie_of(socket_fd: int) -> int:
    """The cookie of the network namespace a socket lives in."""
    with socket.socket(fileno=os.dup(socket_fd)) as s:
        return int.from_bytes(s.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


class Datapath:
    """One node's hooks, opened. Not thread-safe; several may be open on different pins."""

    def __init__(self, pins: Pins, meta: dict[str, Any]) -> None:
        """Take over what is pinned; use `open`."""
        self._pins = pins
        self._proxy_cgroup: Path | None = None
        self._maps_dir = pins.maps(sources.layout_digest())
        self._pod = Layout(**meta["layouts"]["pod"])
        self._stats = Layout(**meta["layouts"]["pod_stats"])
        self._config = Layout(**meta["layouts"]["config"])
        self._counters = list(meta["counters"])
        self._map = {name: Map.pinned(self._maps_dir / name) for name in _MAPS}
        self._cpus = libbpf.possible_cpus()
        self._events = Map.pinned(self._maps_dir / "counters", self._cpus)
        self._lookup = libbpf.obj_get(pins.build(sources.digest()) / _SK_LOOKUP.name)

    @classmethod
    def open(cls, pins: Path, cgroup: Path, proxy_cgroup: Path | None) -> Datapath:
        """Load and attach, or take over what is pinned.

        `pins` is a folder of a bpf filesystem (mounted when absent). `cgroup` is the node's
        cgroup2 folder above pods, agent and proxy. Connections made by tasks in `proxy_cgroup`
        are never captured, and only they may set SO_REAL_SOURCE. None: those that `exempt` names,
        and has named before. Raises Unsupported naming the hook, the cause and the way out.
        """
        p = Pins(pins)
        p.make()
        with p.lock():
            return cls._open(p, cgroup, proxy_cgroup)

    @classmethod
    def prepare(cls, pins: Path) -> None:
        """Compile and load what `open` will attach, beside whatever runs; raises Unsupported."""
        p = Pins(pins)
        p.make()
        with p.lock():
            cls._loaded(p)

    @staticmethod
    def _loaded(p: Pins) -> dict[str, Any]:
        """Have this build's programs and maps pinned; gives their description."""
        maps, build = p.maps(sources.layout_digest()), p.build(sources.digest())
        meta = _read_meta(maps) if (build / _SK_LOOKUP.name).exists() else None
        if meta is None or meta.get("build") != sources.digest() or loader.disabled():
            meta = _load(maps, build)
        return meta

    @classmethod
    def _open(cls, p: Pins, cgroup: Path, proxy_cgroup: Path | None) -> Datapath:
        maps, build = p.maps(sources.layout_digest()), p.build(sources.digest())
        datapath = cls(p, cls._loaded(p))
        try:
            datapath._proxy_cgroup = proxy_cgroup
            datapath._follow_proxy()
            datapath._adopt_former_maps()
            datapath._attach(cgroup, build)
        except BaseException:
            datapath.close()
            raise
        for old in p.others("build", build) + p.others("maps", maps):
            Pins(old).remove()
        return datapath

    def exempt(self, cgroup_id: int) -> None:
        """Take a cgroup for a proxy's; the last MAX_PROXIES named count. Its id: st_ino."""
        known = [i for i in self._proxies() if i != cgroup_id]
        room = self._config.fields["proxy_cgroup"][2]
        self._set_proxies((cgroup_id, *known)[:room])

    def _proxies(self) -> tuple[int, ...]:
        raw = self._map["config"].get(_INDEX0)
        return tuple(i for i in self._config.ints(raw, "proxy_cgroup") if i) if raw else ()

    def _set_proxies(self, ids: tuple[int, ...]) -> None:
        raw = self._config.pack(proxy_cgroup=ids)
        if self._map["config"].get(_INDEX0) != raw:
            self._map["config"].set(_INDEX0, raw)

    def _follow_proxy(self) -> None:
        """Tell the hooks the one proxy's cgroup; one that is made again has another id."""
        with contextlib.suppress(FileNotFoundError):
            if self._proxy_cgroup:
                self._set_proxies((self._proxy_cgroup.stat().st_ino,))

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
            # One whose listener these maps do not have is still steered by the former ones.
            if self._map["listeners"].get(self._listener_key(pin)) is not None:
                with contextlib.suppress(OSError):
                    self._relink(pin, self._lookup)

    def _listener_key(self, pin: Path) -> bytes:
        raw = self._map["pods"].get(int(pin.name).to_bytes(8, sys.byteorder))
        pod = decode(self._pod, raw) if raw is not None else None
        return key_of(pod.addresses[0]) if pod else bytes(16)

    @staticmethod
    def _relink(pin: Path, program: int) -> None:
        link = libbpf.obj_get(pin)
        try:
            libbpf.link_update(link, program)
        finally:
            os.close(link)

    @classmethod
    def _link(cls, pin: Path, program: int, target: int, hook: sources.Hook) -> None:
        """Attach and pin, or update what is pinned; a link to something else is made anew."""
        if pin.exists():
            link = libbpf.obj_get(pin)
            try:
                if libbpf.link_target(link, hook.per_pod) == os.fstat(target).st_ino:
                    libbpf.link_update(link, program)
                    return
            finally:
                os.close(link)
        link = libbpf.link_create(program, target, hook.attach_type)
        try:
            fresh = pin.with_name(f"{pin.name}-new")
            fresh.unlink(missing_ok=True)
            libbpf.obj_pin(link, fresh)
            fresh.replace(pin)  # the former link goes with its pin
        finally:
            os.close(link)

    def _adopt_former_maps(self) -> None:
        """Another layout's pods: take them over before its hooks are replaced.

        Their listeners cannot be copied, so their namespaces keep the former sk_lookup program with
        its maps until the agent calls `capture` again.
        """
        for old in self._pins.others("maps", self._maps_dir):
            meta = _read_meta(old)
            if meta is None:
                continue
            layout, source = Layout(**meta["layouts"]["pod"]), Map.pinned(old / "pods")
            for key in source.snapshot():
                raw = source.get(key)
                if raw is not None:
                    self._write(decode(layout, raw))
            source.close()
            if not self._proxies():
                self._adopt_proxies(old, Layout(**meta["layouts"]["config"]))

    def _adopt_proxies(self, maps: Path, layout: Layout) -> None:
        """A proxy that runs stays exempt while the agent is replaced."""
        with contextlib.suppress(OSError):
            source = Map.pinned(maps / "config")
            raw = source.get(_INDEX0)
            source.close()
            if raw:
                self._set_proxies(tuple(i for i in layout.ints(raw, "proxy_cgroup") if i))

    def _write(self, pod: PodCapture) -> None:
        raw = encode(self._pod, pod)
        cookie = pod.netns_cookie.to_bytes(8, sys.byteorder)
        if self._map["stats"].get(cookie) is None:
            self._map["stats"].set(cookie, self._stats.pack())
        for address in pod.addresses:
            self._map["by_address"].set(key_of(address), raw)
        self._map["pods"].set(cookie, raw)

    def capture(self, pod: PodCapture, netns_fd: int, inbound_fd: int) -> None:
        """Capture a pod, or bring its entry up to date; idempotent.

        `netns_fd` is its network namespace, `inbound_fd` the [::]:15006 listener living there.
        Raises ConfigError when the pod does not fit (addresses, probe ports, number of pods).
        """
        encode(self._pod, pod)
        if _cookie_of(inbound_fd) != pod.netns_cookie:
            raise ConfigError(
                f"pod {pod.uid}: its inbound listener lives in another network namespace:"
                " connections steered to it would time out"
            )
        self._follow_proxy()
        old = self.captured().get(pod.uid)
        if old and (old.netns_cookie, old.addresses) != (pod.netns_cookie, pod.addresses):
            self.release(pod.uid)
        try:
            for address in pod.addresses:
                listener = inbound_fd.to_bytes(8, sys.byteorder)
                self._map["listeners"].set(key_of(address), listener)
            self._write(pod)
            self._link(self._pins.pods / str(pod.netns_cookie), self._lookup, netns_fd, _SK_LOOKUP)
        except OSError as e:
            self._forget(pod)
            if e.errno == errno.E2BIG:
                raise ConfigError(
                    f"pod {pod.uid}: {e}: more than {self._map['pods'].max_entries} pods, or more"
                    " than 64 sk_lookup programs in its namespace; AMBIT_BPF_DEFINES=MAX_PODS=N"
                    " makes room for N"
                ) from e
            raise

    def release(self, uid: str) -> None:
        """Stop capturing a pod; what is connected stays connected. An unknown uid is fine."""
        pod = self.captured().get(uid)
        if pod is None:
            return
        self._forget(pod)

    def _forget(self, pod: PodCapture) -> None:
        cookie = pod.netns_cookie.to_bytes(8, sys.byteorder)
        self._map["pods"].delete(cookie)
        self._unlink(self._pins.pods / str(pod.netns_cookie))
        for address in pod.addresses:
            key = key_of(address)
            raw = self._map["by_address"].get(key)
            # A new pod may have the address by now: only what is this pod's goes.
            if raw is None or decode(self._pod, raw).uid == pod.uid:
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
                pod = decode(self._pod, raw)
                found[pod.uid] = pod
        return found

    def served(self, uid: str) -> bool:
        """Whether the listener that a captured pod's connections are steered to lives."""
        pod = self.captured().get(uid)
        return pod is not None and all(
            self._map["listeners"].get(key_of(address)) is not None for address in pod.addresses
        )

    def counters(self) -> dict[str, int]:
        """Give the totals of events by name, e.g. `connect4_captured`."""
        totals = {}
        for i, name in enumerate(self._counters):
            raw = self._events.get(i.to_bytes(4, sys.byteorder)) or b""
            totals[name] = sum(
                int.from_bytes(raw[j : j + 8], sys.byteorder) for j in range(0, len(raw), 8)
            )
        return totals

    def pod_counters(self, uid: str) -> tuple[int, int]:
        """Give (outbound connections captured, inbound steered) of one pod since its capture."""
        pod = self.captured().get(uid)
        raw = self._map["stats"].get(pod.netns_cookie.to_bytes(8, sys.byteorder)) if pod else None
        if raw is None:
            return 0, 0
        return self._stats.ints(raw, "outbound")[0], self._stats.ints(raw, "inbound")[0]

    def collect(self) -> int:
        """Forget pods whose network namespace is gone, and half-done captures; how many."""
        self._follow_proxy()
        dead = [pod for pod in self.captured().values() if not self._alive(pod.netns_cookie)]
        for pod in dead:
            self._forget(pod)
        known = {str(pod.netns_cookie) for pod in self.captured().values()}
        strays = [pin for pin in self._pins.pods.iterdir() if pin.name not in known]
        for pin in strays:
            self._unlink(pin)
        return len(dead) + len(strays)

    def _alive(self, cookie: int) -> bool:
        try:
            link = libbpf.obj_get(self._pins.pods / str(cookie))
        except OSError:
            return False  # an agent was killed between the maps and the link
        try:
            return libbpf.link_target(link, netns=True) != 0
        finally:
            os.close(link)

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

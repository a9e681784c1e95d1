"""The few calls of libbpf that Ambit needs, by ctypes: bcc is heavy and cannot make links.

Sizes of keys and values are checked against the kernel's own map info before every use: a wrong
size would let the kernel write past a Python buffer.
"""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mesh.errors import Unsupported

BPF_ANY = 0
_NAME = 16  # BPF_OBJ_NAME_LEN, linux/bpf.h


class _MapInfo(c.Structure):
    """struct bpf_map_info, its first part (linux/bpf.h); the kernel fills what fits."""

    _fields_ = (
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("key_size", c.c_uint32),
        ("value_size", c.c_uint32),
        ("max_entries", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("name", c.c_char * _NAME),
    )


class _Cgroup(c.Structure):
    """The cgroup member of struct bpf_link_info's union."""

    _fields_ = (("cgroup_id", c.c_uint64), ("attach_type", c.c_uint32))


class _Netns(c.Structure):
    """The netns member."""

    _fields_ = (("netns_ino", c.c_uint32), ("attach_type", c.c_uint32))


class _Target(c.Union):
    """That union, as large as any kernel's (linux/bpf.h)."""

    _fields_ = (("cgroup", _Cgroup), ("netns", _Netns), ("room", c.c_uint64 * 8))


class _LinkInfo(c.Structure):
    """struct bpf_link_info (linux/bpf.h)."""

    _fields_ = (
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("prog_id", c.c_uint32),
        ("pad", c.c_uint32),
        ("target", _Target),
    )


@cache
def lib() -> c.CDLL:
    """Load libbpf.so.1 once."""
    try:
        so = c.CDLL("libbpf.so.1", use_errno=True)
    except OSError as e:
        raise Unsupported(
            f"libbpf.so.1 does not load ({e}): install it (Debian: libbpf1; `make setup` does)"
        ) from e
    vp, i, s, u64 = c.c_void_p, c.c_int, c.c_char_p, c.c_uint64
    for name, *args in (
        ("bpf_obj_get", s),
        ("bpf_obj_pin", i, s),
        ("bpf_map_update_elem", i, vp, vp, u64),
        ("bpf_map_lookup_elem", i, vp, vp),
        ("bpf_map_delete_elem", i, vp),
        ("bpf_map_get_next_key", i, vp, vp),
        ("bpf_link_create", i, i, i, vp),
        ("bpf_link_update", i, i, vp),
        ("bpf_link_detach", i),
        ("bpf_obj_get_info_by_fd", i, vp, vp),
    ):
        f = getattr(so, name)
        f.restype, f.argtypes = i, args
    return so


def _check(result: int, what: str) -> int:
    if result < 0:
        e = c.get_errno()
        raise OSError(e, f"{what}: {os.strerror(e)}")
    return result


def obj_get(path: Path) -> int:
    """Open a pinned object; a new fd."""
    return _check(lib().bpf_obj_get(os.fsencode(path)), f"open {path}")


def obj_pin(fd: int, path: Path) -> None:
    """Pin an object."""
    _check(lib().bpf_obj_pin(fd, os.fsencode(path)), f"pin {path}")


def link_create(program: int, target: int, attach_type: int) -> int:
    """Attach a program to a cgroup or network namespace; the link's fd."""
    return _check(lib().bpf_link_create(program, target, attach_type, None), "attach")


def link_update(link: int, program: int) -> None:
    """Put another program under a link, atomically."""
    _check(lib().bpf_link_update(link, program, None), "update link")


def link_detach(link: int) -> None:
    """Detach at once, although others may hold the link's fd."""
    _check(lib().bpf_link_detach(link), "detach link")


def _info(fd: int, info: Any) -> Any:
    size = c.c_uint32(c.sizeof(info))
    _check(lib().bpf_obj_get_info_by_fd(fd, c.byref(info), c.byref(size)), "object info")
    return info


def link_target(fd: int, netns: bool) -> int:
    """Inode of the network namespace or cgroup a link is attached to; 0 once that is gone."""
    target = _info(fd, _LinkInfo()).target
    return int(target.netns.netns_ino if netns else target.cgroup.cgroup_id)


class Map:
    """One map, by fd. Keys and values are bytes of exactly the map's sizes."""

    def __init__(self, fd: int, cpus: int = 1) -> None:
        info = _info(fd, _MapInfo())
        self.fd = fd
        self.key_size = int(info.key_size)
        self.value_size = int(info.value_size) * cpus
        self.max_entries = int(info.max_entries)

    @classmethod
    def pinned(cls, path: Path, cpus: int = 1) -> Map:
        """Open by pin; cpus is the number of possible CPUs for a per-CPU map."""
        return cls(obj_get(path), cpus)

    def _sized(self, key: bytes, value: bytes | None = None) -> None:
        if len(key) != self.key_size or (value is not None and len(value) != self.value_size):
            raise ValueError(
                f"map wants {self.key_size}+{self.value_size} bytes,"
                f" got {len(key)}+{len(value or b'')}"
            )

    def set(self, key: bytes, value: bytes) -> None:
        """Insert or replace; OSError when the map is full."""
        self._sized(key, value)
        _check(lib().bpf_map_update_elem(self.fd, key, value, BPF_ANY), "map update")

    def get(self, key: bytes) -> bytes | None:
        """Value or None."""
        self._sized(key)
        value = c.create_string_buffer(self.value_size)
        return None if lib().bpf_map_lookup_elem(self.fd, key, value) < 0 else value.raw

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        self._sized(key)
        return bool(lib().bpf_map_delete_elem(self.fd, key) == 0)

    def snapshot(self) -> list[bytes]:
        """All keys; a snapshot as good as the kernel gives."""
        return list(self._walk())

    def _walk(self) -> Iterator[bytes]:
        key: bytes | None = None
        for _ in range(2 * self.max_entries + 1):  # a map that changes may restart the walk
            after = c.create_string_buffer(self.key_size)
            if lib().bpf_map_get_next_key(self.fd, key, after) < 0:
                return
            key = after.raw
            yield key

    def close(self) -> None:
        """Close the fd; the pin stays."""
        os.close(self.fd)


def possible_cpus() -> int:
    """How many values a per-CPU map holds (sysfs: "0-3" or "0,2-5")."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    last = text.replace(",", "-").split("-")[-1]
    return int(last) + 1

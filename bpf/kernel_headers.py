"""Where bcc finds kernel headers.

Debian splits them into -common and -ARCH packages; bcc wants one tree. When the running kernel has
no build folder, the newest installed pair is merged by symlinks under a cache folder. The programs
use only UAPI context structs and helpers, so headers of another kernel version do.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from mesh.errors import Unsupported

_ARCH = {"x86_64": "x86", "aarch64": "arm64"}


def find(cache: Path = Path("/var/cache/ambit")) -> Path:
    """A tree for BCC_KERNEL_SOURCE; raises Unsupported naming the package to install."""
    given = os.environ.get("BCC_KERNEL_SOURCE")
    if given:
        return Path(given)
    own = Path("/lib/modules") / platform.release() / "build"
    if own.exists():
        return own
    for common in sorted(Path("/usr/src").glob("linux-headers-*-common"), key=_version)[::-1]:
        stem = common.name.removesuffix("-common")
        for arch in sorted(Path("/usr/src").glob(stem + "-*")):
            if arch != common and (arch / "include" / "generated").is_dir():
                return _merge(common, arch, cache / "kernel-headers" / arch.name)
    raise Unsupported(
        "no kernel headers for bcc: neither "
        f"{own} nor a linux-headers package in /usr/src."
        " Install linux-headers-amd64 (Debian), or set BCC_KERNEL_SOURCE"
    )


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", path.name))


def _merge(common: Path, arch: Path, tree: Path) -> Path:
    cpu = _ARCH.get(platform.machine(), platform.machine())
    links = {
        **{tree / "include" / p.name: p for p in (common / "include").iterdir()},
        tree / "include" / "generated": arch / "include" / "generated",
        tree / "include" / "config": arch / "include" / "config",
        **{
            tree / "arch" / cpu / "include" / p.name: p
            for p in (common / "arch" / cpu / "include").iterdir()
        },
        tree / "arch" / cpu / "include" / "generated": (
            arch / "arch" / cpu / "include" / "generated"
        ),
    }
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != target:
            scratch = link.with_name(f".{link.name}.{os.getpid()}")
            scratch.symlink_to(target)
            scratch.replace(link)
    return tree

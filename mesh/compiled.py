"""Which form of the byte path runs: compiled by mypyc, or the same files as plain Python.

scripts/compile_relay.sh puts extension modules beside their sources, which Python then prefers.
They belong together: a compiled class does not accept an uncompiled one of the same name. So
`choose` lets either all of them be compiled or none: none with AMBIT_PURE=1, when the compiled
form is missing, or when a source was changed after it was compiled.
"""

from __future__ import annotations

import importlib.machinery
import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Final

MODULES: Final = (
    "mesh.wire.frames",
    "mesh.wire.headers",
    "mesh.wire.sink",
    "mesh.wire.records",
    "mesh.wire.reader",
    "mesh.wire.h2",
    "mesh.wire.hbone",
    "ztunnel.relay.loop",
    "ztunnel.relay.report",
    "ztunnel.relay.leg",
    "ztunnel.relay.pipe",
    "ztunnel.relay.stream",
    "ztunnel.relay.link",
    "ztunnel.relay.tunnel",
    "ztunnel.relay.context",
    "ztunnel.relay.pod",
    "ztunnel.relay.server",
    "ztunnel.relay.client",
    "ztunnel.relay.outbound",
    "ztunnel.relay.control",
)
GROUP: Final = "ambit"  # name of the shared library that holds the code of all of them

_ROOT: Final = Path(__file__).resolve().parent.parent


def source(module: str) -> Path:
    """Its source file."""
    return _ROOT / (module.replace(".", "/") + ".py")


def library() -> Path | None:
    """The shared library, if it was built for this interpreter."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = _ROOT / f"{GROUP}__mypyc{suffix}"
        if path.exists():
            return path
    return None


class _Sources(MetaPathFinder):
    """Finds these modules' sources before anything finds their compiled form."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MODULES:
            return None
        finder = importlib.machinery.FileFinder(
            str(source(name).parent),
            (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES),
        )
        return finder.find_spec(name)


def is_compiled() -> bool:
    """Which form `choose` chose."""
    return not any(isinstance(f, _Sources) for f in sys.meta_path)


def choose() -> None:
    """Decide, once per process, before the first of the modules is imported."""
    if not is_compiled():
        return
    built = library()
    if os.environ.get("AMBIT_PURE", "0") not in ("", "0"):
        built = None
    elif built is not None:
        made = built.stat().st_mtime_ns
        changed = [m for m in MODULES if source(m).stat().st_mtime_ns > made]
        if changed:
            built = None
            logging.getLogger("ambit").warning(
                "%s changed since it was compiled: running the byte path as plain Python;"
                " scripts/compile_relay.sh compiles it again",
                ", ".join(changed),
            )
    if built is None:
        sys.meta_path.insert(0, _Sources())

"""Compiled Python beside its sources, for a root that is read-only.

The compiled files are "unchecked": Python takes them without looking at the source's time, so no
time is in them, and nothing is checked at start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from deploy.images.errors import ImageError
from deploy.images.shell import run
from deploy.images.wheels import PYTHON

_FLAGS: Final = ("-E", "-s", "-S", "-m", "compileall", "-q", "-f", "-j1")


def compile_all(root: Path, folders: list[str]) -> None:
    """Compile what is below these folders of root, as if root were /; raises ImageError.

    One fresh interpreter for all: marshalled code depends on which strings are shared, which in a
    busy process differs from run to run.
    """
    here = ".".join(map(str, sys.version_info[:2]))
    if here != PYTHON:
        raise ImageError(
            f"the images hold Python {PYTHON}, whose bytecode Python {here} cannot make:"
            f" run this with Python {PYTHON} (`make images` does)"
        )
    present = [str(root / f) for f in folders if (root / f).is_dir()]
    if present:
        mode = ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
        env = {k: "" for k in os.environ if k.startswith("PYTHON")} | {"PYTHONHASHSEED": "0"}
        run([sys.executable, *_FLAGS, *mode, *present], "compiling Python", env=env)

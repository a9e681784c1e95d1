"""The project's own layers: its wheel with the relay compiled, its commands, its CNI plugin."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from deploy.images import apt, cache, source, unpack, wheels
from deploy.images.errors import ImageError
from deploy.images.locks import Pin
from deploy.images.prune import Pruner
from deploy.images.recipe import PROJECT
from deploy.images.sbom import Component
from deploy.images.shell import run, say
from deploy.images.source import ROOT
from mesh.compiled import GROUP, MODULES

CNI: Final = "deploy/cni"
CNI_TARGET: Final = "opt/ambit/bin/ambit-cni"
_COMPILE: Final = "scripts/compile_relay.sh"
_COMMAND: Final = """\
#!/usr/bin/python3
import sys

from {module} import {function}

sys.exit({function}())
"""
# Nothing of where it was built: {} are the environment's folder and the sources'.
_CFLAGS: Final = "-g0 -ffile-prefix-map={}=/builder -ffile-prefix-map={}=/source"
_LDFLAGS: Final = "-s -Wl,--build-id=none"
_GO: Final = {"GOTOOLCHAIN": "local"}  # no compiler is downloaded in passing


def install(root: Path, locks: Mapping[str, tuple[Pin, ...]]) -> None:
    """Put the project below root, as pip would. `locks`: pins by the name of their lock file."""
    python = _builder(locks)
    names = source.shipped(source.files())
    with cache.scratch() as work:
        tree = work / "tree"
        _copy(names, tree)
        run([python, "-m", "hatchling", "build", "-t", "wheel", "-d", work], "wheel", cwd=tree)
        (made,) = work.glob("*.whl")
        unpack.wheel(made, root, PROJECT)
        shutil.copytree(_relay(tree, python, locks), root / unpack.SITE, dirs_exist_ok=True)
    for name, place in source.about()["scripts"].items():
        module, _, function = place.partition(":")
        path = root / "usr/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_COMMAND.format(module=module, function=function))
        path.chmod(0o755)


def _copy(names: Iterable[str], tree: Path) -> None:
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)


def _builder(locks: Mapping[str, tuple[Pin, ...]]) -> Path:
    """An environment with exactly the pinned tools, and what the project imports; its Python."""
    key = source.digest((), sys.version, *(p.sha256 for pins in locks.values() for p in pins))
    place = cache.kind("builder") / key
    if not cache.used(place):
        say("environment for building")
        with cache.scratch() as work:
            run([sys.executable, "-m", "venv", "--without-pip", work / "env"], "environment")
            for name, pins in locks.items():
                for wheel in wheels.fetch(source.HERE / name, pins).values():
                    site = f"lib/python{wheels.PYTHON}/site-packages"
                    unpack.wheel(wheel, work / "env", Pruner(()), site)
            cache.keep(work / "env", place)
    return place / "bin/python"


def _relay(tree: Path, python: Path, locks: Mapping[str, tuple[Pin, ...]]) -> Path:
    """The folder with the relay's extension modules, placed as beside their sources."""

    def read(module: str) -> str | None:
        path = source.module_path(module)
        return None if path is None else (ROOT / path).read_text()

    # mypyc takes constants and types from what the modules import: all of it counts.
    modules = {source.module_path(m) for m in source.reached(MODULES, read)}
    compiler = run(["gcc", "-v", "-E", "-x", "c", "/dev/null", "-o", "/dev/null"], "C compiler")
    pins = (p.sha256 for group in locks.values() for p in group)
    native = [n for n in source.files() if n.endswith((".c", ".h")) and not n.startswith("bpf/")]
    names = [_COMPILE, "mesh/compiled.py", *native, *(m for m in modules if m)]
    key = source.digest(names, compiler, sys.version, _CFLAGS + _LDFLAGS, *pins)
    place = cache.kind("relay") / key
    if not cache.used(place):
        say("compiling the relay with mypyc (a minute or two)")
        env = {
            "PYTHON": str(python),
            "PYTHONHASHSEED": "0",
            "CFLAGS": _CFLAGS.format(python.parent.parent, tree),
            "LDFLAGS": _LDFLAGS,
        }
        said = run([tree / _COMPILE], "compiling the relay", cwd=tree, env=env)
        made = [p for p in tree.rglob("*.so") if "build" not in p.relative_to(tree).parts]
        if not any(p.name.startswith(f"{GROUP}__mypyc") for p in made):
            raise ImageError(f"the relay was not compiled: {said.strip()}")
        with cache.scratch() as work:
            for path in made:
                target = work / "relay" / path.relative_to(tree)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            cache.keep(work / "relay", place)
    return place


def cni(root: Path) -> None:
    """Build the CNI plugin below root; raises ImageError when Go is missing or too old."""
    target = root / CNI_TARGET
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        run([ROOT / CNI / "build.sh", target, apt.ARCHITECTURE], "CNI plugin", env=_GO)
    except ImageError as e:
        raise ImageError(f"{e}\n{_go_needed()}") from e


def go_key() -> str:
    """Names what the CNI plugin is built from."""
    names = [n for n in source.files() if n.startswith(f"{CNI}/")]
    try:
        return source.digest(names, run(["go", "version"], "CNI plugin"))
    except ImageError as e:
        raise ImageError(f"{e}\n{_go_needed()}") from e


def _go_needed() -> str:
    wanted = (ROOT / CNI / "go.mod").read_text().partition("\ngo ")[2].split("\n")[0]
    return f"{CNI} is built with Go {wanted} or newer (`go` on the PATH)"


def go_modules(binary: Path) -> list[Component]:
    """What a Go program was linked from, by its own word."""
    listed = run(["go", "version", "-m", binary], "modules of the CNI plugin")
    words = [line.split() for line in listed.splitlines()]
    return [Component("golang", w[1], w[2]) for w in words if w[:1] == ["dep"]]

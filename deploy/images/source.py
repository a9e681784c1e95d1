"""The project's own files: which there are, what they import, and what names their contents."""

from __future__ import annotations

import ast
import hashlib
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from deploy.images import cache
from deploy.images.shell import run

ROOT: Final = Path(__file__).resolve().parent.parent.parent
HERE: Final = Path(__file__).resolve().parent
_NOT_SHIPPED: Final = ("tests/", "bench/", "docs/", "vagrant/", "deploy/images/", "deploy/cni/")


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def about() -> dict[str, Any]:
    """pyproject.toml's [project]."""
    found: dict[str, Any] = _pyproject()["project"]
    return found


def packages() -> tuple[str, ...]:
    """The top-level packages that the wheel carries."""
    return tuple(_pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def files() -> list[str]:
    """Every file that git has or would take, sorted."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = run(command, "the project's files", cwd=ROOT)
    return sorted({f for f in listed.split("\0") if f and (ROOT / f).is_file()})


def shipped(names: Iterable[str]) -> list[str]:
    """Those of them that the wheel may be made of."""
    return [n for n in names if not n.startswith(_NOT_SHIPPED)]


def digest(names: Iterable[str], *more: str) -> str:
    """Names the contents of files of the project, and whatever else counts."""
    found = hashlib.sha256()
    for name in sorted(names):
        found.update(f"{name}\0{cache.sha256(ROOT / name)}\n".encode())
    for text in more:
        found.update(f"{text}\n".encode())
    return found.hexdigest()


def revision() -> tuple[str, int]:
    """The commit ("-dirty" when files differ from it) and its time in seconds."""
    commit, when = run(["git", "log", "-1", "--format=%H %ct"], "the commit", cwd=ROOT).split()
    changed = run(["git", "status", "--porcelain"], "the commit", cwd=ROOT)
    return commit + ("-dirty" if changed.strip() else ""), int(when)


def reached(modules: Iterable[str], read: Callable[[str], str | None]) -> set[str]:
    """These modules and those that they import, and so on.

    `read` gives a module's source; None when it is not the project's.
    """
    found: set[str] = set()
    queue = list(modules)
    while queue:
        module = queue.pop()
        text = None if module in found else read(module)
        if text is not None:
            found.add(module)
            queue += _imported(text)
    return found


def _imported(text: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def module_path(module: str) -> str | None:
    """The file of a module of the project, relative to its root."""
    base = module.replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None

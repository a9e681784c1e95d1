"""What a finished folder holds, and whether several together are whole. The reading is here too;
the checks are pure.
"""

from __future__ import annotations

import ast
import mmap
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from deploy.images import elf
from deploy.images.errors import ImageError
from deploy.images.unpack import SITE

LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"  # ld.so's own search path; there is no ld.so.cache
_MODULES: Final = (
    "usr/lib/python3.11",
    "usr/lib/python3.11/lib-dynload",
    "usr/lib/python3/dist-packages",
    SITE,
)
_MANY: Final = 5  # how many missing things an error names


@dataclass(frozen=True, slots=True)
class Contents:
    """paths: every file and link; wants: for each shared library needed, a file that needs it;
    imports: for each module imported by the project, a file that does."""

    paths: tuple[str, ...]
    wants: Mapping[str, str] = field(default_factory=dict)
    imports: Mapping[str, str] = field(default_factory=dict)


def read(root: Path, packages: Collection[str] = ()) -> Contents:
    """Look through a folder; `packages` are the project's, whose imports are noted."""
    paths: list[str] = []
    wants: dict[str, str] = {}
    imports: dict[str, str] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        inner = Path(folder).relative_to(root)
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*files, *links]):
            path, file = str(inner / name), Path(folder, name)
            paths.append(path)
            if file.is_symlink() or not file.stat().st_size:
                continue
            for library in _needed(file, path, root):
                wants.setdefault(library, path)
            if _of_project(path, packages):
                for module in _imported(file.read_text(), path):
                    imports.setdefault(module, path)
    return Contents(tuple(paths), wants, imports)


def _needed(file: Path, path: str, root: Path) -> list[str]:
    """The libraries a file needs from elsewhere than the folders it names itself."""
    with file.open("rb") as opened:
        if opened.read(4) != elf.MAGIC:
            return []
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = elf.dynamic(data, path)
    own = [
        root / str(PurePosixPath(p.replace("$ORIGIN", str(PurePosixPath(path).parent))))
        for p in found.runpath
    ]
    return [n for n in found.needed if not any((folder / n).exists() for folder in own)]


def _of_project(path: str, packages: Collection[str]) -> bool:
    inside = path.removeprefix(f"{SITE}/")
    return path.endswith(".py") and inside != path and inside.partition("/")[0] in packages


def _imported(source: str, path: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
    return found


def check(parts: Sequence[Contents], builtin: Iterable[str], without: Collection[str] = ()) -> None:
    """Raise ImageError when layers together lack a library or a module that one of them needs.

    `builtin`: modules inside the interpreter; `without`: modules that this image does not offer.
    """
    paths = {path for part in parts for path in part.paths}
    missing = [
        f"{library} (needed by {by})"
        for part in parts
        for library, by in part.wants.items()
        if f"{LIBRARIES}/{library}" not in paths and f"usr/lib64/{library}" not in paths
    ]
    known = _importable(paths) | set(builtin)
    missing += [
        f"module {module} (imported by {by})"
        for part in parts
        for module, by in part.imports.items()
        if module not in known and module.partition(".")[0] not in without
    ]
    if missing:
        more = f" and {len(missing) - _MANY} more" if len(missing) > _MANY else ""
        raise ImageError(
            f"the image would lack {', '.join(missing[:_MANY])}{more}: see deploy/images/recipe.py"
        )


def _importable(paths: Iterable[str]) -> set[str]:
    """Dotted names of all modules and packages below the folders of sys.path."""
    found = set()
    for path in paths:
        folder = max((m for m in _MODULES if path.startswith(f"{m}/")), key=len, default="")
        if not folder or not path.endswith((".py", ".so")):
            continue
        parts = path.removeprefix(f"{folder}/").split("/")
        parts[-1] = parts[-1].partition(".")[0]
        for i in range(1, len(parts) + 1):
            found.add(".".join(parts[:i]))
    return found

"""Small libraries in place of large ones that a program names but never reaches.

ld.so loads every library that a file names, and resolves every function, or refuses the file. LLVM
names libxml2 (for Windows manifests; brings ICU's 35 MB) and Z3 (for the static analyzer; 22 MB).
bcc's compilations enter neither. A stand-in has the names and, if one were ever called, ends the
process with a message.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.images import cache
from deploy.images.errors import ImageError
from deploy.images.shell import run

_UNDEFINED: Final = re.compile(r"\s+[Uvw] (\w+)(?:@+(\S+))?")
_FLAGS: Final = ("-shared", "-fPIC", "-O2", "-g0", "-s", "-Wl,--build-id=none", "-Wl,-z,now")


@dataclass(frozen=True, slots=True)
class StandIn:
    """A library's soname, and the beginnings of its functions' names."""

    soname: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """A function that a file takes from elsewhere; version is empty when it asks for none."""

    name: str
    version: str = ""


def undefined(nm: str) -> list[Symbol]:
    """The symbols in what `nm -D --undefined-only --with-symbol-versions` printed."""
    found = (_UNDEFINED.fullmatch(line) for line in nm.splitlines())
    return sorted({Symbol(m[1], m[2] or "") for m in found if m})


def source(standin: StandIn, symbols: Iterable[Symbol]) -> str:
    """C text that defines those of the symbols that are this library's."""
    own = _own(standin, symbols)
    lines = [
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "static void gone(const char *name)",
        "{",
        f'\tfprintf(stderr, "%s: {standin.soname} is left out of this image\\n", name);',
        "\tabort();",
        "}",
    ]
    lines += [f'void {s.name}(void) {{ gone("{s.name}"); }}' for s in own]
    return "\n".join(lines) + "\n"


def version_script(standin: StandIn, symbols: Iterable[Symbol]) -> str:
    """The linker's map that gives each of them its version; empty when none has one."""
    by_version: Mapping[str, list[str]] = defaultdict(list)
    for symbol in _own(standin, symbols):
        if symbol.version:
            by_version[symbol.version].append(symbol.name)
    return "".join(
        f"{version} {{ global: {'; '.join(names)}; }};\n"
        for version, names in sorted(by_version.items())
    )


def _own(standin: StandIn, symbols: Iterable[Symbol]) -> list[Symbol]:
    return [s for s in symbols if s.name.startswith(standin.prefixes)]


def build(standins: Sequence[StandIn], users: Iterable[Path], folder: Path) -> None:
    """Make the stand-ins that these files need, in their folder."""
    symbols: set[Symbol] = set()
    for user in users:
        command = ["nm", "-D", "--undefined-only", "--with-symbol-versions", str(user)]
        symbols.update(undefined(run(command, f"symbols of {user.name}")))
    with cache.scratch() as work:
        for standin in standins:
            if not _own(standin, symbols):
                raise ImageError(
                    f"nothing uses {standin.soname} any more: take it out of the recipe"
                )
            code, script = work / f"{standin.soname}.c", work / f"{standin.soname}.map"
            code.write_text(source(standin, sorted(symbols)))
            script.write_text(version_script(standin, sorted(symbols)))
            versions = [f"-Wl,--version-script={script.name}"] if script.stat().st_size else []
            target = folder / standin.soname
            command = ["gcc", *_FLAGS, f"-Wl,-soname,{standin.soname}", *versions, code.name]
            run([*command, "-o", str(target)], f"stand-in for {standin.soname}", cwd=work)
            target.chmod(0o644)

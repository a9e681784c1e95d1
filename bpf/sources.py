"""The C text that bcc compiles: headers and hooks, in order, as one file.

bcc rewrites map accesses only in the main file, so includes are joined here.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError

HERE: Final = Path(__file__).parent
HEADERS: Final = ("structs.h", "maps.h", "helpers.h")
SOURCES: Final = ("connect.c", "names.c", "sockops.c", "sockopt.c", "lookup.c")
_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
PREAMBLE: Final = "#include <uapi/linux/bpf.h>\n#include <uapi/linux/in.h>\n"


@dataclass(frozen=True, slots=True)
class Hook:
    """One program: C function, program type and attach type (enums of linux/bpf.h)."""

    name: str
    function: str
    program_type: int
    attach_type: int
    per_pod: bool = False


HOOKS: Final = (
    Hook("connect4", "connect4", 18, 10),
    Hook("connect6", "connect6", 18, 11),
    Hook("getpeername4", "getpeername4", 18, 29),
    Hook("getpeername6", "getpeername6", 18, 30),
    Hook("getsockname4", "getsockname4", 18, 31),
    Hook("getsockname6", "getsockname6", 18, 32),
    Hook("sock_ops", "sockops", 13, 3),
    Hook("getsockopt", "getsockopt_hook", 25, 21),
    Hook("setsockopt", "setsockopt_hook", 25, 22),
    Hook("sk_lookup", "sk_lookup", 30, 36, per_pod=True),
)


def text() -> str:
    """The whole program."""
    parts = [PREAMBLE]
    parts += [(HERE / "include" / n).read_text() for n in HEADERS]
    parts += [(HERE / "src" / n).read_text() for n in SOURCES]
    return "\n".join(parts)


def defines() -> tuple[str, ...]:
    """Limits given anew by the operator, AMBIT_BPF_DEFINES="MAX_PODS=2048 MAX_FLOWS=65536".

    Raises ConfigError naming one that is no limit.
    """
    known = re.findall(r"#ifndef (\w+)", _header("structs.h"))
    given = tuple(sorted(os.environ.get("AMBIT_BPF_DEFINES", "").split()))
    for item in given:
        if not re.fullmatch(rf"({'|'.join(known)})=[1-9][0-9]*", item):
            raise ConfigError(
                f"AMBIT_BPF_DEFINES: {item!r} is not NAME=NUMBER with NAME of {', '.join(known)}"
            )
    return given


def digest() -> str:
    """Names a build: changes with any source and any limit."""
    return _hash(text(), *defines())


def layout_digest() -> str:
    """Names a set of maps: changes only with what lies in them, not with a comment."""
    code = (_COMMENT.sub(" ", _header(name)) for name in ("structs.h", "maps.h"))
    return _hash(*(" ".join(part.split()) for part in code), *defines())


def counters() -> list[str]:
    """Names of enum counter, in order, from the header itself."""
    body = _COMMENT.sub("", _header("structs.h")).split("enum counter {")[1].split("}")[0]
    names = re.findall(r"\w+", body)
    return [name.lower() for name in names[: names.index("COUNTERS")]]


def _header(name: str) -> str:
    return (HERE / "include" / name).read_text()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

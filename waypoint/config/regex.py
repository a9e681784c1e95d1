"""Whether Envoy takes a regular expression: asked of RE2 itself, the library that Envoy uses.

One expression that Envoy refuses makes it refuse the whole resource that it is in, so each is
tried before it gets there. Python's `re` knows another language (it has lookaround and back
references, and no \\pN or \\C), and its matching is not linear in time.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

# Envoy compares RE2's program size with the runtime key re2.max_program_size.error_level, which is
# 100 unless set: far too little for real patterns. The waypoint's bootstrap sets this one (Istio's
# number). A program has about one instruction per byte of literal text.
MAX_PROGRAM: Final = 32768
PROGRAM_SIZE_KEY: Final = "re2.max_program_size.error_level"

_MEMORY: Final = 1 << 20  # of one compilation; enough for MAX_PROGRAM instructions of 16 bytes
_REFERENCE = re.compile(r"\\(.?)", re.DOTALL)


@cache
def _options() -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    return options


def _compile(pattern: str) -> tuple[Any, str]:
    """Compile; returns the compiled form or why there is none."""
    import re2  # 2 MB, and only who reads routes needs it

    if len(pattern) > MAX_PROGRAM:
        return None, f"longer than {MAX_PROGRAM} characters"
    try:
        compiled = re2.compile(pattern, _options())
    except re2.error as e:
        why = e.args[0] if e.args else "cannot be compiled"
        return None, (why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why))[:200]
    except UnicodeError:
        return None, "not valid Unicode text"
    finally:
        re2.purge()  # its cache would keep the last 128 alive, whatever their size
    if compiled.programsize > MAX_PROGRAM:
        return None, (
            f"too complex: a program of {compiled.programsize} instructions, at most {MAX_PROGRAM}"
        )
    return compiled, ""


def fault(pattern: str) -> str:
    """Say why Envoy would refuse a regular expression (RE2 syntax); "" if it takes it."""
    return _compile(pattern)[1]


def substitution_fault(pattern: str, substitution: str) -> str:
    r"""Say why Envoy would refuse a substitution (\0 to \9, \\) for this pattern, or ""."""
    compiled, why = _compile(pattern)
    if why:
        return why
    for m in _REFERENCE.finditer(substitution):
        what = m[1]
        if what == "\\":
            continue
        if not what.isascii() or not what.isdigit():
            return rf"{m[0]!r} in the substitution: only \0 to \9 and \\ are known"
        if int(what) > compiled.groups:
            return rf"\{what} in the substitution: the pattern has {compiled.groups} groups"
    return ""


def literal(text: str) -> str:
    """Build the pattern that matches this text alone."""
    return "".join(c if c.isalnum() or c in "_/-" or ord(c) > 127 else "\\" + c for c in text)

"""Whether Envoy takes a regular expression: asked of RE2 itself, the library that Envoy uses.

One expression that Envoy refuses makes it refuse the whole resource that it is in, so each is
tried before it gets there. Python's `re` knows another language (it has lookaround and back
references, and no \\pN or \\C), and its matching is not linear in time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

# Envoy compares RE2's program size with the runtime key re2.max_program_size.error_level, which is
# 100 unless set: far too little for real patterns. The waypoint's bootstrap sets this one (Istio's
# number). A program has about one instruction per byte of literal text.
MAX_PROGRAM: Final = 32768
PROGRAM_SIZE_KEY: Final = "re2.max_program_size.error_level"

# Instructions of all patterns of one object: eight of the most complex, or thousands of usual ones.
BUDGET: Final = 8 * MAX_PROGRAM

_MEMORY: Final = 1 << 20  # of one compilation; enough for MAX_PROGRAM instructions of 16 bytes
_TOO_LARGE: Final = "pattern too large"  # RE2's words for what takes more than that
_REMEMBERED: Final = 4096  # patterns
_SHORT: Final = 1024  # characters of a pattern that is remembered
_REFERENCE = re.compile(r"\\(.?)", re.DOTALL)


@cache
def _options() -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    return options


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What RE2 says of a pattern. `size`: instructions, or what was spent before it gave up."""

    why: str
    size: int
    groups: int = 0


def _compile(pattern: str) -> _Verdict:
    import re2  # 2 MB, and only who reads routes needs it

    if len(pattern) > MAX_PROGRAM:
        return _Verdict(f"longer than {MAX_PROGRAM} characters", 0)
    try:
        compiled = re2.compile(pattern, _options())
    except re2.error as e:
        raw = e.args[0] if e.args else "cannot be compiled"
        why = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
        return _Verdict(why[:200], MAX_PROGRAM if _TOO_LARGE in why else len(pattern))
    except UnicodeError:
        return _Verdict("not valid Unicode text", len(pattern))
    finally:
        re2.purge()  # its cache would keep the last 128 alive, whatever their size
    size = compiled.programsize
    if size > MAX_PROGRAM:
        why = f"too complex: a program of {size} instructions, at most {MAX_PROGRAM}"
        return _Verdict(why, size)
    return _Verdict("", size, compiled.groups)


_remembered = lru_cache(maxsize=_REMEMBERED)(_compile)


class _Budget:
    """What may still be compiled for one object."""

    def __init__(self) -> None:
        self.left = BUDGET


_budget: ContextVar[_Budget | None] = ContextVar("_budget", default=None)


@contextmanager
def budget() -> Iterator[None]:
    """Bound what is compiled inside, for one object: it costs milliseconds here and in Envoy.

    Once BUDGET instructions are used up, every further pattern is refused unseen. What counts is
    what patterns cost, known or not, so the same object is always told the same.
    """
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def _judge(pattern: str) -> _Verdict:
    spent = _budget.get()
    if spent is not None and spent.left <= 0:
        return _Verdict(
            f"the regular expressions of this object are too complex together: at most {BUDGET}"
            " instructions, which are used up before this one",
            0,
        )
    # Long ones are not remembered: that bounds the memory of the cache to a few megabytes.
    verdict = _remembered(pattern) if len(pattern) <= _SHORT else _compile(pattern)
    if spent is not None:
        spent.left -= verdict.size
    return verdict


def fault(pattern: str) -> str:
    """Say why Envoy would refuse a regular expression (RE2 syntax); "" if it takes it."""
    return _judge(pattern).why


def substitution_fault(pattern: str, substitution: str) -> str:
    r"""Say why Envoy would refuse a substitution (\0 to \9, \\) for this pattern, or ""."""
    verdict = _judge(pattern)
    if verdict.why:
        return verdict.why
    for m in _REFERENCE.finditer(substitution):
        what = m[1]
        if what == "\\":
            continue
        if not what.isascii() or not what.isdigit():
            return rf"{m[0]!r} in the substitution: only \0 to \9 and \\ are known"
        if int(what) > verdict.groups:
            return rf"\{what} in the substitution: the pattern has {verdict.groups} groups"
    return ""


def literal(text: str) -> str:
    """Build the pattern that matches this text alone."""
    return "".join(c if c.isalnum() or c in "_/-" or ord(c) > 127 else "\\" + c for c in text)

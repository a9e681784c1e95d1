"""Which files of a package an image keeps. Pure.

Rules are patterns on whole paths: * matches within one name, ** across folders too. A path is
dropped when a rule of `drop` matches and none of `keep` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_MERGED: Final = ("bin", "sbin", "lib", "lib64")  # Debian 12: links into /usr
_WILD: Final = re.compile(r"(\*\*|\*)")
_MEANS: Final = {"**": ".*", "*": "[^/]*"}


class Pruner:
    """Patterns, compiled once."""

    def __init__(self, drop: Iterable[str], keep: Iterable[str] = ()) -> None:
        self._drop = _any(drop)
        self._keep = _any(keep)

    def keeps(self, path: str) -> bool:
        """Whether a path (relative to the root) stays."""
        return not self._drop.fullmatch(path) or bool(self._keep.fullmatch(path))


def _any(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(_regex(p) for p in patterns) or r"(?!)", re.DOTALL)


def _regex(pattern: str) -> str:
    return "".join(_MEANS.get(part) or re.escape(part) for part in _WILD.split(pattern))


def merged(path: str) -> str:
    """usr/lib/x of ./lib/x: packages still name the folders that became links."""
    clean = path.removeprefix("./").strip("/")
    first = clean.partition("/")[0]
    return f"usr/{clean}" if first in _MERGED else clean

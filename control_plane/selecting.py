"""Which pods which selectors may mean, without comparing each with each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

_T = TypeVar("_T")
_K = TypeVar("_K")
_Pair = tuple[str, str, str]  # namespace, label, value


class LabelIndex(Generic[_T]):
    """Things of namespaces by labels; a thing may be entered under some of its labels only."""

    def __init__(self) -> None:
        self._at: dict[_Pair, set[_T]] = {}

    def put(
        self,
        namespace: str,
        what: _T,
        old: Iterable[tuple[str, str]],
        new: Iterable[tuple[str, str]],
    ) -> None:
        """Replace the labels that something is entered under."""
        was, now = set(old), set(new)
        for label in was - now:
            here = self._at.get((namespace, *label), set())
            here.discard(what)
            if not here:
                self._at.pop((namespace, *label), None)
        for label in now - was:
            self._at.setdefault((namespace, *label), set()).add(what)

    def find(self, namespace: str, labels: Iterable[tuple[str, str]]) -> set[_T]:
        """Find all that are entered under any of these labels."""
        found: set[_T] = set()
        for label in labels:
            found |= self._at.get((namespace, *label), set())
        return found


def pivot(selector: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """One of a selector's labels, which all that it selects have; () if it selects nothing."""
    return tuple(sorted(selector.items())[:1])


def set_values(index: dict[str, tuple[str, ...]], key: str, values: set[str]) -> None:
    """Keep the values of a key, sorted, and no key without values."""
    if values:
        index[key] = tuple(sorted(values))
    else:
        index.pop(key, None)


def discard(index: dict[_K, set[_T]], key: _K, value: _T) -> None:
    """Take a value out of a key's, and the key with its last one."""
    here = index.get(key, set())
    here.discard(value)
    if not here:
        index.pop(key, None)

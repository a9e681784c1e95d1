"""Reading untyped objects field by field: wrong values are said by name, right ones are kept.

Every reader returns None (or nothing) for what is absent and for what is wrong; only the report
tells the two apart. Nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

_MAX_FINDINGS: Final = 64  # of one object: its status shows a handful, and memory is bounded
_MAX_VALUE: Final = 80  # characters of a wrong value that a message quotes

# Envoy's timers take milliseconds, and it refuses shorter ones; ten years is past any use.
_MIN_DURATION: Final = 0.001
MAX_HEADER_VALUE: Final = 16384  # bytes; Envoy takes no longer ones
MAX_DURATION: Final = 10 * 365 * 86400.0
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:h|ms|us|µs|ns|m|s))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass(slots=True)
class Report:
    """What is to be said about one object.

    `invalid`: the value is wrong. `unsupported`: it is right, and a waypoint does not do it.
    `refused`: why nothing of the object is in effect; "" if something is.
    """

    invalid: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    refused: str = ""
    left_out: int = 0

    def bad(self, path: str, why: str) -> None:
        """Say that a value is wrong."""
        self._add(self.invalid, f"{path}: {why}")

    def skip(self, path: str, why: str) -> None:
        """Say that a value has no effect here."""
        self._add(self.unsupported, f"{path}: {why}")

    def take(self, other: Report) -> None:
        """Add what another report says."""
        for mine, others in ((self.invalid, other.invalid), (self.unsupported, other.unsupported)):
            for text in others:
                self._add(mine, text)
        self.left_out += other.left_out
        self.refused = self.refused or other.refused

    def _add(self, where: list[str], text: str) -> None:
        if text in where:
            return
        if len(where) < _MAX_FINDINGS:
            where.append(text)
        else:
            self.left_out += 1

    def __bool__(self) -> bool:
        """Say whether there is anything to tell."""
        return bool(self.invalid or self.unsupported or self.refused)


def show(value: Any) -> str:
    """Quote a wrong value, shortened."""
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    if isinstance(value, int) and abs(value) >> 256:
        return "a huge number"  # Python refuses to write the greatest of them out
    text = repr(value[:_MAX_VALUE] if isinstance(value, str) else value)
    return text if len(text) <= _MAX_VALUE + 2 else text[:_MAX_VALUE] + "..."


def parse_duration(value: Any) -> float | None:
    """Read a duration as Go and protobuf write it ("1.5s", "1h30m"), in seconds."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        return None
    return sum(float(n) * _UNITS[unit] for n, unit in _DURATION_PART.findall(value))


def fits_header(text: str) -> bool:
    """Say whether Envoy takes a text as a value of a header: one line, and not too long.

    Each "%" is counted twice, as it is sent.
    """
    size = len(text.encode("utf-8", "replace")) + text.count("%")
    return size <= MAX_HEADER_VALUE and not any(c in text for c in "\r\n\0")


def _text_fault(value: Any) -> str:
    """Say why a value is no text; "" if it is. Half a surrogate pair cannot be sent to Envoy."""
    if not isinstance(value, str):
        return f"{show(value)} is not text (quote it)"
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        return f"{show(value)} is not valid Unicode"
    return ""


class Fields:
    """One mapping of an object. Fields that nobody asked for do not exist: `done` says so."""

    def __init__(self, value: Any, path: str, report: Report) -> None:
        self.path = path
        self.report = report
        self.sound = value is None or isinstance(value, Mapping)
        if not self.sound:
            report.bad(path, f"must be a mapping, not {show(value)}")
        self.value: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        self._known: set[str] = set()

    def at(self, name: str) -> str:
        """Name the path of a field."""
        return f"{self.path}.{name}"

    def bad(self, name: str, why: str) -> None:
        """Say that a field is wrong."""
        self.report.bad(self.at(name), why)

    def has(self, name: str) -> bool:
        """Say whether a field is written."""
        self._known.add(name)
        return self.value.get(name) is not None

    def raw(self, name: str) -> Any:
        """Return a field as it is."""
        self._known.add(name)
        return self.value.get(name)

    def names(self) -> list[str]:
        """Name the keys of a mapping whose keys are the user's."""
        self._known.update(self.value)
        return [str(k) for k in self.value]

    def mapping(self, name: str) -> Fields | None:
        """Read a mapping; None if there is none."""
        value = self.raw(name)
        if value is None:
            return None
        return Fields(value, self.at(name), self.report)

    def inner(self, name: str, read: Callable[[Fields], _T]) -> _T | None:
        """Read a mapping by its own reader; None if there is none."""
        found = self.mapping(name)
        return None if found is None else read(found)

    def each(self, name: str) -> Iterator[Fields]:
        """Read a list of mappings."""
        for path, value in self.items(name):
            yield Fields(value, path, self.report)

    def items(self, name: str) -> list[tuple[str, Any]]:
        """Read a list: path and value of each."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.bad(name, f"must be a list, not {show(value)}")
            return []
        return [(f"{self.at(name)}[{i}]", v) for i, v in enumerate(value)]

    def text(self, name: str) -> str:
        """Read text; "" if there is none."""
        value = self.raw(name)
        if value is None:
            return ""
        why = _text_fault(value)
        if why:
            self.bad(name, why)
            return ""
        return str(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of texts; those that are none are left out."""
        out = []
        for path, value in self.items(name):
            why = _text_fault(value)
            if why:
                self.report.bad(path, why)
            else:
                out.append(value)
        return tuple(out)

    def text_map(self, name: str) -> dict[str, str]:
        """Read a mapping of text to text; other values are left out."""
        inner = self.mapping(name)
        if inner is None:
            return {}
        out = {}
        for key in inner.names():
            value = inner.raw(key)
            why = _text_fault(value) or _text_fault(key)
            if why:
                inner.bad(key, why)
            else:
                out[key] = value
        return out

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Read a whole number within bounds."""
        value = self.number(name, low, high)
        if value is None:
            return None
        if value != int(value):
            self.bad(name, f"{show(self.raw(name))} is not a whole number")
            return None
        return int(value)

    def number(self, name: str, low: float, high: float) -> float | None:
        """Read a number within bounds."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.bad(name, f"{show(value)} is not a number")
            return None
        if not low <= value <= high:  # NaN is not within either
            self.bad(name, f"{show(value)} is not between {low} and {high}")
            return None
        return float(value)

    def boolean(self, name: str) -> bool | None:
        """Read true or false."""
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            self.bad(name, f"{show(value)} is neither true nor false")
            return None
        return value

    def duration(self, name: str, *, zero: bool = False) -> float | None:
        """Read a duration in seconds, of 1 ms or more (or none at all, where zero means that)."""
        value = self.raw(name)
        if value is None:
            return None
        seconds = parse_duration(value)
        if seconds is None:
            self.bad(name, f"{show(value)} is not a duration such as 250ms, 1.5s or 1h")
        elif seconds == 0 and zero:
            return 0.0
        elif not _MIN_DURATION <= seconds <= MAX_DURATION:
            self.bad(name, f"{show(value)} is not between 1ms and 10 years")
        else:
            return round(seconds, 9)
        return None

    def choice(self, name: str, *choices: str) -> str:
        """Read one of several words; "" if there is none."""
        value = self.text(name)
        if value and value not in choices:
            self.bad(name, f"{show(value)} is none of {', '.join(choices)}")
            return ""
        return value

    def skip(self, why: str, *names: str) -> None:
        """Take fields that a waypoint does nothing with, and say why."""
        for name in names:
            if self.has(name):
                self.report.skip(self.at(name), why)

    def done(self) -> None:
        """Say which fields do not exist: a misspelt one must not vanish."""
        unknown = sorted(str(k) for k in self.value if k not in self._known)
        for name in unknown:
            known = ", ".join(sorted(self._known))
            self.bad(name[:_MAX_VALUE], f"no such field (known: {known})")

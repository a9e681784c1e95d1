"""Values of a chart: layers merged as Helm merges them, and `--set a.b=c` read as Helm reads it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from mesh.errors import ConfigError

Values = dict[str, Any]

_INTEGER = re.compile(r"[+-]\d{1,19}|0|[1-9]\d{0,18}")  # 007 stays text
_ITEM = re.compile(r"((?:\\.|[^\\,])*)(,|$)", re.S)
_INT64: Final = range(-(2**63), 2**63)
_WORDS: Final = {"true": True, "false": False, "null": None}
_MAX_INDEX: Final = 1000
_KEY = re.compile(r"((?:\\.|[^\\.,=\[\]])+)((?:\[\d{1,4}\])*)(\.|=|$)")


def lay(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Lay what one file says over another's; a null stays, to remove a default later."""
    out = dict(base)
    for key, value in over.items():
        below = out.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            out[key] = lay(below, value)
        else:
            out[key] = value
    return out


def merge(defaults: Mapping[str, Any], over: Mapping[str, Any], where: str = "") -> Values:
    """Lay values over the chart's: maps unite, null removes, everything else replaces.

    Raises ConfigError where a map would be replaced by something that is none.
    """
    out = dict(defaults)
    for key, value in over.items():
        path = f"{where}.{key}" if where else str(key)
        below = out.get(key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            out[key] = merge(below if isinstance(below, Mapping) else {}, value, path)
        elif isinstance(below, Mapping) and below:
            raise ConfigError(f"value {path}: a map is needed, not {value!r:.60}")
        else:
            out[key] = value
    return out


def parse_set(texts: Iterable[str], base: Mapping[str, Any], as_text: bool = False) -> Values:
    """Put `--set` options into a copy of `base`; `as_text` keeps every value a string.

    Raises ConfigError that quotes what cannot be read.
    """
    out: Values = copy.deepcopy(dict(base))
    for text in texts:
        rest = text
        while rest:
            path, rest = _path(text, rest)
            value, rest = _value(text, rest, as_text)
            _put(out, path, value, text)
    return out


def _error(text: str, why: str) -> ConfigError:
    return ConfigError(f"--set {text}: {why}; write KEY=VALUE, as in controlPlane.replicas=2")


def _path(text: str, rest: str) -> tuple[list[str | int], str]:
    path: list[str | int] = []
    while True:
        match = _KEY.match(rest)
        if match is None or match[3] == "":
            raise _error(text, "a key, then = and a value are needed")
        path.append(re.sub(r"\\(.)", r"\1", match[1]))
        path += [int(i) for i in re.findall(r"\d+", match[2])]
        rest = rest[match.end() :]
        if match[3] == "=":
            return path, rest


def _value(text: str, rest: str, as_text: bool) -> tuple[Any, str]:
    if rest.startswith("{"):
        match = re.match(r"\{((?:\\.|[^\\}])*)\}(,|$)", rest, re.S)
        if match is None:
            raise _error(text, "the list is never closed by }")
        # As with Helm, {} is a list of one empty text: only -f can give an empty list.
        parts = _items(match[1])
        return [_typed(_unescape(p), as_text) for p in parts], rest[match.end() :]
    match = re.match(r"((?:\\.|[^\\,])*)(,|$)", rest, re.S)
    if match is None:
        raise _error(text, "it ends in a backslash")
    return _typed(_unescape(match[1]), as_text), rest[match.end() :]


def _items(text: str) -> list[str]:
    """Cut at commas, but not at escaped ones; every backslash in `text` has its character."""
    parts, at = [], 0
    while True:
        match = _ITEM.match(text, at)
        assert match is not None
        parts.append(match[1])
        if not match[2]:
            return parts
        at = match.end()


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.S)


def _typed(text: str, as_text: bool) -> Any:
    if as_text:
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    return int(text) if _INTEGER.fullmatch(text) and int(text) in _INT64 else text


def _put(root: Values, path: list[str | int], value: Any, text: str) -> None:
    node: Any = root
    for step, following in zip(path, [*path[1:], None], strict=True):
        if isinstance(step, int):
            if step > _MAX_INDEX:
                raise _error(text, f"index {step} is beyond {_MAX_INDEX}")
            node += [None] * (step + 1 - len(node))
            below = node[step]
        else:
            below = node.get(step)
        if following is None:
            node[step] = value
            return
        wanted = list if isinstance(following, int) else dict
        if below is None:
            below = wanted()
            node[step] = below
        if not isinstance(below, wanted):
            raise _error(text, f"{step} is set to something else already")
        node = below

"""The functions that our chart's templates call, as Go's templates, sprig and Helm define them.

A function takes the values of its arguments and returns a value; it raises ValueError with what
is wrong, TypeError for a wrong number of arguments.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import Any, Final

from cli.chart.text import to_yaml

Function = Callable[..., Any]


def truth(value: Any) -> bool:
    """Say whether a value counts as true: false, 0, nil and what is empty do not."""
    return bool(value)


def shown(value: Any) -> str:
    """Render a value that is printed."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int) and abs(value) < 1_000_000:
        return str(value)
    if isinstance(value, int):
        # Helm reads numbers of values files as floats and would print 1e+06.
        raise ValueError(f"{value} is printed as a float by Helm: pipe it through int64 and quote")
    raise ValueError(f"{_kind(value)} cannot be printed: use toYaml")


def _kind(value: Any) -> str:
    if value is None:
        return "nil"
    names = {dict: "a map", list: "a list", float: "a float", str: "a string", bool: "a boolean"}
    return names.get(type(value), type(value).__name__)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a string is needed, not {_kind(value)}")
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a whole number is needed, not {_kind(value)}")
    return value


def _map(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"a map is needed, not {_kind(value)}")
    return value


def _quote(value: Any) -> str:
    text = shown(value)
    if not text.isprintable():
        raise ValueError(f"{text!r} has unprintable characters")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _indent(width: int, text: str) -> str:
    pad = " " * _number(width)
    return pad + _text(text).replace("\n", "\n" + pad)


def _default(fallback: Any, value: Any) -> Any:
    return value if truth(value) else fallback


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TypeError("eq needs two arguments")
    for other in others:
        if type(first) is not type(other) or not isinstance(first, str | bool | int):
            raise ValueError(f"{_kind(first)} and {_kind(other)} cannot be compared")
    return any(first == other for other in others)


def _int(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return 0  # as sprig does
    if isinstance(value, float):
        return int(value)
    return _number(value)


def _printf(form: str, *values: Any) -> str:
    parts = _text(form).split("%")
    out, left = [parts[0]], list(values)
    for part in parts[1:]:
        if not part or part[0] not in "sd" or not left:
            raise ValueError(f"{form!r}: only %s and %d are supported, one for each argument")
        value = left.pop(0)
        out.append((_text(value) if part[0] == "s" else str(_number(value))) + part[1:])
    if left:
        raise ValueError(f"{form!r}: {len(left)} arguments too many")
    return "".join(out)


def _dict(*pairs: Any) -> dict[str, Any]:
    if len(pairs) % 2:
        raise ValueError("dict needs a value for each key")
    return {_text(key): value for key, value in zip(pairs[::2], pairs[1::2], strict=True)}


def _has_key(of: Any, key: str) -> bool:
    return _text(key) in _map(of)


def _required(message: str, value: Any) -> Any:
    if value is None or value == "":
        raise ValueError(_text(message))
    return value


def _fail(message: str) -> None:
    raise ValueError(_text(message))


def _trunc(width: int, text: str) -> str:
    if _number(width) < 0:
        raise ValueError("a negative width is not supported")
    return _text(text)[:width]


FUNCTIONS: Final[dict[str, Function]] = {
    "default": _default,
    "dict": _dict,
    "dir": lambda path: posixpath.dirname(_text(path)) or ".",
    "eq": _equal,
    "fail": _fail,
    "gt": lambda a, b: _number(a) > _number(b),
    "hasKey": _has_key,
    "indent": _indent,
    "int": _int,
    "list": lambda *items: list(items),
    "lower": lambda text: _text(text).lower(),
    "ne": lambda a, b: not _equal(a, b),
    "nindent": lambda width, text: "\n" + _indent(width, text),
    "not": lambda value: not truth(value),
    "printf": _printf,
    "quote": _quote,
    "replace": lambda old, new, text: _text(text).replace(_text(old), _text(new)),
    "required": _required,
    "ternary": lambda yes, no, test: yes if test is True else no,
    "toYaml": to_yaml,
    "trim": lambda text: _text(text).strip(),
    "trimSuffix": lambda suffix, text: _text(text).removesuffix(_text(suffix)),
    "trunc": _trunc,
}

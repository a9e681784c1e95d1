"""Hold JSON from elsewhere against the shape its reader relies on. Pure.

A shape is str, int, float or bool; [shape of every item]; {key: shape}; {"*": shape of any value}.
What is absent or null passes, except as an item of a list or a value under "*".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from mesh.errors import BadInput

_KINDS: Final[dict[type, str]] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def parse_object_untrusted(
    raw: bytes, shape: dict[str, Any], what: str, required: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a JSON object; raises BadInput saying that it is not `what`, and where it differs."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"not {what}: {e}") from e
    if not isinstance(value, dict):
        raise BadInput(f"not {what}: not an object")
    for key in required:
        if key not in value:
            raise BadInput(f"not {what}: it has no {key}")
    _check(value, shape, "", what)
    return value


def _check(value: Any, shape: Any, where: str, what: str) -> None:
    if value is None:
        return
    wanted: type = shape if isinstance(shape, type) else type(shape)
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise BadInput(f"not {what}: {where or 'it'} is not {_KINDS[wanted]}")
    inner: list[tuple[str, Any, Any]] = []
    if isinstance(shape, type):
        return
    if isinstance(shape, list):
        inner = [(f"{where}[{i}]", one, shape[0]) for i, one in enumerate(value)]
    elif "*" in shape:
        inner = [(f"{where}.{key}", one, shape["*"]) for key, one in value.items()]
    else:
        for key in shape.keys() & value.keys():
            _check(value[key], shape[key], f"{where}.{key}".lstrip("."), what)
    for place, one, its_shape in inner:
        if one is None:
            raise BadInput(f"not {what}: {place} is null")
        _check(one, its_shape, place, what)

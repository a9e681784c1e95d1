"""Tables, JSON and YAML, the same way for every view. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import yaml

STRUCTURED: Final = ("json", "yaml")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], gap: int = 3) -> str:
    """Align columns under their headings; a column is as wide as its widest cell."""
    lines = [[printable(cell) for cell in line] for line in (headings, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        (" " * gap).join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def printable(cell: str) -> str:
    """Put question marks for what a terminal might obey or could not show."""
    # A dump can come from anywhere: nothing in it may move the cursor.
    return cell if cell.isprintable() else "".join(c if c.isprintable() else "?" for c in cell)


def structured(value: Any, form: str) -> str:
    """Render a value as "json" or "yaml"."""
    if form == "yaml":
        return yaml.safe_dump(value, sort_keys=False, default_flow_style=False).rstrip("\n")
    return json.dumps(value, indent=4)


def age(seconds: float) -> str:
    """Say a duration as kubectl does: 45s, 12m, 7h, 3d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"

"""The YAML examples of a page in docs/, by the heading that they stand under."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

DOCS: Final = Path(__file__).parents[2] / "docs"
_PART = re.compile(
    r"^#{2,3} (?P<heading>[^\n]+)$|^```yaml\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def examples(page: str) -> dict[str, list[dict[str, Any]]]:
    """Read the objects under each heading of docs/PAGE; a heading without examples is left out."""
    heading = ""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in _PART.finditer((DOCS / page).read_text(encoding="utf-8")):
        if part["heading"]:
            heading = part["heading"].strip()
        else:
            found.setdefault(heading, []).extend(yaml.safe_load_all(part["text"]))
    return found

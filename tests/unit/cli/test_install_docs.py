"""docs/install.md says what the chart has.

REFRESH_GOLDEN=1 writes the table of values anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.chart.load import Release, load

ROOT = Path(__file__).parents[3]
INSTALL = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->"


def documented() -> Iterator[tuple[str, str]]:
    """Yield (path, comment) of each line of values.yaml that sets something at depth 1 or 2."""
    path, comment, section = [], [], ""
    text = (ROOT / "deploy" / "chart" / "ambit" / "values.yaml").read_text()
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped:
            comment = []
        elif stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
        elif (match := re.match(r"( {0,2})([A-Za-z]+):(.*)", line)) and len(match[1]) in (0, 2):
            name = match[2] if not match[1] else f"{section}.{match[2]}"
            if not match[1]:
                section = match[2]
            if match[1] or match[3].strip():
                path.append(name)
                yield name, " ".join(comment)
            comment = []


def shown(value: Any) -> str:
    return json.dumps(value, separators=(", ", ": ")) if value != "" else '""'


def table() -> str:
    defaults = load().defaults
    lines = ["| value | default | what it is |", "|---|---|---|"]
    for name, comment in documented():
        value: Any = defaults
        for part in name.split("."):
            value = value[part]
        lines.append(f"| `{name}` | `{shown(value)}` | {comment} |")
    return "\n".join(lines) + "\n"


def test_every_value_is_commented() -> None:
    """The comment is the documentation."""
    found = dict(documented())
    assert all(found.values()), [name for name, comment in found.items() if not comment]
    defaults = load().defaults
    names = {k for k, v in defaults.items() if not isinstance(v, dict)}
    names |= {f"{k}.{n}" for k, v in defaults.items() if isinstance(v, dict) for n in v}
    assert set(found) == names


def test_the_table_in_the_docs_is_that_of_the_chart() -> None:
    """A value without a row, or with another default, fails."""
    text = INSTALL.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if os.environ.get("REFRESH_GOLDEN"):
        INSTALL.write_text(before + BEGIN + table() + END + after)
    assert INSTALL.read_text() == before + BEGIN + table() + END + after


def test_every_capability_and_host_path_has_its_reason_in_the_docs() -> None:
    """What is granted is explained, or it is not granted."""
    text = INSTALL.read_text()
    chart = load()
    for obj in chart.render(chart.defaults, Release(), []).objects:
        pod = obj.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", []):
            for capability in container["securityContext"]["capabilities"].get("add", []):
                assert f"`{capability}`" in text, capability
        for volume in pod.get("volumes", []):
            if "hostPath" in volume:
                assert f"`{volume['hostPath']['path']}`" in text, volume["hostPath"]["path"]


def test_every_access_rule_is_listed_in_the_docs() -> None:
    """With each resource it names."""
    text = INSTALL.read_text()
    chart = load()
    for obj in chart.render(chart.defaults, Release(), []).objects:
        for rule in obj.get("rules", []) if obj["kind"] in ("ClusterRole", "Role") else []:
            for resource in rule["resources"]:
                assert f"`{resource}`" in text, resource


EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_yaml_and_say_what_they_are(path: Path) -> None:
    """The API server's opinion of them is asked elsewhere."""
    text = path.read_text()
    assert text.startswith("# ")
    assert all(d["kind"] for d in yaml.safe_load_all(text))
    assert path.name in INSTALL.read_text()

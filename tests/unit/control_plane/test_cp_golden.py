"""Objects in, resources and status out: one folder of cases, reviewed as text.

REFRESH_GOLDEN=1 writes the expected files anew; look at the difference before committing it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from control_plane.registry import Registry
from control_plane.translate.pods import MeshConfig
from mesh.manifest import parse_manifests
from mesh.model.convert import ADDRESS_TYPE, address_untrusted, authorization_untrusted
from mesh.xds.delta import Resource

CASES = sorted((Path(__file__).parents[2] / "golden" / "control_plane").glob("*.yaml"))
CONFIG = MeshConfig("istio-system", "cluster.local", "Kubernetes", "cluster.local")


def plain(value: Any) -> Any:
    """Dataclasses as plain data, without fields that have their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {}
        for f in dataclasses.fields(value):
            here = getattr(value, f.name)
            if (
                here != f.default
                and here not in ((), "")
                and not (f.name == "services" and not here)
            ):
                out[f.name] = plain(here)
        return out
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in sorted(value.items())}  # maps have no order
    return value


def decode(resource: Resource) -> Any:
    read = address_untrusted if resource.type_url == ADDRESS_TYPE else authorization_untrusted
    return plain(read(resource.payload))


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_translation(case: Path) -> None:
    """The case's objects give exactly the resources and conditions that were reviewed."""
    objects, problems = parse_manifests(case.read_bytes())
    assert not problems
    registry = Registry(CONFIG)
    snapshot = registry.update(objects, set())
    found = {
        "resources": {
            name: decode(r)
            for resources in snapshot.resources.values()
            for name, r in sorted(resources.items())
        },
        "aliases": {k: list(v) for k, v in sorted(snapshot.aliases.items())},
        "conditions": {
            str(k): dataclasses.asdict(c) for k, c in sorted(registry.conditions.items())
        },
    }
    expected = case.with_suffix(".json")
    text = json.dumps(found, indent=2) + "\n"
    if os.environ.get("REFRESH_GOLDEN"):
        expected.write_text(text)
    assert text == expected.read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.stem)
def test_order_of_changes_does_not_matter(case: Path) -> None:
    """Objects that come one by one, in any order, and go again, leave the same state."""
    objects, _ = parse_manifests(case.read_bytes())
    whole = Registry(CONFIG).update(objects, set())
    for order in (list(objects), list(reversed(objects))):
        registry = Registry(CONFIG)
        for key in order:
            registry.update({key: objects[key]}, set())
        snapshot = registry.snapshot
        for type_url, resources in whole.resources.items():
            versions = {n: r.version for n, r in snapshot.resources[type_url].items()}
            assert versions == {n: r.version for n, r in resources.items()}
        assert snapshot.aliases == whole.aliases
        assert snapshot.members == whole.members
        for key in order:
            registry.update({}, {key})
        assert not any(registry.snapshot.resources.values())
        assert not registry.snapshot.aliases
        assert not registry.snapshot.members
        assert not registry.conditions

"""Layers, made once and kept by what they are made of.

A layer's key names everything that goes into it: pins, the project's files, tools, this package's
own code. What is kept is the packed layer and a description of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from deploy.images import cache, contents, source, tarball
from deploy.images.contents import Contents
from deploy.images.oci import Blob
from deploy.images.sbom import Component
from deploy.images.shell import say


@dataclass(frozen=True, slots=True)
class Layer:
    """A packed layer. size: bytes of the blob are in it; content: bytes of the unpacked files."""

    blob: Blob
    content: int
    components: tuple[Component, ...]
    contents: Contents


@dataclass(frozen=True, slots=True)
class Plan:
    """How to make a layer when no kept one fits.

    fill lays out files below a root and gives the components it put there; folders: those that stay
    although empty; modes: see tarball.
    """

    name: str
    key: str
    fill: Callable[[Path], tuple[Component, ...]]
    folders: tuple[str, ...] = ()
    modes: Mapping[str, int] = field(default_factory=dict)


def own_code() -> str:
    """Names this package's code: another recipe or writer makes other layers."""
    code = [str(p.relative_to(source.ROOT)) for p in source.HERE.glob("*.py")]
    return source.digest(code)


def make(plan: Plan, epoch: int, packages: tuple[str, ...] = ()) -> Layer:
    """The layer of a plan, from the cache or made now; its files are of time `epoch`."""
    place = cache.kind("layers") / f"{plan.name}-{plan.key[:32]}"
    if not cache.used(place):
        say(f"layer {plan.name}")
        with cache.scratch() as work:
            root, made = work / "root", work / "made"
            root.mkdir()
            made.mkdir()
            components = plan.fill(root)
            _drop_empty(root, plan.folders)
            with (made / "layer.tar.gz").open("wb") as file:
                written = tarball.write(tarball.entries(root, plan.modes), file, epoch)
            about = asdict(written) | {
                "components": [asdict(c) for c in components],
                "contents": asdict(contents.read(root, packages)),
            }
            (made / "layer.json").write_text(json.dumps(about))
            cache.keep(made, place)
    return _load(plan.name, place)


def _drop_empty(root: Path, stay: tuple[str, ...]) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        path = Path(folder)
        if path != root and str(path.relative_to(root)) not in stay and not any(path.iterdir()):
            path.rmdir()


def _load(name: str, place: Path) -> Layer:
    about: dict[str, Any] = json.loads((place / "layer.json").read_text())
    inside = about["contents"]
    file = place / "layer.tar.gz"
    return Layer(
        Blob(name, about["digest"], about["diff_id"], about["size"], file),
        about["content"],
        tuple(Component(**c) for c in about["components"]),
        Contents(tuple(inside["paths"]), inside["wants"], inside["imports"]),
    )


KINDS: Final = ("builder", "debs", "layers", "relay", "scratch", "wheels")


def sweep() -> None:
    """Forget what was not used for long."""
    for kind in KINDS:
        cache.sweep(kind)

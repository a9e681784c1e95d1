"""Lock files: written, read back, and refused when they do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.images import build, locks, recipe, source
from deploy.images.errors import ImageError
from deploy.images.locks import Pin

ONE = "1" * 64
PINS = (Pin("base", "libc6", "2.36-9+deb12u1", ONE), Pin("agent", "libx", "1:2", "2" * 64))


def test_debian_pins_survive_a_round_trip() -> None:
    """With what the lock says of itself."""
    text = locks.render_debian({"for": "abc", "epoch": "86400"}, PINS)
    lock = locks.parse_debian(text, "debian.lock")
    assert lock.pins == PINS
    assert lock.of("agent") == PINS[1:]
    assert lock.about == {"for": "abc", "epoch": "86400"}
    assert lock.epoch == 86400


def test_wheels_are_pinned_as_pip_reads_them() -> None:
    """One hash each."""
    pins = (Pin("", "pyyaml", "6.0", ONE),)
    text = locks.render_wheels("Wheels", {"for": "abc"}, pins)
    assert text.splitlines()[-1] == f"pyyaml==6.0 --hash=sha256:{ONE}"
    assert locks.parse_wheels(text, "requirements.lock").pins == pins


@pytest.mark.parametrize("line", ["base libc6 1.0", f"base libc6 1.0 {ONE[1:]}", "<<<<<<< HEAD"])
def test_a_line_that_is_no_pin_is_named(line: str) -> None:
    """With its number, and what to do."""
    with pytest.raises(ImageError, match=r"debian.lock:2: .*images-lock"):
        locks.parse_debian(f"# for: x\n{line}\n", "debian.lock")


@pytest.mark.parametrize("line", ["pyyaml==6.0", f"pyyaml>=6.0 --hash=sha256:{ONE}", "-r other"])
def test_a_wheel_without_a_hash_is_refused(line: str) -> None:
    """Nothing unpinned gets into an image."""
    with pytest.raises(ImageError, match=r"requirements.lock:1: "):
        locks.parse_wheels(line, "requirements.lock")


def test_a_lock_for_another_recipe_is_refused(tmp_path: Path) -> None:
    """A package added to the recipe and not to the lock would be missing in silence."""
    path = tmp_path / "debian.lock"
    with pytest.raises(ImageError, match=r"debian.lock is missing: .*images-lock"):
        locks.load(path, "new")
    path.write_text(locks.render_debian({"for": "old"}, PINS))
    assert locks.load(path, "old").pins == PINS
    with pytest.raises(ImageError, match="another list of packages"):
        locks.load(path, "new")


def test_the_locks_of_this_tree_fit_its_recipe_and_dependencies() -> None:
    """`make images-lock` was run after the last change of either."""
    fitting = build.locks()
    debian = {p.name for p in fitting[build.DEBIAN].pins}
    assert {name for roots in recipe.ROOTS.values() for name in roots} <= debian
    assert not debian & set(recipe.WITHOUT)
    wheels = {p.name for p in fitting[build.RUNTIME].pins}
    wanted = {re.split(r"[\[><=!~ ]", d)[0] for d in source.about()["dependencies"]}
    assert {w.lower().replace("_", "-") for w in wanted} <= wheels

"""What names a build's inputs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deploy.images import apt, cache, renew, source
from deploy.images.build import DEBIAN
from deploy.images.errors import ImageError
from deploy.images.locks import Pin, render_debian

CODE = {
    "a": "import b.c\nfrom d import e",
    "b.c": "from a import x",
    "d": "",
    "d.e": "if TYPE_CHECKING:\n    import f",
    "f": "import os",
    "g": "import a",
}


def test_all_that_a_module_reaches_counts() -> None:
    """Circles end; modules under TYPE_CHECKING count, since a compiler reads them."""
    assert source.reached(["a"], CODE.get) == {"a", "b.c", "d", "d.e", "f"}


def test_the_relay_s_sources_are_found() -> None:
    """With packages as their __init__."""
    assert source.module_path("mesh.compiled") == "mesh/compiled.py"
    assert source.module_path("mesh") == "mesh/__init__.py"
    assert source.module_path("os.path") is None


def test_a_digest_is_of_names_and_contents() -> None:
    """And of whatever else is given."""
    names = ["mesh/__init__.py", "mesh/errors.py"]
    assert source.digest(names) == source.digest(names[::-1])
    assert len({source.digest(names), source.digest(names[1:]), source.digest(names, "x")}) == 3


def test_tests_are_no_part_of_the_wheel() -> None:
    """Nor is this package: changing either makes no new layer."""
    names = ["tests/a.py", "deploy/images/build.py", "deploy/chart/ambit/Chart.yaml", "mesh/a.py"]
    assert source.shipped(names) == names[2:]


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBIT_CACHE", str(tmp_path))


@pytest.mark.usefixtures("_own_cache")
def test_entries_that_nobody_used_for_a_month_go() -> None:
    """Using one keeps it."""
    folder = cache.kind("layers")
    for name in ("old", "used"):
        (folder / name).mkdir()
        (folder / name / "file").touch()
        os.utime(folder / name, (time.time() - 31 * 86400,) * 2)
    assert cache.used(folder / "used")
    assert not cache.used(folder / "absent")
    cache.sweep("layers")
    assert [p.name for p in folder.iterdir()] == ["used"]


@pytest.mark.usefixtures("_own_cache")
def test_two_builds_may_make_the_same_entry() -> None:
    """The second finds it there and is content."""
    place = cache.kind("layers") / "one"
    for _ in range(2):
        with cache.scratch() as work:
            (work / "made").mkdir()
            (work / "made" / "file").touch()
            cache.keep(work / "made", place)
    assert (place / "file").exists()
    with cache.scratch() as work, pytest.raises(FileNotFoundError):
        cache.keep(work / "absent", cache.kind("layers") / "two")


def test_layers_keep_their_time_while_packages_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewing a lock that is new already changes no digest."""
    pins = [Pin("base", "libc6", "1", "1" * 64)]
    (tmp_path / DEBIAN).write_text(render_debian({"epoch": "86400"}, pins))
    monkeypatch.setattr(source, "HERE", tmp_path)
    assert renew.epoch(pins, 10 * 86400.5) == 86400
    assert renew.epoch([*pins, *pins], 10 * 86400.5) == 10 * 86400


def test_a_version_that_the_archive_dropped_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do."""

    def gone(*command: object, **options: object) -> str:
        raise ImageError("packages: apt-get failed:\nE: Version '1' for 'libx' was not found\nmore")

    monkeypatch.setattr(apt, "run", gone)
    with pytest.raises(ImageError, match=r"no longer has(.|\n)*libx(.|\n)*images-lock") as error:
        apt.Apt(Path("/nowhere")).download([Pin("base", "libx", "1", "")], Path("/nowhere"))
    assert "more" not in str(error.value)

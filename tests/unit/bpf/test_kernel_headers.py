"""Finding kernel headers on machines of several kinds."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bpf import kernel_headers
from mesh.errors import Unsupported

CPU = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCC_KERNEL_SOURCE", raising=False)


def _debian(src: Path, version: str, flavour: str) -> Path:
    common = src / f"linux-headers-{version}-common"
    arch = src / f"linux-headers-{version}-{flavour}"
    for folder in (common / "include/linux", common / f"arch/{CPU}/include/asm"):
        folder.mkdir(parents=True, exist_ok=True)
    (common / "include/linux/bpf.h").write_text(version)
    for folder in ("include/generated", "include/config", f"arch/{CPU}/include/generated"):
        (arch / folder).mkdir(parents=True)
    return arch


def _find(tmp_path: Path) -> Path:
    return kernel_headers.find(tmp_path / "cache", tmp_path / "modules", tmp_path / "src")


@pytest.mark.parametrize("flavour", ["amd64", "cloud-amd64", "arm64"])
def test_debians_halves_are_merged(tmp_path: Path, flavour: str) -> None:
    """Under the cache folder, and again without harm."""
    _debian(tmp_path / "src", "6.1.0-9", flavour)
    tree = _find(tmp_path)
    assert (tree / "include/linux/bpf.h").read_text() == "6.1.0-9"
    assert (tree / "include/generated").is_dir()
    assert (tree / f"arch/{CPU}/include/asm").is_dir()
    assert (tree / f"arch/{CPU}/include/generated").is_dir()
    assert _find(tmp_path) == tree


def test_the_newest_is_chosen_by_number(tmp_path: Path) -> None:
    """6.1.0-10 is newer than 6.1.0-9."""
    for version in ("6.1.0-10", "6.1.0-9", "5.10.0-99"):
        _debian(tmp_path / "src", version, "amd64")
    assert (_find(tmp_path) / "include/linux/bpf.h").read_text() == "6.1.0-10"


def test_the_running_kernels_own_headers_come_first(tmp_path: Path) -> None:
    """And what the operator sets comes before those."""
    _debian(tmp_path / "src", "6.1.0-9", "amd64")
    own = tmp_path / "modules" / platform.release() / "build"
    own.mkdir(parents=True)
    assert _find(tmp_path) == own


def test_what_the_operator_sets_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BCC_KERNEL_SOURCE, bcc's own variable."""
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/elsewhere")
    assert _find(tmp_path) == Path("/elsewhere")


def test_a_whole_tree_is_taken_as_it_is(tmp_path: Path) -> None:
    """Ubuntu's flavour folder links to its common half by itself."""
    tree = tmp_path / "src/linux-headers-6.8.0-40-generic"
    for folder in ("include/generated", "include/linux"):
        (tree / folder).mkdir(parents=True)
    assert _find(tmp_path) == tree


def test_without_headers_the_package_is_named(tmp_path: Path) -> None:
    """The error says what to install."""
    with pytest.raises(Unsupported, match="linux-headers-amd64"):
        _find(tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """And the variable that chooses another."""
    _debian(tmp_path / "src", "6.1.0-9", "amd64")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Unsupported, match="AMBIT_CACHE_DIR"):
        _find(tmp_path)

"""Names of builds and layouts, and limits an operator gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bpf import sources
from mesh.errors import ConfigError


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources, to be changed."""
    for folder in ("include", "src"):
        shutil.copytree(sources.HERE / folder, tmp_path / folder)
    monkeypatch.setattr(sources, "HERE", tmp_path)
    monkeypatch.delenv("AMBIT_BPF_DEFINES", raising=False)
    return tmp_path


def _append(file: Path, text: str) -> None:
    file.chmod(0o600)
    file.write_text(file.read_text() + text)


@pytest.mark.parametrize("name", [*(f"include/{h}" for h in sources.HEADERS), "src/lookup.c"])
def test_any_change_is_another_build(copy: Path, name: str) -> None:
    """Nothing that reaches the compiler may be missed, or old programs would be reused."""
    before = sources.digest()
    _append(copy / name, "\n/* changed */\n")
    assert sources.digest() != before


def test_every_source_file_reaches_the_compiler() -> None:
    """A file that is not listed would be dead and outside the digest."""
    assert {p.name for p in (sources.HERE / "src").iterdir()} == set(sources.SOURCES)
    assert {p.name for p in (sources.HERE / "include").iterdir()} == set(sources.HEADERS)


def test_a_comment_keeps_the_maps_and_a_field_does_not(copy: Path) -> None:
    """Pods are carried over only when they must be."""
    before = sources.layout_digest()
    _append(copy / "include/structs.h", "\n/* a comment, in\n * two lines */\n")
    assert sources.layout_digest() == before
    _append(copy / "include/structs.h", "struct more { u32 x; };\n")
    assert sources.layout_digest() != before


def test_limits_change_build_and_layout(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order."""
    before = sources.digest(), sources.layout_digest()
    monkeypatch.setenv("AMBIT_BPF_DEFINES", "MAX_PODS=2048 MAX_FLOWS=99")
    one = sources.digest(), sources.layout_digest()
    monkeypatch.setenv("AMBIT_BPF_DEFINES", "MAX_FLOWS=99  MAX_PODS=2048")
    assert (sources.digest(), sources.layout_digest()) == one
    assert not set(one) & set(before)


@pytest.mark.parametrize("value", ["MAX_POD=1", "MAX_PODS", "MAX_PODS=0", "MAX_PODS=1;x", "-DX=1"])
def test_a_limit_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error must not silently leave the limit as it was."""
    monkeypatch.setenv("AMBIT_BPF_DEFINES", value)
    with pytest.raises(ConfigError, match="MAX_PODS"):
        sources.digest()


def test_counters_are_named_by_the_header() -> None:
    """Comments between them are no names."""
    names = sources.counters()
    assert names[0] == "connect4_captured"
    assert "lookup_stranger" in names
    assert "counters" not in names
    assert all(n.replace("_", "").isalnum() and n == n.lower() for n in names)
    assert len(set(names)) == len(names)

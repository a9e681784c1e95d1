"""Packages are laid out without running anything of theirs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.images import bytecode, unpack
from deploy.images.errors import ImageError
from deploy.images.prune import Pruner
from deploy.images.unpack import SITE


def deb(path: Path, files: dict[str, str], links: dict[str, str]) -> Path:
    """A Debian package, made with dpkg's own format: an ar of two tars."""

    def tar(members: dict[str, str], symlinks: dict[str, str]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for name, text in members.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size, info.mode = len(text), 0o755 if text.startswith("#!") else 0o644
                archive.addfile(info, io.BytesIO(text.encode()))
            for name, target in symlinks.items():
                info = tarfile.TarInfo(f"./{name}")
                info.type, info.linkname = tarfile.SYMTYPE, target
                archive.addfile(info)
        return out.getvalue()

    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.test>\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar({"control": control + "Description: x\n"}, {}),
        "data.tar.gz": tar(files, links),
    }
    data = b"!<arch>\n"
    for name, part in parts.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode()
        data += part + b"\n" * (len(part) % 2)
    path.write_bytes(data)
    return path


def test_a_debian_package_keeps_what_the_rules_keep(tmp_path: Path) -> None:
    """Merged folders, executable bits, links; and a note for scanners."""
    package = deb(
        tmp_path / "x.deb",
        {"lib/a.so": "lib", "usr/bin/run": "#!/bin/sh", "usr/share/man/x.1": "man"},
        {"usr/bin/again": "run"},
    )
    root = tmp_path / "root"
    unpack.deb(package, "x", root, Pruner(["usr/share/**"]))
    found = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_symlink() or p.is_file()}
    status = "var/lib/dpkg/status.d/x"
    assert found == {"usr/lib/a.so", "usr/bin/run", "usr/bin/again", status}
    assert os.access(root / "usr/bin/run", os.X_OK)
    assert not (root / "usr/lib/a.so").stat().st_mode & 0o111
    assert (root / "usr/bin/again").readlink() == Path("run")
    assert "Version: 1" in (root / status).read_text()


def test_a_wheel_s_platform_files_join_its_pure_ones(tmp_path: Path) -> None:
    """Scripts and headers stay out: entry points are made for the image."""
    package = tmp_path / "x.whl"
    with zipfile.ZipFile(package, "w") as archive:
        for name in ("x/a.py", "x-1.data/platlib/x/b.so", "x-1.data/scripts/x", "x/tests/t.py"):
            archive.writestr(name, name)
    unpack.wheel(package, tmp_path / "root", Pruner(["**/tests/**"]))
    site = tmp_path / "root" / SITE
    files = {str(p.relative_to(site)) for p in site.rglob("*") if p.is_file()}
    assert files == {"x/a.py", "x/b.so"}


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "x/../../y"])
def test_a_wheel_cannot_write_outside(tmp_path: Path, name: str) -> None:
    """Pinned or not."""
    package = tmp_path / "x.whl"
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(ImageError, match="points outside"):
        unpack.wheel(package, tmp_path / "root", Pruner([]))


def test_compiled_python_is_the_same_from_any_folder_and_time(tmp_path: Path) -> None:
    """No path of the builder, no time; and Python takes it without looking at the source."""
    made = []
    for name in ("one", "two"):
        source = tmp_path / name / SITE / "x" / "__init__.py"
        source.parent.mkdir(parents=True)
        source.write_text("def f(a={'x', 'y', 'z'}): return a\nNAME = 'x'\n")
        os.utime(source, (len(made) + 1, len(made) + 1))
        bytecode.compile_all(tmp_path / name, [SITE, "absent"])
        (compiled,) = source.parent.rglob("*.pyc")
        made.append(compiled.read_bytes())
        source.write_text("raise SystemExit('the source was read')\n")
        env = {"PYTHONPATH": str(tmp_path / name / SITE)}
        subprocess.run([sys.executable, "-c", "import x"], env=env, check=True)
    assert made[0] == made[1]


def test_python_that_does_not_compile_is_an_error(tmp_path: Path) -> None:
    """It would fail in the pod."""
    (tmp_path / SITE).mkdir(parents=True)
    (tmp_path / SITE / "broken.py").write_text("def f(:\n")
    with pytest.raises(ImageError, match=r"broken.py"):
        bytecode.compile_all(tmp_path, [SITE])

"""Packages into a folder that becomes a layer: only what the image keeps, and no script is run."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Final

from deploy.images.errors import ImageError
from deploy.images.prune import Pruner, merged
from deploy.images.shell import run

STATUS: Final = "var/lib/dpkg/status.d"  # where scanners look for packages without dpkg
SITE: Final = "usr/local/lib/python3.11/dist-packages"  # on Debian's sys.path by default


def deb(package: Path, name: str, root: Path, pruner: Pruner) -> None:
    """Lay out a Debian package's files below root, and what scanners want to know of it."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                _member(tar, member, root, pruner)
    if process.returncode:
        raise ImageError(f"{package} is damaged: remove it and build again")
    _put(root / STATUS / name, run(["dpkg-deb", "--field", package], name).encode())


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, pruner: Pruner) -> None:
    path = merged(member.name)
    if member.isdir() or not pruner.keeps(path):
        return
    target = root / path
    if member.issym():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(member.linkname)
    elif member.islnk():
        source = root / merged(member.linkname)
        if not source.exists():
            raise ImageError(f"{path} is a link to {member.linkname}, which the image drops")
        _put(target, source.read_bytes(), bool(member.mode & 0o111))
    elif member.isfile():
        content = tar.extractfile(member)
        assert content is not None
        _copy(content, target, bool(member.mode & 0o111))
    else:
        raise ImageError(f"{path}: a device or pipe in a package")


def wheel(package: Path, root: Path, pruner: Pruner, site: str = SITE) -> None:
    """Lay out a wheel's files below root; its scripts are left out (entry points are ours)."""
    with zipfile.ZipFile(package) as archive:
        for info in archive.infolist():
            path = _in_site(info.filename)
            if info.is_dir() or path is None or not pruner.keeps(f"{site}/{path}"):
                continue
            with archive.open(info) as content:
                _copy(content, root / site / path, False)


def _in_site(name: str) -> str | None:
    """Where a wheel's file goes; None: not into an image. *.data/ says where by its next part."""
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        raise ImageError(f"a wheel's file {name!r} points outside")
    if not parts[0].endswith(".data"):
        return name
    return str(PurePosixPath(*parts[2:])) if parts[1] in ("purelib", "platlib") else None


def _copy(content: IO[bytes], target: Path, executable: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(0o755 if executable else 0o644)


def _put(target: Path, content: bytes, executable: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(0o755 if executable else 0o644)

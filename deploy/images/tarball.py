"""A folder as the bytes of a layer: the same folder gives the same bytes.

What a tar would record of the machine it was made on is left out: owners, times, the order of
directory entries, and mode bits beyond "executable". Modes that matter are named by the caller.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

_CHUNK: Final = 1 << 20
_LEVEL: Final = 6  # of 1..9; the last percent would take three times as long
_GZIP: Final = 31  # zlib's wbits for a gzip header, which it writes without name or time


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> int:
        """Take them all."""


@dataclass(frozen=True, slots=True)
class Written:
    """A layer's two names (its tar and its gzip, as "sha256:..."), and sizes in bytes.

    size: of the gzip; content: of the files in it.
    """

    diff_id: str
    digest: str
    size: int
    content: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One path in the image, relative to its root.

    mode: permission bits; link: what a symlink names; file: where a file's bytes are.
    Neither: a folder.
    """

    path: str
    mode: int
    link: str = ""
    file: Path | None = None


def entries(root: Path, modes: Mapping[str, int] | None = None) -> Iterator[Entry]:
    """All below root, parents first, in the order of their bytes. `modes` is by path."""
    special = modes or {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        here = Path(folder)
        inner = here.relative_to(root)
        for name in sorted([*folders, *files]):
            file, path = here / name, str(inner / name)
            if file.is_symlink():
                yield Entry(path, 0o777, link=str(file.readlink()))
            elif file.is_dir():
                yield Entry(path, special.get(path, 0o755))
            else:
                executable = file.stat().st_mode & 0o111
                yield Entry(path, special.get(path, 0o755 if executable else 0o644), file=file)


class _Squeezed:
    """Takes the tar; hands on its gzip, and knows both digests."""

    def __init__(self, out: Sink) -> None:
        self._out = out
        self._zip = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._plain = hashlib.sha256()
        self._packed = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self._plain.update(data)
        self._hand_on(self._zip.compress(data))
        return len(data)

    def close(self) -> tuple[str, str]:
        self._hand_on(self._zip.flush())
        return f"sha256:{self._plain.hexdigest()}", f"sha256:{self._packed.hexdigest()}"

    def _hand_on(self, data: bytes) -> None:
        self._packed.update(data)
        self.size += len(data)
        self._out.write(data)


def write(layer: Iterator[Entry], out: Sink, epoch: int) -> Written:
    """Write a layer as gzipped tar; every file is root's and of time `epoch` (seconds)."""
    squeezed = _Squeezed(out)
    content = 0
    with open_tar(squeezed) as tar:
        for entry in layer:
            info = tarfile.TarInfo(entry.path)
            info.mode, info.mtime = entry.mode, epoch
            if entry.file is not None:
                info.size = entry.file.stat().st_size
                content += info.size
                with entry.file.open("rb") as file:
                    tar.addfile(info, file)
            elif entry.link:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
                tar.addfile(info)
            else:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
    diff_id, digest = squeezed.close()
    return Written(diff_id, digest, squeezed.size, content)


def open_tar(out: Sink) -> tarfile.TarFile:
    """A tar that is written from front to end; only long names need more than plain headers."""
    stream: IO[bytes] = out  # type: ignore[assignment]  # tarfile only calls write()
    return tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK)

"""A layer is the same bytes wherever and whenever it is written."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

from deploy.images import tarball

EPOCH = 1_700_000_000


def fill(root: Path, order: list[str]) -> Path:
    for name in order:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    root.mkdir(exist_ok=True)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "link").symlink_to("/a/b")
    return root


def packed(root: Path) -> tuple[bytes, tarball.Written]:
    out = io.BytesIO()
    written = tarball.write(tarball.entries(root, {"tmp": 0o1777}), out, EPOCH)
    return out.getvalue(), written


def test_two_folders_with_the_same_files_give_the_same_layer(tmp_path: Path) -> None:
    """Whatever the order, the time, the owner's umask and the stray mode bits."""
    names = ["b/two", "a/one", "c", "a/" + "long" * 60]
    one = fill(tmp_path / "1", names)
    two = fill(tmp_path / "2", names[::-1])
    (two / "c").chmod(0o600)
    (two / "a").chmod(0o700)
    os.utime(two / "a/one", (1, 1))
    assert packed(one) == packed(two)


def test_a_layer_says_only_what_a_container_needs(tmp_path: Path) -> None:
    """Root's files, one time, sorted, parents first; special modes where asked for."""
    data, _ = packed(fill(tmp_path / "1", ["b/two", "a/one"]))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["a", "b", "link", "run.sh", "tmp", "a/one", "b/two"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", EPOCH)}
    modes = {m.name: m.mode for m in members}
    assert modes["tmp"] == 0o1777
    assert modes["run.sh"] == 0o755
    assert modes["a/one"] == 0o644
    assert members[2].linkname == "/a/b"


def test_the_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    """A runtime checks both."""
    data, written = packed(fill(tmp_path / "1", ["a/one"]))
    assert written.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert written.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(data)).hexdigest()}"
    assert written.size == len(data)
    assert written.content == len("a/one\n") + len("#!/bin/sh\n")


def test_no_time_is_in_the_compressed_header(tmp_path: Path) -> None:
    """RFC 1952: bytes 4-7 are the time, flags in byte 3 would announce a name."""
    data, _ = packed(fill(tmp_path / "1", []))
    assert data[3:8] == bytes(5)

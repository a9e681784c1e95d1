"""Our CNI plugin on the node: its binary, and its entry in the primary configuration, kept there.

The file that a runtime uses is changed in one step (a rename within its folder), and its former
bytes are kept under `originals` so that removal restores exactly what was there. What another CNI
writes later is taken for the new original, and our entry put in again. A file that does not parse
is never touched. A .conf stays beside its .conflist under a name that no runtime reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadInput, MeshError
from mesh.inotify import Inotify
from node_agent import cni_conf as conf

log = logging.getLogger(__name__)

BINARY: Final = conf.TYPE
SET_ASIDE: Final = ".ambit-saved"  # appended to the name of a .conf that was made a .conflist
TURN: Final = 10.0  # seconds between looks that no event asked for
_SETTLE: Final = 0.1  # another CNI's writes come in bursts
_PREFIX: Final = ".ambit-"


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are, as this process sees them. originals: a private folder that lasts."""

    binary: Path  # in the image
    bin_dir: Path
    conf_dir: Path
    originals: Path


class Installer:
    """Puts plugin and entry in, and out again. Methods may raise MeshError or OSError."""

    def __init__(self, places: Places, entry: conf.Entry) -> None:
        self._places = places
        self._entry = entry
        self._said = ""

    def install(self) -> str:
        """Have both in place; gives the name of the file that has our entry, "" if there is none.

        Doing it again changes nothing that is right.
        """
        self._install_binary()
        for name in self._names():
            path = self._places.conf_dir / name
            try:
                data = path.read_bytes()
                found = conf.parse_untrusted(data)
            except FileNotFoundError:
                continue
            except BadInput as error:
                self._say(
                    f"CNI configuration {path} cannot be used by any runtime: {error}; skipped"
                )
                continue
            if path.is_symlink():
                raise MeshError(
                    f"CNI configuration {path} is a symbolic link; it is not changed. Make it a "
                    "file, or put ambit-cni into it yourself"
                )
            return self._enter(path, data, found)
        self._say(f"no CNI configuration in {self._places.conf_dir} yet; waiting for one")
        return ""

    def remove(self) -> None:
        """Take our entry out of every file, then the binary away."""
        for name in self._names():
            path = self._places.conf_dir / name
            try:
                data = path.read_bytes()
                found = conf.parse_untrusted(data)
            except (BadInput, FileNotFoundError):
                continue
            if conf.has_ours(found):
                self._leave(path, data, found)
        for scratch in (*self._places.conf_dir.glob(f"{_PREFIX}*"), *self._scratch_binaries()):
            scratch.unlink(missing_ok=True)
        (self._places.bin_dir / BINARY).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._places.originals)

    # ---- the binary ----------------------------------------------------------------------------

    def _install_binary(self) -> None:
        source, target = self._places.binary, self._places.bin_dir / BINARY
        try:
            data = source.read_bytes()
        except OSError as error:
            raise MeshError(f"the CNI plugin {source} cannot be read: {error.strerror}") from error
        with contextlib.suppress(FileNotFoundError):
            if target.read_bytes() == data and target.stat().st_mode & 0o111:
                return
        self._places.bin_dir.mkdir(parents=True, exist_ok=True)
        _write(target, data, 0o755)
        log.info("CNI plugin %s installed", target)

    def _scratch_binaries(self) -> list[Path]:
        return list(self._places.bin_dir.glob(f"{_PREFIX}*"))

    # ---- the entry -----------------------------------------------------------------------------

    def _names(self) -> list[str]:
        try:
            return conf.candidates(os.listdir(self._places.conf_dir))
        except FileNotFoundError:
            return []

    def _enter(self, path: Path, data: bytes, found: dict[str, Any]) -> str:
        """Put our entry into the primary file."""
        wanted = conf.insert(found, self._entry)
        target = path if path.suffix == ".conflist" else path.with_suffix(".conflist")
        if target == path and wanted == found:
            self._said = ""
            return path.name
        text = conf.encode(wanted)
        self._keep(target.name, path.name, self._original(path, data, found), text)
        _write(target, text, path.stat().st_mode & 0o777)
        if target != path:
            # With its .conf still there, which sorts first, the list would not be read.
            path.rename(path.with_name(path.name + SET_ASIDE))
        self._said = ""
        log.info("CNI configuration %s: %s is its last plugin now", target, conf.TYPE)
        return target.name

    def _original(self, path: Path, data: bytes, found: dict[str, Any]) -> bytes | None:
        """Give what is to be restored one day; None: what is remembered still holds."""
        if not conf.has_ours(found):
            return data
        kept = self._kept(path.name)
        if kept and kept["written"] == _digest(data):
            return None
        return conf.encode(conf.remove(found))  # somebody changed it, and left our entry in

    def _leave(self, path: Path, data: bytes, found: dict[str, Any]) -> None:
        """Take our entry out of a file."""
        kept = self._kept(path.name)
        aside = path.with_name(f"{kept['file']}{SET_ASIDE}") if kept else None
        if kept and aside and aside.exists() and kept["written"] == _digest(data):
            aside.rename(path.with_name(kept["file"]))
            path.unlink()
        elif kept and kept["written"] == _digest(data) and kept["file"] == path.name:
            _write(path, bytes.fromhex(kept["bytes"]), path.stat().st_mode & 0o777)
        else:
            # Somebody changed it after us: their changes stay.
            _write(path, conf.encode(conf.remove(found)), path.stat().st_mode & 0o777)
        log.info("CNI configuration %s: %s is not in it any more", path, conf.TYPE)

    def _keep(self, name: str, file: str, original: bytes | None, written: bytes) -> None:
        """Remember what `file` was before `name` was written; None: what is remembered stays."""
        kept = self._kept(name)
        self._places.originals.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = {
            "file": kept["file"] if original is None and kept else file,
            "bytes": kept["bytes"] if original is None and kept else (original or b"").hex(),
            "written": _digest(written),
        }
        _write(self._places.originals / f"{name}.json", json.dumps(record).encode(), 0o600)

    def _kept(self, name: str) -> dict[str, str] | None:
        try:
            record = json.loads((self._places.originals / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        fields = ("file", "bytes", "written")
        good = isinstance(record, dict) and all(isinstance(record.get(f), str) for f in fields)
        return record if good else None

    def _say(self, text: str) -> None:
        if text != self._said:
            log.warning("%s", text)
        self._said = text


class ConfWatch:
    """A thread that installs, and installs again whenever the folder changes."""

    def __init__(self, installer: Installer, folder: Path, told: Callable[[bool], None]) -> None:
        """`told`: is called with whether the plugin is in place, after each look."""
        self._installer = installer
        self._folder = folder
        self._told = told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cni-conf", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Have it end soon. Plugin and entry stay."""
        self._stop.set()

    def _run(self) -> None:
        inotify = Inotify()
        watched = False
        while not self._stop.is_set():
            watched = watched or inotify.add(self._folder)
            try:
                self._told(bool(self._installer.install()))
            except (MeshError, OSError) as error:
                self._told(False)
                log.error("the CNI plugin is not in place: %s; tried again", error)
            self._wait(inotify)
        inotify.close()

    def _wait(self, inotify: Inotify) -> None:
        """Return after TURN, or when something happened and it has been quiet since."""
        for _ in range(int(TURN)):
            if self._stop.is_set():
                return
            if inotify.wait(1.0):
                break
        else:
            return
        while not self._stop.is_set():
            for _ in inotify.read():
                pass
            if not inotify.wait(_SETTLE):
                return


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step, on the disk before it has its name."""
    scratch = path.with_name(f"{_PREFIX}{path.name}.{os.getpid()}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        scratch.rename(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise

"""What FolderStore read: files and overlays, parsed once per change, merged once per change."""

from __future__ import annotations

import json
import logging
import marshal
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import Unsupported
from mesh.inotify import IN_CREATE, IN_ISDIR, Inotify
from mesh.manifest import MAX_BYTES, Key, parse_manifests

log = logging.getLogger(__name__)

Object = dict[str, Any]
Stamp = tuple[int, int, int, int]  # st_mtime_ns, st_ctime_ns, st_ino, st_size
OVERLAY: Final = ".overlay"
SUFFIXES: Final = (".yaml", ".yml", ".json")
# A file changed again within one tick of the filesystem's clock looks unchanged: read such a young
# one again next time.
_RACY_NS: Final = 50_000_000


@dataclass(slots=True)
class File:
    """A cached file: its objects are kept marshalled, which is the cheapest way to copy them."""

    stamp: Stamp
    raw: bytes
    objects: dict[Key, bytes]
    problems: tuple[str, ...] = ()


@dataclass(slots=True)
class Overlay:
    """What one manager says about the object that has this uid."""

    stamp: Stamp
    raw: bytes
    uid: str | None
    patch: Object


@dataclass(slots=True)
class Merged:
    """A merged object and what it was made from; revision grows with every change of data."""

    copies: tuple[bytes, ...]  # as written, oldest file first
    data: bytes
    revision: int


def file_name(key: Key, suffix: str) -> str:
    """Name the file an object or its overlay is written to."""
    return f"{key.kind}.{key.namespace}.{key.name}.{suffix}"


def merge_patch(target: Object, patch: Mapping[str, Any]) -> None:
    """Apply an RFC 7386 merge patch in place, but merge lists of conditions by their type."""
    for k, v in patch.items():
        old = target.get(k)
        if v is None:
            target.pop(k, None)
        elif isinstance(v, Mapping):
            if not isinstance(old, dict):
                old = target[k] = {}
            merge_patch(old, v)
        elif k == "conditions" and isinstance(old, list) and isinstance(v, list):
            types = {c.get("type") for c in v if isinstance(c, dict)}
            kept = [c for c in old if not (isinstance(c, dict) and c.get("type") in types)]
            target[k] = [*kept, *v]
        else:
            target[k] = v


def written(copies: Iterable[bytes]) -> Object:
    """Read an object as written, without overlays.

    The last copy counts; what an API server would have kept (identity, status) comes from the
    earlier ones where the last one, perhaps edited by hand, does not have it.
    """
    obj: Object = {}
    for raw in copies:
        older, obj = obj, marshal.loads(raw)
        if not older:
            continue
        for name in ("uid", "creationTimestamp", "generation"):
            if name in older["metadata"]:
                obj["metadata"].setdefault(name, older["metadata"][name])
        if "status" in older:
            obj.setdefault("status", older["status"])
    return obj


def unmerge(obj: Object, base: Object | None, patches: Iterable[Object]) -> None:
    """Take out of an object, in place, what it only repeats from controllers' patches.

    Who reads an object, edits it and applies it must not make what a controller said of it his
    own: it would stay when the controller takes it back.
    """
    metadata, old = obj["metadata"], (base or {}).get("metadata") or {}
    for patch in patches:
        for name in ("labels", "annotations"):
            mine, theirs = metadata.get(name), (patch.get("metadata") or {}).get(name)
            own = old.get(name) or {}
            for k, v in (theirs or {}).items():
                if mine and mine.get(k) == v != own.get(k):
                    del mine[k]
                    mine.update({k: own[k]} if k in own else {})
        status, said = obj.get("status"), patch.get("status")
        if status and said:
            was = (base or {}).get("status") or {}
            for k, v in said.items():
                if status.get(k) == v != was.get(k):
                    del status[k]
                    status.update({k: was[k]} if k in was else {})
            conditions = status.get("conditions")
            if isinstance(conditions, list) and isinstance(said.get("conditions"), list):
                kept = [c for c in conditions if c not in said["conditions"]]
                status["conditions"] = kept


def _merge(copies: tuple[bytes, ...], overlays: Iterable[Overlay]) -> bytes:
    obj = written(copies)
    uid = obj["metadata"].get("uid")
    for overlay in overlays:
        # Another uid: said about an earlier object of that name.
        if overlay.uid == uid:
            merge_patch(obj, json.loads(json.dumps(overlay.patch)))
    return marshal.dumps(obj)


def _stamp(st: os.stat_result) -> Stamp:
    return (st.st_mtime_ns, st.st_ctime_ns, st.st_ino, st.st_size)


def _is_link(path: Path) -> bool:
    try:
        st = path.lstat()
    except OSError:
        return False
    return stat.S_ISLNK(st.st_mode) or st.st_nlink > 1


def subfolders(folder: Path) -> list[str]:
    """List the folders in a folder, sorted; none when it does not exist."""
    try:
        with os.scandir(folder) as it:
            return sorted(e.name for e in it if e.is_dir())
    except OSError:
        return []


def scan(folder: Path) -> dict[str, Stamp]:
    """List the manifest files in a folder; none when it does not exist."""
    out = {}
    try:
        with os.scandir(folder) as it:
            for entry in it:
                if entry.name.startswith(".") or not entry.name.endswith(SUFFIXES):
                    continue
                try:
                    st = entry.stat()
                except OSError:
                    continue  # gone between the two calls
                out[entry.name] = _stamp(st)
    except OSError:
        return {}
    return out


class Cache:
    """The folder's objects. Not locked: its owner does that.

    inotify says which files to look at again, so that a change costs the same among ten objects
    and ten thousand; without it (or after an overflow) every file's stamp is compared.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, File] = {}
        self.overlays: dict[tuple[str, str], Overlay] = {}  # (manager, file name)
        self.merged: dict[Key, Merged] = {}
        self.changed = False  # something happened in the folder; cleared by whoever looked
        self.inotify: Inotify | None = None
        self._watched = False
        self._stale: set[tuple[str, str]] | None = None  # (manager or "", file); None: look at all
        self._holders: dict[Key, set[str]] = {}
        self._said: dict[Key, dict[str, Overlay]] = {}  # by manager
        self._order: list[Key] | None = None
        self._revision = 0
        try:
            self.inotify = Inotify()
        except Unsupported as e:
            log.warning("%s: %s", root, e)
        self._watch()

    def ordered(self) -> list[Key]:
        """List the keys of all merged objects in order."""
        if self._order is None:
            self._order = sorted(self.merged)
        return self._order

    def close(self) -> None:
        """Release the descriptor; the cache goes on by comparing stamps."""
        if self.inotify:
            self.inotify.close()
            self.inotify = None
        self._watched, self._stale = False, None

    def refresh(self) -> None:
        """Read what changed since the last call."""
        self.drain()
        stale, self._stale = self._stale, set() if self._watched else None
        if stale is None:
            stale = self._compare_stamps()
        dirty: set[Key] = set()
        for manager, name in stale:
            if manager:
                dirty |= self._reload_overlay(manager, name)
            else:
                dirty |= self._reload_file(name)
        for key in dirty:
            self._merge_key(key)
        if dirty and self.inotify is None:
            self.changed = True

    def drain(self) -> None:
        """Take note of what inotify saw."""
        if self.inotify is None:
            return
        lost = False
        for folder, mask, name in self.inotify.read():
            if folder is None or not name or mask & IN_ISDIR:
                # An overflow, a manager's first overlay, a folder gone or replaced.
                lost = True
            elif not name.startswith(".") and name.endswith(SUFFIXES):
                self.changed = True
                # A new file is read when it is complete (IN_CLOSE_WRITE); a link never says so.
                if self._stale is not None and (not mask & IN_CREATE or _is_link(folder / name)):
                    self._stale.add(("" if folder == self.root else folder.name, name))
        if lost:
            self._watch()

    def _watch(self) -> None:
        """(Re-)establish the watches; everything is to be looked at again."""
        self.changed, self._stale = True, None
        if self.inotify is None:
            return
        folder = self.root / OVERLAY
        self._watched = self.inotify.add(self.root) and self.inotify.add(folder)
        for manager in subfolders(folder):
            self.inotify.add(folder / manager)

    def _compare_stamps(self) -> set[tuple[str, str]]:
        now = time.time_ns()
        stale = set()
        present = set()
        folders = {"": self.root}
        folders.update((m, self.root / OVERLAY / m) for m in subfolders(self.root / OVERLAY))
        for manager, folder in folders.items():
            for name, stamp in scan(folder).items():
                present.add((manager, name))
                cached = self.overlays.get((manager, name)) if manager else self.files.get(name)
                if cached is None or cached.stamp != stamp or now - stamp[0] < _RACY_NS:
                    stale.add((manager, name))
        known = {("", name) for name in self.files} | set(self.overlays)
        return stale | (known - present)

    def _reload_file(self, name: str) -> set[Key]:
        old = self.files.get(name)
        path = self.root / name
        raw, stamp = _read(path)
        if raw is None:
            self.files.pop(name, None)
            new_keys: set[Key] = set()
        elif old and old.raw == raw:
            moved, old.stamp = old.stamp[0] != stamp[0], stamp
            return set(old.objects) if moved else set()  # the order of copies may differ
        else:
            self.files[name] = _parse(path, raw, stamp, old)
            new_keys = set(self.files[name].objects)
        old_keys = set(old.objects) if old else set()
        for key in old_keys - new_keys:
            self._forget(name, key)
        for key in new_keys:
            self._holders.setdefault(key, set()).add(name)
        return old_keys | new_keys

    def patches(self, key: Key, uid: str | None) -> list[Object]:
        """List what managers say about the object of this uid."""
        said = sorted(self._said.get(key, {}).items())
        return [overlay.patch for _, overlay in said if overlay.uid == uid]

    def drop(self, name: str, key: Key) -> None:
        """Forget the copy of an object that a file holds, ahead of the file's being rewritten."""
        del self.files[name].objects[key]
        self._forget(name, key)
        self._merge_key(key)

    def _forget(self, name: str, key: Key) -> None:
        holders = self._holders.get(key, set())
        holders.discard(name)
        if not holders:
            self._holders.pop(key, None)

    def _reload_overlay(self, manager: str, name: str) -> set[Key]:
        parts = name.removesuffix(".json").split(".", 2)
        if len(parts) != 3:
            return set()
        key = Key(*parts)
        path = self.root / OVERLAY / manager / name
        raw, stamp = _read(path)
        where = (manager, name)
        old = self.overlays.get(where)
        if raw is None:
            self.overlays.pop(where, None)
            self._said.get(key, {}).pop(manager, None)
            return {key}
        if old and old.raw == raw:
            old.stamp = stamp
            return set()
        self.overlays[where] = self._said.setdefault(key, {})[manager] = _overlay(path, raw, stamp)
        return {key}

    def _merge_key(self, key: Key) -> None:
        old = self.merged.get(key)
        # Last written last; the name breaks a tie the same way in every process.
        order = sorted((self.files[n].stamp[0], n) for n in self._holders.get(key, ()))
        if not order:
            if old:
                del self.merged[key]
                self._order = None
            return
        copies = tuple(self.files[n].objects[key] for _, n in order)
        said = [o for _, o in sorted(self._said.get(key, {}).items())]
        data = _merge(copies, said)
        if old and old.data == data:
            self.merged[key] = Merged(copies, data, old.revision)
            return
        if old is None:
            self._order = None
        self._revision += 1
        self.merged[key] = Merged(copies, data, self._revision)


def _parse(path: Path, raw: bytes, stamp: Stamp, before: File | None) -> File:
    parsed, problems = parse_manifests(raw)
    objects = {k: marshal.dumps(o) for k, o in parsed.items()}
    lines = [f"{path}:{p.line}: {p.message}" for p in problems]
    if not raw.strip():
        lines.append(f"{path}:1: empty (to delete its objects, delete the file)")
    kept = 0
    if lines and before:
        for k, data in before.objects.items():
            kept += k not in objects
            objects.setdefault(k, data)
    for i, line in enumerate(lines):
        tail = f"; {kept} object(s) last read from it are kept" if kept and not i else ""
        log.error("%s%s", line, tail)
    return File(stamp, raw, objects, tuple(lines))


def _read(path: Path) -> tuple[bytes | None, Stamp]:
    """Read a whole file; None when it is gone or unreadable."""
    try:
        with path.open("rb") as f:
            st = os.fstat(f.fileno())
            return f.read(MAX_BYTES + 1), _stamp(st)
    except FileNotFoundError:
        pass
    except OSError as e:
        log.error("%s:1: cannot be read: %s", path, e.strerror)
    return None, (0, 0, 0, 0)


def _overlay(path: Path, raw: bytes, stamp: Stamp) -> Overlay:
    try:
        data = json.loads(raw)
        return Overlay(stamp, raw, data.get("uid"), dict(data["patch"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        log.error("%s:1: not an overlay (%s): ignored", path, e)
        return Overlay(stamp, raw, None, {})

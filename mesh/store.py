"""A folder of ordinary Kubernetes YAML as an API server.

One object per file where we write; any file, with any number of documents, where people do. Of
two copies of one object the file written last counts, as with `kubectl apply`. What controllers
write (status, annotations, labels) is kept apart, one overlay per field manager, and merged when
read, so that nobody's file is rewritten under his editor and no two writers overwrite each other.

    root/Pod.shop.cart.yaml                  the object
    root/.overlay/<manager>/Pod.shop.cart.json   {"uid": of the object or null, "patch": {...}}

Files are replaced by rename under a lock, so readers in other processes see whole objects. A file
that turns malformed keeps its last good objects in a running process: a typo must not remove a
policy.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import marshal
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mesh.errors import BadInput
from mesh.manifest import (
    Key,
    dump_manifest,
    make_key,
    normalise,
    parse_manifests,
    plain,
    split_documents,
)
from mesh.store_cache import (
    OVERLAY,
    Cache,
    Object,
    file_name,
    subfolders,
    unmerge,
    written,
)

_LONGEST_NAME: Final = 250  # a file name has at most 255 bytes; ours are ASCII
_POLL: Final = 0.2  # seconds between looks where inotify is not to be had
Objects = list[Object]
Lines = list[str]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_atomic(path: Path, text: str, mtime_ns: int | None = None) -> None:
    tmp = path.with_name(f".tmp-{os.getpid()}-{threading.get_ident()}-{path.name}"[:250])
    try:
        tmp.write_text(text, encoding="utf-8")
        if mtime_ns is not None:
            os.utime(tmp, ns=(mtime_ns, mtime_ns))
        tmp.rename(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


class FolderStore:
    """Objects of a folder. Cheap to list; one instance per watcher; safe to share by threads."""

    def __init__(self, root: Path) -> None:
        """Open (and create if absent) the folder."""
        self.root = Path(root)
        (self.root / OVERLAY).mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._cache = Cache(self.root)
        self._cache.changed = False

    # ---- reading -----------------------------------------------------------------------------

    def list(self, kind: str | None = None) -> Objects:
        """Return all objects (of one kind), merged with what controllers wrote, as fresh copies."""
        with self._lock:
            self._cache.refresh()
            merged = self._cache.merged
            return [
                marshal.loads(merged[key].data)
                for key in self._cache.ordered()
                if kind is None or key.kind == kind
            ]

    def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """Return a fresh copy of one object, or None."""
        key = make_key(kind, namespace, name)
        with self._lock:
            self._cache.refresh()
            found = self._cache.merged.get(key)
            return marshal.loads(found.data) if found else None

    def as_written(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """Return one object without what controllers wrote about it, or None: to edit and apply."""
        key = make_key(kind, namespace, name)
        with self._lock:
            self._cache.refresh()
            return self._written(key)

    def files_of(self, kind: str, namespace: str | None, name: str) -> Lines:
        """Name the files that hold a copy of an object."""
        key = make_key(kind, namespace, name)
        with self._lock:
            self._cache.refresh()
            return sorted(f for f, cached in self._cache.files.items() if key in cached.objects)

    def changes(self, known: Mapping[Key, int]) -> tuple[dict[Key, tuple[int, Object]], set[Key]]:
        """Compare with revisions seen before: ({key: (revision, object)} new or changed, gone)."""
        with self._lock:
            self._cache.refresh()
            merged = self._cache.merged
            changed = {
                key: (m.revision, marshal.loads(m.data))
                for key, m in merged.items()
                if known.get(key) != m.revision
            }
            return changed, set(known) - set(merged)

    def problems(self) -> Lines:
        """Return one line per document that cannot be read, naming file and line."""
        with self._lock:
            self._cache.refresh()
            return [p for _, f in sorted(self._cache.files.items()) for p in f.problems]

    # ---- writing -----------------------------------------------------------------------------

    def apply(self, obj: Mapping[str, Any]) -> None:
        """Create or replace an object; raises BadInput when it is none.

        As with an API server: uid, creationTimestamp and status are kept when the new object has
        none, and generation counts changes of spec.
        """
        key, new = normalise(obj)
        if len(file_name(key, "yaml")) > _LONGEST_NAME:
            raise BadInput(f"{key}: kind, namespace and name together are too long for a file name")
        with self._writing():
            old = self._written(key)
            metadata = new["metadata"]
            was = old["metadata"] if old else {}
            unmerge(new, old, self._cache.patches(key, was.get("uid")))
            metadata["uid"] = metadata.get("uid") or was.get("uid") or str(uuid.uuid4())
            metadata["creationTimestamp"] = (
                metadata.get("creationTimestamp") or was.get("creationTimestamp") or _now()
            )
            generation = was.get("generation")
            generation = generation if isinstance(generation, int) else 0
            changed = old is None or old.get("spec") != new.get("spec")
            metadata["generation"] = generation + changed or 1
            if old and "status" in old:
                new.setdefault("status", old["status"])
            if new != old:
                _write_atomic(self.root / file_name(key, "yaml"), dump_manifest(new))

    def delete(self, kind: str, namespace: str | None, name: str) -> bool:
        """Delete an object wherever it is written, and all that controllers wrote about it."""
        key = make_key(kind, namespace, name)
        with self._writing():
            holders = [f for f, cached in self._cache.files.items() if key in cached.objects]
            for file in holders:
                self._remove_from(file, key)
            overlay = file_name(key, "json")
            for manager in subfolders(self.root / OVERLAY):
                (self.root / OVERLAY / manager / overlay).unlink(missing_ok=True)
            return bool(holders)

    def patch(
        self,
        kind: str,
        namespace: str | None,
        name: str,
        manager: str,
        patch: Mapping[str, Any] | None,
    ) -> bool:
        """Replace what `manager` says about an object; None removes it. Returns whether it changed.

        `patch` may hold metadata.annotations, metadata.labels and status; a null value removes
        the key it names. Nothing is said about an object that does not exist.
        """
        key = make_key(kind, namespace, name)
        if not manager.replace("-", "").isalnum():
            raise BadInput(f"field manager {manager!r}: use letters, digits and '-'")
        file = file_name(key, "json")
        path = self.root / OVERLAY / manager / file
        with self._writing():
            known = self._cache.overlays.get((manager, file))
            if patch is None:
                path.unlink(missing_ok=True)
                return known is not None
            wanted = _checked_patch(key, patch)
            base = self._written(key)
            if base is None:
                return False
            uid = base["metadata"].get("uid")
            if known and known.patch == wanted and known.uid == uid:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_atomic(path, json.dumps({"uid": uid, "patch": wanted}))
            return True

    # ---- watching ----------------------------------------------------------------------------

    def watch(self, timeout: float) -> bool:
        """Block until something changed since the last call, or `timeout` seconds; say which.

        The first call looks back to when the store was opened.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                self._cache.drain()
                inotify = self._cache.inotify
                if inotify is None:
                    self._cache.refresh()
                changed, self._cache.changed = self._cache.changed, False
            if changed:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if inotify is None:
                time.sleep(min(left, _POLL))
            else:
                inotify.wait(left)

    def close(self) -> None:
        """Give the watch back; what is left works by comparing files."""
        with self._lock:
            self._cache.close()

    def __del__(self) -> None:
        """Give the descriptor back."""
        if hasattr(self, "_cache"):
            self._cache.close()

    # ---- the lock ----------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder's lock against other processes and this one's other threads."""
        with self._lock:
            (self.root / OVERLAY).mkdir(parents=True, exist_ok=True)
            fd = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._cache.refresh()
                yield
            finally:
                os.close(fd)

    def _written(self, key: Key) -> Object | None:
        """Return the object as written, without overlays."""
        found = self._cache.merged.get(key)
        return written(found.copies) if found else None

    def _remove_from(self, file: str, key: Key) -> None:
        """Take one object out of a file; other documents keep their text, comments and age."""
        path = self.root / file
        cached = self._cache.files[file]
        # Where it is only kept from before a typo, this is all there is to do.
        self._cache.drop(file, key)
        if not cached.objects and not cached.problems:
            path.unlink(missing_ok=True)
            return
        kept: list[str] = []
        for _, text in split_documents(path.read_text(encoding="utf-8-sig", errors="replace")):
            objects, _ = parse_manifests(text)
            if key not in objects:
                kept.append(text)
            else:  # a List: its other items stay
                kept += ["\n" + dump_manifest(o) for k, o in objects.items() if k != key]
        _write_atomic(path, "---".join(kept), cached.stamp[0])


def _checked_patch(key: Key, patch: Mapping[str, Any]) -> Object:
    metadata = patch.get("metadata") or {}
    if set(patch) - {"metadata", "status"} or set(metadata) - {"annotations", "labels"}:
        raise BadInput(
            f"{key}: a patch may hold metadata.annotations, metadata.labels and status,"
            f" not {sorted({*patch, *metadata})}"
        )
    checked: Object = plain(patch, str(key))
    return checked

"""Pods of the lab: objects from a FolderStore, sandboxes from the runtime's folder of JSON files.

One file for each pod that has a sandbox, DIR/<uid>.json, written before its first process starts
and removed after the last ended:
    {"uid", "namespace", "name", "service_account", "netns", "cgroup", "addresses", "probe_ports"}
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mesh.enrolment import wants
from mesh.errors import BadInput
from mesh.inotify import Inotify
from mesh.ports import ANNOTATION_REDIRECTION
from mesh.store import FolderStore
from node_agent.source import CONDITION, DesiredPod, PodStatus, condition

log = logging.getLogger(__name__)

MANAGER: Final = "node-agent"
MAX_FILE: Final = 64 * 1024
MAX_ADDRESSES: Final = 16
MAX_PROBE_PORTS: Final = 64
_WATCH_TURN: Final = 1.0  # seconds after which a watching thread looks whether it should end
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def decode_pod_untrusted(data: bytes) -> DesiredPod:
    """Parse one runtime file; BadInput says what is wrong with it. `wants` is None."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:  # undecodable bytes and deep nesting too
        raise BadInput(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise BadInput("not a JSON object")
    return DesiredPod(
        uid=_text(raw, "uid", _UID),
        namespace=_text(raw, "namespace", _NAME),
        name=_text(raw, "name", _NAME),
        service_account=_text(raw, "service_account", _NAME),
        addresses=_addresses(raw),
        netns=_path(raw, "netns"),
        cgroup=_path(raw, "cgroup"),
        probe_ports=_ports(raw),
        wants=None,
    )


class FolderSource:
    """PodSource of the lab."""

    def __init__(self, objects: Path, runtime: Path) -> None:
        """`objects`: the FolderStore's root. `runtime`: the folder of pod files."""
        self._objects = objects
        self._runtime = runtime
        self._store = FolderStore(objects)
        self._bad: dict[str, str] = {}  # file name -> complaint already logged
        self._stop = threading.Event()

    def pods(self) -> dict[str, DesiredPod]:
        """Give the sandboxes of this node, joined with what their objects want."""
        found = {}
        for path in sorted(self._runtime.glob("*.json")):
            pod = self._read(path)
            if pod is not None:
                found[pod.uid] = self._join(pod)
        return found

    def expects(self, uid: str) -> bool:
        """Never: a pod's file is there before its first process."""
        return False

    def report(self, pod: DesiredPod, status: PodStatus | None) -> None:
        """Patch annotation and condition, as field manager `node-agent`."""
        current = self._object(pod)
        if current is None:
            return
        patch: dict[str, Any] | None = None
        if status is not None:
            conditions = (current.get("status") or {}).get("conditions") or []
            old: dict[str, Any] = next((c for c in conditions if c.get("type") == CONDITION), {})
            written = condition(
                status, str(old.get("status") or ""), str(old.get("lastTransitionTime") or "")
            )
            patch = {
                "metadata": {"annotations": {ANNOTATION_REDIRECTION: status.redirection}},
                "status": {"conditions": [written]},
            }
        self._store.patch("Pod", pod.namespace, pod.name, MANAGER, patch)

    def start(self, changed: Callable[[], None]) -> None:
        """Watch both folders, each from a thread."""
        for watch in (self._watch_objects, self._watch_runtime):
            threading.Thread(target=watch, args=(changed,), name="watch", daemon=True).start()

    def close(self) -> None:
        """Have the watching threads end, within a second; nobody waits for them."""
        self._stop.set()
        self._store.close()

    def _watch_objects(self, changed: Callable[[], None]) -> None:
        store = FolderStore(self._objects)
        while not self._stop.is_set():
            if store.watch(_WATCH_TURN):
                changed()
        store.close()

    def _watch_runtime(self, changed: Callable[[], None]) -> None:
        inotify = Inotify()
        self._runtime.mkdir(parents=True, exist_ok=True)
        inotify.add(self._runtime)
        while not self._stop.is_set():
            if inotify.wait(_WATCH_TURN):
                for _ in inotify.read():
                    pass
                changed()
        inotify.close()

    def _read(self, path: Path) -> DesiredPod | None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
            if len(data) > MAX_FILE:
                raise BadInput(f"larger than {MAX_FILE} bytes")
            pod = decode_pod_untrusted(data)
            if path.stem != pod.uid:
                raise BadInput(f"the file of pod {pod.uid} must be called {pod.uid}.json")
        except FileNotFoundError:
            return None  # removed while we looked
        except (BadInput, OSError) as error:
            if self._bad.get(path.name) != str(error):
                self._bad[path.name] = str(error)
                log.warning("runtime file %s is ignored: %s", path, error)
            return None
        self._bad.pop(path.name, None)
        return pod

    def _join(self, pod: DesiredPod) -> DesiredPod:
        obj = self._object(pod)
        if obj is None:
            # Deleted, or written after its sandbox: as long as nobody says, leave it as it is.
            return pod
        namespace = self._store.get("Namespace", None, pod.namespace)
        marked = (obj["metadata"].get("annotations") or {}).get(ANNOTATION_REDIRECTION, "")
        return replace(pod, wants=wants(obj, namespace), marked=marked)

    def _object(self, pod: DesiredPod) -> dict[str, Any] | None:
        """Give the pod's object, unless the name is another pod's by now."""
        obj = self._store.get("Pod", pod.namespace, pod.name)
        return obj if obj and obj["metadata"].get("uid") == pod.uid else None


def _text(raw: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadInput(f"{key}: {str(value)[:80]!r} is not a valid {key}")
    return value


def _path(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise BadInput(f"{key}: an absolute path is needed")
    return value


def _addresses(raw: dict[str, Any]) -> tuple[str, ...]:
    values = raw.get("addresses")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_ADDRESSES:
        raise BadInput(f"addresses: a list of 1 to {MAX_ADDRESSES} is needed")
    try:
        return tuple(str(ipaddress.ip_address(str(value))) for value in values)
    except ValueError as error:
        raise BadInput(f"addresses: {error}") from error


def _ports(raw: dict[str, Any]) -> tuple[int, ...]:
    values = raw.get("probe_ports", [])
    if not isinstance(values, list) or len(values) > MAX_PROBE_PORTS:
        raise BadInput(f"probe_ports: a list of at most {MAX_PROBE_PORTS} is needed")
    if not all(type(value) is int and 0 < value < 65536 for value in values):
        raise BadInput("probe_ports: each is a port number")
    return tuple(sorted(set(values)))

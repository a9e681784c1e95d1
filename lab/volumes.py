"""Files that a pod's volumes hold: projected service account tokens, kept fresh.

Pods see this machine's files, so a volume has no mount path: it is the folder $POD_FILES/VOLUME.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from lab import tokens
from lab.layout import Layout
from lab.workloads import namespace_of
from mesh.ports import TOKEN_AUDIENCE

Object = dict[str, Any]
Uid = Callable[[str, str | None, str], str]  # of an object: kind, namespace, name

FILES: Final = "POD_FILES"  # environment of a pod's processes


class Volumes:
    """The tokens of pods. `key` is the PEM that signs them."""

    def __init__(self, layout: Layout, key: str, uid: Uid) -> None:
        self._layout = layout
        self._key = key
        self._uid = uid
        self._due: dict[str, float] = {}  # by pod's uid

    def project(self, pod: Object, now: float) -> None:
        """Write a pod's tokens."""
        for path, audience in _tokens(pod):
            spec = pod["spec"]
            account = spec.get("serviceAccountName") or "default"
            namespace, node = namespace_of(pod), str(spec.get("nodeName"))
            subject = tokens.Subject(
                namespace=namespace,
                service_account=account,
                service_account_uid=self._uid("ServiceAccount", namespace, account),
                pod=pod["metadata"]["name"],
                pod_uid=pod["metadata"]["uid"],
                node=node,
                node_uid=self._uid("Node", None, node),
            )
            file = self._folder(pod) / path
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            tokens.write(file, tokens.sign(self._key, subject, time.time(), audience=audience))
            self._due[pod["metadata"]["uid"]] = now + tokens.LIFETIME * tokens.REFRESH

    def tick(self, now: float, pods: Iterable[Object]) -> None:
        """Write those that are old."""
        for pod in pods:
            if now >= self._due.get(pod["metadata"]["uid"], now + 1):
                self.project(pod, now)

    def due(self) -> float | None:
        """When the next one is old."""
        return min(self._due.values(), default=None)

    def remove(self, pod: Object) -> None:
        """Forget a pod."""
        self._due.pop(pod["metadata"]["uid"], None)
        shutil.rmtree(self._folder(pod), ignore_errors=True)

    def _folder(self, pod: Object) -> Path:
        return self._layout.pod_files(pod["metadata"]["uid"])


def _tokens(pod: Object) -> Iterator[tuple[str, str]]:
    """Find the tokens that a pod's volumes ask for: (VOLUME/PATH, audience)."""
    for volume in pod["spec"].get("volumes") or []:
        for source in (volume.get("projected") or {}).get("sources") or []:
            wanted = source.get("serviceAccountToken")
            if wanted:
                path = f"{volume['name']}/{wanted.get('path') or 'token'}"
                yield path, str(wanted.get("audience") or TOKEN_AUDIENCE)

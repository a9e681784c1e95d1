"""The roots that proxies trust, in a ConfigMap of every namespace where a proxy of ours runs.

The one in the mesh's own namespace carries the record of roots (control_plane.ca.rotation.Ledger)
as an annotation: what is distributed and since when are one object.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from cryptography import x509

from control_plane.ca.root import ROOT_CERT, Piece, bundle_pem, certificates_in
from control_plane.ca.rotation import Ledger
from control_plane.kubernetes.naming import (
    CONFIG_MAP,
    CONTROLLERS,
    FIELD_MANAGER,
    LABELS,
    WAYPOINT_CLASSES,
)
from control_plane.kubernetes.pacing import Pacer
from control_plane.kubernetes.source import ObjectCache
from control_plane.metrics import Counter
from mesh.errors import BadInput, ConfigError, Unavailable
from mesh.kube.api import APPLY, Api, ApiError
from mesh.kube.kinds import Kind
from mesh.kube.reflector import Observer, Reflector

log = logging.getLogger(__name__)

Roots = tuple[x509.Certificate, ...]
Object = Mapping[str, Any]
LEDGER: Final = "ambit.io/roots"

_KIND: Final = Kind(
    "ConfigMap",
    "configmaps",
    selector=f"metadata.name={CONFIG_MAP}",
    keep={"metadata": {"annotations": {LEDGER: True}}, "data": {ROOT_CERT: True}},
)


def waypoint_namespaces(
    gateways: Iterable[Object], classes: Iterable[Object], namespaces: Iterable[Object]
) -> set[str]:
    """Name the namespaces in which a waypoint is wanted. Those that are being deleted are not."""
    ours = WAYPOINT_CLASSES | {
        c["metadata"]["name"]
        for c in classes
        if (c.get("spec") or {}).get("controllerName") in CONTROLLERS
    }
    alive = {
        n["metadata"]["name"] for n in namespaces if not n["metadata"].get("deletionTimestamp")
    }
    return alive & {
        g["metadata"]["namespace"]
        for g in gateways
        if (g.get("spec") or {}).get("gatewayClassName") in ours
    }


class RootMaps:
    """Reads and writes the ConfigMaps. Used from the CA's thread; the reflector has its own."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        others: Callable[[], set[str]],
        leading: Callable[[], bool],
        writes: Counter,
        observer: Observer,
        news: threading.Event,
    ) -> None:
        self.cache = ObjectCache(news)
        self._api = api
        self._namespace = namespace
        self._others = others
        self._leading = leading
        self._writes = writes
        self._reflector = Reflector(api, _KIND, self.cache, observer)
        self._pacer = Pacer()
        self._ledger = Ledger()
        self._text = ""
        self._said: set[str] = set()

    def start(self) -> None:
        """Begin to read."""
        self._reflector.start()

    def stop(self) -> None:
        """Stop reading."""
        self._reflector.stop()

    @property
    def listed(self) -> bool:
        """Say whether they were read once."""
        return self._reflector.listed

    @property
    def problem(self) -> str:
        """Say why they cannot be read."""
        found = self._reflector.problem
        return f"{self._reflector.name}: {found}" if found else ""

    def _maps(self) -> dict[str, dict[str, Any]]:
        return {m["metadata"]["namespace"]: m for m in self.cache.objects("ConfigMap")}

    @property
    def ledger(self) -> Ledger:
        """The record of roots; the last one that was good, where it is lost or unreadable."""
        own = self._maps().get(self._namespace) or {"metadata": {}}
        text = (own["metadata"].get("annotations") or {}).get(LEDGER)
        if isinstance(text, str) and text != self._text:
            self._text = text
            try:
                self._ledger = Ledger.load_untrusted(text)
            except BadInput as e:
                log.error("ConfigMap %s/%s: %s", self._namespace, CONFIG_MAP, e)
        return self._ledger

    @property
    def distributed(self) -> Roots:
        """The roots in the mesh's own namespace."""
        text = (self._maps().get(self._namespace, {}).get("data") or {}).get(ROOT_CERT)
        try:
            return certificates_in(Piece(CONFIG_MAP, str(text or "").encode()))
        except ConfigError:
            return ()

    def spread(self, roots: Roots, ledger: Ledger) -> bool:
        """Write the roots wherever they are not; returns whether they were seen everywhere."""
        text = bundle_pem(roots).decode()
        maps = self._maps()
        complete = True
        for namespace in sorted({self._namespace} | self._others()):
            found = (maps.get(namespace, {}).get("data") or {}).get(ROOT_CERT)
            if found == text:
                self._said.discard(namespace)
            elif not self._write(namespace, text, ledger):
                complete = False
        return complete

    def record(self, roots: Roots, ledger: Ledger) -> None:
        """Write the record of roots down, with the roots it speaks of."""
        self._write(self._namespace, bundle_pem(roots).decode(), ledger)

    def _write(self, namespace: str, text: str, ledger: Ledger) -> bool:
        """Apply one ConfigMap if that is due; returns whether there is no need to wait for it.

        One that was just written counts when its watch shows it.
        """
        metadata: dict[str, Any] = {
            "name": CONFIG_MAP,
            "namespace": namespace,
            "labels": {"istio.io/config": "true", **LABELS},
        }
        if namespace == self._namespace:
            metadata["annotations"] = {LEDGER: ledger.dump()}
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {ROOT_CERT: text},
        }
        now = time.monotonic()
        if self._pacer.due_at(namespace, body) > now or not self._leading():
            return False
        self._pacer.trim(now)
        self._pacer.wrote(namespace, body, now)
        # Forced: a proxy that trusts another root than we sign with cannot work.
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        try:
            self._api.request(
                "PATCH",
                _KIND.path("v1", namespace, CONFIG_MAP),
                query=query,
                body=body,
                content_type=APPLY,
            )
        except (ApiError, Unavailable) as e:
            return self._refused(namespace, e)
        self._writes.inc("ConfigMap", "ok")
        log.info("ConfigMap %s/%s: %d roots written", namespace, CONFIG_MAP, text.count("BEGIN"))
        return False

    def _refused(self, namespace: str, error: ApiError | Unavailable) -> bool:
        self._writes.inc("ConfigMap", "refused")
        if namespace not in self._said:
            log.warning("ConfigMap %s/%s: %s; tried again", namespace, CONFIG_MAP, error)
        self._said.add(namespace)
        # The namespace goes away or is gone: no proxy will start there.
        return isinstance(error, ApiError) and (
            error.status == 404 or "because it is being terminated" in error.message
        )

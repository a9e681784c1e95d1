"""Events: what an operator must notice, where `kubectl describe` shows it."""

from __future__ import annotations

import datetime
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from mesh.errors import BadInput, Unavailable
from mesh.kube.api import Api, ApiError

log = logging.getLogger(__name__)

_AGAIN: Final = 3600.0  # seconds before the same is said again
_MAX: Final = 256
_MESSAGE: Final = 1000


class Events:
    """Tells each thing once an hour. Failing to tell is logged and no more. Not thread-safe."""

    def __init__(
        self, api: Api, namespace: str, reporter: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._reporter = reporter
        self._clock = clock
        self._told: dict[tuple[str, str, str], float] = {}

    def tell(self, kind: str, name: str, reason: str, message: str, warning: bool = False) -> None:
        """Make an Event about a core/v1 object of this namespace."""
        key, now = (name, reason, message), self._clock()
        if now - self._told.get(key, -_AGAIN) < _AGAIN:
            return
        if len(self._told) >= _MAX:
            self._told.clear()
        self._told[key] = now
        log.log(logging.WARNING if warning else logging.INFO, "%s %s: %s", kind, name, message)
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": kind,
            "namespace": self._namespace,
            "name": name,
        }
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{name}.{uuid.uuid4().hex[:16]}",
                "namespace": self._namespace,
            },
            "involvedObject": about,
            "reason": reason,
            "message": message[:_MESSAGE],
            "type": "Warning" if warning else "Normal",
            "source": {"component": self._reporter},
            "firstTimestamp": when,
            "lastTimestamp": when,
            "count": 1,
        }
        try:
            path = f"/api/v1/namespaces/{self._namespace}/events"
            self._api.request("POST", path, body=body, timeout=4.0)
        except (ApiError, Unavailable, BadInput) as e:
            log.info("no Event about %s %s: %s", kind, name, e)

"""Whether a pod that is about to start belongs to the mesh: asked of the API server itself.

The watch would know it soon, but the pod must not run before; and a watch whose connection has died
unnoticed knows nothing of the label that was set a minute ago. So the namespace is asked for every
time (one question for all pods of it that start together), and the pod unless the watch has it.
When the API server does not answer, what was last read of both decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from mesh.enrolment import EXCLUDED_NAMESPACES
from mesh.errors import MeshError, NotFound, Unavailable
from mesh.kube.api import Api, ApiError
from node_agent.cni_protocol import Request
from node_agent.kube_cache import KubeCache
from node_agent.pod_object import PodObject, read

log = logging.getLogger(__name__)

TIMEOUT: Final = 3.0  # seconds for one question
_WORKERS: Final = 8


@dataclass(frozen=True, slots=True)
class Found:
    """A pod about to start, and whether it belongs to the mesh."""

    pod: PodObject
    wanted: bool


class Enquiry:
    """Asks. Methods run on the loop; the questions are put by threads."""

    def __init__(self, api: Api, cache: KubeCache) -> None:
        self._api = api
        self._cache = cache
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="enquiry")
        self._namespaces: dict[str, asyncio.Task[Mapping[str, Any] | None]] = {}

    def close(self) -> None:
        """End the threads; questions under way are left alone."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ask(self, request: Request) -> Found | None:
        """Say about a pod, None when nothing of it can belong to the mesh.

        Raises NotFound when the pod is gone, or another one by now; Unavailable when nobody knows.
        """
        if request.namespace in EXCLUDED_NAMESPACES:
            return None
        namespace = await self._namespace(request.namespace)
        pod = self._cache.pod(request.uid) if request.uid else None
        if pod is None or (pod.namespace, pod.name) != (request.namespace, request.name):
            pod = await self._pod(request)
        if pod is None:
            # A static pod before its mirror: it has no labels that anybody knows of.
            pod = _static(request)
        return Found(pod, pod.wants(namespace))

    async def _namespace(self, name: str) -> Mapping[str, Any] | None:
        task = self._namespaces.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch_namespace(name))
            self._namespaces[name] = task
            task.add_done_callback(lambda _: self._namespaces.pop(name, None))
        return await asyncio.shield(task)

    async def _fetch_namespace(self, name: str) -> Mapping[str, Any] | None:
        try:
            return await self._get(f"/api/v1/namespaces/{name}")
        except MeshError as error:
            known = self._cache.namespace(name)
            if known is None:
                raise Unavailable(f"whether namespace {name} is of the mesh: {error}") from error
            log.warning("namespace %s: %s; taken as last read", name, error)
            return known

    async def _pod(self, request: Request) -> PodObject | None:
        found = await self._get(f"/api/v1/namespaces/{request.namespace}/pods/{request.name}")
        if found is not None:
            pod = read(found)
            if request.uid in ("", pod.uid, pod.object_uid):
                return pod
        # The API server gives uids with dashes; kubelet gives its static pods a bare hash.
        if found is None and request.uid and "-" not in request.uid:
            return None
        raise NotFound(f"the API server has no pod {request.title} with uid {request.uid} any more")

    async def _get(self, path: str) -> Mapping[str, Any] | None:
        """Fetch an object, None when there is none; raises ApiError or Unavailable."""

        def get() -> Mapping[str, Any] | None:
            try:
                return self._api.request("GET", path, timeout=TIMEOUT)
            except ApiError as error:
                if error.status == 404:
                    return None
                raise

        return await asyncio.get_running_loop().run_in_executor(self._threads, get)


def _static(request: Request) -> PodObject:
    metadata = {"namespace": request.namespace, "name": request.name, "uid": request.uid}
    return read({"metadata": metadata})

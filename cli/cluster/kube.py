"""The API server as commands use it: kinds looked up by name, objects applied as they are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from cli.cluster.objects import INSTALLER, Object, Ref, ref
from mesh.errors import Unavailable
from mesh.kube.api import APPLY, JSON, MERGE, Api, ApiError

STRATEGIC: Final = "application/strategic-merge-patch+json"
_TIMEOUT: Final = 30.0  # seconds for one answer
_BUSY: Final = 20.0  # seconds
_PAGE: Final = 500


class Kube:
    """A connection to one cluster. Not for several threads."""

    def __init__(self, api: Api) -> None:
        """Take the connection."""
        self.api = api
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}
        self._read: set[str] = set()
        self._lists: set[tuple[str, str]] = set()

    @classmethod
    def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> Kube:
        """Use a kubeconfig, or the pod's account inside a cluster; raises ConfigError."""
        return cls(Api.load(kubeconfig, context))

    @property
    def host(self) -> str:
        """URL of the API server."""
        return self.api.address

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        content: str = JSON,
        query: Mapping[str, str] | None = None,
    ) -> Object:
        """Send one request and read the JSON that comes back; raises ApiError, Unavailable.

        What the server is too busy for, as a kind whose CRD has just come, is asked again for a
        while: everything sent from here can be sent twice.
        """
        deadline = time.monotonic() + _BUSY
        while True:
            try:
                return self.api.request(
                    method, path, query=query, body=body, content_type=content, timeout=_TIMEOUT
                )
            except ApiError as e:
                if e.status not in (429, 503) or time.monotonic() > deadline:
                    raise
                time.sleep(min(max(e.retry_after, 0.2), 2.0))

    # ---- kinds -------------------------------------------------------------------------------

    def version(self) -> str:
        """Version of the server, as v1.37.2."""
        return str(self.call("GET", "/version").get("gitVersion", "?"))

    def api_versions(self) -> set[str]:
        """Name what is served: GROUP/VERSION, with /KIND too where the chart asks for it."""
        found = set(self.call("GET", "/api").get("versions", []))
        for group in self.call("GET", "/apis").get("groups", []):
            found |= {v["groupVersion"] for v in group.get("versions", [])}
        for version in sorted(found):
            if version.startswith(("gateway.networking.k8s.io/", "monitoring.coreos.com/")):
                self._discover(version)
                found |= {f"{version}/{kind}" for v, kind in self._kinds if v == version}
        return found

    def listable(self) -> list[tuple[str, str]]:
        """List (api version, kind) of what belongs to namespaces, one version of each group."""
        versions = [str(v) for v in self.call("GET", "/api").get("versions", [])]
        for group in self.call("GET", "/apis").get("groups", []):
            versions.append(str(group["preferredVersion"]["groupVersion"]))
        found = []
        for version in versions:
            try:
                self._discover(version)
            except (ApiError, Unavailable):
                continue
            found += [
                (version, kind)
                for (v, kind), (_, namespaced) in self._kinds.items()
                if v == version and namespaced and (v, kind) in self._lists
            ]
        return found

    def forget_kinds(self) -> None:
        """Look kinds up again: CRDs have come or gone."""
        self._kinds.clear()
        self._read.clear()

    def _discover(self, api_version: str) -> None:
        if api_version in self._read:
            return
        base = "/apis/" if "/" in api_version else "/api/"
        for resource in self.call("GET", base + api_version).get("resources", []):
            if "/" not in resource["name"]:
                where = (resource["name"], bool(resource["namespaced"]))
                self._kinds.setdefault((api_version, resource["kind"]), where)
                if "list" in (resource.get("verbs") or []):
                    self._lists.add((api_version, resource["kind"]))
        self._read.add(api_version)

    def is_namespaced(self, of: Ref) -> bool:
        """Whether a kind's objects belong to namespaces; raises ApiError for an unknown kind."""
        return self._where(of)[1]

    def resource(self, of: Ref) -> str:
        """Name a kind's resource, as pods of Pod."""
        return self._where(of)[0]

    def _where(self, of: Ref) -> tuple[str, bool]:
        try:
            self._discover(of.api_version)
        except ApiError as e:
            if e.status != 404:
                raise
        found = self._kinds.get((of.api_version, of.kind))
        if found is None:
            message = f"{of}: this cluster knows no {of.api_version} {of.kind}"
            raise ApiError(404, "NotFound", message)
        return found

    def path(self, of: Ref) -> str:
        """Path of an object; of the collection when it has no name."""
        resource, namespaced = self._where(of)
        base = ("/apis/" if "/" in of.api_version else "/api/") + of.api_version
        if namespaced and of.namespace:
            base += f"/namespaces/{of.namespace}"
        return f"{base}/{resource}" + (f"/{of.name}" if of.name else "")

    # ---- objects -----------------------------------------------------------------------------

    def get(self, of: Ref) -> Object | None:
        """Return an object, None when it (or its kind) is not there."""
        try:
            found: Object = self.call("GET", self.path(of))
        except ApiError as e:
            if e.status == 404:
                return None
            raise
        return found

    def list(
        self, api_version: str, kind: str, namespace: str = "", **query: str
    ) -> Iterator[Object]:
        """Yield all objects of a kind, page by page; none when the kind is not known."""
        try:
            path = self.path(Ref(api_version, kind, namespace, ""))
        except ApiError as e:
            if e.status == 404:
                return
            raise
        token = ""
        while True:
            more = {"continue": token} if token else {}
            page = self.call("GET", path, query={"limit": str(_PAGE), **query, **more})
            for item in page.get("items") or []:
                yield {"apiVersion": api_version, "kind": kind, **item}
            token = (page.get("metadata") or {}).get("continue", "")
            if not token:
                return

    def apply(
        self, obj: Object, dry_run: bool = False, manager: str = INSTALLER, force: bool = True
    ) -> Object:
        """Server-side apply; `force`: our fields are ours, whoever wrote them last."""
        query = {"fieldManager": manager, "fieldValidation": "Strict"}
        if force:
            query["force"] = "true"
        if dry_run:
            query["dryRun"] = "All"
        path = self.path(ref(obj))
        applied: Object = self.call("PATCH", path, obj, content=APPLY, query=query)
        return applied

    def create(self, obj: Object, path: str) -> Object:
        """Create what only answers, as a SelfSubjectAccessReview."""
        created: Object = self.call("POST", path, obj)
        return created

    def delete(self, of: Ref, propagation: str = "Background", uid: str = "") -> bool:
        """Delete an object; False when it was not there (or is another one than `uid`)."""
        body: dict[str, Any] = {"propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self.call("DELETE", self.path(of), body)
        except ApiError as e:
            if e.status in (404, 409):
                return False
            raise
        return True

    def patch(
        self, of: Ref, patch: Mapping[str, Any], content: str = MERGE, sub: str = ""
    ) -> Object | None:
        """Patch an object, or a subresource of it; None when it is not there."""
        path = self.path(of) + (f"/{sub}" if sub else "")
        try:
            found: Object = self.call("PATCH", path, patch, content=content)
        except ApiError as e:
            if e.status == 404:
                return None
            raise
        return found

    def logs(self, namespace: str, pod: str, container: str, lines: int, previous: bool) -> str:
        """Return the last lines of a container's log, "" when there is none."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        query = {"container": container, "tailLines": str(lines), "limitBytes": "65536"}
        if previous:
            query["previous"] = "true"
        try:
            return self.api.text(path, query=query).decode(errors="replace")
        except (ApiError, Unavailable):
            return ""

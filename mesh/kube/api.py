"""The API server over HTTP, in dictionaries.

The kubernetes package finds and refreshes credentials and keeps the connections; its typed models
are left aside, because building one costs more than everything that is done with it here. Safe to
share between threads. Only this file and forward.py import the package.
"""

from __future__ import annotations

import gc
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

from mesh import __version__
from mesh.errors import BadInput, ConfigError, MeshError, Unavailable

Object = dict[str, Any]

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML
MERGE: Final = "application/merge-patch+json"
_CONNECTIONS: Final = 32  # kept open; a watch holds one for minutes
_CONNECT: Final = 5.0  # seconds
_MAX_LINE: Final = 32 << 20  # an object has at most 3 MiB as a request, 8 MiB with everything
_SHOWN: Final = 500


class ApiError(MeshError):
    """The API server said no. `status` is HTTP's, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{message[:_SHOWN]} ({status} {reason})")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after  # seconds the server asks to wait, or 0


def load_configuration(
    kubeconfig: Path | None,
    environ: Mapping[str, str] = os.environ,
    context: str | None = None,
) -> Any:
    """Find the API server and credentials: a named file, a pod's own, or kubectl's.

    `context`: of the file, where it is not the current one. Raises ConfigError.
    """
    configuration = Configuration()
    try:
        if kubeconfig is not None or context is not None:
            file = str(kubeconfig) if kubeconfig else None
            load_kube_config(file, context=context, client_configuration=configuration)
        elif environ.get("KUBERNETES_SERVICE_HOST"):
            load_incluster_config(configuration)
        else:
            load_kube_config(client_configuration=configuration)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as e:
        where = f"--kubeconfig {kubeconfig}" if kubeconfig else "Kubernetes"
        raise ConfigError(
            f"{where}: no usable configuration ({e}); run in a pod with a service account,"
            " or give --kubeconfig FILE"
        ) from e
    configuration.retries = False  # callers decide, and count
    configuration.connection_pool_maxsize = _CONNECTIONS
    configuration.keep_alive = True  # TCP: a server that vanished is noticed
    return configuration


class Stream:
    """One response's lines as they come. `abort` may be called by another thread."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._aborted = False

    def abort(self) -> None:
        """End a blocked read."""
        self._aborted = True
        try:
            self._response.shutdown()
        except (OSError, ValueError, AttributeError):
            self._response.close()

    def lines(self) -> Iterator[bytes]:
        """Yield lines without their ends; raises Unavailable when the connection breaks.

        A last line without an end is one that was cut off: it is dropped.
        """
        rest = b""
        try:
            for chunk in self._response.stream(1 << 16):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
                if len(rest) > _MAX_LINE:
                    raise Unavailable(f"the API server sent a line of over {_MAX_LINE >> 20} MiB")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            if not self._aborted:
                raise Unavailable(f"the API server's stream broke: {_why(e)}") from e


class Api:
    """One API server."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._rest = RESTClientObject(configuration)
        self.address: str = configuration.host.rstrip("/")

    @classmethod
    def load(cls, kubeconfig: Path | None = None, context: str | None = None) -> Api:
        """See load_configuration."""
        return cls(load_configuration(kubeconfig, context=context))

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout: float = 10.0,
    ) -> Object:
        """Ask and read the whole answer; raises ApiError, or Unavailable when there is none.

        timeout: seconds that one read may take, not the whole of a long answer.
        """
        response = self._open(method, path, query, body, content_type, accept, timeout)
        return _object(_whole(response, f"{method} {path}"), f"{method} {path}")

    def text(
        self, path: str, *, query: Mapping[str, str] | None = None, timeout: float = 10.0
    ) -> bytes:
        """Read what is no JSON, as a container's log; raises as `request` does."""
        response = self._open("GET", path, query, None, JSON, "*/*", timeout)
        return _whole(response, f"GET {path}")

    @contextmanager
    def stream(
        self, path: str, *, query: Mapping[str, str], accept: str, timeout: float
    ) -> Iterator[Stream]:
        """Open a watch; `timeout`: seconds of silence after which it counts as broken."""
        response = self._open("GET", path, query, None, JSON, accept, timeout)
        try:
            yield Stream(response)
        finally:
            response.close()

    @property
    def configuration(self) -> Any:
        """Address and credentials, as the package keeps them."""
        return self._configuration

    def close(self) -> None:
        """Close idle connections."""
        self._rest.close()

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        accept: str,
        timeout: float,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept, "User-Agent": f"ambit/{__version__}"}
        url = self.address + path + (f"?{urlencode(query)}" if query else "")
        try:
            for auth in self._configuration.auth_settings().values():
                headers["Authorization"] = auth["value"]
            response: urllib3.BaseHTTPResponse = self._rest.pool_manager.request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers if body is None else {**headers, "Content-Type": content_type},
                timeout=urllib3.Timeout(connect=_CONNECT, read=timeout),
                preload_content=False,
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, OSError, ssl.SSLError, ConfigException) as e:
            raise Unavailable(f"the API server at {self.address}: {_why(e)}") from e
        if 200 <= response.status < 300:
            return response
        raise _refusal(response, f"{method} {path}")


def _why(error: BaseException) -> str:
    """Say an HTTP library's error in a line: its words, not the objects it carries along."""
    reason = getattr(error, "reason", None)
    cause = reason if isinstance(reason, BaseException) else error
    words = [a for a in cause.args if isinstance(a, str)]
    text = words[-1] if words else str(cause)
    return (text or type(cause).__name__).split("\n")[0][:_SHOWN]


def _refusal(response: urllib3.BaseHTTPResponse, what: str) -> ApiError:
    try:
        raw = response.read(1 << 16)
    except (urllib3.exceptions.HTTPError, OSError):
        raw = b""
    finally:
        response.close()
    reason, message = response.reason or "", raw.decode("utf-8", "replace").strip()
    try:
        status = json.loads(raw)
        reason = str(status.get("reason") or reason)
        message = str(status.get("message") or message)
    except (ValueError, AttributeError, RecursionError):
        pass  # not a Status: a load balancer's page, or the mux's "404 page not found"
    after = response.headers.get("Retry-After", "")
    return ApiError(
        response.status,
        reason,
        message or what,
        min(float(after), 60.0) if after.isascii() and after.isdigit() else 0.0,
    )


def _whole(response: urllib3.BaseHTTPResponse, what: str) -> bytes:
    try:
        return response.read()
    except (urllib3.exceptions.HTTPError, OSError) as e:
        raise Unavailable(f"{what}: the answer broke off: {_why(e)}") from e
    finally:
        response.release_conn()


def _parse(raw: bytes) -> Any:
    """Parse without looking for garbage meanwhile: trees have no cycles, and it costs threefold."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return json.loads(raw)
    finally:
        if collecting:
            gc.enable()


def _object(raw: bytes, what: str) -> Object:
    try:
        value = _parse(raw)
    except (ValueError, RecursionError) as e:
        raise Unavailable(f"{what}: the answer is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise BadInput(f"{what}: the answer is no object")
    return value

"""What the CNI plugin needs to ask the API server while no agent answers: a kubeconfig, kept fresh.

The token is of a service account of its own, which may read pods, namespaces and the agent's
DaemonSet and nothing else. It lies on the node's disk, for root alone, so that it is there after a
reboot, before anything of the mesh runs. It is not bound to the agent's pod: it must be good for
the time in which there is none.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import threading
from pathlib import Path
from typing import Any, Final

from mesh.errors import ConfigError, MeshError
from mesh.kube.api import Api

log = logging.getLogger(__name__)

ACCOUNT: Final = "ambit-cni"
LIFETIME: Final = 24 * 3600  # seconds asked for; the API server may give less
RENEW: Final = 3600.0
_FIRST: Final = 1.0  # seconds after a failure, doubling
_MOST: Final = 60.0


class TokenKeeper:
    """A thread that writes the kubeconfig, and writes it again every hour."""

    def __init__(self, api: Api, namespace: str, path: Path) -> None:
        """`path`: the file, whose folder is made."""
        self.problem = ""
        self._api = api
        self._namespace = namespace
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cni-token", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End soon; the file stays."""
        self._stop.set()

    def renew(self) -> None:
        """Write a fresh one; raises MeshError or OSError."""
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{ACCOUNT}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFETIME},
        }
        answer = self._api.request("POST", path, body=body)
        token = (answer.get("status") or {}).get("token")
        if not isinstance(token, str) or not token:
            raise MeshError(f"the API server gives no token for {self._namespace}/{ACCOUNT}")
        config = kubeconfig(self._api.address, _authority(self._api.configuration), token)
        write_private(self._path, json.dumps(config).encode())

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self.renew()
            except (MeshError, OSError) as error:
                if str(error) != self.problem:
                    log.warning(
                        "the CNI plugin's token cannot be renewed: %s; while this agent is away it "
                        "will not know which pods belong to the mesh",
                        error,
                    )
                self.problem = str(error)
                pause = min(_FIRST * 2.0 ** min(failures, 16), _MOST)
                failures += 1
            else:
                self.problem, failures, pause = "", 0, RENEW
            self._stop.wait(pause * random.uniform(0.75, 1.25))


def kubeconfig(server: str, authority: bytes, token: str) -> dict[str, Any]:
    """Give a kubeconfig (JSON is YAML) of one server and one user. authority: PEM."""
    cluster = {
        "server": server,
        "certificate-authority-data": base64.b64encode(authority).decode(),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": ACCOUNT, "user": {"token": token}}],
        "contexts": [{"name": "node", "context": {"cluster": "cluster", "user": ACCOUNT}}],
        "current-context": "node",
    }


def write_private(path: Path, data: bytes) -> None:
    """Replace a file that is root's alone, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)


def _authority(configuration: Any) -> bytes:
    """Give the PEM of who signs the API server's certificate."""
    data, file = getattr(configuration, "ca_cert_data", None), configuration.ssl_ca_cert
    if data:
        return data if isinstance(data, bytes) else str(data).encode()
    if not file:
        raise ConfigError(
            "the API server's authority is not known: the plugin would have to trust anybody; "
            "give a kubeconfig with certificate-authority"
        )
    return Path(file).read_bytes()

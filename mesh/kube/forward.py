"""A connection to a port of a pod, through the API server and the pod's node.

It ends on the pod's loopback, so that what listens there for its own node only can be asked, too.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from kubernetes.client.exceptions import ApiException
from kubernetes.stream.ws_client import PortForward, portforward_call

from mesh.errors import Unavailable
from mesh.kube.api import Api

_ERROR_WAIT: Final = 0.5  # seconds


@contextmanager
def forward(api: Api, namespace: str, pod: str, port: int) -> Iterator[socket.socket]:
    """Open one; raises Unavailable, also for an OSError inside that the node explains."""
    headers = {}
    for auth in api.configuration.auth_settings().values():
        headers["authorization"] = auth["value"]
    url = f"{api.address}/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
    try:
        opened: PortForward = portforward_call(
            api.configuration,
            "GET",
            url,
            query_params=[("ports", str(port))],
            headers=headers,
        )
    except (ApiException, OSError) as e:
        reason = str(getattr(e, "reason", e) or e).split("\n")[0]
        raise Unavailable(f"pod {namespace}/{pod}, port {port}: {reason[:300]}") from e
    try:
        yield opened.socket(port)
    except OSError as e:
        if said := _said(opened, port):
            raise Unavailable(f"pod {namespace}/{pod}, port {port}: {said}") from e
        raise
    finally:
        with suppress(OSError):
            opened.close()


def _said(opened: PortForward, port: int) -> str:
    """What the node said about a broken stream; it comes on a channel of its own, a bit later."""
    deadline = time.monotonic() + _ERROR_WAIT
    while time.monotonic() < deadline:
        if said := opened.error(port):
            # "error forwarding port 8000 to pod <id>, uid : failed to ...: connection refused"
            text = str(said).strip().rpartition(", uid : ")[2]
            return "connection refused" if "connection refused" in text else text[:300]
        time.sleep(0.02)
    return ""

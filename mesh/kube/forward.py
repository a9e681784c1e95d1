"""A connection to a port of a pod, through the API server and the pod's node.

It ends on the pod's loopback, so that what listens there for its own node only can be asked, too.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kubernetes.client.exceptions import ApiException
from kubernetes.stream.ws_client import PortForward, portforward_call

from mesh.errors import Unavailable
from mesh.kube.api import Api


@contextmanager
def forward(api: Api, namespace: str, pod: str, port: int) -> Iterator[socket.socket]:
    """Open one; raises Unavailable. What goes wrong later reads as an end of the stream."""
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
        if said := opened.error(port):
            raise Unavailable(f"pod {namespace}/{pod}, port {port}: {said[:300]}")
    finally:
        with suppress(OSError):
            opened.close()

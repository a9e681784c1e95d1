"""Which waypoint a caller is a pod of. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from control_plane.authn import Caller
from control_plane.ca.authorize import Pods, pod_of_untrusted
from mesh.errors import BadInput
from waypoint.config.gateways import GATEWAY_NAME, GatewayRecord


def gateway_of_untrusted(
    caller: Caller, pods: Pods, gateways: Mapping[tuple[str, str], GatewayRecord]
) -> str:
    """Name ("namespace/name") the Gateway whose pod a token is bound to; raises BadInput.

    The pod's label alone would let everybody who may create pods in the namespace read that
    waypoint's configuration: it must run as the waypoint's service account, too.
    """
    pod = pod_of_untrusted(caller, pods)
    name = pod.labels.get(GATEWAY_NAME)
    if name is None:
        raise BadInput(f"pod {pod.namespace}/{pod.name} has no label {GATEWAY_NAME}")
    gateway = gateways.get((pod.namespace, name))
    if gateway is None:
        raise BadInput(f"there is no Gateway {pod.namespace}/{name} of a waypoint class")
    if pod.service_account != gateway.service_account:
        raise BadInput(
            f"pod {pod.namespace}/{pod.name} runs as {pod.service_account}, and waypoint {name} as"
            f" {gateway.service_account}"
        )
    return f"{pod.namespace}/{name}"

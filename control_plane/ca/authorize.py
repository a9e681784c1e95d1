"""Who may have which identity. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from control_plane.authn import Caller
from control_plane.translate.pods import PodRecord
from mesh.errors import BadInput
from mesh.model import SpiffeId


class Pods(Protocol):
    """What must be known about running pods."""

    def pod(self, namespace: str, name: str) -> PodRecord | None:
        """Find a pod that has not finished."""
        ...

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """Say whether a pod of that service account runs on that node."""
        ...


def pod_of_untrusted(caller: Caller, pods: Pods) -> PodRecord:
    """Find the pod that a token is bound to, running as the token says; raises BadInput."""
    if not caller.pod:
        raise BadInput(f"{caller.account}: the token is not bound to a pod")
    pod = pods.pod(caller.namespace, caller.pod)
    name = f"pod {caller.namespace}/{caller.pod}"
    if pod is None:
        raise BadInput(f"{caller.account}: {name} of the token does not run")
    if pod.uid != caller.pod_uid:
        raise BadInput(f"{caller.account}: {name} is another one now (uid {pod.uid})")
    if pod.service_account != caller.service_account:
        raise BadInput(f"{caller.account}: {name} runs as {pod.service_account}")
    return pod


def authorize_untrusted(
    caller: Caller,
    impersonated: str,
    pods: Pods,
    trusted_accounts: Collection[str],
    trust_domain: str,
) -> SpiffeId:
    """Decide which identity a caller gets; raises BadInput with the reason for none.

    Its own; or, for a trusted node proxy, one that runs on the proxy's own node: a stolen node's
    token is worth the identities of that node, not those of the cluster.
    """
    pod = pod_of_untrusted(caller, pods)
    own = SpiffeId(trust_domain, caller.namespace, caller.service_account)
    if not impersonated or impersonated == str(own):
        return own
    wanted = SpiffeId.parse_untrusted(impersonated)
    if caller.account not in trusted_accounts:
        raise BadInput(f"{caller.account} may not ask for other identities ({wanted})")
    if wanted.trust_domain != trust_domain:
        raise BadInput(f"{wanted}: this CA signs for {trust_domain} only")
    if not pod.node or not pods.runs_on(pod.node, wanted.namespace, wanted.service_account):
        raise BadInput(
            f"{caller.account} on node {pod.node or '?'} asked for {wanted},"
            " and no pod of that service account runs there"
        )
    return wanted

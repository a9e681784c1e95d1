"""Asks the API server for what a plan and its checks need to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cli.cluster.checks import Facts, needed_rights
from cli.cluster.inventory import LABEL, Inventory, parse_untrusted
from cli.cluster.kube import Kube
from cli.cluster.objects import Object, Ref, rank, ref
from mesh.kube.api import ApiError

_VERBS = ("create", "patch", "delete")


def inventories(kube: Kube) -> list[Inventory]:
    """Find what was installed, in whichever namespace; raises BadInput for one beyond reading."""
    found = kube.list("v1", "ConfigMap", labelSelector=f"{LABEL}=true")
    return [parse_untrusted(config_map) for config_map in found]


def live(kube: Kube, objects: Iterable[Object]) -> dict[Ref, Object | None]:
    """Fetch what is there under the names of these objects."""
    return {ref(obj): kube.get(ref(obj)) for obj in objects}


def gather(
    kube: Kube, there: Mapping[Ref, Object | None], planned: Iterable[Ref], namespace: str
) -> Facts:
    """Collect what is judged before anything is changed."""
    first = Ref("apps/v1", "Deployment", "", "")
    return Facts(
        version=kube.version(),
        api_versions=frozenset(kube.api_versions()),
        nodes=tuple(kube.list("v1", "Node")),
        denied=tuple(denied(kube, planned, namespace)),
        live=tuple(o for o in there.values() if o is not None and rank(ref(o)) <= rank(first) + 1),
        suspects=tuple(kube.list("apps/v1", "DaemonSet", labelSelector="k8s-app=istio-cni-node")),
        installed=tuple(inventories(kube)),
    )


def denied(kube: Kube, planned: Iterable[Ref], namespace: str) -> list[str]:
    """List what this account may not do, as "create daemonsets.apps"."""
    found = []
    for api_version, kind in needed_rights(planned):
        of = Ref(api_version, kind, "", "")
        try:
            resource, is_namespaced = kube.resource(of), kube.is_namespaced(of)
        except ApiError:
            continue  # of a CRD that is to be installed
        for verb in _VERBS:
            attributes = {"group": of.group, "resource": resource, "verb": verb}
            if is_namespaced:
                attributes["namespace"] = namespace
            if not _may(kube, attributes):
                suffix = f".{of.group}" if of.group else ""
                found.append(f"{verb} {resource}{suffix}")
    return found


def _may(kube: Kube, attributes: Mapping[str, str]) -> bool:
    review = kube.create(
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": dict(attributes)},
        },
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    )
    return bool((review.get("status") or {}).get("allowed"))

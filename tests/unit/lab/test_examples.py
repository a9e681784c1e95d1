"""The manifests in lab/examples are whole: what they name exists in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.apps.shop import ROLES
from mesh.enrolment import wants
from mesh.manifest import parse_manifests

EXAMPLES = Path(__file__).parents[3] / "lab" / "examples"


def read(name: str) -> list[dict[str, Any]]:
    """Parse an example; it must have no problem."""
    objects, problems = parse_manifests((EXAMPLES / name).read_bytes())
    assert not problems
    return list(objects.values())


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [o for o in read("shop.yaml") if o["kind"] == kind]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_parses(path: Path) -> None:
    """As `kubectl apply` would take it."""
    assert read(path.name)


def test_every_role_has_a_deployment_an_account_and_a_service() -> None:
    """In the captured namespace, and the Service selects the Deployment's pods."""
    deployments = {d["metadata"]["name"]: d for d in of_kind("Deployment")}
    services = {s["metadata"]["name"]: s for s in of_kind("Service")}
    accounts = {
        (a["metadata"]["namespace"], a["metadata"]["name"]) for a in of_kind("ServiceAccount")
    }
    for role in ROLES:
        template = deployments[role]["spec"]["template"]
        assert template["spec"]["containers"][0]["command"][-1] == role
        assert ("shop", template["spec"]["serviceAccountName"]) in accounts
        assert services[role]["spec"]["selector"].items() <= template["metadata"]["labels"].items()


def test_only_the_shop_is_in_the_mesh() -> None:
    """`legacy` is the caller from outside."""
    namespaces = {n["metadata"]["name"]: n for n in of_kind("Namespace")}
    for deployment in of_kind("Deployment"):
        namespace = deployment["metadata"]["namespace"]
        pod = {"metadata": {"namespace": namespace}, "spec": {}}
        assert wants(pod, namespaces[namespace]) == (namespace == "shop")


@pytest.mark.parametrize("name", ["policy-deny-cart.yaml", "policy-allow-callers.yaml"])
def test_policies_name_what_the_shop_has(name: str) -> None:
    """A policy about a pod or an account that does not exist would show nothing."""
    (policy,) = read(name)
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in of_kind("Deployment")]
    accounts = {
        f"cluster.local/ns/{a['metadata']['namespace']}/sa/{a['metadata']['name']}"
        for a in of_kind("ServiceAccount")
    }
    assert any(policy["spec"]["selector"]["matchLabels"].items() <= own.items() for own in labels)
    for rule in policy["spec"]["rules"]:
        for source in rule["from"]:
            assert set(source["source"]["principals"]) <= accounts

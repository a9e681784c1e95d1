"""The mesh's root is replaced while every request shakes hands anew: none fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.k8s.installed import AMBIENT, NS, Load, Mesh, ambit, until
from tests.k8s.objects import namespace, pod, service, workload

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(400)]
VAULT = "vault"
LIFE, OVERLAP = 30, 45  # seconds; in earnest a day and a bit more
SECRET = "istio-ca-secret"


@pytest.fixture(scope="module")
def hasty(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Certificates that live seconds, and connections between nodes that carry one stream each."""
    values = tmp_path_factory.mktemp("hasty") / "values.yaml"
    values.write_text(
        yaml.safe_dump(
            {
                "controlPlane": {
                    "defaultCertTtl": f"{LIFE}s",
                    "extraArgs": [f"--root-overlap={OVERLAP}s"],
                },
                "ztunnel": {
                    "extraEnv": [
                        {"name": "SECRET_TTL", "value": f"{LIFE}s"},
                        {"name": "POOL_MAX_STREAMS_PER_CONNECTION", "value": "1"},
                    ]
                },
            }
        )
    )
    done = ambit(mesh.cluster, "install", "--profile", "demo", "-y", "-f", str(values))
    assert done.returncode == 0, done.stdout + done.stderr
    mesh.cluster.apply(
        namespace(VAULT, **AMBIENT),
        workload("DaemonSet", VAULT, "web"),
        service(VAULT, "web"),
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"namespace": VAULT, "name": "strict"},
            "spec": {"mtls": {"mode": "STRICT"}},
        },
        pod(VAULT, "one", "n1"),
        pod(VAULT, "two", "n2"),
    )
    mesh.cluster.kubectl("rollout", "status", "-n", VAULT, "daemonset/web", "--timeout=120s")
    mesh.wait_ready(VAULT)
    mesh.wait_captured(VAULT)
    yield mesh
    mesh.cluster.kubectl("delete", "namespace", VAULT, "--timeout=120s")
    done = ambit(mesh.cluster, "install", "--profile", "demo", "-y")
    assert done.returncode == 0, done.stdout + done.stderr


def roots(mesh: Mesh) -> int:
    """How many roots are told of."""
    found = mesh.cluster.get("configmap", "-n", NS, "istio-ca-root-cert")
    return str(found["data"]["root-cert.pem"]).count("BEGIN CERTIFICATE")


def serials(mesh: Mesh) -> set[str]:
    """Serial numbers of the roots that the certificates in use were signed with."""
    done = ambit(mesh.cluster, "ztunnel", "certificate", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    return {
        one["serialNumber"]
        for held in found
        if f"/ns/{VAULT}/" in held["identity"]
        for one in held["rootCerts"]
    }


def test_a_new_root_takes_over_under_load(hasty: Mesh, tmp_path: Path) -> None:
    before = serials(hasty)
    assert len(before) == 1
    assert roots(hasty) == 1
    running = [
        Load(hasty.cluster, VAULT, name, "web", 3 * OVERLAP + LIFE) for name in ("one", "two")
    ]
    hasty.cluster.kubectl("annotate", "secret", "-n", NS, SECRET, "ambit.io/rotate-root=now")
    until("two roots are told of", lambda: roots(hasty) == 2, 30)
    until("the new one is told of alone", lambda: roots(hasty) == 1, 3 * OVERLAP)
    until("all hold it", lambda: len(serials(hasty)) == 1 and serials(hasty) != before, 2 * LIFE)
    for load in running:
        done, failed = load.result()
        assert not failed, f"{len(failed)} of {done + len(failed)}: {failed[:5]}"
        assert done > 500

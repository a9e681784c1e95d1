"""Leadership and the CA of two control planes, against a real API server."""

from __future__ import annotations

import base64
import datetime
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from control_plane.ca.root import CA_CERT, CA_KEY, ROOT_CERT, SigningCa, key_pem, new_root, pem
from tests.k8s import objects
from tests.k8s.cluster import Cluster
from tests.k8s.plane import MAP, NS, Node, Plane, clean, give_rights, secret_file, wait

pytestmark = pytest.mark.k8s

APP = "cp-ca"


@pytest.fixture(scope="module")
def world(cluster: Cluster) -> Iterator[Cluster]:
    """Rights, CRDs and a namespace."""
    give_rights(cluster)
    cluster.apply(objects.namespace(APP))
    yield cluster
    clean(cluster, APP)


@pytest.fixture(scope="module")
def node(world: Cluster) -> Iterator[Node]:
    made = Node(world, APP)
    yield made
    made.remove()


@pytest.fixture
def planes(world: Cluster, tmp_path: Path) -> Iterator[Any]:
    """Start replicas of a test's own; all end with it."""
    started: list[Plane] = []

    def start(name: str, *more: str) -> Plane:
        started.append(Plane(world, tmp_path, name, *more))
        return started[-1].wait_ready()

    yield start
    for plane in started:
        plane.stop()
        plane.check_log()


def test_leadership_passes_on(world: Cluster, planes: Any) -> None:
    """SIGTERM hands over at once; SIGKILL after the lease has run out."""
    a, b = planes("a"), planes("b")
    first = wait("a leader", lambda: next((p for p in (a, b) if p.leads()), None))
    second = b if first is a else a
    assert not second.leads()
    assert first.stop() == 0
    began = time.monotonic()
    wait("the other leads", second.leads, 6)
    assert time.monotonic() - began < 5
    third = planes("c")
    second.stop(signal.SIGKILL)
    began = time.monotonic()
    wait("the third leads", third.leads, 25)
    assert time.monotonic() - began > 8
    lease = world.get("lease", "-n", NS, "ambit-control-plane")
    assert lease["spec"]["holderIdentity"].startswith("c_")
    assert lease["spec"]["leaseTransitions"] >= 2


def bundle(chain: list[str]) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(chain[-1].encode())


def test_the_root_rotates_on_request(world: Cluster, node: Node, planes: Any) -> None:
    """Annotate the Secret: two roots for a while, then the new one; both replicas follow."""
    a, b = (planes(n, "--root-overlap", "6s") for n in ("a", "b"))
    token, near = node.token(), node.near
    wait("the record", lambda: "ambit.io/roots" in str(world.get("cm", "-n", NS, MAP)["metadata"]))
    old = secret_file(world, "istio-ca-secret", "ca-cert.pem")
    old_root = x509.load_pem_x509_certificate(old)
    world.kubectl("annotate", "secret", "-n", NS, "istio-ca-secret", "ambit.io/rotate-root=now")
    wait("two roots", lambda: a.root().count(b"BEGIN") == 2)
    issuers: dict[str, list[x509.Certificate]] = {"a": [], "b": []}
    end = time.monotonic() + 60
    while a.root().count(b"BEGIN") == 2:
        assert time.monotonic() < end
        for plane in (a, b):
            chain = plane.sign(token, near)
            leaf = x509.load_pem_x509_certificate(chain[0].encode())
            issuer = next(r for r in bundle(chain) if r.subject == leaf.issuer)
            leaf.verify_directly_issued_by(issuer)
            if issuer not in issuers[plane.name][-1:]:
                issuers[plane.name].append(issuer)
        time.sleep(0.3)
    for seen in issuers.values():
        assert [i == old_root for i in seen] == [True, False]
    new = secret_file(world, "istio-ca-secret", "ca-cert.pem")
    assert new != old
    wait("one root", lambda: bundle(a.sign(token, near)) == bundle(b.sign(token, near)))
    assert bundle(a.sign(token, near)) == [x509.load_pem_x509_certificate(new)]
    events = world.get("events", "-n", NS)["items"]
    reasons = {e["reason"] for e in events if e["involvedObject"]["name"] == "istio-ca-secret"}
    assert reasons >= {"RootDistributed", "RootSigns", "RootRotated"}


def cacerts(ca: SigningCa) -> dict[str, Any]:
    files = {CA_CERT: pem(ca.certificate), CA_KEY: key_pem(ca.key), ROOT_CERT: pem(ca.root)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "cacerts", "namespace": NS},
        "data": {k: base64.b64encode(v).decode() for k, v in files.items()},
    }


def issuer(plane: Plane, node: Node) -> x509.Name:
    leaf = plane.sign(node.token(), node.near)[0]
    return x509.load_pem_x509_certificate(leaf.encode()).issuer


def test_a_ca_is_plugged_in_while_the_mesh_runs(world: Cluster, node: Node, planes: Any) -> None:
    """Without a restart: its root is told first, then it signs, and an Event says when."""
    plane = planes("a", "--root-overlap", "5s")
    wait("the record", lambda: "ambit.io/roots" in str(world.get("cm", "-n", NS, MAP)["metadata"]))
    old = bundle(plane.sign(node.token(), node.near))
    corp = new_root("corp", datetime.datetime.now(datetime.UTC))
    world.apply(cacerts(corp))
    try:
        wait("its root", lambda: corp.root in bundle(plane.sign(node.token(), node.near)))
        assert issuer(plane, node) == old[0].subject
        wait("its signature", lambda: issuer(plane, node) == corp.root.subject)
        wait("its root alone", lambda: bundle(plane.sign(node.token(), node.near)) == [corp.root])
        events = world.get("events", "-n", NS)["items"]
        assert "CAWaits" in {e["reason"] for e in events}
    finally:
        world.kubectl("delete", "secret", "-n", NS, "cacerts")

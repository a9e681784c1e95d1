"""Identity is real: what an attacker on a pod, or with a stolen token, cannot do."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lab import Lab
from tests.netns.mesh_objects import line, shop

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

INTRUDER = str(Path(__file__).parent / "intruder.py")
NAME = "t-identity"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Lab]:
    with Lab(NAME) as lab:
        lab.up(shop())
        yield lab


def issuer(lab: Lab) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The lab's own root, so that a certificate differs from a good one in a single respect."""
    data = lab.state / "cp"
    cert = x509.load_pem_x509_certificate((data / "root-cert.pem").read_bytes())
    key = serialization.load_pem_private_key((data / "root-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return cert, key


def foreign() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A root with the right name that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return cert, key


def leaf(
    folder: Path,
    ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    uri: str,
    hours: tuple[float, float] = (-1, 1),
) -> tuple[str, str]:
    """Write a client certificate valid from hours[0] to hours[1] from now; its paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(hours=hours[0]))
        .not_valid_after(now + dt.timedelta(hours=hours[1]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), True)
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            ),
            critical=False,
        )
        .sign(ca[1], hashes.SHA256())
    )
    folder.joinpath("c.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    folder.joinpath("k.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(folder / "c.pem"), str(folder / "k.pem")


def dial(lab: Lab, target: str, authority: str, chain: str, key: str) -> dict[str, object]:
    """From a pod outside the mesh, straight to a pod's 15008."""
    ca = str(lab.state / "cp" / "root-cert.pem")
    done = lab.exec(
        "plain/outsider",
        [sys.executable, INTRUDER, "tunnel", target, authority, ca, chain, key],
    )
    assert done.stdout.strip(), done.stderr
    return line(done.stdout)


def addresses(lab: Lab) -> dict[str, str]:
    return {p["metadata"]["name"]: p["status"]["podIP"] for p in lab.pods()}


def failures(lab: Lab) -> int:
    """Refusals in the log of the server's node."""
    time.sleep(0.6)
    return sum("error=" in x for x in lab.logs("ztunnel/node2").splitlines())


GOOD = "spiffe://cluster.local/ns/plain/sa/outsider"


def test_a_good_certificate_passes(mesh: Lab, tmp_path: Path) -> None:
    """The control: what the refusals below differ from in one respect each."""
    ip = addresses(mesh)["server"]
    assert dial(mesh, ip, f"{ip}:9000", *leaf(tmp_path, issuer(mesh), GOOD)) == {
        "end": "status",
        "status": 200,
    }


@pytest.mark.parametrize("kind", ["none", "foreign root", "expired", "not yet", "foreign domain"])
def test_a_bad_certificate_is_refused_and_logged(mesh: Lab, tmp_path: Path, kind: str) -> None:
    """No certificate, a root nobody trusts, an expired one, another trust domain: no tunnel."""
    ip = addresses(mesh)["server"]
    before = failures(mesh)
    if kind == "none":
        paths = ("-", "-")
    elif kind == "foreign root":
        paths = leaf(tmp_path, foreign(), GOOD)
    elif kind == "expired":
        paths = leaf(tmp_path, issuer(mesh), GOOD, (-3, -2))
    elif kind == "not yet":
        paths = leaf(tmp_path, issuer(mesh), GOOD, (2, 3))
    else:
        paths = leaf(tmp_path, issuer(mesh), GOOD.replace("cluster.local", "elsewhere.example"))
    assert dial(mesh, ip, f"{ip}:9000", *paths)["end"] in ("refused", "eof")
    assert failures(mesh) > before


def test_connect_to_another_pods_address_is_refused_and_logged(mesh: Lab, tmp_path: Path) -> None:
    """A pod's tunnel leads to that pod only."""
    ips = addresses(mesh)
    before = failures(mesh)
    answer = dial(mesh, ips["server"], f"{ips['other']}:9000", *leaf(tmp_path, issuer(mesh), GOOD))
    assert answer == {"end": "status", "status": 400}
    assert failures(mesh) > before


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_connect_to_the_meshs_own_ports_is_refused(mesh: Lab, tmp_path: Path, port: int) -> None:
    """No loop through the proxy itself."""
    ip = addresses(mesh)["server"]
    answer = dial(mesh, ip, f"{ip}:{port}", *leaf(tmp_path, issuer(mesh), GOOD))
    assert answer["end"] == "status"
    assert answer["status"] != 200


def ask(lab: Lab, node: str, token: str, identity: str) -> dict[str, object]:
    """CreateCertificate from a node's namespace."""
    done = subprocess.run(
        [
            *("ip", "netns", "exec", f"ambit-{NAME}-n-{node}"),
            *(sys.executable, INTRUDER, "csr", "10.99.0.2"),
            *(str(lab.state / "cp" / "root-cert.pem"), token, identity),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parent.parent.parent,
        env={"PYTHONPATH": str(Path(__file__).parent.parent.parent), "PATH": "/usr/sbin:/usr/bin"},
    )
    assert done.stdout.strip(), done.stderr
    return line(done.stdout)


def test_a_token_buys_only_identities_of_its_own_node(mesh: Lab) -> None:
    """node1's token: an identity that runs there yes, one that runs elsewhere or nowhere no."""
    token = str(mesh.state / "nodes" / "node1" / "ztunnel-token")
    mine = "spiffe://cluster.local/ns/mesh/sa/client"
    assert ask(mesh, "node1", token, mine) == {"end": "OK", "san": [mine]}
    for identity in (
        "spiffe://cluster.local/ns/mesh/sa/server",
        "spiffe://cluster.local/ns/mesh/sa/nobody",
        "spiffe://elsewhere.example/ns/mesh/sa/client",
    ):
        answer = ask(mesh, "node2", token, identity)
        assert answer["end"] in ("UNAUTHENTICATED", "INVALID_ARGUMENT"), answer
    assert ask(mesh, "node1", "-", mine)["end"] == "UNAUTHENTICATED"


def test_a_forged_token_buys_nothing(mesh: Lab, tmp_path: Path) -> None:
    """A token with a changed claim, or signed by somebody else, is refused."""
    token = (mesh.state / "nodes" / "node1" / "ztunnel-token").read_text().strip()
    head, body, signature = token.split(".")
    forged = tmp_path / "token"
    forged.write_text(f"{head}.{body}.{signature[:-6]}AAAAAA")
    answer = ask(mesh, "node1", str(forged), "spiffe://cluster.local/ns/mesh/sa/client")
    assert answer["end"] == "UNAUTHENTICATED"

"""The CA: what it signs, for whom, and what it refuses."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path
from typing import Any

import pytest
from cp_support import NOW, make_csr, pod, private_pem, uri_csr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.authn import Caller
from control_plane.ca.authority import Lifetimes, sign_server, sign_workload
from control_plane.ca.authorize import authorize_untrusted
from control_plane.ca.csr import check_csr_untrusted
from control_plane.ca.folder import load_or_create, load_plugged
from control_plane.registry import Registry
from control_plane.translate.pods import MeshConfig
from mesh.errors import BadInput, ConfigError
from mesh.manifest import Key
from mesh.model import SpiffeId

CART = SpiffeId("cluster.local", "shop", "cart")
DAY = datetime.timedelta(days=1)


# ---- signing ---------------------------------------------------------------------------------


def test_leaf_is_what_the_contract_says(tmp_path: Path) -> None:
    """Leaf first, root last; one URI; both usages; backdated; signed by the root."""
    ca = load_or_create(tmp_path, "cluster.local", NOW)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    chain = sign_workload(ca, key, CART, DAY, NOW)
    assert len(chain) == 2
    leaf, root = (x509.load_pem_x509_certificate(p.encode()) for p in chain)
    leaf.verify_directly_issued_by(root)
    extension = leaf.extensions.get_extension_for_class
    names = extension(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.UniformResourceIdentifier(str(CART))]
    assert names.critical
    assert len(leaf.subject.rdns) == 0
    assert extension(x509.BasicConstraints).value.ca is False
    assert set(extension(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert extension(x509.KeyUsage).value.digital_signature
    assert not extension(x509.KeyUsage).value.key_cert_sign
    assert leaf.not_valid_before_utc == NOW - datetime.timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + DAY
    other = x509.load_pem_x509_certificate(sign_workload(ca, key, CART, DAY, NOW)[0].encode())
    assert other.serial_number != leaf.serial_number


def test_short_certificate_is_not_born_past_its_renewal(tmp_path: Path) -> None:
    """Backdating takes at most a tenth of a short life: half-life stays in the future."""
    ca = load_or_create(tmp_path, "cluster.local", NOW)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    chain = sign_workload(ca, key, CART, datetime.timedelta(seconds=20), NOW)
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    half = leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2
    assert half > NOW + datetime.timedelta(seconds=8)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(0, 12 * 3600), (-5, 12 * 3600), (60, 60), (24 * 3600, 86400), (2**63 - 1, 86400)],
)
def test_lifetimes_are_bounded(asked: int, expected: int) -> None:
    """Nothing asked gives the default; nothing lives longer than the maximum."""
    lifetimes = Lifetimes(datetime.timedelta(hours=12), DAY)
    assert lifetimes.choose(asked).total_seconds() == expected


def test_leaf_does_not_outlive_its_issuer(tmp_path: Path) -> None:
    """Near the root's end leaves end with it."""
    ca = load_or_create(tmp_path, "cluster.local", NOW)
    late = ca.root.not_valid_after_utc - datetime.timedelta(hours=1)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = x509.load_pem_x509_certificate(sign_workload(ca, key, CART, DAY, late)[0].encode())
    assert leaf.not_valid_after_utc == ca.root.not_valid_after_utc


def test_server_certificate_names(tmp_path: Path) -> None:
    """IP addresses and DNS names each in their own kind of name."""
    ca = load_or_create(tmp_path, "cluster.local", NOW)
    server = sign_server(ca, ["istiod.istio-system.svc", "10.99.0.2", "fd00::1"], NOW)
    leaf = x509.load_pem_x509_certificates(server.chain_pem)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["istiod.istio-system.svc"]
    assert [str(i) for i in names.get_values_for_type(x509.IPAddress)] == ["10.99.0.2", "fd00::1"]
    assert NOW < server.renew_at < leaf.not_valid_after_utc


# ---- the root --------------------------------------------------------------------------------


def test_root_is_kept_and_guarded(tmp_path: Path) -> None:
    """The same root after a restart; the key's mode is repaired; ten years; a P-256 CA."""
    first = load_or_create(tmp_path, "cluster.local", NOW)
    key = tmp_path / "root-key.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    second = load_or_create(tmp_path, "cluster.local", NOW + DAY)
    assert first.root_pem == second.root_pem
    assert key.stat().st_mode & 0o777 == 0o600
    assert (first.root.not_valid_after_utc - NOW).days == 3650
    assert isinstance(first.key, ec.EllipticCurvePrivateKey)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root-cert.pem", "root-key.pem"]


def _break_cert_missing(data: Path) -> None:
    (data / "root-cert.pem").unlink()


def _break_key_missing(data: Path) -> None:
    (data / "root-key.pem").unlink()


def _break_key_foreign(data: Path) -> None:
    (data / "root-key.pem").write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))


def _break_key_garbage(data: Path) -> None:
    (data / "root-key.pem").write_text("-----BEGIN PRIVATE KEY-----\nxx\n")


def _break_cert_garbage(data: Path) -> None:
    (data / "root-cert.pem").write_text("nothing")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_cert_missing, "root-cert.pem is missing"),
        (_break_key_missing, "root-key.pem is missing"),
        (_break_key_foreign, "is not the key of"),
        (_break_key_garbage, "not an unencrypted PEM private key"),
        (_break_cert_garbage, "not PEM certificates"),
    ],
)
def test_damaged_root_is_never_replaced_silently(tmp_path: Path, damage: Any, message: str) -> None:
    """A half-lost root stops the start with the way out; a new root would cut off every proxy."""
    load_or_create(tmp_path, "cluster.local", NOW)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_or_create(tmp_path, "cluster.local", NOW)


def test_expired_root_is_refused(tmp_path: Path) -> None:
    """A CA that is past its end says so instead of signing what nobody accepts."""
    load_or_create(tmp_path, "cluster.local", NOW)
    with pytest.raises(ConfigError, match="is valid from"):
        load_or_create(tmp_path, "cluster.local", NOW + 4000 * DAY)


def _plug(folder: Path, issuer: Any, issuer_key: Any, ca: bool = True) -> Any:
    """Write an operator's intermediate into a folder; returns its key."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "intermediate")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 365 * DAY)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "ca-cert.pem").write_bytes(pem)
    (folder / "cert-chain.pem").write_bytes(pem)
    (folder / "ca-key.pem").write_bytes(private_pem(key))
    (folder / "root-cert.pem").write_bytes(issuer.public_bytes(serialization.Encoding.PEM))
    return key


def test_plugged_in_intermediate(tmp_path: Path) -> None:
    """The operator's intermediate signs, and the chain leads over it to his root."""
    data = tmp_path / "data"
    data.mkdir()
    root = load_or_create(tmp_path, "corp", NOW)
    _plug(tmp_path / "ca", root.root, root.key)
    ca = load_plugged(tmp_path / "ca", data, NOW)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    chain = [
        x509.load_pem_x509_certificate(p.encode()) for p in sign_workload(ca, key, CART, DAY, NOW)
    ]
    assert len(chain) == 3
    chain[0].verify_directly_issued_by(chain[1])
    chain[1].verify_directly_issued_by(chain[2])
    assert (data / "root-cert.pem").read_bytes() == root.root_pem


def test_plugged_in_files_that_do_not_fit(tmp_path: Path) -> None:
    """A wrong key, a foreign root, a certificate that is no CA: each is named."""
    data = tmp_path / "data"
    data.mkdir()
    root = load_or_create(tmp_path, "corp", NOW)
    folder = tmp_path / "ca"
    _plug(folder, root.root, root.key, ca=False)
    with pytest.raises(ConfigError, match="not a CA certificate"):
        load_plugged(folder, data, NOW)
    _plug(folder, root.root, root.key)
    (tmp_path / "other").mkdir()
    other = load_or_create(tmp_path / "other", "corp", NOW)
    (folder / "root-cert.pem").write_bytes(other.root_pem)
    with pytest.raises(ConfigError, match="is not issued by"):
        load_plugged(folder, data, NOW)
    _plug(folder, root.root, root.key)
    (folder / "ca-key.pem").write_bytes(private_pem(other.key))
    with pytest.raises(ConfigError, match="is not the key of"):
        load_plugged(folder, data, NOW)
    (folder / "ca-key.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca-key\.pem"):
        load_plugged(folder, data, NOW)


# ---- requests --------------------------------------------------------------------------------


def test_good_requests_give_their_key() -> None:
    """The identity asked for as the only name, or no name at all."""
    for sans in ([x509.UniformResourceIdentifier(str(CART))], []):
        text, key = make_csr(*sans)
        assert check_csr_untrusted(text, CART) == key.public_key()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (uri_csr("spiffe://cluster.local/ns/shop/sa/other"), "asks for spiffe"),
        (
            make_csr(
                x509.UniformResourceIdentifier(str(CART)), x509.DNSName("istiod.istio-system.svc")
            )[0],
            "no more",
        ),
        (make_csr(x509.DNSName("x"))[0], "no more"),
        (make_csr(subject="admin")[0], "subject must be empty"),
        (make_csr(ca=True)[0], "CA certificate"),
        (make_csr(key=ec.generate_private_key(ec.SECP384R1()))[0], "P-256"),
        (make_csr(key=rsa.generate_private_key(65537, 2048))[0], "P-256"),
        ("", "not a PEM"),
        ("x" * 20_000, "longer than"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "PEM"),
    ],
)
def test_bad_requests_are_refused(text: str, message: str) -> None:
    """Other names, other keys, and what is no request at all, each with its reason."""
    with pytest.raises(BadInput, match=message):
        check_csr_untrusted(text, CART)


def test_request_signed_by_another_key_is_refused() -> None:
    """Proof of possession: the signature must be by the key in the request."""
    text, _ = make_csr(x509.UniformResourceIdentifier(str(CART)))
    der = bytearray(x509.load_pem_x509_csr(text.encode()).public_bytes(serialization.Encoding.DER))
    other = x509.load_pem_x509_csr(uri_csr(str(CART)).encode()).signature
    mine = x509.load_pem_x509_csr(text.encode()).signature
    at = bytes(der).rindex(mine)
    if len(other) != len(mine):
        other = mine[:-1] + bytes([mine[-1] ^ 1])
    der[at:] = other
    body = base64.encodebytes(bytes(der)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(BadInput):
        check_csr_untrusted(pem, CART)


_GOOD = x509.load_pem_x509_csr(uri_csr(str(CART)).encode()).public_bytes(serialization.Encoding.DER)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(_GOOD) - 1), st.binary(min_size=0, max_size=8), st.integers(0, 4))
def test_corrupted_requests_raise_bad_input_only(at: int, junk: bytes, cut: int) -> None:
    """Bytes replaced, inserted or cut anywhere: BadInput, or a request still good."""
    der = _GOOD[:at] + junk + _GOOD[at + cut :]
    body = base64.encodebytes(der).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    try:
        key = check_csr_untrusted(pem, CART)
    except BadInput:
        assert der != _GOOD
    else:
        assert key == x509.load_der_x509_csr(_GOOD).public_key()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_arbitrary_text_raises_bad_input_only(text: str) -> None:
    """What is no request at all is refused the same way."""
    with pytest.raises(BadInput):
        check_csr_untrusted(text, CART)


# ---- who may have what -----------------------------------------------------------------------


def registry() -> Registry:
    r = Registry(MeshConfig("istio-system", "cluster.local", "Kubernetes", "cluster.local"))
    done = pod("done", account="done", ip="10.244.1.9")
    done["status"]["phase"] = "Succeeded"
    objects = [
        pod("ztunnel-n1", "istio-system", account="ztunnel", ip="10.99.1.1", hostNetwork=True),
        pod("cart", account="cart"),
        pod("far", account="far", node="n2", ip="10.244.2.5"),
        pod("unscheduled", account="unscheduled", node="", ip="10.244.2.6"),
        done,
    ]
    r.update(
        {Key("Pod", o["metadata"]["namespace"], o["metadata"]["name"]): o for o in objects}, set()
    )
    return r


ZTUNNEL = Caller("istio-system", "ztunnel", "ztunnel-n1", "uid-ztunnel-n1")
TRUSTED = {"istio-system/ztunnel"}


def spiffe(account: str, namespace: str = "shop", domain: str = "cluster.local") -> str:
    return str(SpiffeId(domain, namespace, account))


@pytest.mark.parametrize(
    ("caller", "asked", "expected"),
    [
        (ZTUNNEL, spiffe("cart"), spiffe("cart")),
        (ZTUNNEL, "", spiffe("ztunnel", "istio-system")),
        (Caller("shop", "cart", "cart", "uid-cart"), "", spiffe("cart")),
        (Caller("shop", "cart", "cart", "uid-cart"), spiffe("cart"), spiffe("cart")),
    ],
)
def test_identities_given(caller: Caller, asked: str, expected: str) -> None:
    """A pod's own identity; a node proxy's those of its node."""
    got = authorize_untrusted(caller, asked, registry(), TRUSTED, "cluster.local")
    assert str(got) == expected


@pytest.mark.parametrize(
    ("caller", "asked", "message"),
    [
        (ZTUNNEL, spiffe("far"), "no pod of that service account runs there"),
        (ZTUNNEL, spiffe("nobody"), "no pod of that service account runs there"),
        (ZTUNNEL, spiffe("done"), "no pod of that service account runs there"),
        (ZTUNNEL, spiffe("unscheduled"), "no pod of that service account runs there"),
        (ZTUNNEL, spiffe("cart", domain="evil.local"), "signs for cluster.local only"),
        (ZTUNNEL, spiffe("cart", "other"), "no pod of that service account runs there"),
        (ZTUNNEL, "https://cart", "not a workload identity"),
        (Caller("istio-system", "ztunnel"), spiffe("cart"), "not bound to a pod"),
        (Caller("istio-system", "ztunnel", "ztunnel-n9", "u"), spiffe("cart"), "does not run"),
        (
            Caller("istio-system", "ztunnel", "ztunnel-n1", "uid-of-an-earlier-one"),
            spiffe("cart"),
            "is another one now",
        ),
        (Caller("istio-system", "admin", "ztunnel-n1", "uid-ztunnel-n1"), "", "runs as ztunnel"),
        (Caller("shop", "cart", "cart", "uid-cart"), spiffe("far"), "may not ask for other"),
        (Caller("shop", "done", "done", "uid-done"), "", "does not run"),
        (
            Caller("shop", "unscheduled", "unscheduled", "uid-unscheduled"),
            spiffe("cart"),
            "may not",
        ),
    ],
)
def test_identities_refused(caller: Caller, asked: str, message: str) -> None:
    """A stolen token is worth what its own node runs, and nothing once its pod is gone."""
    with pytest.raises(BadInput, match=message):
        authorize_untrusted(caller, asked, registry(), TRUSTED, "cluster.local")


def test_unscheduled_proxy_gets_no_identity_of_others() -> None:
    """Two pods without a node are not on the same node."""
    caller = Caller("shop", "unscheduled", "unscheduled", "uid-unscheduled")
    with pytest.raises(BadInput, match="runs there"):
        authorize_untrusted(
            caller, spiffe("cart"), registry(), {"shop/unscheduled"}, "cluster.local"
        )


def test_identity_ends_with_its_last_pod() -> None:
    """When the last pod of a service account leaves the node, so does the right to its identity."""
    r = registry()
    assert r.runs_on("n1", "shop", "cart")
    r.update({}, {Key("Pod", "shop", "cart")})
    assert not r.runs_on("n1", "shop", "cart")

"""tls of a DestinationRule: whatever is wrong with it, it is never plaintext."""

from __future__ import annotations

import pytest
from certificates_rig import pair
from istio_rig import NS, Mesh, hostname

from waypoint.config.pem import NOBODY
from waypoint.config.traffic import ServiceTraffic, TrafficPolicy

WEB = f"{NS}/{hostname('web')}"


def policy(spec: dict[str, object]) -> TrafficPolicy:
    mesh = Mesh()
    mesh.rule({"host": "web", "trafficPolicy": spec})
    return mesh.index.traffic(WEB).policy


def found(spec: dict[str, object]) -> str:
    """What a trafficPolicy is told."""
    mesh = Mesh()
    condition = mesh.condition(mesh.rule({"host": "web", "trafficPolicy": spec}))
    return "" if condition.reason == "Accepted" else condition.message


CERTIFICATE, KEY = pair("client")
OTHER_CERTIFICATE, OTHER_KEY = pair("other")


def _with_tls(
    tls: dict[str, object], secret: dict[str, bytes] | None
) -> tuple[ServiceTraffic, str]:
    mesh = Mesh()
    key = mesh.rule({"host": "web", "trafficPolicy": {"tls": tls}})
    wanted = mesh.index.secrets()
    assert wanted == ({(NS, "certs")} if "credentialName" in tls else set())
    touched = mesh.index.put_secret(NS, "certs", secret)
    assert touched == ({WEB} if wanted else set())
    return mesh.index.traffic(WEB), mesh.condition(key).message


def test_mutual_tls_from_a_secret() -> None:
    tls: dict[str, object] = {
        "mode": "MUTUAL",
        "credentialName": "kubernetes://certs",
        "sni": "db.example.com",
        "subjectAltNames": ["db.example.com"],
    }
    secret = {"tls.crt": CERTIFICATE, "tls.key": KEY, "ca.crt": OTHER_CERTIFICATE}
    traffic, message = _with_tls(tls, secret)
    got = traffic.policy.tls
    assert got is not None
    assert (got.mode, got.sni, got.subject_names, got.verify) == (
        "mutual",
        "db.example.com",
        ("db.example.com",),
        True,
    )
    assert got.certificate.encode() == CERTIFICATE
    assert got.secret.encode() == KEY
    assert got.ca.encode() == OTHER_CERTIFICATE
    assert KEY.decode() not in repr(traffic)
    assert message.startswith("in effect")


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        (None, "tls.credentialName: there is no Secret 'certs'"),
        ({}, "has no tls.crt and tls.key"),
        ({"tls.crt": CERTIFICATE, "tls.key": OTHER_KEY}, "the key does not belong"),
        ({"tls.crt": b"junk", "tls.key": KEY}, "cannot be read as PEM"),
        ({"tls.crt": CERTIFICATE, "tls.key": b"\xff\xfe"}, "cannot be read as PEM"),
        ({"tls.crt": CERTIFICATE, "tls.key": KEY, "ca.crt": b"junk"}, "ca.crt is not a PEM"),
    ],
)
def test_a_bad_secret_never_means_plaintext(secret: dict[str, bytes] | None, why: str) -> None:
    traffic, message = _with_tls({"mode": "MUTUAL", "credentialName": "certs"}, secret)
    assert traffic.policy.tls is not None
    assert traffic.policy.tls.verify
    assert traffic.policy.tls.ca == NOBODY
    assert why in message
    assert "connections fail" in message


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        ({"mode": "ISTIO_MUTUAL"}, "has mutual TLS already (HBONE)"),
        ({"mode": "DISABLE"}, ""),
        ({}, ""),
    ],
)
def test_no_tls_of_its_own(tls: dict[str, object], why: str) -> None:
    assert policy({"tls": tls}).tls is None
    assert why in found({"tls": tls})


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        ({"mode": "SIMPEL"}, "tls.mode: 'SIMPEL' is none of DISABLE"),
        ({"mode": "SIMPLE", "caCertificates": "/etc/ca.pem"}, "no files of yours"),
        ({"mode": "SIMPLE", "credentialName": "../x"}, "must be the name of a Secret"),
        ({"mode": "SIMPLE", "credentialName": "configmap://x"}, "must be the name of a Secret"),
        ({"mode": "MUTUAL"}, "MUTUAL needs a Secret"),
        ({"mode": "SIMPLE", "caCrl": "/x"}, "revoked certificates would be trusted"),
    ],
)
def test_bad_tls_is_named_and_stays_tls(tls: dict[str, object], why: str) -> None:
    got = policy({"tls": tls}).tls
    assert got is not None
    assert got.verify
    assert got.ca == NOBODY
    assert why in found({"tls": tls})

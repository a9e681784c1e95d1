"""Bearer tokens: which are believed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cp_support import Tokens
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.authn import MAX_TOKEN, Caller, SignedTokens, bearer_untrusted
from mesh.errors import BadInput, ConfigError


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path)


def verify(tokens: Tokens, token: str, later: float = 0) -> Caller:
    return SignedTokens(tokens.file, "istio-ca").verify_untrusted(token, time.time() + later)


def test_good_token_names_its_caller(tokens: Tokens) -> None:
    """Service account, pod and pod uid come from the claims."""
    assert verify(tokens, tokens.sign()) == Caller(
        "istio-system", "ztunnel", "ztunnel-n1", "uid-ztunnel-n1"
    )


def test_token_without_a_pod_is_a_caller_without_one(tokens: Tokens) -> None:
    """A token that is bound to nothing proves the account only."""
    token = tokens.sign(**{"kubernetes.io": None})
    assert verify(tokens, token) == Caller("istio-system", "ztunnel")


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"aud": ["kubernetes"]}, "not meant for 'istio-ca'"),
        ({"aud": None}, "aud"),
        ({"exp": None}, "exp"),
        ({"exp": "tomorrow"}, "exp is no number"),
        ({"sub": "alice"}, "not a service account"),
        ({"sub": "system:serviceaccount:istio-system"}, "not a service account"),
        ({"sub": None}, "sub"),
        ({"kubernetes.io": {"namespace": "other"}}, "two namespaces"),
    ],
)
def test_bad_claims_are_refused(tokens: Tokens, claims: dict[str, Any], message: str) -> None:
    """Audience, times and subject must hold; the reason is said."""
    with pytest.raises(BadInput, match=message):
        verify(tokens, tokens.sign(**claims))


@pytest.mark.parametrize(
    ("claim", "seconds", "message"),
    [("exp", -120, "expired 12[0-9]"), ("nbf", 600, "not valid for another")],
)
def test_times_count(tokens: Tokens, claim: str, seconds: int, message: str) -> None:
    """A token that is not valid any more, or not yet."""
    with pytest.raises(BadInput, match=message):
        verify(tokens, tokens.sign(**{claim: int(time.time()) + seconds}))


def test_foreign_signatures_are_refused(tokens: Tokens) -> None:
    """Another key, no signature, and the public key abused as an HMAC secret."""
    with pytest.raises(BadInput, match="not signed by this cluster"):
        verify(tokens, tokens.sign(key=ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(BadInput):
        verify(tokens, tokens.sign(key="x" * 32, algorithm="HS256"))
    body = jwt.decode(tokens.sign(), options={"verify_signature": False})
    with pytest.raises(BadInput):
        verify(tokens, jwt.encode(body, None, algorithm="none"))
    head, claims, signature = tokens.sign().split(".")
    with pytest.raises(BadInput):
        verify(tokens, f"{head}.{claims[:-2]}AA.{signature}")


def test_clocks_may_differ_a_little(tokens: Tokens) -> None:
    """Half a minute past expiry is forgiven, a minute is not."""
    token = tokens.sign(exp=int(time.time()) + 100)
    verify(tokens, token, later=120)
    with pytest.raises(BadInput, match="expired"):
        verify(tokens, token, later=160)


def test_key_file_is_followed(tokens: Tokens) -> None:
    """A rotated signing key counts from when its file is replaced."""
    verifier = SignedTokens(tokens.file, "istio-ca")
    old = tokens.sign()
    tokens.key = ec.generate_private_key(ec.SECP256R1())
    tokens.file.write_bytes(
        tokens.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    os.utime(tokens.file, (1, 1))
    verifier.verify_untrusted(tokens.sign(), time.time())
    with pytest.raises(BadInput):
        verifier.verify_untrusted(old, time.time())


def test_rsa_signed_tokens(tokens: Tokens) -> None:
    """An API server's usual RS256 works, by the kind of the key."""
    key = rsa.generate_private_key(65537, 2048)
    tokens.file.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    assert verify(tokens, tokens.sign(key=key, algorithm="RS256")).account == (
        "istio-system/ztunnel"
    )


@pytest.mark.parametrize("content", [None, b"nonsense"])
def test_unusable_key_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    """A missing or broken key file is the operator's to repair."""
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--token-key .*key\.pem"):
        SignedTokens(file, "istio-ca")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        [("authorization", "Basic eA==")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
        [("authorization", b"Bearer a")],
        [("authorization", "Bearer " + "x" * (MAX_TOKEN + 1))],
    ],
)
def test_calls_without_one_token_are_refused(metadata: Any) -> None:
    """Exactly one bearer token of bounded size."""
    with pytest.raises(BadInput):
        bearer_untrusted(metadata)


def test_bearer_is_found() -> None:
    """The scheme's case and blanks around the token do not matter."""
    assert bearer_untrusted([("x", "y"), ("Authorization", "bearer  abc ")]) == "abc"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_corrupted_tokens_raise_bad_input_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut, changed and invented tokens are refused, each in the same way."""
    tokens = _shared(tmp_path_factory)
    good = tokens.sign()
    at = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.text(alphabet=st.characters(codec="ascii"), max_size=6))
    bad = good[:at] + junk + good[at + len(junk) + 1 :]
    # The last character of base64 carries spare bits: a change there may mean the same.
    if bad[:-1] != good[:-1]:
        with pytest.raises(BadInput):
            verify(tokens, bad)


_kept: list[Tokens] = []


def _shared(factory: pytest.TempPathFactory) -> Tokens:
    if not _kept:
        _kept.append(Tokens(factory.mktemp("tokens")))
    return _kept[0]

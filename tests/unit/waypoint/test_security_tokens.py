"""RequestAuthentication as the real Envoy enforces it, with tokens that are really signed."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from security_objects import (
    Issuer,
    authentication,
    condition,
    indexed,
    policy,
    security,
    source,
    to,
    when,
)
from security_rig import Rig, running

from waypoint.config.security import Jwks

OURS = Issuer("https://issuer.example")
THEIRS = Issuer("https://other.example/tenant")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(tmp_path_factory.mktemp("envoy")) as rig:
        yield rig


_ports = iter(range(1000, 9000))


def port(rig: Rig, *objects: Any, **fields: Any) -> int:
    """Serve a port of its own under these objects."""
    number = next(_ports)
    rig.put(number, security(*objects, **fields))
    return number


# ---- what a token has to be ------------------------------------------------------------------


def test_a_token_may_be_missing_but_not_wrong(rig: Rig) -> None:
    """Nothing passes, a good token passes, anything else is 401 (403: not for this audience)."""
    number = port(rig, authentication(OURS.rule(audiences=["shop", "cart"])))
    forged = Issuer(OURS.name)
    none = jwt.encode({"iss": OURS.name, "sub": "x", "aud": "shop"}, None, "none")  # type: ignore[arg-type]
    public = json.loads(OURS.jwks)["keys"][0]["n"]
    confused = jwt.encode({"iss": OURS.name, "aud": "shop"}, public, "HS256")
    good = OURS.token(aud="shop")
    found = {
        "missing": rig.get(number).status,
        "good": rig.get(number, authorization=f"Bearer {good}").status,
        "one of several audiences": rig.get(
            number, authorization=OURS.bearer(aud=["x", "cart"])
        ).status,
        "in the query": rig.get(number, f"/?access_token={good}").status,
        "no token at all": rig.get(number, authorization="Basic eDp5").status,
        "nothing": rig.get(number, authorization="Bearer ").status,
    }
    assert found == dict.fromkeys(found, 200)
    bad = {
        "expired": OURS.bearer(aud="shop", exp=time.time() - 120),
        "not yet": OURS.bearer(aud="shop", nbf=time.time() + 600),
        "forged": forged.bearer(aud="shop"),
        "cut": f"Bearer {good[:-8]}",
        "other issuer": THEIRS.bearer(aud="shop"),
        "no signature": f"Bearer {none}",
        "signed with the public key": f"Bearer {confused}",
        "rubbish": "Bearer x.y.z",
    }
    got = {why: rig.get(number, authorization=token).status for why, token in bad.items()}
    assert got == dict.fromkeys(bad, 401)
    for token in (OURS.bearer(aud="bank"), OURS.bearer()):  # genuine, but not for here
        assert rig.get(number, authorization=token).status == 403


def test_a_policy_can_require_a_token(rig: Rig) -> None:
    """Then a request without one is 403, not 401: it is nobody's."""
    number = port(
        rig,
        authentication(OURS.rule()),
        policy("ALLOW", source(requestPrincipals=[f"{OURS.name}/alice"])),
    )
    assert rig.get(number).status == 403
    assert rig.get(number, authorization=OURS.bearer()).status == 200
    assert rig.get(number, authorization=OURS.bearer(sub="bob")).status == 403
    assert rig.get(number, authorization=THEIRS.bearer()).status == 401


def test_several_issuers(rig: Rig) -> None:
    """Each has its own keys; a token counts for its own issuer only, wherever it is put."""
    number = port(
        rig,
        authentication(OURS.rule(), THEIRS.rule()),
        authentication(
            Issuer("https://third.example").rule(fromHeaders=[{"name": "x-third"}]), name="third"
        ),
    )
    for token in (OURS.bearer(), THEIRS.bearer()):
        assert rig.get(number, authorization=token).status == 200
    swapped = OURS.token(iss=THEIRS.name)
    assert rig.get(number, authorization=f"Bearer {swapped}").status == 401
    # A good token in one place does not excuse a bad one in another.
    assert rig.get(number, authorization=OURS.bearer(), x_third=OURS.token()).status == 401


def test_where_tokens_are(rig: Rig) -> None:
    """Headers with a prefix, parameters and cookies; then nowhere else."""
    number = port(
        rig,
        authentication(
            OURS.rule(
                fromHeaders=[{"name": "X-Token", "prefix": "Tok "}],
                fromParams=["t"],
                fromCookies=["session"],
            )
        ),
        policy("ALLOW", source(requestPrincipals=["*"])),
    )
    good = OURS.token()
    assert rig.get(number, x_token=f"Tok {good}").status == 200
    assert rig.get(number, f"/?a=b&t={good}").status == 200
    assert rig.get(number, cookie=f"a=b; session={good}").status == 200
    assert rig.get(number, authorization=f"Bearer {good}").status == 403
    assert rig.get(number, x_token="Tok x").status == 401


# ---- what the application sees ---------------------------------------------------------------


def test_tokens_are_taken_away_unless_forwarded(rig: Rig) -> None:
    """The application needs no token that somebody could take from it."""
    for forward, seen in ((False, False), (True, True)):
        number = port(rig, authentication(OURS.rule(forwardOriginalToken=forward)))
        headers = rig.get(number, authorization=OURS.bearer()).seen["headers"]
        assert ("authorization" in headers) is seen
        assert ("access_token" in rig.get(number, f"/?access_token={OURS.token()}").body) is seen


def test_claims_become_headers_that_nobody_else_can_set(rig: Rig) -> None:
    """What a caller writes there itself is gone, in every spelling an application may take."""
    number = port(
        rig,
        authentication(
            OURS.rule(
                outputPayloadToHeader="x-payload",
                outputClaimToHeaders=[
                    {"header": "X-Jwt-Sub", "claim": "sub"},
                    {"header": "x-jwt-team", "claim": "org.team"},
                ],
            )
        ),
    )
    token = OURS.bearer(org={"team": "red"})
    headers = rig.get(number, authorization=token, x_jwt_sub="root").seen["headers"]
    assert (headers["x-jwt-sub"], headers["x-jwt-team"]) == ("alice", "red")
    payload = headers["x-payload"]
    assert json.loads(base64.urlsafe_b64decode(payload + "==="))["sub"] == "alice"
    spoofed = [
        ("X-JWT-SUB", "root"),
        ("x_jwt_sub", "root"),
        ("x-jwt_team", "red"),
        ("X_Payload", "e30"),
        ("x-jwt-subject", "kept"),
    ]
    for extra in ([], [("authorization", OURS.bearer())]):
        caller = rig.call(number)
        seen = caller.send("/", "GET", spoofed + extra).seen["headers"]
        caller.close()
        names = {k: v for k, v in seen.items() if k.startswith(("x-jwt", "x_", "x-p"))}
        assert "root" not in names.values()
        assert names.pop("x-jwt-subject") == "kept"
        assert set(names) == ({"x-jwt-sub", "x-payload"} if extra else set())


# ---- claims in policies ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (when("request.auth.claims[role]", "admin"), {"role": "admin"}, {"role": "administrator"}),
        (when("request.auth.claims[role]", "admin"), {"role": ["a", "admin"]}, {"role": ["a"]}),
        (when("request.auth.claims[role]", "adm*"), {"role": "admin"}, {"role": "badm"}),
        (when("request.auth.claims[role]", "*"), {"role": "x"}, {}),
        (when("request.auth.claims[role]", notValues=["guest"]), {}, {"role": ["x", "guest"]}),
        (when("request.auth.claims[a][b]", "x"), {"a": {"b": "x"}}, {"a.b": "x"}),
        (when("request.auth.claims[a.b]", "x"), {"a.b": ["x"]}, {"a": {"b": "x"}}),
        (when("request.auth.claims[https://x/y]", "z"), {"https://x/y": "z"}, {}),
        (when("request.auth.claims[ok]", "true"), {"ok": True}, {"ok": False}),
        (when("request.auth.claims[level]", "42"), {"level": 42}, {"level": 43}),
        (
            when("request.auth.claims[scope]", "write"),
            {"scope": "read write"},
            {"scope": "rewrite"},
        ),
        (when("request.auth.audiences", "cart"), {"aud": ["x", "cart"]}, {"aud": "x"}),
        (when("request.auth.presenter", "app"), {"azp": "app"}, {"azp": "other"}),
        (when("request.auth.principal", "*/bob"), {"sub": "bob"}, {"sub": "bobby"}),
        (source(requestPrincipals=["*"]), {}, {"sub": ""}),
        (source(requestPrincipals=["https://issuer.example/*"]), {"sub": "x"}, {"sub": ""}),
        (source(requestPrincipals=["https://issuer.example/b*"]), {"sub": "bob"}, {"sub": "ab"}),
        (source(requestPrincipals=["https://issuer*"]), {}, {"sub": ""}),
        (source(requestPrincipals=["*example/bob"]), {"sub": "bob"}, {"sub": "x/bob"}),
        (source(notRequestPrincipals=["https://issuer.example/bob"]), {}, {"sub": "bob"}),
    ],
    ids=str,
)
def test_claims(rig: Rig, rule: Any, good: Any, bad: Any) -> None:
    """Claims by name, nested names in brackets of their own; a list has all its values."""
    allowing = port(rig, authentication(OURS.rule()), policy("ALLOW", rule))
    denying = port(rig, authentication(OURS.rule()), policy("DENY", rule))
    tokens = [OURS.bearer(**good), OURS.bearer(**bad)]
    assert [rig.get(allowing, authorization=t).status for t in tokens] == [200, 403]
    assert [rig.get(denying, authorization=t).status for t in tokens] == [403, 200]


def test_a_subject_with_slashes_passes_for_nobody_else(rig: Rig) -> None:
    """Issuer a with subject b/c reads like a/b with c: it is not let in so, but refused so."""
    short = Issuer("https://other.example")
    text = f"{THEIRS.name}/carol"
    rules = authentication(short.rule(), THEIRS.rule())
    allowing = port(rig, rules, policy("ALLOW", source(requestPrincipals=[text])))
    denying = port(rig, rules, policy("DENY", source(requestPrincipals=[text])))
    real, posing = THEIRS.bearer(sub="carol"), short.bearer(sub="tenant/carol")
    assert [rig.get(allowing, authorization=t).status for t in (real, posing)] == [200, 403]
    assert [rig.get(denying, authorization=t).status for t in (real, posing)] == [403, 403]


def test_a_path_with_its_token_needed(rig: Rig) -> None:
    """The usual pair: everything is open but what asks for a token."""
    number = port(
        rig,
        authentication(OURS.rule()),
        policy("DENY", {**to(paths=["/admin*"]), **source(notRequestPrincipals=["*"])}),
    )
    assert rig.get(number, "/").status == 200
    assert rig.get(number, "/admin").status == 403
    assert rig.get(number, "/a/..//admin/x").status == 403
    assert rig.get(number, "/admin", authorization=OURS.bearer()).status == 200


# ---- keys that are not there -----------------------------------------------------------------

URI = "https://issuer.example/keys"


def test_keys_from_a_uri(rig: Rig) -> None:
    """Until they are fetched, the issuer's tokens are refused; others and no token pass."""
    objects = (
        authentication(
            {"issuer": OURS.name, "jwksUri": URI},
            THEIRS.rule(),
        ),
    )
    index = indexed(*objects)
    assert index.jwks_uris() == {URI}
    for given, expected, why in (
        ({}, 401, "not fetched yet"),
        ({URI: Jwks(error="connection refused")}, 401, "connection refused"),
        ({URI: Jwks(text="<html>")}, 401, "not JSON"),
        ({URI: Jwks(text='{"keys":[]}')}, 401, "no key"),
        ({URI: Jwks(text=OURS.jwks)}, 200, ""),
    ):
        number = port(rig, *objects, jwks=given)
        assert rig.get(number, authorization=OURS.bearer()).status == expected, why
        assert rig.get(number, authorization=THEIRS.bearer()).status == 200
        assert rig.get(number).status == 200
        status, reason, message = condition(*objects, jwks=given)
        assert (status, reason) == ((False, "Invalid") if why else (True, "Accepted"))
        assert why in message


@pytest.mark.parametrize(
    "fields",
    [
        {"jwks": "{"},
        {"jwks": '{"keys":[]}'},
        {"jwks": None},
        {"jwksUri": "ftp://x/y"},
        {"jwksUri": URI},
        {"audiences": "shop"},
        {"audiences": [""]},
        {"fromHeaders": [{"name": "a b"}]},
        {"outputClaimToHeaders": [{"header": "host", "claim": "sub"}]},
        {"outputPayloadToHeader": "x y"},
        {"fromQuery": ["t"]},
        {"issuer": ""},
        {"issuer": None},
        {"forwardOriginalToken": "yes"},
    ],
    ids=str,
)
def test_a_rule_that_is_wrong_believes_no_token(rig: Rig, fields: Any) -> None:
    """Nor does it let one pass unseen: its tokens are refused, and the status says why."""
    objects = (authentication(OURS.rule(**fields)), authentication(THEIRS.rule(), name="good"))
    number = port(rig, *objects)
    assert rig.get(number, authorization=OURS.bearer(aud="shop")).status == 401
    assert rig.get(number, authorization=THEIRS.bearer()).status == 200
    assert rig.get(number).status == 200
    status, reason, message = condition(*objects)
    assert (status, reason) == (False, "Invalid")
    assert message.startswith("spec.jwtRules[0]")
    assert "are refused" in message


def test_keys_of_every_kind_are_taken(rig: Rig) -> None:
    """Envoy takes each kind of key that is read, and checks tokens with it."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    pairs: list[tuple[Any, str, Any]] = [
        (ec.generate_private_key(ec.SECP256R1()), "ES256", jwt.algorithms.ECAlgorithm),
        (ec.generate_private_key(ec.SECP384R1()), "ES384", jwt.algorithms.ECAlgorithm),
        (ec.generate_private_key(ec.SECP521R1()), "ES512", jwt.algorithms.ECAlgorithm),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA", jwt.algorithms.OKPAlgorithm),
    ]
    keys = [
        {**json.loads(algorithm.to_jwk(key.public_key())), "kid": alg}
        for key, alg, algorithm in pairs
    ]
    secret = b"0123456789abcdef0123456789abcdef"
    text = base64.urlsafe_b64encode(secret).decode()  # with padding, as some write it
    keys.append({"kty": "oct", "k": text, "kid": "HS256", "alg": "HS256"})
    keys.append({"kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "enc", "alg": "RSA-OAEP"})
    keys += json.loads(OURS.jwks)["keys"]
    number = port(rig, authentication(OURS.rule(jwks=json.dumps({"keys": keys}))))
    claims = {"iss": OURS.name, "sub": "alice"}
    for key, alg, _ in [*pairs, (secret, "HS256", None)]:
        token = jwt.encode(claims, key, alg, headers={"kid": alg})
        assert rig.get(number, authorization=f"Bearer {token}").status == 200, alg
        assert rig.get(number, authorization=f"Bearer {token[:-9]}").status == 401, alg
    assert rig.get(number, authorization=OURS.bearer()).status == 200

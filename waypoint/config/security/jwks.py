"""JSON Web Key Sets (RFC 7517), read so that Envoy takes them.

Envoy refuses a whole listener for one key that it cannot read, and real issuers publish keys that
are not for signatures: only keys that are known to be good are passed on, without their trimmings.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

MAX_JWKS: Final = 1 << 20  # characters; a large issuer's document has some 20 KB
_MAX_KEYS: Final = 100
_MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3
_MAX_RSA_BITS: Final = 8192  # BoringSSL takes twice that, at a cost per token that nobody needs
_CURVES: Final[dict[str, tuple[ec.EllipticCurve, str]]] = {
    "P-256": (ec.SECP256R1(), "ES256"),
    "P-384": (ec.SECP384R1(), "ES384"),
    "P-521": (ec.SECP521R1(), "ES512"),
}


@dataclass(frozen=True, slots=True)
class Jwks:
    """What fetching a jwksUri gave: the document, or why there is none."""

    text: str = ""
    error: str = ""


def _binary(key: Mapping[str, Any], name: str) -> bytes:
    value = key.get(name)
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,4096}={0,2}", value):
        raise ValueError(f"{name} must be base64url")
    try:
        return base64.urlsafe_b64decode(value.rstrip("=") + "===")
    except binascii.Error:
        raise ValueError(f"{name} must be base64url") from None


def _number(key: Mapping[str, Any], name: str) -> int:
    return int.from_bytes(_binary(key, name), "big")


def _algorithm(key: Mapping[str, Any], pattern: str) -> None:
    alg = key.get("alg")
    if alg is not None and (not isinstance(alg, str) or not re.fullmatch(pattern, alg)):
        raise ValueError(f"alg {alg!r:.40} is not for signatures with this kty")


def _rsa(key: Mapping[str, Any]) -> tuple[str, ...]:
    _algorithm(key, "[RP]S(256|384|512)")
    n, e = _number(key, "n"), _number(key, "e")
    if not _MIN_RSA_BITS <= n.bit_length() <= _MAX_RSA_BITS or e.bit_length() > 33:
        raise ValueError(f"RSA with {n.bit_length()} bits: {_MIN_RSA_BITS} to {_MAX_RSA_BITS} are")
    rsa.RSAPublicNumbers(e, n).public_key()
    return ("n", "e")


def _ec(key: Mapping[str, Any]) -> tuple[str, ...]:
    crv = key.get("crv")
    if not isinstance(crv, str) or crv not in _CURVES:
        raise ValueError(f"crv {crv!r:.40} is none of {', '.join(_CURVES)}")
    curve, algorithm = _CURVES[crv]
    _algorithm(key, algorithm)
    ec.EllipticCurvePublicNumbers(_number(key, "x"), _number(key, "y"), curve).public_key()
    return ("crv", "x", "y")


def _okp(key: Mapping[str, Any]) -> tuple[str, ...]:
    _algorithm(key, "EdDSA")
    if key.get("crv") != "Ed25519":
        raise ValueError(f"crv {key.get('crv')!r:.40} is not Ed25519")
    ed25519.Ed25519PublicKey.from_public_bytes(_binary(key, "x"))
    return ("crv", "x")


def _oct(key: Mapping[str, Any]) -> tuple[str, ...]:
    _algorithm(key, "HS(256|384|512)")
    if len(_binary(key, "k")) < 32:
        raise ValueError("k must have 32 bytes or more")
    return ("k",)


_KINDS: Final = {"RSA": _rsa, "EC": _ec, "OKP": _okp, "oct": _oct}


def _key(key: Any) -> dict[str, str]:
    """Read one key; returns what Envoy needs of it. Raises ValueError."""
    if not isinstance(key, Mapping):
        raise ValueError("must be a mapping")
    kty = key.get("kty")
    if not isinstance(kty, str) or kty not in _KINDS:
        raise ValueError(f"kty {kty!r:.40} is none of {', '.join(_KINDS)}")
    if key.get("use") not in (None, "sig"):
        raise ValueError("use is not sig")
    if "d" in key:
        raise ValueError("it is a private key: publish the public part only")
    kept = _KINDS[kty](key)
    kid = key.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("kid must be text")
    out = {name: key[name].rstrip("=") for name in kept if name != "crv"}
    out |= {name: key[name] for name in ("crv",) if name in kept}
    return out | {name: key[name] for name in ("kty", "kid", "alg") if key.get(name) is not None}


def read_jwks(text: str) -> str:
    """Read a JWKS; returns it with its good keys only. Raises ValueError if it has none."""
    if len(text) > MAX_JWKS:
        raise ValueError(f"larger than {MAX_JWKS >> 10} KiB")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError('not a JWKS: expected {"keys": [{"kty": ...}, ...]}')
    good, bad = [], []
    for i, key in enumerate(keys[:_MAX_KEYS]):
        try:
            good.append(_key(key))
        except ValueError as e:
            bad.append(f"keys[{i}]: {e}")
    if not good:
        raise ValueError(
            "no key that can check signatures: " + ("; ".join(bad[:5]) or "keys is []")
        )
    return json.dumps({"keys": good}, sort_keys=True, separators=(",", ":"))


def _nobodys() -> str:
    """Make a key whose private half nobody knows: a point of P-256 whose x is a hash."""
    p = 2**256 - 2**224 + 2**192 + 2**96 - 1  # SP 800-186, 3.2.1.3
    b = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
    for i in range(256):
        x = int.from_bytes(hashlib.sha256(b"no private key for ambit %d" % i).digest(), "big") % p
        square = (pow(x, 3, p) - 3 * x + b) % p
        y = pow(square, (p + 1) // 4, p)
        if y * y % p == square:
            break
    x_text, y_text = (
        base64.urlsafe_b64encode(v.to_bytes(32, "big")).rstrip(b"=").decode() for v in (x, y)
    )
    return read_jwks(
        json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": x_text, "y": y_text}]})
    )


NO_KEYS: Final = _nobodys()  # Envoy refuses a set that is empty; with this no token is valid

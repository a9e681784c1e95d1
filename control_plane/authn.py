"""Who calls: bearer tokens of service accounts.

A verifier turns a token into a Caller; this one checks signed tokens (Kubernetes' projected
service-account tokens) against a public key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mesh.errors import BadInput, ConfigError

MAX_TOKEN: Final = 16 << 10  # a projected token is below 2 KiB
_LEEWAY: Final = 30.0  # seconds of clock difference
_PREFIX: Final = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class Caller:
    """A proven service account and the pod its token is bound to ("" where it is bound to none)."""

    namespace: str
    service_account: str
    pod: str = ""
    pod_uid: str = ""

    @property
    def account(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.service_account}"


class TokenVerifier(Protocol):
    """Proves callers."""

    async def prove_untrusted(self, token: str, now: float) -> Caller:
        """Return who the token stands for; raises BadInput saying what is wrong with it.

        Raises Unavailable when that cannot be found out now.
        """
        ...


def bearer_untrusted(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Find the one bearer token in a call's metadata; raises BadInput."""
    values = [v for k, v in metadata or () if k.lower() == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str):
        raise BadInput("no service-account token: send metadata 'authorization: Bearer <token>'")
    scheme, _, token = values[0].partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise BadInput("the authorization metadata is not 'Bearer <token>'")
    if len(token) > MAX_TOKEN:
        raise BadInput(f"the token is longer than {MAX_TOKEN} characters")
    return token


class SignedTokens:
    """Verifies tokens against the PEM public key in a file, which is read again when it changes."""

    def __init__(self, key_file: Path, audience: str) -> None:
        self._file = key_file
        self._audience = audience
        self._stamp: tuple[int, int, int] | None = None
        self._key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | None = None
        self.load()

    def load(self) -> None:
        """Read the key if its file changed; raises ConfigError."""
        try:
            st = self._file.stat()
            stamp = (st.st_mtime_ns, st.st_ino, st.st_size)
            if stamp == self._stamp:
                return
            key = serialization.load_pem_public_key(self._file.read_bytes())
        except OSError as e:
            raise ConfigError(f"--token-key {self._file}: {e.strerror}") from e
        except ValueError as e:
            raise ConfigError(f"--token-key {self._file}: not a PEM public key") from e
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise ConfigError(f"--token-key {self._file}: neither an EC nor an RSA key")
        self._key, self._stamp = key, stamp

    async def prove_untrusted(self, token: str, now: float) -> Caller:
        """See TokenVerifier."""
        return self.verify_untrusted(token, now)

    def verify_untrusted(self, token: str, now: float) -> Caller:
        """Check signature, audience, times and claims of a token; raises BadInput."""
        self.load()
        assert self._key is not None
        # The key decides the algorithm, never the token.
        algorithm = "ES256" if isinstance(self._key, ec.EllipticCurvePublicKey) else "RS256"
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[algorithm],
                audience=self._audience,
                # Times are checked below, against the caller's clock.
                options={
                    "require": ["exp", "aud", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidAudienceError as e:
            raise BadInput(f"the token is not meant for {self._audience!r} (audience)") from e
        except jwt.InvalidSignatureError as e:
            raise BadInput("the token is not signed by this cluster's key") from e
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as e:
            raise BadInput(f"not a valid token: {str(e)[:200]}") from e
        _check_times(claims, now)
        return _caller(claims)


def _check_times(claims: dict[str, Any], now: float) -> None:
    for name, late in (("exp", True), ("nbf", False)):
        value = claims.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float):
            raise BadInput(f"not a valid token: {name} is no number")
        if late and now > value + _LEEWAY:
            raise BadInput(f"the token expired {int(now - value)} s ago")
        if not late and now < value - _LEEWAY:
            raise BadInput(f"the token is not valid for another {int(value - now)} s")


def _text(container: Any, *path: str) -> str:
    for name in path:
        container = container.get(name) if isinstance(container, dict) else None
    return container if isinstance(container, str) else ""


def _caller(claims: dict[str, Any]) -> Caller:
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject.startswith(_PREFIX):
        raise BadInput(f"the token's subject is not a service account: {str(subject)[:200]!r}")
    namespace, _, account = subject.removeprefix(_PREFIX).partition(":")
    if not namespace or not account:
        raise BadInput(f"the token's subject is not a service account: {subject[:200]!r}")
    bound = claims.get("kubernetes.io")
    if _text(bound, "namespace") not in ("", namespace):
        raise BadInput("the token's subject and its kubernetes.io claim name two namespaces")
    return Caller(namespace, account, _text(bound, "pod", "name"), _text(bound, "pod", "uid"))

"""What a proxy holds of an identity. Imports nothing heavy: relay workers read it, too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate for an identity; replaces the one before it for new connections.

    chain_pem: leaf first then intermediates; roots_pem: what peers must chain to.
    """

    identity: str
    chain_pem: bytes
    key_pem: bytes
    roots_pem: bytes
    not_after: float  # unix seconds


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """One certificate as the config dump shows it."""

    pem: str
    serial: str  # decimal
    not_before: float  # unix seconds
    not_after: float


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate in use: what workers get, and what an operator asks for."""

    certificate: Certificate
    not_before: float
    chain: tuple[CertificateFacts, ...]
    roots: tuple[CertificateFacts, ...]

"""L4 authorization: a set of policies and a connection give a decision. Pure.

DENY first, then ALLOW: no ALLOW policy means allow, else one must match.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mesh.model import Authorization, SpiffeId


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged. `identity` is None where the peer proved none (plaintext)."""

    identity: SpiffeId | None
    source_ip: str
    destination_ip: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`policy` is the key of the policy that decided ("" where none did).

    `dry_run` names policies that would have refused, had they been enforced.
    """

    allowed: bool
    policy: str = ""
    reason: str = ""
    dry_run: tuple[str, ...] = ()


class PolicySet:
    """The effective policies of one workload, compiled once, judged often."""

    def __init__(self, policies: Iterable[Authorization] = ()) -> None:
        raise NotImplementedError

    def judge(self, subject: Subject) -> Decision:
        """Decide one connection."""
        raise NotImplementedError

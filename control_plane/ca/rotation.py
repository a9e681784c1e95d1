"""From one root to another without a failed handshake. Pure: the clock is an argument.

Two peers that shake hands must trust each other's issuer, and what a proxy trusts it learns with
its certificates. So a root passes through three phases, whoever brings it (a plugged-in CA, or the
self-signed root's successor):

  trust   it is distributed with the old one, until every certificate that was issued before has
          ended: from then on everybody who holds one trusts both;
  sign    it signs;
  retire  the old one stays trusted until every certificate it signed has ended, then it goes.

`overlap` is that time: the longest life of a workload certificate, and a margin for clocks and for
ConfigMaps on their way into pods. Since when a root is trusted everywhere, and until when it
signed, is written down in a Ledger, so that any replica can go on after any restart.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cryptography import x509

from control_plane.ca.root import SigningCa, fingerprint
from mesh.errors import BadInput

Time = datetime.datetime
MARGIN: Final = datetime.timedelta(minutes=10)
_EARLY: Final = 0.2  # of its life before its end a self-signed root is replaced
TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Entry:
    """One root. trusted: since when it is distributed everywhere. until: when it signed last."""

    trusted: Time | None = None
    signs: bool = False
    until: Time | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is known of each root in use, by fingerprint, and how long certificates may live."""

    roots: Mapping[str, Entry] = field(default_factory=dict)
    longest: datetime.timedelta = datetime.timedelta(0)
    longest_until: Time | None = None  # after which a shorter life may be reckoned with

    def trusted(self, root: x509.Certificate) -> Time | None:
        """Since when a root is trusted everywhere."""
        return self.roots.get(fingerprint(root), Entry()).trusted

    def settled(self, root: x509.Certificate, overlap: datetime.timedelta, now: Time) -> bool:
        """Say whether everybody trusts it: nobody is left with a certificate from before."""
        trusted = self.trusted(root)
        return trusted is not None and trusted + overlap <= now

    def retired(self, root: x509.Certificate, overlap: datetime.timedelta, now: Time) -> bool:
        """Say whether nothing it signed can still be alive."""
        entry = self.roots.get(fingerprint(root), Entry())
        return not entry.signs and (entry.until is None or entry.until + overlap <= now)

    def dump(self) -> str:
        """Write as JSON."""
        roots: dict[str, dict[str, Any]] = {}
        for name, entry in sorted(self.roots.items()):
            roots[name] = {
                **({"trusted": entry.trusted.strftime(TIME)} if entry.trusted else {}),
                **({"signs": True} if entry.signs else {}),
                **({"until": entry.until.strftime(TIME)} if entry.until else {}),
            }
        out: dict[str, Any] = {"roots": roots, "longest": int(self.longest.total_seconds())}
        if self.longest_until is not None:
            out["longestUntil"] = self.longest_until.strftime(TIME)
        return json.dumps(out, separators=(",", ":"))

    @classmethod
    def load_untrusted(cls, text: str) -> Ledger:
        """Read what dump wrote; raises BadInput."""
        try:
            raw = json.loads(text)
            roots = {
                str(name): Entry(
                    _time(e.get("trusted")), bool(e.get("signs")), _time(e.get("until"))
                )
                for name, e in raw["roots"].items()
            }
            longest = datetime.timedelta(seconds=int(raw.get("longest") or 0))
            return cls(roots, longest, _time(raw.get("longestUntil")))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
            raise BadInput(f"not a record of roots: {e}") from e


def _time(text: Any) -> Time | None:
    if text is None:
        return None
    return datetime.datetime.strptime(text, TIME).replace(tzinfo=datetime.UTC)


def read_time(text: Any) -> Time | None:
    """Read a time that was written down; None for anything else."""
    try:
        return _time(text)
    except (ValueError, TypeError):
        return None


def choose_signer(
    candidates: Sequence[SigningCa],
    previous: SigningCa | None,
    ledger: Ledger,
    overlap: datetime.timedelta,
    now: Time,
) -> SigningCa | None:
    """Choose who signs: the first of the candidates (most wanted first) that everybody trusts.

    Where that is none, what has been trusted longest, and before that what signed until now
    (`previous`): the new one waits. Where nothing signed yet, the most wanted.
    """
    everyone = [*candidates, *([previous] if previous is not None else [])]
    for ca in everyone:
        if ledger.settled(ca.root, overlap, now):
            return ca
    far = now + datetime.timedelta(days=36500)
    return min(
        everyone,
        key=lambda ca: (ledger.trusted(ca.root) or far, ca is not previous),
        default=None,
    )


def trusted_roots(
    signer: SigningCa,
    candidates: Sequence[SigningCa],
    distributed: Iterable[x509.Certificate],
    ledger: Ledger,
    overlap: datetime.timedelta,
    now: Time,
) -> tuple[x509.Certificate, ...]:
    """List the roots to distribute: the signer's first, what is wanted, and what still counts.

    distributed: the roots that are out there; of those, ones that signed stay for `overlap`.
    Candidates less wanted than the signer bring no roots: that one of them signed is on record.
    """
    wanted: list[x509.Certificate] = []
    for ca in candidates:
        wanted += ca.roots
        if ca.certificate == signer.certificate:
            break
    kept = [
        root
        for root in distributed
        if fingerprint(root) in ledger.roots and not ledger.retired(root, overlap, now)
    ]
    every = dict.fromkeys((signer.root, *wanted, *kept))
    return tuple(r for r in every if r == signer.root or now <= r.not_valid_after_utc)


def advance(
    ledger: Ledger,
    signer: SigningCa,
    roots: Iterable[x509.Certificate],
    longest: datetime.timedelta,
    now: Time,
) -> Ledger:
    """Write down that these roots are distributed everywhere, and who signs."""
    now = now.replace(microsecond=0)
    entries = {}
    for root in roots:
        entry = ledger.roots.get(fingerprint(root), Entry())
        signs = root == signer.root
        entries[fingerprint(root)] = Entry(
            trusted=entry.trusted or now,
            signs=signs,
            until=None if signs else now if entry.signs else entry.until,
        )
    new = replace(ledger, roots=entries)
    if longest >= new.longest:
        return replace(new, longest=longest, longest_until=None)
    if new.longest_until is None:
        return replace(new, longest_until=now + new.longest)
    if new.longest_until <= now:
        return replace(new, longest=longest, longest_until=None)
    return new


def overlap_of(
    ledger: Ledger, longest: datetime.timedelta, explicit: datetime.timedelta | None
) -> datetime.timedelta:
    """How long two roots live side by side: what the operator says, or what certificates need."""
    return explicit if explicit is not None else max(ledger.longest, longest) + MARGIN


def is_ending(root: x509.Certificate, overlap: datetime.timedelta, now: Time) -> bool:
    """Say whether a self-signed root is so near its end that a successor must be made."""
    life = root.not_valid_after_utc - root.not_valid_before_utc
    return now >= root.not_valid_after_utc - max(life * _EARLY, overlap * 4)

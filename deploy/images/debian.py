"""Debian's package metadata, and which packages a short list needs. No I/O.

apt decides what to install on a machine; an image needs less: no maintainer script runs in it, so
what only those scripts use (debconf, perl, dpkg) is left out by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from deploy.images.errors import ImageError

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]*")


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package, as an archive's index or the package itself describes it.

    needs: each a tuple of alternatives, any of which will do.
    """

    name: str
    version: str
    sha256: str = ""
    needs: tuple[tuple[str, ...], ...] = ()
    provides: tuple[str, ...] = ()


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a control file (deb822), folded lines joined with newlines."""
    fields: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.strip():
            if fields:
                yield fields
            fields, key = {}, ""
        elif line[0] in " \t":
            if key:
                fields[key] += "\n" + line.strip()
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    if fields:
        yield fields


def package(fields: Mapping[str, str]) -> Package:
    """One paragraph as a Package; raises ImageError when it has no name or version."""
    try:
        name, version = fields["Package"], fields["Version"]
    except KeyError as e:
        raise ImageError(f"a package description without {e.args[0]}") from e
    both = ", ".join(fields[f] for f in ("Pre-Depends", "Depends") if f in fields)
    needs = tuple(
        tuple(_name(a) for a in group.split("|")) for group in both.split(",") if group.strip()
    )
    provides = tuple(_name(p) for p in fields.get("Provides", "").split(",") if p.strip())
    return Package(name, version, fields.get("SHA256", ""), needs, provides)


def _name(relation: str) -> str:
    """libc6 of "libc6:amd64 (>= 2.35)"."""
    found = _NAME.match(relation.strip())
    if not found:
        raise ImageError(f"cannot read the dependency {relation.strip()!r}")
    return found[0]


def closure(
    available: Iterable[Package], roots: Iterable[str], without: Collection[str] = ()
) -> list[Package]:
    """Roots and all they need, sorted by name; `without` is neither taken nor followed.

    Raises ImageError naming a package that cannot be had and who wants it.
    """
    by_name = {p.name: p for p in available}
    providers: dict[str, list[str]] = defaultdict(list)
    for p in by_name.values():
        for virtual in p.provides:
            providers[virtual].append(p.name)
    found: dict[str, Package] = {}
    satisfied = set(without)
    queue: list[tuple[str, tuple[str, ...]]] = [("the recipe", (root,)) for root in roots]
    while queue:
        wanted_by, alternatives = queue.pop(0)
        if any(a in satisfied for a in alternatives):
            continue
        name = _choose(alternatives, by_name, providers)
        if name is None:
            raise ImageError(f"{wanted_by} needs {' | '.join(alternatives)}: no such package")
        found[name] = by_name[name]
        satisfied.update((name, *by_name[name].provides))
        queue += [(name, need) for need in by_name[name].needs]
    return [found[name] for name in sorted(found)]


def _choose(
    alternatives: tuple[str, ...],
    by_name: Mapping[str, Package],
    providers: Mapping[str, list[str]],
) -> str | None:
    for alternative in alternatives:
        if alternative in by_name:
            return alternative
        if alternative in providers:
            return min(providers[alternative])
    return None

"""Names of hosts in Istio's objects: short names, wildcards, and who may see what."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A DNS name, or a wildcard for everything that ends in the rest (Istio: "*", "*.example.com").
_HOST = re.compile(
    r"(\*|(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\.?)"
)


def fault(host: str) -> str:
    """Say what is wrong with a host, or ""."""
    if not host:
        return "must name a host"
    if len(host) > 253 or not _HOST.fullmatch(host.lower()):
        return f"{host[:80]!r} is not a DNS name (a wildcard may only be its first part: *.example)"
    return ""


def resolve(host: str, namespace: str, domain: str) -> str:
    """Complete a short name from the object's namespace; a name with a dot is complete."""
    host = host.lower().rstrip(".")
    if host.startswith("*") or "." in host:
        return host
    return f"{host}.{namespace}.svc.{domain}"


def is_wildcard(host: str) -> bool:
    """Say whether a host stands for many."""
    return host.startswith("*")


def covers(pattern: str, hostname: str) -> bool:
    """Say whether a host, perhaps a wildcard, stands for a name (or for all of a wildcard's)."""
    if not pattern.startswith("*"):
        return pattern == hostname
    return hostname.removeprefix("*").endswith(pattern[1:])


def best(patterns: Iterable[str], hostname: str) -> str:
    """Pick the most specific of the hosts that stand for a name, or ""."""
    return max((p for p in patterns if covers(p, hostname)), key=specificity, default="")


def specificity(pattern: str) -> tuple[bool, int]:
    """Order hosts: the name itself, then longer wildcards before shorter ones."""
    return not pattern.startswith("*"), len(pattern)


def is_visible(export: frozenset[str], owner: str, viewer: str) -> bool:
    """Say whether exportTo of an object of one namespace shows it to another.

    Unset is public; "." is the object's own namespace, "~" nobody.
    """
    return not export or "*" in export or viewer in export or ("." in export and owner == viewer)

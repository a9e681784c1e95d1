"""Values of AuthorizationPolicy, as both of its readers (for ztunnel, for waypoints) take them.

A parser takes the text and the policy's namespace, and raises ValueError with what is wrong.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from mesh.findings import Findings
from mesh.model import StringMatch

DRY_RUN: Final = "istio.io/dry-run"

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def string_match(value: str, namespace: str) -> StringMatch:
    """Read a text that may have one `*`: alone, at the start or at the end."""
    if value == "*":
        return StringMatch("presence")
    body = value.strip("*")
    if "*" in body or (value.startswith("*") and value.endswith("*")):
        raise ValueError("'*' may only stand alone, at the start or at the end")
    if value.startswith("*"):
        return StringMatch("suffix", body)
    return StringMatch("prefix" if value.endswith("*") else "exact", body)


def principal(value: str, namespace: str) -> StringMatch:
    """Read a principal; the scheme is no part of it, but written anyway, its meaning is clear."""
    return string_match(value.removeprefix("spiffe://"), namespace)


def account(value: str, namespace: str) -> tuple[str, str]:
    """Read "name" or "namespace/name" of a service account."""
    ns, slash, name = value.rpartition("/")
    found = (ns if slash else namespace, name)
    if not all(_NAME.fullmatch(part) for part in found):
        raise ValueError("must be a service account's name or namespace/name, without wildcards")
    return found


def network(value: str, namespace: str) -> str:
    """Read an address or a CIDR; returns a CIDR."""
    return str(ipaddress.ip_network(value, strict=False))


def port(value: str, namespace: str) -> int:
    """Read a port number."""
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 65535:
        raise ValueError("must be a port number, 1 to 65535")
    return int(value)


def negated(name: str) -> str:
    """Name the opposite of a field: "ports" is "notPorts"."""
    return "not" + name[0].upper() + name[1:]


def dry_run(metadata: Mapping[str, Any], findings: Findings) -> bool:
    """Say whether a policy is only tried; anything but "true" means that it is enforced."""
    value = (metadata.get("annotations") or {}).get(DRY_RUN)
    if value not in (None, "true", "false"):
        findings.invalid.append(
            f'metadata.annotations[{DRY_RUN}]: {value!r} is neither "true" nor "false"'
        )
        findings.consequences.append("the policy is enforced")
    return bool(value == "true")

"""The `baggage` header (W3C) as Istio's ztunnel fills it: who a workload says it is.

Telemetry only: identity comes from the certificate, never from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mesh.errors import BadInput

CLUSTER: Final = "k8s.cluster.name"
NAMESPACE: Final = "k8s.namespace.name"
SERVICE: Final = "service.name"
VERSION: Final = "service.version"
REGION: Final = "cloud.region"
ZONE: Final = "cloud.availability_zone"
WORKLOAD_TYPES: Final = ("deployment", "cronjob", "pod", "job")

LIMIT: Final = 8192  # bytes of a header we read, as the W3C recommends
_PLAIN: Final = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$&'()*+-./:<=>?@[]^_`{|}~"
)


def _escape(value: str) -> str:
    raw = value.encode()
    if all(b in _PLAIN for b in raw):
        return value
    return "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in raw)


def _unescape(value: str) -> str:
    if "%" not in value:
        return value
    out = bytearray()
    i = 0
    while i < len(value):
        if value[i] == "%":
            try:
                out.append(int(value[i + 1 : i + 3], 16))
            except ValueError as e:
                raise BadInput(f"baggage: bad escape in {value[:80]!r}") from e
            i += 3
        else:
            out += value[i].encode()
            i += 1
    try:
        return out.decode()
    except UnicodeDecodeError as e:
        raise BadInput(f"baggage: {value[:80]!r} is not UTF-8") from e


def build(
    cluster: str,
    namespace: str,
    workload_type: str,
    workload: str,
    service: str,
    version: str,
    region: str,
    zone: str,
) -> bytes:
    """Encode; empty values are left out."""
    pairs = (
        (CLUSTER, cluster),
        (NAMESPACE, namespace),
        (f"k8s.{workload_type or 'pod'}.name", workload),
        (SERVICE, service),
        (VERSION, version),
        (REGION, region),
        (ZONE, zone),
    )
    return ",".join(f"{k}={_escape(v)}" for k, v in pairs if v).encode()


def parse_untrusted(header: bytes) -> Mapping[str, str]:
    """Read a header into its pairs; the workload is under "workload", its kind under "type".

    Keys we do not know are skipped, properties after ";" too. Raises BadInput.
    """
    if len(header) > LIMIT:
        raise BadInput(f"baggage of {len(header)} bytes, more than {LIMIT}")
    try:
        text = header.decode("ascii")
    except UnicodeDecodeError as e:
        raise BadInput("baggage is not ASCII") from e
    out: dict[str, str] = {}
    for member in text.split(","):
        key, eq, value = member.partition(";")[0].partition("=")
        key = key.strip()
        if not eq:
            continue
        value = _unescape(value.strip())
        if key in (CLUSTER, NAMESPACE, SERVICE, VERSION, REGION, ZONE):
            out[key] = value
        elif key.startswith("k8s.") and key.endswith(".name") and key[4:-5] in WORKLOAD_TYPES:
            out["type"] = key[4:-5]
            out["workload"] = value
    return out

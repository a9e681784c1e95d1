"""ztunnel's /config_dump made into the rows and objects an operator asks for. Pure.

The dump is the JSON of Istio's ztunnel (camelCase), so a dump of either ztunnel can be read.
Columns are those of `istioctl ztunnel-config`. Every ztunnel knows all workloads, services and
policies, so those of several nodes are united; certificates and connections belong to a node.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cli.shape import parse_object_untrusted

Dump = Mapping[str, Any]
Object = dict[str, Any]

WORKLOAD: Final = ("NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL")
SERVICE: Final = ("NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS")
POLICY: Final = ("NAMESPACE", "POLICY NAME", "ACTION", "SCOPE")
CERTIFICATE: Final = (
    "CERTIFICATE NAME",
    "TYPE",
    "STATUS",
    "VALID CERT",
    "SERIAL NUMBER",
    "NOT AFTER",
    "NOT BEFORE",
)
CONNECTIONS: Final = ("WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL")


@dataclass(frozen=True, slots=True)
class Filter:
    """What to leave out; empty keeps everything."""

    namespace: str = ""
    address: str = ""
    direction: str = ""  # inbound | outbound
    raw: bool = False  # addresses as they are, not the names of who has them


# What the views below rely on, where it is there at all. "*" stands for any key.
_WAYPOINT: Final = {"destination": str}
_CERTIFICATE: Final = {"serialNumber": str, "validFrom": str, "expirationTime": str}
_CONNECTION: Final = {"src": str, "originalDst": str, "actualDst": str, "protocol": str}
_SHAPE: Final = {
    "version": {"version": str},
    "workloads": [
        {
            **dict.fromkeys(("namespace", "name", "node", "uid", "protocol"), str),
            "workloadIps": [str],
            "waypoint": _WAYPOINT,
        }
    ],
    "services": [
        {
            **dict.fromkeys(("namespace", "name", "hostname"), str),
            "vips": [str],
            "waypoint": _WAYPOINT,
            "endpoints": {"*": {"status": str}},
        }
    ],
    "policies": [dict.fromkeys(("namespace", "name", "action", "scope"), str)],
    "certificates": [
        {"identity": str, "state": str, "certChain": [_CERTIFICATE], "rootCerts": [_CERTIFICATE]}
    ],
    "workloadState": {
        "*": {
            "state": str,
            "info": dict.fromkeys(("namespace", "name"), str),
            "connections": {"inbound": [_CONNECTION], "outbound": [_CONNECTION]},
        }
    },
}


def parse_untrusted(raw: bytes) -> Dump:
    """Read a dump; raises BadInput where it is none."""
    return parse_object_untrusted(raw, _SHAPE, "a ztunnel config dump", required=("workloads",))


def _text(one: Mapping[str, Any], key: str) -> str:
    return one.get(key) or ""


def _list(one: Mapping[str, Any], key: str) -> list[Any]:
    return one.get(key) or []


# ---- objects, filtered and united ------------------------------------------------------------


def _united(dumps: Iterable[Dump], name: str, key: tuple[str, ...]) -> list[Object]:
    found: dict[tuple[str, ...], Object] = {}
    for dump in dumps:
        for one in _list(dump, name):
            found.setdefault(tuple(_text(one, k) for k in key), one)
    return [found[k] for k in sorted(found)]


def workloads(dumps: Iterable[Dump], wanted: Filter) -> list[Object]:
    """All workloads known, by namespace and name."""
    return [
        w
        for w in _united(dumps, "workloads", ("namespace", "name", "node", "uid"))
        if wanted.namespace in ("", _text(w, "namespace"))
        and (not wanted.address or wanted.address in _list(w, "workloadIps"))
    ]


def services(dumps: Iterable[Dump], wanted: Filter) -> list[Object]:
    """All services known, by namespace and name."""
    return [
        s
        for s in _united(dumps, "services", ("namespace", "name", "hostname"))
        if wanted.namespace in ("", _text(s, "namespace"))
        and (not wanted.address or wanted.address in _vips(s))
    ]


def policies(dumps: Iterable[Dump], wanted: Filter) -> list[Object]:
    """All policies known, by namespace and name."""
    return [
        p
        for p in _united(dumps, "policies", ("namespace", "name"))
        if wanted.namespace in ("", _text(p, "namespace"))
    ]


def certificates(dump: Dump, wanted: Filter) -> list[Object]:
    """Certificates of one node, by identity."""
    part = f"/ns/{wanted.namespace}/"
    found = [
        c
        for c in _list(dump, "certificates")
        if not wanted.namespace or part in _text(c, "identity")
    ]
    return sorted(found, key=lambda c: _text(c, "identity"))


def connections(dump: Dump, wanted: Filter) -> list[Object]:
    """Workloads served on one node, with their connections, by namespace and name."""
    found = [
        {"uid": uid, **state}
        for uid, state in (dump.get("workloadState") or {}).items()
        if wanted.namespace in ("", _text(_info(state), "namespace"))
    ]
    return sorted(
        found, key=lambda s: (_text(_info(s), "namespace"), _text(_info(s), "name"), s["uid"])
    )


def _info(state: Mapping[str, Any]) -> Mapping[str, str]:
    return state.get("info") or {}


def _vips(service: Mapping[str, Any]) -> list[str]:
    """VIPs without their network, which "network/address" puts before them."""
    return [vip.rpartition("/")[2] for vip in _list(service, "vips")]


# ---- rows ------------------------------------------------------------------------------------


def workload_rows(found: Iterable[Object], dumps: Iterable[Dump]) -> list[list[str]]:
    """Cells under WORKLOAD; `dumps` name the waypoints."""
    names = _waypoint_names(dumps)
    return [
        [
            _text(w, "namespace"),
            _text(w, "name"),
            ",".join(_list(w, "workloadIps")),
            _text(w, "node"),
            _waypoint(w, names),
            _text(w, "protocol"),
        ]
        for w in found
    ]


def service_rows(found: Iterable[Object], dumps: Iterable[Dump]) -> list[list[str]]:
    """Cells under SERVICE; endpoints are healthy/all."""
    names = _waypoint_names(dumps)
    rows = []
    for s in found:
        endpoints = list((s.get("endpoints") or {}).values())
        healthy = sum(1 for e in endpoints if _text(e, "status") in ("", "Healthy"))
        rows.append(
            [
                _text(s, "namespace"),
                _text(s, "name"),
                ",".join(_vips(s)),
                _waypoint(s, names),
                f"{healthy}/{len(endpoints)}",
            ]
        )
    return rows


def policy_rows(found: Iterable[Object]) -> list[list[str]]:
    """Cells under POLICY."""
    return [
        [_text(p, "namespace"), _text(p, "name"), _text(p, "action"), _text(p, "scope")]
        for p in found
    ]


def certificate_rows(found: Iterable[Object], now: dt.datetime) -> list[list[str]]:
    """Cells under CERTIFICATE: the chain from the leaf on, then the roots."""
    rows = []
    for c in found:
        identity, status = _text(c, "identity"), _text(c, "state")
        # The cause follows a colon; -o json has it.
        status = status.partition(":")[0]
        chain, roots = _list(c, "certChain"), _list(c, "rootCerts")
        kinds = ["Leaf"] + ["Intermediate"] * (len(chain) - 1) if chain else []
        for kind, one in [*zip(kinds, chain, strict=True), *(("Root", r) for r in roots)]:
            serial = _text(one, "serialNumber")
            rows.append(
                [
                    identity,
                    kind,
                    status,
                    str(is_valid(one, now)).lower(),
                    _hexadecimal(serial),
                    _text(one, "expirationTime") or "NA",
                    _text(one, "validFrom") or "NA",
                ]
            )
        if not chain and not roots:
            rows.append([identity, "NA", status, "false", "NA", "NA", "NA"])
    return rows


def connection_rows(
    found: Iterable[Object], dumps: Iterable[Dump], wanted: Filter
) -> list[list[str]]:
    """Cells under CONNECTIONS; `dumps` give addresses their names."""
    names = {} if wanted.raw else _names_of_addresses(dumps)
    rows = []
    for state in found:
        workload, live = _name(_info(state)), state.get("connections") or {}
        for direction, ends in (
            ("inbound", ("actualDst", "src")),
            ("outbound", ("src", "actualDst")),
        ):
            if wanted.direction not in ("", direction):
                continue
            for c in _list(live, direction):
                local, remote = (_named(_text(c, end), names) for end in ends)
                target = _named(_text(c, "originalDst"), names)
                protocol = _text(c, "protocol")
                rows.append([workload, direction.capitalize(), local, remote, target, protocol])
    return rows


def _hexadecimal(serial: str) -> str:
    # RFC 5280: at most 20 octets, 49 decimal digits.
    return f"{int(serial):x}" if serial.isdecimal() and len(serial) < 50 else serial or "NA"


# ---- names and times -------------------------------------------------------------------------


def _name(one: Mapping[str, Any]) -> str:
    return f"{_text(one, 'name')}.{_text(one, 'namespace')}"


def _waypoint_names(dumps: Iterable[Dump]) -> dict[str, str]:
    names: dict[str, str] = {}
    for dump in dumps:
        for s in _list(dump, "services"):
            names[f"{_text(s, 'namespace')}/{_text(s, 'hostname')}"] = _text(s, "name")
            names.update((vip, _text(s, "name")) for vip in _list(s, "vips"))
    return names


def _waypoint(one: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if not one.get("waypoint"):
        return "None"
    destination = _text(one["waypoint"], "destination")
    return names.get(destination, destination)


def _names_of_addresses(dumps: Iterable[Dump]) -> dict[str, str]:
    names: dict[str, str] = {}
    for dump in dumps:
        for w in _list(dump, "workloads"):
            names.update((address, _name(w)) for address in _list(w, "workloadIps"))
        for s in _list(dump, "services"):
            names.update((vip, _text(s, "hostname")) for vip in _vips(s))
    return names


def _named(endpoint: str, names: Mapping[str, str]) -> str:
    """Put a name in the place of the address in "10.0.0.1:80" or "[fd00::1]:80"."""
    host, colon, port = endpoint.rpartition(":")
    name = names.get(host.strip("[]"))
    return f"{name}{colon}{port}" if name else endpoint


def parse_time(text: str) -> dt.datetime | None:
    """Read an RFC 3339 time; None where it is none."""
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def is_valid(certificate: Mapping[str, Any], now: dt.datetime) -> bool:
    """Whether now is within a certificate's validity."""
    begins = parse_time(_text(certificate, "validFrom"))
    ends = parse_time(_text(certificate, "expirationTime"))
    return begins is not None and ends is not None and begins <= now < ends

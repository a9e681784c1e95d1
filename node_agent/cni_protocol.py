"""What the CNI plugin (deploy/cni) and the node agent say to each other. Pure.

One datagram each on a unix SOCK_SEQPACKET connection, JSON; an ADD carries the pod's network
namespace as a descriptor.
    {"command": "ADD", "pod": {"namespace", "name", "uid", "sandbox"}, "addresses": [...]}
    {"command": "DEL" | "CHECK", "pod": {...}}      {"command": "GC", "valid": [sandbox, ...]}
    -> {"captured": true | false, "error": ""}
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import BadInput
from node_agent.cri import first_of_each_family

ADD: Final = "ADD"
DEL: Final = "DEL"
CHECK: Final = "CHECK"
GC: Final = "GC"
COMMANDS: Final = (ADD, DEL, CHECK, GC)

MAX_REQUEST: Final = 256 * 1024  # bytes: a GC names every sandbox of the node
MAX_ANSWER: Final = 16 * 1024  # what the plugin reads (agent.go)
_MAX_ADDRESSES: Final = 64
# Names of Kubernetes objects (RFC 1123 subdomains), uids, and sandbox ids, which are the runtime's.
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. uid is "" where the runtime does not say it; GC has no pod."""

    command: str
    namespace: str = ""
    name: str = ""
    uid: str = ""
    sandbox: str = ""
    addresses: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How messages call the pod."""
        return f"{self.namespace}/{self.name}"


def decode_request_untrusted(data: bytes) -> Request:
    """Parse one request; BadInput says what is wrong with it."""
    if len(data) > MAX_REQUEST:
        raise BadInput(f"a request of over {MAX_REQUEST} bytes")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"a request that is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("command") not in COMMANDS:
        raise BadInput(f"a request that is none of {', '.join(COMMANDS)}")
    command = str(raw["command"])
    if command == GC:
        return Request(GC)
    pod = raw.get("pod")
    if not isinstance(pod, dict):
        raise BadInput(f"{command} without a pod")
    uid = pod.get("uid")
    return Request(
        command,
        namespace=_text(pod, "namespace", _NAME),
        name=_text(pod, "name", _NAME),
        uid=_text(pod, "uid", _ID) if uid else "",
        sandbox=_text(pod, "sandbox", _ID),
        addresses=_addresses(raw) if command == ADD else (),
    )


def encode_answer(captured: bool = False, error: str = "") -> bytes:
    """Word an answer; a long error is cut to what the plugin reads."""
    room = MAX_ANSWER // 8  # JSON may write one character as six bytes
    return json.dumps({"captured": captured, "error": error[:room]}).encode()


def _text(raw: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadInput(f"pod.{key}: {str(value)[:80]!r} is not valid")
    return value


def _addresses(raw: dict[str, Any]) -> tuple[str, ...]:
    values = raw.get("addresses")
    if not isinstance(values, list) or not 0 < len(values) <= _MAX_ADDRESSES:
        raise BadInput("addresses: the plugins before gave the pod none (or too many)")
    found = first_of_each_family([str(value) for value in values])
    if not found:
        raise BadInput(f"addresses: {str(values)[:80]} are none")
    return found

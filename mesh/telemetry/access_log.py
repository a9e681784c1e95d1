"""Access log lines, as text and as JSON, with the fields and the look of Istio's ztunnel. Pure.

What two parties have in common over all their connections is rendered once, in a Line; a
connection then costs a few joins. There is one line for every connection of a node.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

INFO: Final = "info"
WARN: Final = "warn"
ERROR: Final = "error"
DEBUG: Final = "debug"

COMPLETE: Final = "connection complete"
OPENED: Final = "connection opened"
FAILED: Final = "connection failed"


@dataclass(frozen=True, slots=True)
class Party:
    """Who is at one end. Empty text is unknown and is left out of the line."""

    workload: str = ""
    namespace: str = ""
    identity: str = ""
    cluster: str = ""

    def fields(self, end: str) -> list[tuple[str, str]]:
        """Give names and values; end: src or dst."""
        return [
            (f"{end}.workload", self.workload),
            (f"{end}.namespace", self.namespace),
            (f"{end}.identity", self.identity),
            (f"{end}.cluster", self.cluster),
        ]


class TextFormat:
    """time, level, target, message and name=value pairs; names are quoted, addresses are not."""

    def head(self, now: float, level: str, message: str) -> str:
        """Begin a line; `now` is unix seconds."""
        return f"{_stamp(now)}\t{level}\taccess\t{message}\t"

    def quoted(self, name: str, value: str) -> str:
        """Render a text value."""
        return f" {name}={json.dumps(value, ensure_ascii=False)}"

    def bare(self, name: str, value: str | int) -> str:
        """Render an address or a number."""
        return f" {name}={value}"

    def line(self, head: str, pairs: str) -> str:
        """Join them."""
        return f"{head}{pairs[1:]}\n"


class JsonFormat:
    """One JSON object per line."""

    def head(self, now: float, level: str, message: str) -> str:
        """See TextFormat."""
        fixed = {"level": level, "time": _stamp(now), "scope": "access", "message": message}
        return json.dumps(fixed, separators=(",", ":"))[:-1]

    def quoted(self, name: str, value: str) -> str:
        """See TextFormat."""
        return f',"{name}":{json.dumps(value, ensure_ascii=False)}'

    def bare(self, name: str, value: str | int) -> str:
        """See TextFormat."""
        return f',"{name}":{value}' if isinstance(value, int) else f',"{name}":"{value}"'

    def line(self, head: str, pairs: str) -> str:
        """See TextFormat."""
        return f"{head}{pairs}}}\n"


Format = TextFormat | JsonFormat


@dataclass(frozen=True, slots=True)
class Counts:
    """Bytes from the reporter's own side, and how long it took."""

    sent: int
    recv: int
    duration_ms: int


class Line:
    """The line of connections between two parties in one direction (inbound or outbound)."""

    def __init__(
        self, form: Format, src: Party, dst: Party, direction: str, service: str = ""
    ) -> None:
        self._form = form
        self._src = self._fixed(src.fields("src"))
        self._dst = self._fixed([("dst.service", service), *dst.fields("dst")])
        self._direction = form.quoted("direction", direction)

    def _fixed(self, fields: Iterable[tuple[str, str]]) -> str:
        return "".join(self._form.quoted(name, value) for name, value in fields if value)

    def render(
        self,
        head: str,
        src: str,
        dst: str,
        hbone: str = "",
        counts: Counts | None = None,
        error: str = "",
    ) -> str:
        """Render one connection. head: of the format. src, dst, hbone: ip:port.

        hbone: what the tunnel was asked for; dst is then the tunnel's far end.
        """
        form = self._form
        pairs = [form.bare("src.addr", src), self._src, form.bare("dst.addr", dst)]
        if hbone:
            pairs.append(form.bare("dst.hbone_addr", hbone))
        pairs += (self._dst, self._direction)
        if counts is not None:
            pairs += (
                form.bare("bytes_sent", counts.sent),
                form.bare("bytes_recv", counts.recv),
                form.quoted("duration", f"{counts.duration_ms}ms"),
            )
        if error:
            pairs.append(form.quoted("error", error))
        return form.line(head, "".join(pairs))


def _stamp(now: float) -> str:
    at = dt.datetime.fromtimestamp(now, dt.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

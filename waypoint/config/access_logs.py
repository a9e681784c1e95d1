"""Who writes access logs, and which: what Istio's Telemetry and mesh configuration say. Pure.

Three levels, of which the most specific that says anything about access logs counts: a Telemetry
whose targetRefs name the Gateway, one of the Gateway's namespace, one of the root namespace. Below
them is the mesh's configuration (accessLogFile, defaultProviders). An entry without providers
takes those of the level below. Of several objects on one level the oldest counts.

What a level says is a list of (provider, filter); providers are `envoy`, which the mesh's
accessLogEncoding gives its form, and those of extensionProviders that write to standard output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.findings import WAYPOINT_ACCEPTED, Condition
from mesh.manifest import Key
from waypoint.config.reading import Fields, Report, show
from waypoint.config.status import Status, joined, listed

KIND: Final = "Telemetry"
BUILT_IN: Final = "envoy"
_STDOUT: Final = "/dev/stdout"
_GATEWAY: Final = ("gateway.networking.k8s.io", "Gateway")
_OPS: Final = ("==", "!=", ">=", "<=", ">", "<")
_COMPARED: Final = re.compile(r"\s*response\.code\s*(==|!=|>=|<=|>|<)\s*(\d{3})\s*")
_MAX_EXPRESSION: Final = 1024
_NOT_HERE: Final = "has no effect at waypoints"

GatewayKey = tuple[str, str]  # namespace, name
Comparison = tuple[str, int]  # one of _OPS, status code
Filter = tuple[tuple[Comparison, ...], ...]  # any of these, of which all hold; (): everything


@dataclass(frozen=True, slots=True, order=True)
class AccessLog:
    """One access log, to standard output."""

    json: bool = False
    filter: Filter = ()


@dataclass(frozen=True, slots=True)
class MeshLogs:
    """What the mesh's configuration says: providers by name, and those that all use."""

    providers: Mapping[str, bool] = field(default_factory=lambda: {BUILT_IN: False})  # is it JSON
    default: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One of spec.accessLogging. No providers: those of the level below."""

    path: str
    providers: tuple[str, ...] = ()
    filter: Filter = ()
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What an object says. `targets`: Gateways; None: its namespace, or the mesh.

    `entries`: None if it says nothing about access logs.
    """

    key: Key
    age: str  # creationTimestamp: the least is the oldest
    targets: tuple[GatewayKey, ...] | None
    entries: tuple[Entry, ...] | None
    report: Report = field(default_factory=Report, compare=False)


# ---- reading -----------------------------------------------------------------------------------


def read_mesh_logs(config: Mapping[str, Any]) -> tuple[MeshLogs, list[str]]:
    """Read MeshConfig, as far as it is about access logs; returns it and what is wrong with it."""
    report = Report()
    fields = Fields(config, "", report)
    encoding = fields.choice("accessLogEncoding", "TEXT", "JSON")
    file = fields.text("accessLogFile")
    if file not in ("", _STDOUT):
        fields.bad("accessLogFile", f"{show(file)}: waypoints write to {_STDOUT} only")
    providers = {BUILT_IN: encoding == "JSON"}
    for one in fields.each("extensionProviders"):
        logged = one.mapping("envoyFileAccessLog")
        name = one.text("name")
        if logged is None or not logged.sound or not name:
            continue
        path = logged.text("path") or _STDOUT
        form = logged.mapping("logFormat")
        if path != _STDOUT:
            logged.bad("path", f"{show(path)}: waypoints write to {_STDOUT} only")
            continue
        if form is not None and form.has("text"):
            form.bad("text", "waypoints have a form of their own, see docs/telemetry.md")
        providers[name] = form is not None and form.has("labels")
    default: list[str] = [BUILT_IN] if file == _STDOUT else []
    chosen = fields.mapping("defaultProviders")
    for name in chosen.texts("accessLogging") if chosen is not None else ():
        if name in providers:
            default.append(name)
        else:
            fields.bad("defaultProviders.accessLogging", _unknown(name, providers))
    problems = [text.lstrip(".") for text in report.invalid]
    return MeshLogs(providers, tuple(dict.fromkeys(default))), problems


def _unknown(name: str, known: Iterable[str]) -> str:
    return f"{show(name)} is no provider of access logs (known: {', '.join(sorted(known))})"


def read_telemetry(obj: Mapping[str, Any]) -> Telemetry:
    """Read a Telemetry. What is wrong with it is in its report; an entry that is wrong is left."""
    metadata = obj.get("metadata")
    about = metadata if isinstance(metadata, Mapping) else {}
    key = Key(KIND, str(about.get("namespace") or ""), str(about.get("name") or ""))
    report = Report()
    spec = Fields(obj.get("spec"), "spec", report)
    targets = _targets(spec, key.namespace)
    entries = None
    if spec.has("accessLogging"):
        found = (_entry(fields) for fields in spec.each("accessLogging"))
        entries = tuple(entry for entry in found if entry is not None)
    spec.skip(f"{_NOT_HERE}: Istio's metrics are always counted, see docs/telemetry.md", "metrics")
    spec.skip(f"{_NOT_HERE}: they do not trace", "tracing")
    if spec.has("selector"):
        report.refused = (
            "spec.selector: selects pods with a sidecar, of which there are none; name the"
            " waypoint's Gateway in spec.targetRefs"
        )
        entries = None
    spec.done()
    return Telemetry(key, str(about.get("creationTimestamp") or ""), targets, entries, report)


def _targets(spec: Fields, namespace: str) -> tuple[GatewayKey, ...] | None:
    """Read targetRefs (or the older targetRef); those that are wrong are left out."""
    one = spec.mapping("targetRef")
    refs = [*spec.each("targetRefs"), *([one] if one is not None else [])]
    if not refs and not spec.has("targetRefs") and one is None:
        return None
    out = []
    for ref in refs:
        group, kind, name = ref.text("group"), ref.text("kind"), ref.text("name")
        elsewhere = ref.text("namespace")
        if (group, kind) != _GATEWAY:
            ref.report.skip(ref.at("kind"), f"{show(kind)}: access logs are those of a Gateway")
        elif elsewhere not in ("", namespace):
            ref.bad("namespace", f"must be the Telemetry's own: {namespace}")
        elif not name:
            ref.bad("name", "must be the name of a Gateway")
        else:
            out.append((namespace, name))
        ref.done()
    return tuple(dict.fromkeys(out))


def _entry(fields: Fields) -> Entry | None:
    names = [one.text("name") for one in fields.each("providers")]
    disabled = fields.boolean("disabled")
    match, mode = fields.mapping("match"), ""
    if match is not None:
        mode = match.choice("mode", "CLIENT", "SERVER", "CLIENT_AND_SERVER")
        match.done()
    chosen, expression = fields.mapping("filter"), ""
    if chosen is not None:
        expression = chosen.text("expression")
        chosen.done()
    fields.done()
    found = read_filter(expression) if expression else ()
    if found is None:
        fields.bad(
            "filter.expression",
            f"{show(expression)}: only comparisons of response.code ({', '.join(_OPS)}) joined by"
            " && and || are understood, such as response.code >= 500; nothing is logged for it",
        )
        return None
    if mode == "CLIENT":
        fields.skip(f"{_NOT_HERE}, which log as SERVER", "match")
        return None
    return Entry(fields.path, tuple(n for n in names if n), found, disabled is True)


def read_filter(expression: str) -> Filter | None:
    """Read the part of CEL that is understood; None: it is none of it."""
    if len(expression) > _MAX_EXPRESSION:
        return None
    out = []
    for alternative in expression.split("||"):
        found = [_COMPARED.fullmatch(part) for part in alternative.split("&&")]
        matches = [m for m in found if m is not None]
        if len(matches) < len(found):
            return None
        out.append(tuple((m[1], int(m[2])) for m in matches))
    return tuple(out)


# ---- all of them -------------------------------------------------------------------------------


class TelemetryIndex:
    """Feed it every Telemetry and every waypoint's Gateway; ask it what a waypoint writes."""

    def __init__(self, root_namespace: str) -> None:
        self._root = root_namespace
        self._mesh = MeshLogs()
        self._held: dict[Key, Telemetry] = {}
        self._gateways: set[GatewayKey] = set()

    def put(self, key: Key, obj: Mapping[str, Any] | None) -> set[GatewayKey]:
        """Take in an object, or (None) forget it; returns waypoints whose logs may be others."""
        old = self._held.pop(key, None)
        touched = set() if old is None else self._covered(old)
        if obj is not None:
            new = self._held[key] = read_telemetry(obj)
            touched |= self._covered(new)
        return touched

    def put_gateway(self, where: GatewayKey, present: bool) -> None:
        """Take in whether there is such a waypoint."""
        if present:
            self._gateways.add(where)
        else:
            self._gateways.discard(where)

    def set_mesh(self, mesh: MeshLogs) -> set[GatewayKey]:
        """Take in the mesh's configuration; returns waypoints whose logs may be others."""
        if mesh == self._mesh:
            return set()
        self._mesh = mesh
        return set(self._gateways)

    def __contains__(self, key: Key) -> bool:
        """Say whether an object is held."""
        return key in self._held

    def keys(self) -> tuple[Key, ...]:
        """List the objects that are held."""
        return tuple(self._held)

    def at(self, where: GatewayKey) -> set[Key]:
        """Name the objects whose status may depend on a waypoint."""
        return {key for key, held in self._held.items() if self._covers(held, where)}

    def logs(self, where: GatewayKey) -> tuple[AccessLog, ...]:
        """Say what a waypoint writes."""
        current: list[tuple[str, Filter]] = [(name, ()) for name in self._mesh.default]
        for held in self._levels(where):
            below = [name for name, _ in current] or [BUILT_IN]
            current = [
                (name, entry.filter)
                for entry in held.entries or ()
                if not entry.disabled
                for name in entry.providers or below
            ]
        known = self._mesh.providers
        return tuple(sorted({AccessLog(known[n], f) for n, f in current if n in known}))

    def _levels(self, where: GatewayKey) -> list[Telemetry]:
        """Name the objects that count for a waypoint, the least specific first."""
        found: dict[int, Telemetry] = {}
        for held in self._held.values():
            if held.entries is None or not self._covers(held, where):
                continue
            level = self._level(held)
            if level not in found or _older(held, found[level]):
                found[level] = held
        return [found[level] for level in sorted(found)]

    def _level(self, held: Telemetry) -> int:
        if held.targets is not None:
            return 2
        return 0 if held.key.namespace == self._root else 1

    def _covers(self, held: Telemetry, where: GatewayKey) -> bool:
        if held.targets is not None:
            return where in held.targets
        return held.key.namespace in (self._root, where[0])

    def _covered(self, held: Telemetry) -> set[GatewayKey]:
        return {where for where in self._gateways if self._covers(held, where)}

    # ---- statuses ------------------------------------------------------------------------------

    def status(self, key: Key) -> Status:
        """Say what became of an object that is held."""
        held = self._held[key]
        report = Report()
        report.take(held.report)
        for entry in held.entries or ():
            for i, name in enumerate(entry.providers):
                if name not in self._mesh.providers:
                    path = f"{entry.path}.providers[{i}].name"
                    report.bad(path, _unknown(name, self._mesh.providers))
        if report.refused:
            return _told(False, "Invalid", [report.refused, *report.invalid, *report.unsupported])
        findings = [*report.invalid, *report.unsupported]
        if held.entries is None:
            reason = "Invalid" if findings else "Accepted"
            return _told(not findings, reason, [*findings, "it says nothing about access logs"])
        missing = [where for where in held.targets or () if where not in self._gateways]
        counting = {where: self._levels(where) for where in self._covered(held)}
        used = [where for where, levels in counting.items() if held in levels]
        parts = list(findings)
        if missing:
            parts.append(f"spec.targetRefs: there is no waypoint {_listed(missing)}")
        if counting and not used:
            older = {str(other.key) for levels in counting.values() for other in levels}
            return _told(
                False, "Conflicted", [*parts, f"older ones count instead: {listed(older)}"]
            )
        if not used:
            reason = "TargetNotFound" if missing else "AncestorNotBound"
            return _told(False, reason, [*parts, "there is no waypoint that it is for"])
        reason = "PartiallyInvalid" if parts else "Accepted"
        return _told(True, reason, [*parts, f"in effect at {_listed(used)}"])


def _listed(found: list[GatewayKey]) -> str:
    return listed("/".join(where) for where in found)


def _older(one: Telemetry, other: Telemetry) -> bool:
    return (one.age, one.key) < (other.age, other.key)


def _told(good: bool, reason: str, parts: list[str]) -> Status:
    return Status((Condition(WAYPOINT_ACCEPTED, good, reason, joined(parts)),))

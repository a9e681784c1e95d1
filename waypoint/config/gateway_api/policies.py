"""Policies of backends: BackendTLSPolicy, XBackendTrafficPolicy; and ReferenceGrant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.manifest import Key
from waypoint.config.gateway_api.read_routes import read_session
from waypoint.config.gateway_api.references import created, service_key
from waypoint.config.gateway_api.templates import Problem
from waypoint.config.pem import NOBODY, read_certificates
from waypoint.config.reading import Fields, Report, show
from waypoint.config.routing import Session
from waypoint.config.traffic import BackendTls, RetryBudget

TLS_POLICY: Final = "BackendTLSPolicy"
TRAFFIC_POLICY: Final = "XBackendTrafficPolicy"
GRANT: Final = "ReferenceGrant"
_MAX_TARGETS: Final = 16
_DEFAULT_PERCENT: Final = 20.0
_DEFAULT_RATE: Final = 10

ConfigMaps = Callable[[str, str], Mapping[str, str] | None]  # (namespace, name)


@dataclass(frozen=True, slots=True)
class PolicyTarget:
    """A targetRef to a service. `ref` is the ancestorRef of its status."""

    ref: Mapping[str, Any]
    service: str
    section: str = ""  # name of a port; "" is all
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """One object, read. What it says is in one of the last fields."""

    key: Key
    created: str
    targets: tuple[PolicyTarget, ...]
    report: Report = field(compare=False)
    budget: RetryBudget | None = None
    session: Session | None = None
    tls: Validation | None = None

    @property
    def age(self) -> tuple[str, str]:
        """Order policies: the oldest counts, then by "namespace/name"."""
        return self.created, f"{self.key.namespace}/{self.key.name}"


@dataclass(frozen=True, slots=True)
class Validation:
    """How a backend proves itself."""

    hostname: str
    config_maps: tuple[str, ...] = ()  # with the CA in ca.crt
    system: bool = False
    subject_names: tuple[str, ...] = ()
    problem: Problem | None = None  # of a reference


def _read_targets(spec: Fields, key: Key, domain: str) -> tuple[PolicyTarget, ...]:
    found = []
    for f in spec.each("targetRefs"):
        group, kind, name = f.text("group"), f.text("kind"), f.text("name")
        section = f.text("sectionName")
        f.done()
        ref = {"group": group, "kind": kind, "namespace": key.namespace, "name": name}
        if section:
            ref["sectionName"] = section
        if kind != "Service" or group not in ("", "core"):
            what = Problem("TargetNotFound", f"{f.path}: {show(kind)} is no kind of backend here")
            found.append(PolicyTarget(ref, "", problem=what))
        elif name:
            service = service_key(key.namespace, name, domain)
            found.append(PolicyTarget(ref, service, section))
    if len(found) > _MAX_TARGETS:
        spec.bad("targetRefs", f"more than {_MAX_TARGETS}: the rest is not used")
    if not found:
        spec.bad("targetRefs", "must name a Service")
    return tuple(found[:_MAX_TARGETS])


# ---- XBackendTrafficPolicy ---------------------------------------------------------------------


def _read_budget(f: Fields) -> float:
    percent = f.number("percent", 0, 100)
    f.skip("has no effect: the share is of what is active at the moment", "interval")
    f.done()
    return _DEFAULT_PERCENT if percent is None else percent


def _read_rate(f: Fields) -> int:
    count = f.integer("count", 1, 1_000_000)
    f.skip("has no effect: count is of retries at once", "interval")
    f.done()
    return _DEFAULT_RATE if count is None else count


def _read_constraint(f: Fields) -> RetryBudget:
    percent, minimum = f.inner("budget", _read_budget), f.inner("minRetryRate", _read_rate)
    f.done()
    return RetryBudget(
        _DEFAULT_PERCENT if percent is None else percent,
        _DEFAULT_RATE if minimum is None else minimum,
    )


# ---- BackendTLSPolicy --------------------------------------------------------------------------


def _read_names(f: Fields) -> tuple[str, ...]:
    found = []
    for entry in f.each("subjectAltNames"):
        kind = entry.choice("type", "Hostname", "URI")
        name = entry.text("hostname" if kind == "Hostname" else "uri")
        entry.raw("hostname")
        entry.raw("uri")
        entry.done()
        if not name:
            entry.report.bad(entry.path, "must have the hostname or uri that its type says")
        found.append(name)
    return tuple(found)


def _read_validation(f: Fields) -> Validation:
    hostname, system = f.text("hostname"), f.choice("wellKnownCACertificates", "System")
    config_maps = []
    problem = None
    for entry in f.each("caCertificateRefs"):
        group, kind, name = entry.text("group"), entry.text("kind"), entry.text("name")
        entry.done()
        if kind == "ConfigMap" and group in ("", "core") and name:
            config_maps.append(name)
        else:
            problem = Problem("InvalidKind", f"{entry.path}: {show(kind)} is no ConfigMap")
    if not hostname:
        f.bad("hostname", "must be set")
    if bool(system) == bool(config_maps or problem):
        f.report.bad(f.path, "set one of caCertificateRefs and wellKnownCACertificates")
    names = _read_names(f)
    f.done()
    return Validation(hostname, tuple(config_maps), bool(system), names, problem)


def resolve_tls(
    tls: Validation, namespace: str, config_maps: ConfigMaps, *, sound: bool
) -> tuple[BackendTls, Problem | None]:
    """Fill in the CA of a policy; returns the settings and which reference is wrong.

    Where one is, or the policy is not `sound`, no backend is trusted: connections fail.
    """
    problem = tls.problem
    authorities = []
    for name in tls.config_maps:
        data = config_maps(namespace, name)
        text = read_certificates((data or {}).get("ca.crt", "").encode("utf-8", "replace"))
        if text:
            authorities.append(text)
        elif problem is None:
            what = "has no certificate in ca.crt" if data is not None else "is not there"
            problem = Problem("InvalidCACertificateRef", f"ConfigMap {namespace}/{name} {what}")
    trusted = sound and (tls.system or bool(authorities))
    settings = BackendTls(
        mode="simple",
        sni=tls.hostname,
        subject_names=tls.subject_names or ((tls.hostname,) if tls.hostname else ()),
        ca="".join(authorities) if trusted else NOBODY,
    )
    return settings, problem


# ---- reading -----------------------------------------------------------------------------------


def read_policy(key: Key, obj: Mapping[str, Any], domain: str) -> Policy:
    """Read a BackendTLSPolicy or XBackendTrafficPolicy; never raises."""
    report = Report()
    spec = Fields(obj.get("spec"), "spec", report)
    targets = _read_targets(spec, key, domain)
    budget, session, tls = None, None, None
    if key.kind == TLS_POLICY:
        tls = spec.inner("validation", _read_validation) or Validation("")
        if not spec.has("validation"):
            spec.bad("validation", "must be set")
        spec.skip("not supported: no option is known", "options")
    else:
        budget = spec.inner("retryConstraint", _read_constraint)
        session = spec.inner("sessionPersistence", lambda f: read_session(f, str(key)))
    spec.done()
    return Policy(key, created(obj), targets, report, budget, session, tls)


@dataclass(frozen=True, slots=True)
class Grant:
    """A ReferenceGrant: which kinds of which namespaces may send to which services ("": all)."""

    key: Key
    sources: frozenset[tuple[str, str, str]] = frozenset()  # group, kind, namespace
    names: frozenset[str] = frozenset()

    def allows(self, group: str, kind: str, namespace: str, name: str) -> bool:
        """Say whether it lets an object of a kind and namespace send to a service of its own."""
        return (group, kind, namespace) in self.sources and bool({"", name} & self.names)


def read_grant(key: Key, obj: Mapping[str, Any]) -> Grant:
    """Read a ReferenceGrant; what is wrong grants nothing."""
    spec = Fields(obj.get("spec"), "spec", Report())
    sources = set()
    for f in spec.each("from"):
        source = f.text("group"), f.text("kind"), f.text("namespace")
        f.done()
        if not f.report and all(source[1:]):
            sources.add(source)
    names = set()
    for f in spec.each("to"):
        group, kind, name = f.text("group"), f.text("kind"), f.text("name")
        f.done()
        if kind == "Service" and group in ("", "core"):
            names.add(name)
    spec.done()
    if spec.report:
        return Grant(key)
    return Grant(key, frozenset(sources), frozenset(names))

"""AuthorizationPolicy with targetRefs, read into a Policy and what there is to say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.findings import Findings, mapping, sequence, unknown_fields
from mesh.policy_values import dry_run
from waypoint.config.security.model import Action, JwtRule, Policy, Rule, Target
from waypoint.config.security.rules import HTTP_ONLY, read_rules

_ACTIONS: Final[dict[str, Action]] = {
    "ALLOW": "ALLOW",
    "DENY": "DENY",
    "AUDIT": "AUDIT",
    "CUSTOM": "CUSTOM",
}
_MAX_TARGETS: Final = 16  # as the CRD has it
_GATEWAY_API: Final = "gateway.networking.k8s.io"
_GROUPS: Final = {
    "Service": ("", "core"),
    "ServiceEntry": ("networking.istio.io",),
    "Gateway": (_GATEWAY_API,),
    "GatewayClass": (_GATEWAY_API,),
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What an object says. `policy` or `jwt` is set, by its kind; no targets: nothing is enforced.

    `uris` are where keys come from: (index in `jwt`, path of the field, URI).
    """

    targets: tuple[Target, ...]
    policy: Policy | None = None
    jwt: tuple[JwtRule, ...] = ()
    uris: tuple[tuple[int, str, str], ...] = ()
    findings: Findings = field(default_factory=Findings)


def has_targets(obj: Mapping[str, Any]) -> bool:
    """Say whether an object is for waypoints."""
    spec = obj.get("spec")
    return isinstance(spec, Mapping) and any(
        spec.get(name) is not None for name in ("targetRefs", "targetRef")
    )


def _target(
    raw: Any, path: str, namespace: str, root_namespace: str, findings: Findings
) -> Target | None:
    found = Findings()
    ref = mapping(raw, path, found)
    unknown_fields(ref, ("group", "kind", "name", "namespace"), path, found)
    kind, name = ref.get("kind"), ref.get("name")
    if not isinstance(name, str) or not name:
        found.invalid.append(f"{path}.name: must be the name of an object")
    if not isinstance(kind, str) or kind not in _GROUPS:
        found.invalid.append(f"{path}.kind: {kind!r:.80}: must be one of {', '.join(_GROUPS)}")
    elif (ref.get("group") or "") not in _GROUPS[kind]:
        found.invalid.append(
            f"{path}.group: {ref.get('group')!r:.80}: of a {kind} it is {_GROUPS[kind][0]!r}"
        )
    elif kind == "GatewayClass" and namespace != root_namespace:
        found.invalid.append(
            f"{path}: a GatewayClass may be targeted from the root namespace {root_namespace} only"
        )
    if ref.get("namespace") not in (None, "", namespace):
        found.invalid.append(f"{path}.namespace: must be the policy's own: {namespace}")
    findings.add(found)
    if found or not isinstance(kind, str) or not isinstance(name, str):
        return None
    return Target(kind, "" if kind == "GatewayClass" else namespace, name)


def read_targets(
    spec: Mapping[str, Any], namespace: str, root_namespace: str, findings: Findings
) -> tuple[Target, ...]:
    """Read spec.targetRefs (or the older targetRef); what is wrong is left out and reported."""
    found = Findings()
    refs = [
        (f"spec.targetRefs[{i}]", raw)
        for i, raw in enumerate(sequence(spec.get("targetRefs"), "spec.targetRefs", found))
    ]
    if spec.get("targetRef") is not None:
        refs.append(("spec.targetRef", spec["targetRef"]))
    if len(refs) > _MAX_TARGETS:
        found.invalid.append(f"spec.targetRefs: {len(refs)} entries, at most {_MAX_TARGETS}")
    targets = [
        _target(raw, path, namespace, root_namespace, found) for path, raw in refs[:_MAX_TARGETS]
    ]
    kept = tuple(dict.fromkeys(t for t in targets if t is not None))
    if found:
        where = ", ".join(map(str, kept))
        found.consequences.append(f"enforced at {where} only" if kept else "NOT enforced anywhere")
    if spec.get("selector") is not None:
        found.invalid.append("spec: only one of selector and targetRefs may be set")
        found.consequences.append("the selector is ignored")
    findings.add(found)
    return kept


def read_policy(obj: Mapping[str, Any], root_namespace: str) -> Reading:
    """Read one AuthorizationPolicy that has targetRefs."""
    findings = Findings()
    metadata = obj["metadata"]
    namespace = metadata["namespace"]
    spec = mapping(obj.get("spec"), "spec", findings)
    known = ("action", "provider", "rules", "selector", "targetRef", "targetRefs")
    unknown_fields(spec, known, "spec", findings)
    targets = read_targets(spec, namespace, root_namespace, findings)
    text = spec.get("action") or "ALLOW"
    action = _ACTIONS.get(text) if isinstance(text, str) else None
    rules: tuple[Rule, ...] = ()
    provider = ""
    if action is None:
        # It might have been any: refuse, which is what an ALLOW without rules does.
        findings.invalid.append(
            f"spec.action: {text!r:.80} is not an action: {', '.join(_ACTIONS)}"
        )
        findings.consequences.append("everything is refused")
        action = "ALLOW"
    else:
        rules = read_rules(spec, action == "ALLOW", namespace, findings)
    raw = mapping(spec.get("provider"), "spec.provider", findings)
    if action == "CUSTOM":
        unknown_fields(raw, ("name",), "spec.provider", findings)
        provider = str(raw.get("name") or "")
        if not provider:
            findings.invalid.append("spec.provider.name: must name an extension provider")
    elif raw:
        findings.invalid.append("spec.provider: is for the action CUSTOM only")
        findings.consequences.append("it is ignored")
    policy = Policy(
        namespace, metadata["name"], action, rules, dry_run(metadata, findings), provider
    )
    return Reading(targets, policy, findings=findings)


def http_only(policy: Policy) -> tuple[str, ...]:
    """Name the attributes of a policy that a connection without HTTP does not have."""
    found = (
        check.attribute
        for rule in policy.rules
        for clause in rule.clauses
        for alternative in clause
        for check in alternative
        if check.attribute in HTTP_ONLY
    )
    return tuple(dict.fromkeys(found))

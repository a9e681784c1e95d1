"""Judge a mesh by what its processes said: what is there, what is wrong, what to do next. Pure.

Facts come in as the JSON the processes serve; the judgement goes out as plain JSON, so that
`ambit status -o json` holds everything its tables are made of.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from cli.dump import Dump, parse_time
from cli.output import age
from cli.shape import parse_object_untrusted
from mesh.errors import BadInput

# Certificates are renewed at half of their life: one with less left than this was not.
_LIFE_LEFT: Final = 0.25
_ROOT_LEFT: Final = 30 * 86400.0  # seconds: time enough to put in another root
_ACCEPTED: Final = "Accepted"
_EXPECTED: Final = "nothing, if that is expected"

_AGENT: Final = {
    # hooks: 1 loaded, 0 not; causes: why not
    "redirect": {"mode": str, "cause": str, "hooks": {"*": int}, "causes": {"*": str}},
    "pods": [
        dict.fromkeys(("namespace", "name", "state", "redirection", "reason", "message"), str)
    ],
    "proxies": [{"held_listeners": bool, "synced": bool, "pods": int, "waiting": int}],
}

Found = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one node's processes said; where one said nothing, the error stands for it."""

    name: str
    agent: Mapping[str, Any] | None
    agent_error: str
    ready_error: str  # "" when ztunnel says it is ready
    dump: Dump | None
    dump_error: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the whole mesh said. `metrics` are those of each control plane, as text."""

    nodes: tuple[NodeFacts, ...]
    metrics: tuple[str, ...] | None
    metrics_error: str
    policies: tuple[Mapping[str, Any], ...]


def agent_status_untrusted(raw: bytes) -> dict[str, Any]:
    """Read an agent's /status; raises BadInput."""
    return parse_object_untrusted(raw, _AGENT, "an agent's status", ("redirect", "pods"))


class _Judge:
    """Collects what is wrong while the parts are looked at."""

    def __init__(self, logs: Callable[[str], str]) -> None:
        self.logs = logs  # component -> the command that shows its log
        self.problems: list[Found] = []
        self.notes: list[Found] = []

    def problem(self, where: str, what: str, following: str) -> None:
        self.problems.append({"where": where, "what": what, "next": following})

    def note(self, where: str, what: str, following: str) -> None:
        self.notes.append({"where": where, "what": what, "next": following})


def assess(facts: Facts, now: dt.datetime, logs: Callable[[str], str]) -> Found:
    """Judge; `logs` gives the command that shows a component's log."""
    judge = _Judge(logs)
    control_plane = _control_plane(facts, now, judge)
    nodes = [_node(node, judge) for node in facts.nodes]
    if not nodes:
        judge.problem("mesh", "it has no node", "add a Node object")
    report = {
        "controlPlane": control_plane,
        "nodes": nodes,
        "certificates": _certificates(facts.nodes, now, judge),
        "policies": _policies(facts.policies, judge),
    }
    return {
        "ok": not judge.problems,
        "problems": judge.problems,
        "notes": judge.notes,
        **report,
    }


# ---- the parts -------------------------------------------------------------------------------


def _control_plane(facts: Facts, now: dt.datetime, judge: _Judge) -> Found:
    found: Found = {"up": facts.metrics is not None, "connectedProxies": 0, "resources": {}}
    where, look = "control plane", judge.logs("control-plane")
    if facts.metrics is None:
        judge.problem(where, f"it does not answer: {facts.metrics_error}", look)
        return found
    try:
        replicas = [_samples(text) for text in facts.metrics]
    except BadInput as e:
        judge.problem(where, str(e), look)
        return found
    # A proxy is connected to one replica; everything else each of them knows.
    samples = replicas[0]
    connected = int(sum(sum(one.get("pilot_xds", {}).values()) for one in replicas))
    found["connectedProxies"] = connected
    found["resources"] = {t: int(n) for t, n in sorted(samples.get("pilot_resources", {}).items())}
    if connected < len(facts.nodes):
        what = f"{connected} of {len(facts.nodes)} node proxies are connected to it"
        judge.problem(where, what, "see the nodes below; " + look)
    if malformed := int(sum(samples.get("pilot_malformed_objects", {}).values())):
        judge.problem(where, f"{malformed} documents among the objects cannot be read", look)
    for expiry in samples.get("citadel_server_root_cert_expiry_timestamp", {}).values():
        left = expiry - now.timestamp()
        if expiry and left < _ROOT_LEFT:
            what = f"the root certificate {_when(left)}"
            judge.problem(where, what, "put in a new root; every workload certificate chains to it")
    return found


def _samples(metrics: str) -> dict[str, dict[str, float]]:
    """Values by metric and by its `type` label, "" without one; raises BadInput."""
    found: dict[str, dict[str, float]] = {}
    try:
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                values = found.setdefault(sample.name, {})
                kind = sample.labels.get("type", "")
                values[kind] = values.get(kind, 0.0) + sample.value
    except ValueError as e:
        raise BadInput(f"its metrics cannot be read: {e}") from e
    return found


def _when(left: float) -> str:
    return f"expires in {age(left)}" if left > 0 else f"expired {age(-left)} ago"


def _node(node: NodeFacts, judge: _Judge) -> Found:
    where = f"node {node.name}"
    found: Found = {"name": node.name, "agent": node.agent is not None}
    found |= _agent(node, judge, where)
    found["ztunnel"] = _ztunnel(node, judge, where)
    live = (node.dump or {}).get("workloadState") or {}
    found["connections"] = sum(
        len((state.get("connections") or {}).get(direction) or [])
        for state in live.values()
        for direction in ("inbound", "outbound")
    )
    return found


def _agent(node: NodeFacts, judge: _Judge, where: str) -> Found:
    if node.agent is None:
        judge.problem(
            where,
            f"the node agent does not answer: {node.agent_error}; pods here keep what they have, "
            "new ones wait",
            judge.logs(f"agent/{node.name}"),
        )
        return {"redirect": "", "cause": "", "hooks": {}, "pods": {"enrolled": 0, "pending": []}}
    pods = node.agent.get("pods") or []
    found = _redirect(node.agent, judge, where)
    pending = [p for p in pods if p.get("redirection") == "pending" or p.get("state") == "failed"]
    for p in pending:
        why = ": ".join(t for t in (p.get("reason"), p.get("message")) if t) or p.get("state")
        judge.problem(
            f"pod {p.get('namespace')}/{p.get('name')}",
            f"not in the mesh on {where}: {why}",
            judge.logs(f"agent/{node.name}"),
        )
    enrolled = sum(1 for p in pods if p.get("redirection") == "enabled")
    return {**found, "pods": {"enrolled": enrolled, "pending": [dict(p) for p in pending]}}


def _redirect(agent: Mapping[str, Any], judge: _Judge, where: str) -> Found:
    redirect = agent.get("redirect") or {}
    mode, cause = redirect.get("mode") or "", redirect.get("cause") or ""
    hooks = redirect.get("hooks") or {}
    if cause:
        judge.note(where, f"pods are captured by {mode}: {cause}", _EXPECTED)
    for hook, why in sorted((redirect.get("causes") or {}).items()):
        judge.note(where, f"the hook {hook} is not loaded: {why}", _EXPECTED)
    modes = Counter(
        p.get("mode") or mode for p in agent.get("pods") or [] if p.get("redirection") == "enabled"
    )
    for other, count in sorted(modes.items()):
        if other != mode:
            what = f"{count} pods are captured by {other}, not {mode}"
            if not all(p.get("held_listeners") for p in agent.get("proxies") or []):
                what += ": this ztunnel does not take the listeners that the agent holds"
            judge.note(where, what, _EXPECTED)
    return {
        "redirect": "+".join(sorted(modes)) or mode,
        "cause": cause,
        "hooks": {hook: bool(loaded) for hook, loaded in sorted(hooks.items())},
    }


def _ztunnel(node: NodeFacts, judge: _Judge, where: str) -> Found:
    look = judge.logs(f"ztunnel/{node.name}")
    proxies = (node.agent or {}).get("proxies") or []
    if node.agent is not None and not proxies:
        judge.problem(where, "no ztunnel is connected to the node agent", look)
    if node.ready_error:
        judge.problem(where, f"ztunnel is not ready: {node.ready_error}", look)
    if node.dump is None:
        judge.problem(where, f"ztunnel's admin page does not answer: {node.dump_error}", look)
    version = ((node.dump or {}).get("version") or {}).get("version") or ""
    return {
        "connected": bool(proxies),
        "ready": not node.ready_error,
        "version": version,
        "heldListeners": any(p.get("held_listeners") for p in proxies),
    }


def _certificates(nodes: Iterable[NodeFacts], now: dt.datetime, judge: _Judge) -> Found:
    available, soonest, late = 0, None, []
    for node in nodes:
        for one in (node.dump or {}).get("certificates") or []:
            identity, state = one.get("identity") or "", one.get("state") or ""
            where, look = f"node {node.name}", judge.logs(f"ztunnel/{node.name}")
            chain = one.get("certChain") or []
            if state.startswith("Unavailable") or (state == "Available" and not chain):
                judge.problem(where, f"no certificate for {identity}: {state}", look)
                late.append({"node": node.name, "identity": identity, "state": state})
            if not chain:
                continue
            available += 1
            begins, ends = (
                parse_time(chain[0].get(key) or "") for key in ("validFrom", "expirationTime")
            )
            if begins is None or ends is None:
                continue
            soonest = min(soonest or ends, ends)
            left = (ends - now).total_seconds()
            if left < (ends - begins).total_seconds() * _LIFE_LEFT:
                when = _when(left)
                judge.problem(
                    where, f"the certificate of {identity} {when} and is not renewed", look
                )
                late.append({"node": node.name, "identity": identity, "state": when})
    return {
        "available": available,
        "firstExpiry": soonest.isoformat() if soonest else "",
        "late": late,
    }


def _policies(policies: Iterable[Mapping[str, Any]], judge: _Judge) -> Found:
    total, findings = 0, []
    for policy in policies:
        total += 1
        metadata = policy.get("metadata") or {}
        place = f"{metadata.get('namespace', 'default')}/{metadata.get('name', '')}"
        for condition in (policy.get("status") or {}).get("conditions") or []:
            if condition.get("type") != "ZtunnelAccepted" or condition.get("reason") == _ACCEPTED:
                continue
            findings.append({"kind": policy.get("kind"), "name": place, **condition})
            judge.problem(
                f"{policy.get('kind')} {place}",
                f"{condition.get('reason')}: {condition.get('message')}",
                "correct the object; until then it is read the stricter way",
            )
    return {"total": total, "findings": findings}

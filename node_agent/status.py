"""What `ambit status` shows of a node, as plain JSON values."""

from __future__ import annotations

import time
from typing import Any

from node_agent.agent import Agent
from node_agent.enrol import PodMachine
from node_agent.hub import Session


def describe(node: str, agent: Agent) -> dict[str, Any]:
    """Say how pods are captured, each pod's state and reason, and which proxies are connected."""
    ways = agent.ways
    counters = ways.ebpf.datapath.counters() if ways.ebpf else {}
    return {
        "node": node,
        "redirect": {
            "mode": ways.preferred,
            "cause": ways.cause,
            "hooks": {hook: 0 if cause else 1 for hook, cause in ways.hooks.items()},
            "causes": {hook: cause for hook, cause in ways.hooks.items() if cause},
            "counters": counters,
        },
        "pods": [_pod(m, agent.mode_of(m.pod.uid)) for m in agent.machines.values()],
        "proxies": [_proxy(s) for s in agent.hub.sessions.values()],
    }


def _pod(machine: PodMachine, mode: str) -> dict[str, Any]:
    pod, status = machine.pod, machine.status
    return {
        "uid": pod.uid,
        "namespace": pod.namespace,
        "name": pod.name,
        "addresses": list(pod.addresses),
        "state": machine.state,
        "redirection": status.redirection if status else "",
        "mode": mode,
        "reason": status.reason if status else "",
        "message": machine.failure.message
        if machine.failure
        else (status.message if status else ""),
    }


def _proxy(session: Session) -> dict[str, Any]:
    return {
        "connection": session.number,
        "connected_seconds": round(time.monotonic() - session.since, 1),
        "held_listeners": session.held_listeners,
        "synced": session.synced,
        "pods": len(session.serving),
        "waiting": len(session.queue) + (session.in_flight is not None),
    }

"""`ambit status`: is the mesh as it should be, and if not, what to do about it."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from cli.dump import parse_untrusted
from cli.health import Facts, NodeFacts, agent_status_untrusted, assess
from cli.output import STRUCTURED, printable, structured, table
from cli.target import Target, Unreachable, add_target_options, choose_target
from mesh.errors import BadInput
from mesh.ports import AGENT_HEALTH, CONTROL_PLANE_METRICS, ZTUNNEL_ADMIN, ZTUNNEL_READY

T = TypeVar("T")

_AT_ONCE: Final = 8  # nodes; through an API server each answer takes 0.1 s or so
_POLICY_KINDS: Final = ("AuthorizationPolicy", "PeerAuthentication")
_NODES: Final = (
    "NODE",
    "AGENT",
    "REDIRECT",
    "HOOKS",
    "ZTUNNEL",
    "VERSION",
    "ENROLLED",
    "PENDING",
    "CONNECTIONS",
)


def register(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "status",
        help="is the mesh as it should be, and if not, what to do (exit code 1)",
        description="Show nodes, control plane, certificates and policies. Exit code 1 when"
        " something is wrong; each such line is followed by the next step.",
    )
    add_target_options(parser)
    parser.add_argument("-o", "--output", choices=["table", *STRUCTURED], default="table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the status; 0 when nothing is wrong, else 1."""
    target = choose_target(options)
    report = assess(gather(target), dt.datetime.now(dt.UTC), target.log_command)
    print(structured(report, options.output) if options.output in STRUCTURED else render(report))
    return 0 if report["ok"] else 1


# ---- asking ----------------------------------------------------------------------------------


def gather(target: Target) -> Facts:
    """Ask every process of the mesh; one that does not answer is a fact, too."""
    metrics, metrics_error = _try(
        lambda: tuple(
            page.decode() for page in target.fetch_control_plane(CONTROL_PLANE_METRICS, "/metrics")
        )
    )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        nodes = tuple(pool.map(lambda node: _gather_node(target, node), target.nodes()))
    return Facts(
        nodes,
        metrics,
        metrics_error,
        tuple(policy for kind in _POLICY_KINDS for policy in target.objects(kind)),
    )


def _gather_node(target: Target, node: str) -> NodeFacts:
    agent, agent_error = _try(
        lambda: agent_status_untrusted(target.fetch(node, AGENT_HEALTH, "/status"))
    )
    _, ready_error = _try(lambda: target.fetch(node, ZTUNNEL_READY, "/healthz/ready"))
    dump, dump_error = _try(
        lambda: parse_untrusted(target.fetch(node, ZTUNNEL_ADMIN, "/config_dump"))
    )
    return NodeFacts(node, agent, agent_error, ready_error, dump, dump_error)


def _try(ask: Callable[[], T]) -> tuple[T | None, str]:
    try:
        return ask(), ""
    except (Unreachable, BadInput, UnicodeDecodeError) as e:
        return None, str(e)


# ---- showing (pure) --------------------------------------------------------------------------


def render(report: Mapping[str, Any]) -> str:
    """Render a judgement for people: what is there, then what is wrong."""
    control_plane, certificates = report["controlPlane"], report["certificates"]
    counts = [f"{n} {kind} resources" for kind, n in control_plane["resources"].items()]
    proxies = f"{control_plane['connectedProxies']} proxies connected"
    lines = [
        "control plane   " + ", ".join([_up(control_plane["up"]), proxies, *counts]),
        f"certificates    {certificates['available']} held"
        + (f", first expires {certificates['firstExpiry']}" if certificates["firstExpiry"] else ""),
        f"policies        {report['policies']['total']},"
        f" {len(report['policies']['findings'])} not fully enforceable",
        "",
        table(_NODES, [_node_row(node) for node in report["nodes"]]),
    ]
    for kind, mark in (("notes", "note"), ("problems", "WRONG")):
        for one in report[kind]:
            lines += ["", f"{mark}: {one['where']}: {one['what']}", f"      next: {one['next']}"]
    if report["ok"]:
        lines += ["", "all is well"]
    return "\n".join(printable(line) for part in lines for line in part.split("\n"))


def _up(up: bool) -> str:
    return "up" if up else "DOWN"


def _node_row(node: Mapping[str, Any]) -> list[str]:
    ztunnel, pods = node["ztunnel"], node["pods"]
    if not ztunnel["connected"]:
        proxy = "not connected"
    else:
        proxy = "ready" if ztunnel["ready"] else "not ready"
    return [
        node["name"],
        _up(node["agent"]),
        node["redirect"] or "?",
        f"{sum(node['hooks'].values())}/{len(node['hooks'])}",
        proxy,
        ztunnel["version"] or "?",
        str(pods["enrolled"]),
        str(len(pods["pending"])),
        str(node["connections"]),
    ]

"""`ambit ztunnel ...`: what the node proxies know, from their admin pages or from a saved dump."""

from __future__ import annotations

import argparse
import datetime as dt
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cli import dump as views
from cli.dump import Dump, Filter
from cli.output import STRUCTURED, structured, table
from cli.target import Target, add_target_options, choose_target
from mesh.errors import ConfigError, MeshError
from mesh.ports import ZTUNNEL_ADMIN

_VIEWS: Final = {
    "workload": "workloads, where they are and how they are reached",
    "service": "services, their VIPs and how many endpoints are healthy",
    "policy": "L4 authorization policies as they are enforced",
    "certificate": "workload certificates held by the node proxies",
    "connections": "live connections of the pods served",
    "all": "all of these",
}
_ALIASES: Final = {
    "workload": ["workloads", "w"],
    "service": ["services", "svc", "s"],
    "policy": ["policies", "p"],
    "certificate": ["certificates", "certs", "cert"],
    "connections": ["cons"],
}


def register(subparsers: Any) -> None:
    """Add the subcommand and its views to the command line."""
    parser = subparsers.add_parser(
        "ztunnel",
        aliases=["zc"],
        help="what the node proxies know: workloads, services, policies, certificates, connections",
    )
    inner = parser.add_subparsers(metavar="VIEW", required=True)
    for name, what in _VIEWS.items():
        view = inner.add_parser(name, aliases=_ALIASES.get(name, []), help=what)
        _add_common(view)
        view.add_argument(
            "-o", "--output", choices=["short", *STRUCTURED], default="short", help="short: a table"
        )
        view.add_argument("-f", "--file", type=Path, help="read a saved config dump instead")
        if name != "all":
            _add_filters(view, name)
        view.set_defaults(run=run, view=name)
    log = inner.add_parser("log", help="show or change the log level of the node proxies")
    _add_common(log)
    log.add_argument(
        "--level", metavar="LEVEL", help="info, or SCOPE:LEVEL with commas: access:debug,relay:info"
    )
    log.add_argument("-r", "--reset", action="store_true", help="back to the level of the start")
    log.set_defaults(run=run_log)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_target_options(parser)
    parser.add_argument("--node", help="ask this node's proxy only")


def _add_filters(parser: argparse.ArgumentParser, view: str) -> None:
    parser.add_argument(
        "-n",
        "--namespace",
        f"--{view}-namespace",
        dest="namespace",
        default="",
        help="only this one",
    )
    if view in ("workload", "service"):
        parser.add_argument("--address", default="", help="only who has this IP address")
    if view == "connections":
        parser.add_argument("--direction", choices=["inbound", "outbound"], default="")
        parser.add_argument("--raw", action="store_true", help="addresses, not names")


# ---- running ---------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Print a view; 0. Raises MeshError where it cannot be had."""
    if options.file:
        dumps = {"": views.parse_untrusted(_read(options.file))}
    else:
        target = choose_target(options)
        dumps = {node: fetch(target, node) for node in _nodes(target, options.node)}
    wanted = Filter(
        namespace=getattr(options, "namespace", ""),
        address=getattr(options, "address", ""),
        direction=getattr(options, "direction", ""),
        raw=getattr(options, "raw", False),
    )
    now = dt.datetime.now(dt.UTC)
    print(render(options.view, dumps, wanted, options.output, now))
    return 0


def fetch(target: Target, node: str) -> Dump:
    """Fetch and read one node's dump; raises Unreachable, BadInput."""
    return views.parse_untrusted(target.fetch(node, ZTUNNEL_ADMIN, "/config_dump"))


def run_log(options: argparse.Namespace) -> int:
    """Show or change log levels; 0."""
    target = choose_target(options)
    path = log_path(options.level, options.reset)
    for node in _nodes(target, options.node):
        answer = target.fetch(node, ZTUNNEL_ADMIN, path, "POST").decode(errors="replace")
        print(f"{node}: {answer.strip()}")
    return 0


def log_path(level: str | None, reset: bool) -> str:
    """Build the admin path that does it; ztunnel joins scope and level with "=" or ":"."""
    query = {}
    if level:
        query["level"] = level.replace(":", "=")
    if reset:
        query["reset"] = ""
    return "/logging" + ("?" + urllib.parse.urlencode(query) if query else "")


def _nodes(target: Target, only: str | None) -> list[str]:
    nodes = target.nodes()
    if not nodes:
        raise MeshError("the mesh has no node")
    if only is None:
        return nodes
    if only not in nodes:
        raise ConfigError(f"no node named {only!r}; there are: {', '.join(nodes)}")
    return [only]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from e


# ---- rendering (pure) ------------------------------------------------------------------------


def render(
    view: str, dumps: Mapping[str, Dump], wanted: Filter, form: str, now: dt.datetime
) -> str:
    """Render a view of dumps by node; the node is "" for a dump from a file."""
    if form in STRUCTURED:
        return structured(_objects(view, dumps, wanted), form)
    if view != "all":
        return _table(view, dumps, wanted, now)
    parts = [_table(name, dumps, wanted, now) for name in _VIEWS if name != "all"]
    return "\n\n".join(parts)


def _objects(view: str, dumps: Mapping[str, Dump], wanted: Filter) -> Any:
    several = len(dumps) > 1
    match view:
        case "workload":
            return views.workloads(dumps.values(), wanted)
        case "service":
            return views.services(dumps.values(), wanted)
        case "policy":
            return views.policies(dumps.values(), wanted)
        case "all":
            return dict(dumps) if several else next(iter(dumps.values()))
    of_node = views.certificates if view == "certificate" else views.connections
    return [
        {"node": node, **one} if several else one
        for node, dump in dumps.items()
        for one in of_node(dump, wanted)
    ]


def _table(view: str, dumps: Mapping[str, Dump], wanted: Filter, now: dt.datetime) -> str:
    everything = list(dumps.values())
    match view:
        case "workload":
            found = views.workloads(everything, wanted)
            return table(views.WORKLOAD, views.workload_rows(found, everything))
        case "service":
            found = views.services(everything, wanted)
            return table(views.SERVICE, views.service_rows(found, everything))
        case "policy":
            return table(views.POLICY, views.policy_rows(views.policies(everything, wanted)))
    rows = []
    for node, dump in dumps.items():
        if view == "certificate":
            own = views.certificate_rows(views.certificates(dump, wanted), now)
        else:
            own = views.connection_rows(views.connections(dump, wanted), everything, wanted)
        rows += [[node, *row] for row in own]
    headings = views.CERTIFICATE if view == "certificate" else views.CONNECTIONS
    if len(dumps) == 1:
        return table(headings, [row[1:] for row in rows])
    return table(("NODE", *headings), rows)

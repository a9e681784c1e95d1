"""`ambit waypoint`: the command line. What it does is in verbs.py, in which World in world.py."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable
from typing import Any, Final

from cli.output import STRUCTURED
from cli.target import add_target_options, is_lab_meant
from cli.waypoint import verbs
from cli.waypoint.shape import DEFAULT_NAME, TRAFFIC
from cli.waypoint.world import LabWorld, World
from lab import host
from lab.api import Lab
from lab.layout import check_name

Verb = Callable[[World, argparse.Namespace], int]

_TIMEOUT: Final = 90.0
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_DURATION: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)")
_EXAMPLES: Final = {
    "": """
  ambit waypoint apply -n shop --enroll-namespace --wait
  ambit waypoint status -n shop
  ambit waypoint list -A
  ambit waypoint delete waypoint -n shop
""",
    "apply": """
  ambit waypoint apply -n shop --wait
  ambit waypoint apply -n shop --name pods --for workload
  ambit waypoint apply -n shop --enroll-namespace --wait
  ambit waypoint apply -n shop --lab demo      # in the lab of that name
""",
    "generate": """
  ambit waypoint generate -n shop | kubectl apply -f -
  ambit waypoint generate -n shop --for all > waypoint.yaml
""",
    "list": """
  ambit waypoint list -n shop
  ambit waypoint list -A -o json
""",
    "status": """
  ambit waypoint status -n shop
  ambit waypoint status waypoint -n shop --no-wait
  ambit waypoint status -A -o yaml
""",
    "delete": """
  ambit waypoint delete waypoint -n shop
  ambit waypoint delete one two -n shop -y
  ambit waypoint delete --all -n shop
""",
}


def register(subparsers: Any) -> None:
    """Add the subcommand and its verbs to the command line."""
    parser = subparsers.add_parser(
        "waypoint",
        **_help("", "make, show and delete waypoints, the proxies that know HTTP"),
    )
    inner = parser.add_subparsers(metavar="VERB", required=True)
    _add_apply(inner)
    _add_generate(inner)
    _add_list(inner)
    _add_status(inner)
    _add_delete(inner)


def _help(verb: str, text: str) -> dict[str, Any]:
    examples = _EXAMPLES[verb].strip("\n")
    return {
        "help": text.partition(". ")[0].rstrip("."),
        "description": textwrap.fill(text, 80),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "epilog": f"examples:\n{examples}",
    }


def _verb(inner: Any, name: str, run: Verb, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = inner.add_parser(name, **_help(name, text))
    parser.add_argument(
        "-n", "--namespace", default="default", metavar="NS", help="of the waypoint [default]"
    )
    add_target_options(parser, "--lab")
    parser.set_defaults(run=lambda options: run(_world(options), options))
    return parser


def _add_apply(inner: Any) -> None:
    text = (
        "Make a waypoint, or change it. Exit codes: 0 done; 1 nothing was done, or it broke off;"
        " 2 wrong usage; 3 applied, and not ready in time."
    )
    parser = _verb(inner, "apply", verbs.apply, text)
    _add_shape(parser)
    parser.add_argument(
        "--enroll-namespace",
        dest="enroll",
        action="store_true",
        help="label the namespace to use it (with --wait: once it is ready)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also where the namespace uses another one, or another tool set something else",
    )
    parser.add_argument("-w", "--wait", action="store_true", help="until it is ready")
    _add_timeout(parser)


def _add_generate(inner: Any) -> None:
    text = "Print the Gateway that `apply` applies. No cluster is asked."
    parser: argparse.ArgumentParser = inner.add_parser("generate", **_help("generate", text))
    parser.add_argument("-n", "--namespace", metavar="NS", help="of the waypoint [none is written]")
    _add_shape(parser)
    parser.set_defaults(run=verbs.generate)


def _add_list(inner: Any) -> None:
    parser = _verb(inner, "list", verbs.list_, "List waypoints.")
    _add_view(parser)


def _add_status(inner: Any) -> None:
    text = (
        "Wait until waypoints are ready, and say what is in their way. Exit code 1 when one is not"
        " ready."
    )
    parser = _verb(inner, "status", verbs.status, text)
    parser.add_argument("waypoint", nargs="?", metavar="NAME", help="of one waypoint [all]")
    _add_view(parser)
    parser.add_argument(
        "-w",
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="until all are ready",
    )
    _add_timeout(parser)


def _add_delete(inner: Any) -> None:
    text = "Delete waypoints and all that was made of them."
    parser = _verb(inner, "delete", verbs.delete, text)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all of the namespace")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", default=DEFAULT_NAME, metavar="NAME", help=f"of the waypoint [{DEFAULT_NAME}]"
    )
    parser.add_argument(
        "--for",
        dest="traffic",
        choices=TRAFFIC,
        help="what passes it [what its class says, or service]",
    )


def _add_view(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-A", "--all-namespaces", dest="everywhere", action="store_true", help="of all namespaces"
    )
    parser.add_argument("-o", "--output", choices=["table", *STRUCTURED], default="table")


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        "--waypoint-timeout",
        type=seconds,
        default=_TIMEOUT,
        metavar="TIME",
        help=f"how long to wait, as 30 or 2m [{_TIMEOUT:.0f}]",
    )


def seconds(text: str) -> float:
    """Read a duration (30, 90s, 2m, 1h); raises ArgumentTypeError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: write seconds, or 90s, 2m, 1h")
    return float(match[1]) * _UNITS[match[2]]


def _world(options: argparse.Namespace) -> World:
    """Find the mesh that is meant; raises MeshError where there is none."""
    if is_lab_meant(options.lab, "--lab", options.kubeconfig, options.context):
        host.check()
        return LabWorld(Lab(check_name(options.lab or "default")))
    # The API client takes half a second to import, which a lab need not wait for.
    from cli.waypoint.cluster import ClusterWorld

    return ClusterWorld.connect(options.kubeconfig, options.context)

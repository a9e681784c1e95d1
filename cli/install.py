"""`ambit install`: the command line. What it does is in cli/cluster/installation.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cli.cluster.settings import add_chart_options, add_cluster_options


def register(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "install",
        help="install the mesh into a Kubernetes cluster, or upgrade it",
        description="Install the mesh into a cluster, or upgrade it to this version and these"
        " values. Exit codes: 0 all is ready; 1 nothing was done, or it broke off; 2 wrong usage;"
        " 3 what was applied is not ready in time.",
    )
    add_chart_options(parser)
    add_cluster_options(parser)
    parser.add_argument(
        "--gateway-api-crds",
        type=Path,
        metavar="PATH",
        help="file or folder with the Gateway API's CRDs, for a cluster that has none",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="check and show the plan only")
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for everything to become ready [300]",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Install; see the description for the exit code."""
    # The API client takes half a second to import, which other commands need not wait for.
    from cli.cluster.installation import install

    return install(options)

"""`ambit uninstall`: the command line. What it does is in cli/cluster/uninstallation.py."""

from __future__ import annotations

import argparse
from typing import Any

from cli.cluster.settings import add_cluster_options


def register(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "uninstall",
        help="take the mesh out of a Kubernetes cluster",
        description="Release every pod, clean every node, then remove the mesh. The CRDs (and so"
        " your policies), the CA's key and the namespace stay, for an installation to come;"
        " --purge removes them, too. Exit codes: 0 done; 1 nothing was done, or it broke off;"
        " 3 done, but for nodes that could not be reached.",
    )
    parser.add_argument(
        "--purge",
        action="store_true",
        help="leave nothing behind: CA, root certificates, marks on pods, namespace, and the CRDs"
        " that came with the mesh unless somebody's objects are left of them",
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--skip-nodes",
        action="store_true",
        help="do not clean the nodes; pods there stay captured until their node is restarted",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=180.0,
        metavar="SECONDS",
        help="how long to wait for the nodes to be clean [180]",
    )
    add_cluster_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Uninstall; see the description for the exit code."""
    # The API client takes half a second to import, which other commands need not wait for.
    from cli.cluster.uninstallation import uninstall

    return uninstall(options)

"""`ambit manifest`: what `ambit install` would apply, as YAML."""

from __future__ import annotations

import argparse
from typing import Any

from cli.chart.load import load
from cli.chart.text import to_documents
from cli.cluster.objects import in_order
from cli.cluster.settings import add_chart_options, read_settings, render


def register(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "manifest",
        help="print what `ambit install` would apply",
        description="Print every object that `ambit install` would apply, in its order, for"
        " kubectl apply --server-side -f - or for a repository. Asks no cluster.",
    )
    parser.add_argument("verb", nargs="?", choices=["generate", "print"], help="the same, both")
    add_chart_options(parser)
    parser.add_argument(
        "--api-versions",
        action="append",
        default=[],
        metavar="GROUP/VERSION/KIND",
        help="what the cluster serves, gateway.networking.k8s.io/v1/GatewayClass; may be repeated",
    )
    parser.add_argument("--skip-crds", action="store_true", help="leave the CRDs out")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the objects; 0. Raises ConfigError."""
    chart = load()
    settings = read_settings(options, chart)
    objects = list(render(chart, settings.values, options.api_versions).objects)
    if not options.skip_crds:
        objects += chart.crds()
    print(to_documents(in_order(objects)), end="")
    return 0

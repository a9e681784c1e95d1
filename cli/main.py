"""`ambit`: the command line. Each subcommand is a module with `register(subparsers)`.

A subcommand sets `run`, a function from the parsed options to an exit code, with
`parser.set_defaults(run=...)`. What it raises on purpose (MeshError) is printed as one line.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NoReturn

from mesh.errors import MeshError

SUBCOMMANDS: Final = (
    "install",
    "uninstall",
    "manifest",
    "status",
    "waypoint",
    "ztunnel",
    "lab",
    "demo",
)


def build_parser(names: Sequence[str] = SUBCOMMANDS) -> argparse.ArgumentParser:
    """Build the parser of `ambit` with these subcommands' modules."""
    parser = argparse.ArgumentParser(
        prog="ambit", description="A sidecarless, eBPF-accelerated service mesh."
    )
    parser.add_argument("--version", action="version", version=f"ambit {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in names:
        importlib.import_module(f"cli.{name}").register(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except MeshError as e:
        sys.stderr.write(f"ambit: {e}\n")
        return 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell says it
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python flushes stdout at exit: give it nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE


def _terminated(number: int, frame: object) -> NoReturn:
    """Leave as after Ctrl-C, cleaning up on the way, instead of at once."""
    raise SystemExit(128 + number)


def _version() -> str:
    try:
        return version("ambit")
    except PackageNotFoundError:
        return "(not installed: run make setup)"


if __name__ == "__main__":
    sys.exit(main())

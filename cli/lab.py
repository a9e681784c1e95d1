"""`ambit lab`: a mini-cluster of network namespaces on this machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cli.output import STRUCTURED, structured
from cli.shelf import rows
from lab import cleanup, host, objects
from lab.api import Lab
from lab.errors import LabError
from lab.layout import Layout, check_name

_FOLLOW: Final = 0.2  # seconds between two looks at a log that is followed


class _Parser(argparse.ArgumentParser):
    """A parser that can leave alone what follows "--": it is another program's command line.

    (argparse drops one "--", and not always ours but sometimes that program's own.)
    """

    tail: str | None = None  # where what follows "--" goes

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse what stands before "--", keep what follows."""
        words = list(sys.argv[1:] if args is None else args)
        if self.tail is None:
            return super().parse_known_args(words, namespace)
        at = words.index("--") if "--" in words else len(words)
        options, unknown = super().parse_known_args(words[:at], namespace)
        setattr(options, self.tail, words[at + 1 :])
        return options, unknown


def register(subparsers: Any) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser("lab", help="a mini-cluster of namespaces on this machine")
    inner = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    _add_life(inner)
    _add_objects(inner)
    _add_inside(inner)


def _verb(inner: Any, name: str, run: Any, text: str, usage: str = "") -> _Parser:
    parser: _Parser = inner.add_parser(
        name, help=text, description=text, usage=f"ambit lab {name} {usage}" if usage else None
    )
    parser.add_argument("--name", default="default", help="lab (default: default)")
    parser.set_defaults(run=run)
    return parser


def _add_life(inner: Any) -> None:
    up = _verb(inner, "up", run_up, "build a lab; returns when all is ready and proved")
    up.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML, or a folder of it")
    up.add_argument("--replace", action="store_true", help="take a running lab down first")
    up.add_argument("--ztunnel-binary", metavar="PATH", help="run this ztunnel, not ours")
    up.add_argument("--redirect", choices=["auto", "ebpf", "nftables"], default="auto")
    up.add_argument("--no-mesh", action="store_true", help="nodes and pods only")
    up.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    up.add_argument("-q", "--quiet", action="store_true", help="no progress")
    down = _verb(inner, "down", run_down, "remove a lab and all it left, live or dead")
    down.add_argument("--all", action="store_true", help="every lab of this machine")
    _verb(inner, "list", run_list, "list the labs of this machine")
    wait = _verb(inner, "wait", run_wait, "wait until every pod is ready and proved")
    wait.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    restart = _verb(inner, "restart", run_restart, "end a component; it is started again")
    restart.add_argument("component", help="control-plane, dns, agent/NODE, ztunnel/NODE")
    restart.add_argument("--kill", action="store_true", help="SIGKILL instead of SIGTERM")


def _add_objects(inner: Any) -> None:
    apply = _verb(inner, "apply", run_apply, "create or change objects")
    apply.add_argument("-f", "--file", type=Path, action="append", required=True, dest="files")
    delete = _verb(inner, "delete", run_delete, "delete objects, by file or by name")
    delete.add_argument("-f", "--file", type=Path, action="append", default=[], dest="files")
    delete.add_argument("kind", nargs="?")
    delete.add_argument("objects", nargs="*", metavar="NAME")
    get = _verb(inner, "get", run_get, "show objects with their status")
    get.add_argument("kind", help="pods, services, deployments, namespaces, nodes, ...")
    get.add_argument("object", nargs="?", metavar="NAME")
    get.add_argument("-A", "--all-namespaces", action="store_true")
    get.add_argument("-o", "--output", choices=["table", *STRUCTURED], default="table")
    label = _verb(inner, "label", run_label, "set labels (key=value) or remove them (key-)")
    label.add_argument("kind")
    label.add_argument("object", metavar="NAME")
    label.add_argument("labels", nargs="+", metavar="key=value|key-")
    scale = _verb(inner, "scale", run_scale, "change how many pods a Deployment has")
    scale.add_argument("kind", choices=["deployment", "deploy", "deployments"])
    scale.add_argument("object", metavar="NAME")
    scale.add_argument("--replicas", type=int, required=True)
    for parser in (delete, get, label, scale):
        parser.add_argument("-n", "--namespace", default="default")


def _add_inside(inner: Any) -> None:
    text = "run a command in a pod; its stdin, stdout and exit code are the command's"
    run = _verb(inner, "exec", run_exec, text, "[--name NAME] NS/POD|NS/DEPLOYMENT -- CMD...")
    run.add_argument("pod", metavar="NS/POD")
    run.tail = "command"
    logs = _verb(inner, "logs", run_logs, "show the log of a component or pod")
    logs.add_argument(
        "what", help="control-plane, dns, manager, agent/NODE, ztunnel/NODE, or NS/POD"
    )
    logs.add_argument("-f", "--follow", action="store_true")
    capture = _verb(
        inner, "capture", run_capture, "run tcpdump on a node",
        "[--name NAME] NODE [-- TCPDUMP-ARGS...]",
    )  # fmt: skip
    capture.add_argument("node")
    capture.tail = "arguments"


# ---- life ------------------------------------------------------------------------------------


def run_up(options: argparse.Namespace) -> int:
    """Build a lab; 0 when all is ready."""
    began = time.monotonic()
    lab = Lab(
        options.name,
        ztunnel_binary=options.ztunnel_binary,
        redirect=options.redirect,
        mesh=not options.no_mesh,
    )

    def say(line: str) -> None:
        if not options.quiet:
            print(f"{time.monotonic() - began:5.1f} s  {line}", flush=True)

    lab.up(options.files, options.timeout, replace=options.replace, progress=say)
    say(f"lab {options.name!r} is up: {len(lab.pods())} pods")
    return 0


def run_down(options: argparse.Namespace) -> int:
    """Remove a lab, or all."""
    host.check()
    for name in cleanup.known() if options.all else [options.name]:
        Lab(name).down()
    return 0


def run_list(options: argparse.Namespace) -> int:
    """List labs, live and dead."""
    for name in cleanup.known():
        state = "live" if cleanup.is_live(Layout(name)) else "stale (its manager is gone)"
        print(f"{name}\t{state}")
    return 0


def run_wait(options: argparse.Namespace) -> int:
    """Wait for readiness."""
    Lab(options.name).wait_ready(options.timeout)
    return 0


def run_restart(options: argparse.Namespace) -> int:
    """Restart a component."""
    pid = _lab(options).restart(options.component, options.kill)
    print(f"{options.component} restarted, pid {pid}")
    return 0


def _lab(options: argparse.Namespace) -> Lab:
    """Find a lab that exists; raises NotFound otherwise."""
    host.check()
    lab = Lab(check_name(options.name))
    _ = lab.store
    return lab


# ---- objects ---------------------------------------------------------------------------------


def run_apply(options: argparse.Namespace) -> int:
    """Create or change objects."""
    print("\n".join(_lab(options).apply(options.files)))
    return 0


def run_delete(options: argparse.Namespace) -> int:
    """Delete objects."""
    lab = _lab(options)
    if bool(options.files) == bool(options.kind):
        raise LabError("name what to delete: -f FILE, or KIND NAME... [-n NAMESPACE]")
    if options.files:
        print("\n".join(lab.delete(options.files)))
        return 0
    if not options.objects:
        raise LabError(f"name the {options.kind} to delete")
    kind = objects.kind_of(options.kind)
    for name in options.objects:
        lab.get(kind, _namespace(options, kind), name)
    wanted = [_reference(options, kind, name) for name in options.objects]
    print("\n".join(lab.delete(wanted)))
    return 0


def _reference(options: argparse.Namespace, kind: str, name: str) -> dict[str, Any]:
    metadata = {"name": name}
    if namespace := _namespace(options, kind):
        metadata["namespace"] = namespace
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def _namespace(options: argparse.Namespace, kind: str) -> str | None:
    return options.namespace if objects.is_namespaced(kind) else None


def run_get(options: argparse.Namespace) -> int:
    """Show objects."""
    lab, kind = _lab(options), objects.kind_of(options.kind)
    if options.object:
        found = [lab.get(kind, _namespace(options, kind), options.object)]
    else:
        found = lab.store.list(kind)
        if objects.is_namespaced(kind) and not options.all_namespaces:
            found = [o for o in found if o["metadata"].get("namespace") == options.namespace]
    if options.output != "table":
        whole = {"apiVersion": "v1", "kind": "List", "items": found}
        print(structured(found[0] if options.object else whole, options.output))
    elif found:
        print(rows(kind, found, options.all_namespaces))
    else:
        where = "" if options.all_namespaces else f" in namespace {options.namespace} (-A: all)"
        sys.stderr.write(f"no {kind}{where if objects.is_namespaced(kind) else ''}\n")
    return 0


def run_label(options: argparse.Namespace) -> int:
    """Change labels."""
    labels: dict[str, str | None] = {}
    for word in options.labels:
        key, equals, value = word.partition("=")
        if equals and key:
            labels[key] = value
        elif word.endswith("-") and len(word) > 1:
            labels[word[:-1]] = None
        else:
            raise LabError(f"label {word!r}: write key=value to set it, key- to remove it")
    kind = objects.kind_of(options.kind)
    _lab(options).label(kind, _namespace(options, kind), options.object, labels)
    print(f"{kind.lower()}/{options.object} labelled")
    return 0


def run_scale(options: argparse.Namespace) -> int:
    """Scale a Deployment."""
    if options.replicas < 0:
        raise LabError(f"--replicas {options.replicas}: 0 or more")
    _lab(options).scale(options.namespace, options.object, options.replicas)
    print(f"deployment/{options.object} scaled")
    return 0


# ---- inside ----------------------------------------------------------------------------------


def run_exec(options: argparse.Namespace) -> int:
    """Become the command; does not return."""
    if not options.command:
        raise LabError(f"what to run? ambit lab exec {options.pod} -- CMD...")
    _become(_lab(options).place(options.pod).argv(options.command, cwd=os.getcwd()))
    return 126


def run_capture(options: argparse.Namespace) -> int:
    """Become tcpdump; does not return."""
    _become(_lab(options).capture_argv(options.node, options.arguments))
    return 126


def _become(argv: list[str]) -> None:
    sys.stdout.flush()
    os.execv(argv[0], argv)


def run_logs(options: argparse.Namespace) -> int:
    """Print a log, and go on while it grows if asked to."""
    path = _lab(options).log_file(options.what)
    with path.open("rb") as log:
        while True:
            while data := log.read(65536):
                sys.stdout.buffer.write(data)
            sys.stdout.flush()
            if not options.follow or not path.exists():
                return 0
            time.sleep(_FOLLOW)

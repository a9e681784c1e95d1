"""python -m tests.k8s.cluster VERB: the cluster from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.k8s.cluster import binaries
from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.errors import ClusterError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.k8s.cluster",
        description="A real two-node Kubernetes cluster in namespaces of this machine. Needs root.",
    )
    parser.add_argument("--name", default="k8s", help="which cluster [k8s]")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    build = verbs.add_parser("build", help="build the programs that are not there yet")
    build.add_argument("program", nargs="*", help="only these")
    verbs.add_parser("up", help="start it; an earlier one of that name is removed")
    verbs.add_parser("down", help="remove it")
    verbs.add_parser("status", help="nodes and pods")
    verbs.add_parser("env", help="lines for a shell: KUBECONFIG and PATH")
    kubectl = verbs.add_parser("kubectl", help="run kubectl as admin")
    kubectl.add_argument("words", nargs=argparse.REMAINDER)
    load = verbs.add_parser("load-image", help="import archives on both nodes")
    load.add_argument("archive", nargs="+", type=Path)
    execute = verbs.add_parser("node-exec", help="run a command on a node: NODE -- COMMAND")
    execute.add_argument("node")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    for verb, text in (
        ("reboot", "cut a node's power and start it again"),
        ("restart-containerd", "kill a node's containerd and start it again"),
    ):
        verbs.add_parser(verb, help=text).add_argument("node")
    return parser


def _replace(words: list[str]) -> None:
    sys.stdout.flush()
    os.execvp(words[0], words)


def main() -> int:
    """Run one verb."""
    args = _parser().parse_args()
    if args.verb == "build":
        chosen = [p for p in binaries.ALL if not args.program or p.name in args.program]
        binaries.build(chosen, lambda text: print(text, flush=True))
        return 0
    if os.geteuid():
        raise ClusterError("root is needed: namespaces, mounts and control groups are made")
    _VERBS[args.verb](Cluster(args.name), args)
    return 0


def _up(cluster: Cluster, _: argparse.Namespace) -> None:
    cluster.up(lambda text: print(text, flush=True))
    _env(cluster, _)


def _status(cluster: Cluster, _: argparse.Namespace) -> None:
    print(cluster.kubectl("get", "nodes,pods", "-A", "-o", "wide"), end="")


def _kubectl(cluster: Cluster, args: argparse.Namespace) -> None:
    config = f"--kubeconfig={cluster.layout.kubeconfig}"
    _replace([str(binaries.path("kubectl")), config, *args.words])


def _node_exec(cluster: Cluster, args: argparse.Namespace) -> None:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    _replace(cluster.nodes[args.node].place.wrap(words))


def _env(cluster: Cluster, _: argparse.Namespace) -> None:
    print(f"export KUBECONFIG={cluster.layout.kubeconfig}")
    print(f"export PATH={binaries.folder()}:$PATH")


_VERBS: Final[dict[str, Callable[[Cluster, argparse.Namespace], None]]] = {
    "up": _up,
    "down": lambda cluster, _: cluster.down(),
    "status": _status,
    "env": _env,
    "kubectl": _kubectl,
    "load-image": lambda cluster, args: cluster.load_image(*args.archive),
    "node-exec": _node_exec,
    "reboot": lambda cluster, args: cluster.nodes[args.node].reboot(),
    "restart-containerd": lambda cluster, args: cluster.nodes[args.node].restart_containerd(),
}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        sys.exit(1)

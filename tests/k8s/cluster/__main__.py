"""python -m tests.k8s.cluster VERB: the cluster from the command line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tests.k8s.cluster import binaries, images
from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.errors import ClusterError
from tests.k8s.cluster.layout import FAMILIES, NODES

_SERVICES: Final = ("containerd", "kubelet", "kube-proxy", "kube-apiserver")
_say: Final[Callable[[str], None]] = partial(print, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.k8s.cluster",
        description="A real two-node Kubernetes cluster in namespaces of this machine. Needs root.",
    )
    parser.add_argument("--name", default="k8s", help="which cluster [k8s]")
    parser.set_defaults(families=())  # those that it was started with
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    names = [p.name for p in binaries.ALL]
    build = verbs.add_parser("build", help="build the programs that are not there yet")
    build.add_argument("program", nargs="*", metavar="program", help=f"only of {', '.join(names)}")
    up = verbs.add_parser("up", help="start it; an earlier one of that name is removed")
    up.add_argument(
        "--family",
        dest="families",
        nargs=1,
        choices=FAMILIES,
        default=FAMILIES,
        help="addresses of this family alone [both]",
    )
    verbs.add_parser("down", help="remove it")
    verbs.add_parser("status", help="nodes and pods")
    verbs.add_parser("env", help="lines for a shell: KUBECONFIG and PATH")
    kubectl = verbs.add_parser("kubectl", help="run kubectl as admin")
    kubectl.add_argument("words", nargs=argparse.REMAINDER)
    load = verbs.add_parser("load-image", help="import archives on both nodes")
    load.add_argument("archive", nargs="+", type=Path)
    verbs.add_parser("load-apps", help="import the images of fortio and the conformance suite")
    for verb, text in (
        ("node-exec", "run a command on a node: NODE -- COMMAND"),
        ("tcpdump", "watch a node's eth0: NODE -- [OPTIONS AND EXPRESSION]"),
    ):
        execute = verbs.add_parser(verb, help=text)
        execute.add_argument("node", choices=NODES)
        execute.add_argument("words", nargs=argparse.REMAINDER)
    verbs.add_parser("reboot", help="cut a node's power and start it again").add_argument(
        "node", choices=NODES
    )
    for verb, text in (
        ("kill", "kill -9 a service; it stays down"),
        ("start", "start a service that is down"),
        ("restart", "both"),
    ):
        service = verbs.add_parser(verb, help=f"{text}: [NODE] SERVICE")
        service.add_argument("node", choices=NODES, nargs="?")
        service.add_argument("service", choices=_SERVICES, metavar="service")
    return parser


def main() -> int:
    """Run one verb."""
    args = _parser().parse_args()
    if args.verb == "build":
        _build(args.program)
        return 0
    if os.geteuid():
        raise ClusterError("root is needed: namespaces, mounts and control groups are made")
    cluster = Cluster(args.name, args.families)
    if args.verb not in ("up", "down", "env") and not cluster.layout.kubeconfig.exists():
        raise ClusterError(f"cluster {args.name} is not up: make cluster, or --name NAME up")
    _VERBS[args.verb](cluster, args)
    return 0


def _build(names: list[str]) -> None:
    known = {p.name: p for p in binaries.ALL}
    for name in names:
        if name not in known:
            raise ClusterError(f"{name}: no such program; there are {', '.join(known)}")
    binaries.build([known[n] for n in names] or binaries.ALL, _say)


def _up(cluster: Cluster, args: argparse.Namespace) -> None:
    cluster.up(_say)
    name = "" if args.name == "k8s" else f" --name {args.name}"
    tool = f".venv/bin/python -m tests.k8s.cluster{name}"
    print("\nin this shell:")
    _env(cluster, args)
    print(f"\n{tool} --help says what can be done to it\n{tool} down removes it", end="")
    print("" if name else " (make cluster-down, too)")


def _status(cluster: Cluster, _: argparse.Namespace) -> None:
    print(cluster.kubectl("get", "nodes,pods", "-A", "-o", "wide"), end="")


def _kubectl(cluster: Cluster, args: argparse.Namespace) -> None:
    config = f"--kubeconfig={cluster.layout.kubeconfig}"
    _replace([str(binaries.path("kubectl")), config, *_words(args)])


def _node_exec(cluster: Cluster, args: argparse.Namespace) -> None:
    words = _words(args) or ["/bin/bash"]
    _replace(cluster.nodes[args.node].place().wrap_for_now(words))


def _tcpdump(cluster: Cluster, args: argparse.Namespace) -> None:
    words = ["tcpdump", "-n", "-i", "eth0", *_words(args)]
    _replace(cluster.nodes[args.node].place().wrap_for_now(words))


def _words(args: argparse.Namespace) -> list[str]:
    words: list[str] = args.words
    return words[1:] if words[:1] == ["--"] else words


def _replace(words: list[str]) -> None:
    sys.stdout.flush()
    os.execvp(words[0], words)


def _env(cluster: Cluster, _: argparse.Namespace) -> None:
    print(f"export KUBECONFIG={cluster.layout.kubeconfig}")
    print(f"export PATH={binaries.folder()}:$PATH")


def _load_apps(cluster: Cluster, _: argparse.Namespace) -> None:
    binaries.build(binaries.TOOLS, _say)
    cluster.load_image(images.fortio(), *images.conformance())


def _service(cluster: Cluster, args: argparse.Namespace) -> None:
    if args.service == "kube-apiserver":
        part, start = cluster.control_plane.apiserver, cluster.control_plane.start_apiserver
    elif args.node is None:
        raise ClusterError(f"{args.service} runs on every node: say which, n1 or n2")
    else:
        node = cluster.nodes[args.node]
        part, start = {
            "containerd": (node.containerd, node.start_containerd),
            "kubelet": (node.kubelet, node.start_kubelet),
            "kube-proxy": (node.kube_proxy, node.start_kube_proxy),
        }[args.service]
    if args.verb in ("kill", "restart"):
        part.stop(signal.SIGKILL)
    if args.verb in ("start", "restart"):
        start()


_VERBS: Final[dict[str, Callable[[Cluster, argparse.Namespace], None]]] = {
    "up": _up,
    "down": lambda cluster, _: cluster.down(_say),
    "status": _status,
    "env": _env,
    "kubectl": _kubectl,
    "load-image": lambda cluster, args: cluster.load_image(*args.archive),
    "load-apps": _load_apps,
    "node-exec": _node_exec,
    "tcpdump": _tcpdump,
    "reboot": lambda cluster, args: cluster.nodes[args.node].reboot(),
    "kill": _service,
    "start": _service,
    "restart": _service,
}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        sys.exit(1)

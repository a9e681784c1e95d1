"""`python -m bpf`: what the kernel can do, what is captured, and how to take it all away."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bpf import sources
from bpf.datapath import Datapath
from bpf.features import probe
from bpf.pins import Pins, attached
from mesh.errors import MeshError


def features() -> int:
    """One line per hook; exit code 1 when one does not load."""
    found = probe()
    for f in found:
        sys.stdout.write(f"{f.hook:14} {'loads' if f.available else 'does not load: ' + f.cause}\n")
    missing = [f for f in found if not f.available]
    if missing:
        sys.stdout.write(f"{len(missing)} of {len(found)} do not load; {missing[0].way_out}\n")
    return 0 if all(f.available for f in found) else 1


def show(root: Path) -> int:
    """Hooks, captured pods and counters of one node."""
    pins = Pins(root)
    try:
        datapath = Datapath.peek(root)
    except OSError:
        found = ", ".join(sorted(p.name for p in root.glob("build-*"))) or "nothing"
        sys.stderr.write(
            f"{root}: no build of this version (build-{sources.digest()}) is pinned there,"
            f" found {found}; pins lie below /sys/fs/bpf, one folder for each node agent\n"
        )
        return 1
    for hook, target in sorted(attached(pins).items()):
        where = f"attached to cgroup {target}" if target else "defunct: its cgroup is gone"
        sys.stdout.write(f"{hook:14} {where}\n")
    for uid, pod in sorted(datapath.captured().items()):
        out, inn = datapath.pod_counters(uid)
        sys.stdout.write(f"{uid}  {','.join(pod.addresses)}  outbound {out}  inbound {inn}\n")
    for name, value in datapath.counters().items():
        sys.stdout.write(f"{name:22} {value}\n")
    datapath.close()
    return 0


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m bpf", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("features", help="load every hook once and say which this kernel takes")
    for verb, text in (
        ("show", "captured pods and counters under PINS"),
        ("remove", "detach and unpin all under PINS"),
    ):
        verbs.add_parser(verb, help=text).add_argument("pins", type=Path, metavar="PINS")
    args = parser.parse_args()
    try:
        if args.verb == "features":
            return features()
        if args.verb == "show":
            return show(args.pins)
        Datapath.remove(args.pins)
    except MeshError as e:
        sys.stderr.write(f"bpf: {e}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

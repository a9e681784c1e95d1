"""The Gateway API's conformance suite against the mesh: `make conformance`.

Its report is kept in docs/conformance: every core and every extended feature of meshes is claimed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from mesh import __version__
from tests.k8s.cluster import Cluster, ClusterError, binaries, images
from tests.k8s.installed import ROOT, ambit, gateway_crds, load_images
from waypoint.config import features

REPORT: Final = ROOT / "docs" / "conformance" / "mesh.yaml"
PROFILES: Final = "MESH-HTTP,MESH-GRPC"
# Every core and every extended feature of meshes (pkg/features/mesh.go of the Gateway API).
FEATURES: Final = (
    *features.FEATURES,
    # Not of meshes alone: without them the suite leaves out tests of the features above.
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
)
# One waypoint for the namespaces that the suite makes.
WAYPOINT_NS: Final = "conformance-waypoint"
WAYPOINT: Final = "waypoint"
LABELS: Final = (
    "istio.io/dataplane-mode=ambient",
    f"istio.io/use-waypoint={WAYPOINT}",
    f"istio.io/use-waypoint-namespace={WAYPOINT_NS}",
)


def waypoint() -> list[dict[str, Any]]:
    """The waypoint, open to all namespaces."""
    listener = {
        "name": "mesh",
        "port": 15008,
        "protocol": "HBONE",
        "allowedRoutes": {"namespaces": {"from": "All"}},
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": WAYPOINT_NS}},
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {"name": WAYPOINT, "namespace": WAYPOINT_NS},
            "spec": {"gatewayClassName": "ambit-waypoint", "listeners": [listener]},
        },
    ]


def prepare(name: str) -> Cluster:
    """A cluster with the mesh and the suite's images; one that is up already is taken as it is."""
    cluster = Cluster(name)
    if not cluster.layout.kubeconfig.exists():
        cluster.up(print)
    cluster.load_image(*images.conformance())
    try:
        cluster.kubectl("get", "-n", "istio-system", "daemonset/ztunnel")
    except ClusterError:
        load_images(cluster)
        crds = str(gateway_crds())
        done = ambit(cluster, "install", "--profile", "demo", "-y", "--gateway-api-crds", crds)
        if done.returncode:
            raise ClusterError(done.stdout + done.stderr) from None
    cluster.apply(*waypoint())
    ready = ["--for=condition=Programmed", f"gateway/{WAYPOINT}", "--timeout=120s"]
    cluster.kubectl("wait", "-n", WAYPOINT_NS, *ready)
    return cluster


def run(cluster: Cluster, only: str, report: Path) -> int:
    """Run the suite; its exit code."""
    report.parent.mkdir(parents=True, exist_ok=True)
    words = [
        str(binaries.path("gwapi-conformance.test")),
        "-test.run=^TestConformance$",
        "-test.v",
        "-test.timeout=40m",
        f"--conformance-profiles={PROFILES}",
        f"--namespace-labels={','.join(LABELS)}",
        f"--supported-features={','.join(FEATURES)}",
        "--organization=ambit",
        "--project=ambit",
        "--url=https://ambit.example",
        "--contact=@ambit/maintainers",
        f"--version={__version__}",
        f"--report-output={report}",
    ]
    if only:
        words.append(f"--run-test={only}")
    env = {**os.environ, "KUBECONFIG": str(cluster.layout.kubeconfig)}
    return subprocess.run(words, env=env, cwd="/", check=False).returncode


def main() -> int:
    """Prepare, run, and leave the cluster as it was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.k8s.conformance", description=__doc__)
    parser.add_argument(
        "--name", default="conf", help="cluster to use; made if it is not up [conf]"
    )
    parser.add_argument("--only", default="", metavar="TEST", help="run this test alone")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the report goes")
    args = parser.parse_args()
    existed = Cluster(args.name).layout.kubeconfig.exists()
    try:
        binaries.build(say=lambda text: print(text, flush=True))
        return run(prepare(args.name), args.only, args.report)
    except ClusterError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 1
    finally:
        if not existed:
            Cluster(args.name).down()


if __name__ == "__main__":
    sys.exit(main())

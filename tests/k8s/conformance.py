"""The Gateway API's conformance suite against the mesh: `make conformance`.

Its report is kept in docs/conformance. Tests that need what is not built yet are named below and
skipped, so that the report says so; `--all` runs them too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from mesh import __version__
from tests.k8s.cluster import Cluster, ClusterError, binaries, images
from tests.k8s.installed import ROOT, ambit, gateway_crds, load_images

REPORT: Final = ROOT / "docs" / "conformance" / "mesh.yaml"
PROFILES: Final = "MESH-HTTP,MESH-GRPC"
# Routes are a waypoint's work.
NEED_A_WAYPOINT: Final = (
    "MeshConsumerRoute",
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshGRPCRouteWeight",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
    "MeshHTTPRouteBackendRequestHeaderModifier",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteNamedRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectHostAndStatus",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRequestHeaderModifier",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteSimpleSameNamespace",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
)


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
    return cluster


def run(cluster: Cluster, everything: bool, report: Path) -> int:
    """Run the suite; its exit code."""
    report.parent.mkdir(parents=True, exist_ok=True)
    words = [
        str(binaries.path("gwapi-conformance.test")),
        "-test.run=^TestConformance$",
        "-test.v",
        "-test.timeout=40m",
        f"--conformance-profiles={PROFILES}",
        "--namespace-labels=istio.io/dataplane-mode=ambient",
        "--organization=ambit",
        "--project=ambit",
        "--url=https://ambit.example",
        "--contact=@ambit/maintainers",
        f"--version={__version__}",
        f"--report-output={report}",
    ]
    if not everything:
        words.append(f"--skip-tests={','.join(NEED_A_WAYPOINT)}")
    env = {**os.environ, "KUBECONFIG": str(cluster.layout.kubeconfig)}
    return subprocess.run(words, env=env, cwd="/", check=False).returncode


def main() -> int:
    """Prepare, run, and leave the cluster as it was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.k8s.conformance", description=__doc__)
    parser.add_argument(
        "--name", default="conf", help="cluster to use; made if it is not up [conf]"
    )
    parser.add_argument("--all", action="store_true", help="also the tests known to fail")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the report goes")
    args = parser.parse_args()
    existed = Cluster(args.name).layout.kubeconfig.exists()
    try:
        binaries.build(say=lambda text: print(text, flush=True))
        return run(prepare(args.name), args.all, args.report)
    except ClusterError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 1
    finally:
        if not existed:
            Cluster(args.name).down()


if __name__ == "__main__":
    sys.exit(main())

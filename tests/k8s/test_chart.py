"""The chart as real Helm renders it and as a real API server sees it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.chart.load import Chart, Object, Release, load
from cli.chart.text import read_documents
from cli.chart.values import parse_set
from mesh.errors import ConfigError
from tests.k8s import crd_cases, crd_routing_cases
from tests.k8s.cluster import Cluster, ClusterError, binaries
from tests.k8s.installed import gateway_crds

pytestmark = pytest.mark.k8s

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart" / "ambit"
GATEWAY_CLASS = "gateway.networking.k8s.io/v1/GatewayClass"

SETS = (
    "namespace=mesh",
    "createNamespace=false",
    "hub=registry.example/ambit/,tag=v9,imagePullPolicy=Always,imagePullSecrets[0].name=a",
    "trustDomain=example.org,clusterId=c-1,clusterDomain=cluster.example,network=n1",
    "logLevel=debug,logFormat=json",
    "controlPlane.replicas=2",
    "controlPlane.replicas=5,controlPlane.defaultCertTtl=90m,controlPlane.image=a/b@sha256:1",
    "controlPlane.resources.limits.memory=null,controlPlane.resources.requests.cpu=2",
    "controlPlane.affinity.nodeAffinity.x[0].y=z",
    "controlPlane.tolerations[0].key=a,controlPlane.tolerations[0].operator=Exists",
    "controlPlane.extraArgs={--san=a,--san=b},controlPlane.priorityClassName=",
    "controlPlane.extraEnv[0].name=A,controlPlane.extraEnv[0].value=x: \\{y\\}",
    r"ztunnel.podAnnotations.a\.b/c=yes\, no,ztunnel.podLabels.v=x",
    "ztunnel.workers=4,ztunnel.terminationGracePeriodSeconds=7200",
    "ztunnel.workers=50%,ztunnel.nodeSelector.disk=ssd,ztunnel.tolerations[0].key=x",
    "nodeAgent.cleanup=true",
    "nodeAgent.privileged=true,nodeAgent.redirect=nftables,nodeAgent.maxSurge=10%",
    "nodeAgent.criSocket=/run/k3s/containerd/containerd.sock,nodeAgent.cniBinDir=/a/b",
    "nodeAgent.admissionPolicy=false,nodeAgent.extraArgs={--verbose}",
    "gatewayClasses.enabled=false",
    "networkPolicy.enabled=true,resourceQuota.enabled=true,resourceQuota.pods=10",
    "monitoring.serviceMonitor=true,monitoring.podMonitor=true,monitoring.labels.a=b",
)


@pytest.fixture(scope="module")
def chart() -> Chart:
    return load()


@pytest.fixture(scope="module")
def helm() -> Path:
    binaries.build([p for p in binaries.TOOLS if p.name == "helm"])
    return binaries.path("helm")


def by_helm(helm: Path, profile: str, sets: Sequence[str], served: Sequence[str]) -> list[Object]:
    command = [str(helm), "template", "ambit", str(CHART), "-n", "istio-system"]
    command += ["--kube-version", "1.37.2", "-f", str(CHART / "profiles" / f"{profile}.yaml")]
    for text in sets:
        command += ["--set", text]
    for version in served:
        command += ["--api-versions", version]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise ConfigError(done.stderr)
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def by_us(chart: Chart, profile: str, sets: Sequence[str], served: Sequence[str]) -> list[Object]:
    values = chart.values([chart.profile(profile), parse_set(sets, {})])
    return list(chart.render(values, Release(service="Helm"), served).objects)


def in_any_order(objects: list[Object]) -> list[str]:
    return sorted(json.dumps(obj, sort_keys=True) for obj in objects)


@pytest.mark.parametrize("served", [(), (GATEWAY_CLASS,)], ids=["plain", "gateway-api"])
@pytest.mark.parametrize("profile", ["default", "demo", "minimal"])
def test_profiles_render_as_with_helm(
    helm: Path, chart: Chart, profile: str, served: Sequence[str]
) -> None:
    """Object by object, value by value."""
    expected = by_helm(helm, profile, (), served)
    assert in_any_order(by_us(chart, profile, (), served)) == in_any_order(expected)
    assert len(expected) > 20


@pytest.mark.parametrize("setting", SETS)
def test_every_value_renders_as_with_helm(helm: Path, chart: Chart, setting: str) -> None:
    """With --set as Helm reads it."""
    expected = by_helm(helm, "demo", [setting], [GATEWAY_CLASS])
    assert in_any_order(by_us(chart, "demo", [setting], [GATEWAY_CLASS])) == in_any_order(expected)
    assert in_any_order(expected) != in_any_order(by_helm(helm, "demo", [], [GATEWAY_CLASS]))


def test_all_values_together_render_as_with_helm(helm: Path, chart: Chart) -> None:
    """Later settings of a value win in both."""
    expected = by_helm(helm, "minimal", SETS, [GATEWAY_CLASS])
    assert in_any_order(by_us(chart, "minimal", SETS, [GATEWAY_CLASS])) == in_any_order(expected)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chart that says what its values are."""
    folder = tmp_path_factory.mktemp("mirror")
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: mirror, version: 0.1.0}")
    (folder / "values.yaml").write_text("{}")
    (folder / "templates" / "a.yaml").write_text("values:\n  {{- toYaml .Values | nindent 2 }}\n")
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "a=1,b=0,c=-3,d=+5,e=-0,f=007,g=00,h=-007",
        "a=1.5,b=1e3,c=0x10,d=9223372036854775807,e=9223372036854775808",
        "a=true,b=TRUE,c=False,d=yes,e=,f=x=y,g= x ",
        "a={},b={,},c={x,},d={ x , y },e={1,true,x}",
        r"a={x\,y,a\}b},b=b\,c,c=\{x\},d=\n,e=x}",
        r"a.b\.c/d=1,a b=2",
        "a[0].k=v,a[0].w=u,b[1]=x,c[0][1]=y,d=[x],e=x[0]",
        "a=x,",
    ],
)
def test_set_is_read_as_helm_reads_it(helm: Path, mirror: Path, text: str) -> None:
    """Types, lists, escapes, spaces."""
    done = subprocess.run(
        [str(helm), "template", "a", str(mirror), "--set", text],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert parse_set([text], {}) == yaml.safe_load(done.stdout)["values"]


@pytest.mark.parametrize(
    "setting",
    [
        "controlPlane.replicaz=2",
        "controlPlane.replicas=0",
        "controlPlane.replicas=null",
        "imagePullPolicy=Sometimes",
        "namespace=Bad_Name",
        "nodeAgent.criSocket=run/x.sock",
        "ztunnel.tolerations={x}",
        "ztunnel.workers=150%",
        "nodeAgent.extraEnv[0].nam=x",
    ],
)
def test_helm_refuses_what_we_refuse(helm: Path, chart: Chart, setting: str) -> None:
    """Both read values.schema.json."""
    with pytest.raises(ConfigError):
        by_us(chart, "demo", [setting], [])
    with pytest.raises(ConfigError, match=r"values don't meet the specifications|schema"):
        by_helm(helm, "demo", [setting], [])


def test_helm_finds_nothing_to_complain_of(helm: Path) -> None:
    """helm lint, strictly."""
    done = subprocess.run(
        [str(helm), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- a real API server -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def definitions(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with our CRDs; they stay if they were there before."""
    names = [str(crd["metadata"]["name"]) for crd in load().crds()]
    there = {c["metadata"]["name"] for c in cluster.get("crd")["items"]}
    cluster.apply(*load().crds())
    for name in names:
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
    yield cluster
    for name in set(names) - there:
        cluster.kubectl("delete", "crd", name)


def dry_run(cluster: Cluster, *objects: Object) -> str:
    """Let the server judge; raises ClusterError with what it says."""
    text = "".join(f"---\n{json.dumps(obj)}\n" for obj in objects)
    return cluster.kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts",
        "-f", "-", data=text.encode(),
    )  # fmt: skip


@pytest.mark.parametrize("profile", ["default", "demo", "minimal"])
def test_the_server_takes_every_object_of_the_chart(
    definitions: Cluster, chart: Chart, profile: str
) -> None:
    """In strict mode: an unknown or repeated field would be an error, too."""
    sets = ["networkPolicy.enabled=true,resourceQuota.enabled=true"]
    objects = by_us(chart, profile, sets, [])
    namespaces = [o for o in objects if o["kind"] == "Namespace"]
    dry_run(definitions, *namespaces)
    # A dry run makes no namespace, so the rest is tried in one that is there.
    values = chart.values(
        [chart.profile(profile), parse_set([*sets, "namespace=default,createNamespace=false"], {})]
    )
    dry_run(definitions, *chart.render(values, Release(), []).objects)
    cleanup = parse_set(["namespace=default,createNamespace=false,nodeAgent.cleanup=true"], {})
    dry_run(definitions, *chart.render(chart.values([cleanup]), Release(), []).objects)


def examples() -> list[list[Object]]:
    """Every manifest of deploy/examples and of docs but for pods, by file or block."""
    texts = [path.read_text() for path in sorted((ROOT / "deploy" / "examples").glob("*.yaml"))]
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        texts += re.findall(r"```yaml\n(.*?)```", path.read_text(), re.S)
    read = [read_documents("example", text) for text in texts]
    return [
        [o for o in objects if o.get("apiVersion") and o.get("metadata") and o["kind"] != "Pod"]
        for objects in read
    ]


@pytest.mark.timeout(300)
def test_the_server_takes_every_example(definitions: Cluster) -> None:
    """And every manifest in docs."""
    found = examples()
    namespaces = {o["metadata"].get("namespace", "default") for group in found for o in group}
    made = namespaces - {n["metadata"]["name"] for n in definitions.get("ns")["items"]}
    # The experimental channel: examples of retries and sessions need it.
    folder = gateway_crds().with_name("experimental")
    crds = [f"-f={path}" for path in sorted(folder.glob("gateway.*.yaml"))]
    definitions.kubectl("apply", "--server-side", *crds)
    for name in made:
        definitions.kubectl("create", "namespace", name)
    try:
        for group in filter(None, found):
            dry_run(definitions, *group)
        assert sum(map(len, found)) > 30
    finally:
        definitions.kubectl("delete", *crds, "--timeout=180s", timeout=200)
        for name in made:
            definitions.kubectl("delete", "namespace", name, "--wait=false")


VERSIONS = {
    "security.istio.io": ("v1", "v1beta1"),
    "networking.istio.io": ("v1", "v1beta1", "v1alpha3"),
    "telemetry.istio.io": ("v1", "v1alpha1"),
}


def policy(kind: str, spec: dict[str, Any], version: str = "v1") -> Object:
    group = crd_routing_cases.GROUPS.get(kind, "security.istio.io")
    return {
        "apiVersion": f"{group}/{version}",
        "kind": kind,
        "metadata": {"name": "tried", "namespace": "default"},
        "spec": spec,
    }


@pytest.mark.parametrize(
    ("group", "version"), [(g, v) for g, versions in VERSIONS.items() for v in versions]
)
def test_policies_that_mean_something_are_taken(
    definitions: Cluster, group: str, version: str
) -> None:
    """Istio's manifests apply unchanged, in all versions it serves."""
    objects = []
    for number, (kind, spec) in enumerate(GOOD):
        obj = policy(kind, spec, version)
        obj["metadata"]["name"] = f"tried-{number}"
        if obj["apiVersion"].startswith(group):
            objects.append(obj)
    assert len(objects) > 6
    said = dry_run(definitions, *objects)
    assert said.count("serverside-applied") == len(objects)


GOOD = [("AuthorizationPolicy", spec) for spec in crd_cases.GOOD_POLICIES]
GOOD += [("PeerAuthentication", spec) for spec in crd_cases.GOOD_AUTHENTICATIONS]
GOOD += [(kind, spec) for kind, specs in crd_routing_cases.GOOD.items() for spec in specs]
BAD = [("AuthorizationPolicy", *case) for case in crd_cases.BAD_POLICIES]
BAD += [("PeerAuthentication", *case) for case in crd_cases.BAD_AUTHENTICATIONS]
BAD += [(kind, *case) for kind, cases in crd_routing_cases.BAD.items() for case in cases]


@pytest.mark.parametrize(("kind", "spec", "message"), BAD, ids=lambda v: str(v)[:50])
def test_policies_that_mean_nothing_are_refused(
    definitions: Cluster, kind: str, spec: dict[str, Any], message: str
) -> None:
    """With words that say where and what; nothing of them is stored."""
    data = json.dumps(policy(kind, spec)).encode()
    with pytest.raises(ClusterError) as refused:
        definitions.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", data=data)
    assert re.search(message, str(refused.value), re.S), str(refused.value)


def test_status_is_apart_and_merges_by_type(definitions: Cluster) -> None:
    """Two writers of conditions keep out of each other's way; a spec's writer loses none."""
    obj = policy("AuthorizationPolicy", {"action": "DENY", "rules": [{}]})
    definitions.apply(obj)
    try:
        for manager in ("one", "two"):
            condition = {"type": f"{manager}Accepted", "status": "True", "reason": "Accepted"}
            status = {k: v for k, v in obj.items() if k != "spec"}
            status["status"] = {"conditions": [{**condition, "observedGeneration": 1}]}
            definitions.kubectl(
                "apply", "--server-side", f"--field-manager={manager}", "--subresource=status",
                "-f", "-", data=json.dumps(status).encode(),
            )  # fmt: skip
        found = definitions.get("ap", "tried", "-n", "default")
        assert found["metadata"]["generation"] == 1
        types = [c["type"] for c in found["status"]["conditions"]]
        assert types == ["oneAccepted", "twoAccepted"]
        table = definitions.kubectl("get", "ap", "tried", "-n", "default")
        assert table.split()[:5] == ["NAME", "ACTION", "ZTUNNEL", "WAYPOINT", "AGE"]
        assert "DENY" in table
    finally:
        definitions.kubectl("delete", "ap", "tried", "-n", "default")

"""Names, addresses and folders of a test cluster."""

from __future__ import annotations

import ipaddress
from itertools import combinations
from pathlib import Path

import pytest

from tests.k8s.cluster import ClusterError, layout
from tests.k8s.cluster.layout import Layout


def tree(top: Path, *files: str) -> Path:
    for name in files:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    return top


def test_a_machine_with_cgroup2_alone_has_one_hierarchy(tmp_path: Path) -> None:
    top = tree(tmp_path, "cgroup.controllers", "cgroup.procs", "system.slice/cgroup.procs")
    assert layout.hierarchies(top) == (top,)


def test_a_hybrid_machine_has_cgroup2_first(tmp_path: Path) -> None:
    """It is known by having no `tasks`; links to joined hierarchies are not hierarchies."""
    top = tree(tmp_path, "cpu,cpuacct/tasks", "cpu,cpuacct/cgroup.procs", "memory/tasks")
    tree(top, "memory/cgroup.procs", "unified/cgroup.procs", "empty/readme")
    (top / "cpu").symlink_to("cpu,cpuacct")
    assert layout.hierarchies(top) == (top / "unified", top / "cpu,cpuacct", top / "memory")


def test_without_cgroup2_the_error_says_how_to_mount_it(tmp_path: Path) -> None:
    top = tree(tmp_path, "memory/tasks", "memory/cgroup.procs")
    with pytest.raises(ClusterError, match=rf"mount -t cgroup2 none {top}/unified"):
        layout.hierarchies(top)


@pytest.mark.parametrize("name", ["", "K8s", "a-b", "1st", "ninechars", "../x", "a\n"])
def test_a_name_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="1 to 8 lower-case letters and digits"):
        Layout.of(name)


@pytest.mark.parametrize("variable", ["AMBIT_CACHE", "AMBIT_CLUSTERS"])
@pytest.mark.parametrize("folder", ["/run/x", "/var/lib/ci/cache", "/opt", "/etc/../run/y"])
def test_a_folder_that_nodes_would_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, folder: str
) -> None:
    monkeypatch.setenv(variable, folder)
    with pytest.raises(ClusterError, match=f"{variable}: .* every node has its own"):
        layout.cache() if variable == "AMBIT_CACHE" else Layout.of("k8s")


def test_folders_are_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AMBIT_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("AMBIT_CLUSTERS", str(tmp_path / "d"))
    assert layout.cache() == tmp_path / "c/k8s"
    assert Layout.of("two").root == tmp_path / "d/two"


def test_networks_of_a_cluster_do_not_overlap() -> None:
    found = Layout.of("k8s")
    networks = [*layout.NODE_PREFIXES, *layout.SERVICE_CIDRS]
    for node in found.nodes:
        networks += node.pod_cidrs
    parsed = [ipaddress.ip_network(n) for n in networks]
    for one, two in combinations(parsed, 2):
        assert one.version != two.version or not one.overlaps(two), (one, two)


def test_nodes_addresses_and_pods_are_where_the_parts_are_told() -> None:
    v4, v6 = layout.POD_CIDRS
    nodes, services = (
        [ipaddress.ip_network(n) for n in both]
        for both in (layout.NODE_PREFIXES, layout.SERVICE_CIDRS)
    )
    for node in Layout.of("k8s").nodes:
        for address, network in zip(node.addresses, nodes, strict=True):
            assert ipaddress.ip_address(address) in network
        assert ipaddress.IPv4Network(node.pod_cidrs[0]).subnet_of(ipaddress.IPv4Network(v4))
        assert ipaddress.IPv6Network(node.pod_cidrs[1]).subnet_of(ipaddress.IPv6Network(v6))
    for vips in (layout.KUBERNETES_VIPS, layout.DNS_VIPS):
        for vip, network in zip(vips, services, strict=True):
            assert ipaddress.ip_address(vip) in network


def test_a_cluster_of_one_family_has_the_addresses_of_that_family() -> None:
    both = Layout.of("k8s")
    for i, family in enumerate(layout.FAMILIES):
        only = Layout.of("k8s", (family,))
        assert (only.cp, only.dns_vip) == (layout.CP[i], layout.DNS_VIPS[i])
        for mine, theirs in zip(only.nodes, both.nodes, strict=True):
            assert mine.addresses == (theirs.addresses[i],)
            assert mine.pod_cidrs == (theirs.pod_cidrs[i],)


def test_clusters_share_no_name() -> None:
    def names(name: str) -> set[str]:
        one = Layout.of(name)
        nodes = [(n.netns, str(n.cgroup), str(n.root)) for n in one.nodes]
        own = {one.cp_netns, str(one.cp_cgroup), str(one.root), str(one.lock)}
        return own.union(*nodes)

    assert not names("a") & names("b")


def test_services_are_where_systemd_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    v2, memory = tmp_path / "unified", tmp_path / "memory"
    monkeypatch.setattr(layout, "hierarchies", lambda: (v2, memory))
    node = Layout.of("k8s").nodes[0]
    assert node.cgroups == (v2 / "k8s-n1", memory / "k8s-n1")
    assert node.service_cgroups("kubelet") == (v2 / "system.slice/kubelet.service", memory)

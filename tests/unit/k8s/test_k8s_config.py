"""What the parts of a test cluster are told."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
import yaml

from tests.k8s.cluster import config
from tests.k8s.cluster.layout import Layout

LAYOUT = Layout.of("k8s")
NODE = LAYOUT.nodes[1]


def flags(words: list[str]) -> dict[str, str]:
    pairs = [w.removeprefix("--").partition("=") for w in words]
    assert len({name for name, _, _ in pairs}) == len(pairs), "a flag is given twice"
    return {name: value for name, _, value in pairs}


def test_everybody_agrees_on_etcd() -> None:
    etcd, api = flags(config.etcd(LAYOUT)), flags(config.apiserver(LAYOUT))
    assert etcd["listen-client-urls"] == etcd["advertise-client-urls"] == api["etcd-servers"]
    assert etcd["initial-cluster"] == f"default={etcd['initial-advertise-peer-urls']}"


def test_keys_that_sign_accounts_are_those_that_verify() -> None:
    api, manager = flags(config.apiserver(LAYOUT)), flags(config.controller_manager(LAYOUT))
    signing = api["service-account-signing-key-file"]
    assert manager["service-account-private-key-file"] == signing
    assert api["service-account-key-file"] == signing.replace(".key", ".pub")
    assert manager["root-ca-file"] == api["client-ca-file"]


def test_pods_get_both_families_and_host_ports() -> None:
    found = json.loads(config.cni(NODE))
    ptp, portmap = found["plugins"]
    assert [r[0]["subnet"] for r in ptp["ipam"]["ranges"]] == list(NODE.pod_cidrs)
    assert [r["dst"] for r in ptp["ipam"]["routes"]] == ["0.0.0.0/0", "::/0"]
    assert portmap["capabilities"] == {"portMappings": True}


@pytest.mark.parametrize("is_v2", [False, True])
def test_both_runtimes_are_where_daemonsets_look(is_v2: bool) -> None:
    found = tomllib.loads(config.containerd(is_v2))
    assert found["grpc"]["address"] == "/run/containerd/containerd.sock"
    assert found["version"] == (3 if is_v2 else 2)
    if is_v2:
        runtime = found["plugins"]["io.containerd.cri.v1.runtime"]
        images = found["plugins"]["io.containerd.cri.v1.images"]
        assert runtime["cni"] == {"bin_dirs": ["/opt/cni/bin"], "conf_dir": "/etc/cni/net.d"}
        assert images["pinned_images"]["sandbox"] == config.PAUSE
    else:
        runtime = found["plugins"]["io.containerd.grpc.v1.cri"]
        assert runtime["cni"] == {"bin_dir": "/opt/cni/bin", "conf_dir": "/etc/cni/net.d"}
        assert runtime["sandbox_image"] == config.PAUSE
    assert runtime["restrict_oom_score_adj"] is True


def test_a_kubelet_finds_its_runtime_dns_and_cluster() -> None:
    found = yaml.safe_load(config.kubelet(LAYOUT))
    assert found["containerRuntimeEndpoint"] == f"unix://{config.CONTAINERD_SOCKET}"
    assert found["clusterDNS"] == [LAYOUT.dns_vip]
    assert found["authentication"]["anonymous"] == {"enabled": False}
    given = flags(config.kubelet_args(NODE))
    assert given["node-ip"] == "10.88.0.12,fd00:10:88::12"
    assert given["hostname-override"] == "n2"


def test_kube_proxy_sets_nothing_of_the_whole_machine() -> None:
    found = yaml.safe_load(config.kube_proxy(NODE))
    assert found["mode"] == "nftables"
    assert found["conntrack"]["maxPerCore"] == found["conntrack"]["min"] == 0


def test_dns_is_a_service_with_the_endpoint_that_the_server_listens_at() -> None:
    service, slice_ = config.dns_objects(LAYOUT)
    assert service["spec"]["clusterIP"] == LAYOUT.dns_vip
    assert "selector" not in service["spec"]
    assert slice_["endpoints"][0]["addresses"] == [LAYOUT.cp]
    assert f"bind {LAYOUT.cp}" in config.corefile(LAYOUT)
    assert slice_["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]


def test_a_cluster_of_ipv6_is_told_no_ipv4_but_loopback() -> None:
    only = Layout.of("k8s", ("ipv6",))
    node = only.nodes[1]
    told = [
        *config.apiserver(only),
        *config.controller_manager(only),
        *config.kubelet_args(node),
        *(config.corefile(only), config.kubelet(only), config.kube_proxy(node), config.cni(node)),
        json.dumps(config.dns_objects(only)),
        only.server,
    ]
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", " ".join(told))) == {"127.0.0.1"}
    assert only.server == "https://[fd00:10:88::1]:6443"
    assert '"addressType": "IPv6"' in told[-2]
    assert flags(config.kubelet_args(node))["node-ip"] == "fd00:10:88::12"

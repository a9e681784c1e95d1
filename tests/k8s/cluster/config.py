"""Configuration files of the parts. Pure: layout in, text out."""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

from tests.k8s.cluster.layout import (
    API_PORT,
    DOMAIN,
    ETCD_PORT,
    POD_CIDRS,
    SERVICE_CIDRS,
    Layout,
    NodeLayout,
    chosen,
)

CONTAINERD_SOCKET: Final = "/run/containerd/containerd.sock"
PAUSE: Final = "ambit.test/pause:1"
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"


def etcd(layout: Layout) -> list[str]:
    """Arguments of etcd."""
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PORT + 1}"
    return [
        f"--data-dir={layout.root}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def apiserver(layout: Layout) -> list[str]:
    """Arguments of kube-apiserver."""
    pki = layout.pki
    return [
        f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
        "--bind-address=::",
        f"--advertise-address={layout.cp}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/front.crt",
        f"--proxy-client-key-file={pki}/front.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={','.join(layout.of_families(SERVICE_CIDRS))}",
        "--v=1",
    ]


def controller_manager(layout: Layout) -> list[str]:
    """Arguments of kube-controller-manager."""
    pki = layout.pki
    return [
        f"--kubeconfig={pki}/controller-manager.kubeconfig",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--use-service-account-credentials=true",
        "--allocate-node-cidrs=false",
        f"--cluster-cidr={','.join(layout.of_families(POD_CIDRS))}",
        "--leader-elect=false",
        "--node-monitor-grace-period=20s",
        "--v=1",
    ]


def scheduler(layout: Layout) -> list[str]:
    """Arguments of kube-scheduler."""
    return [f"--kubeconfig={layout.pki}/scheduler.kubeconfig", "--leader-elect=false", "--v=1"]


def corefile(layout: Layout) -> str:
    """The Corefile of cluster DNS."""
    return f"""{DOMAIN}:53 in-addr.arpa:53 ip6.arpa:53 {{
    bind {layout.cp}
    errors
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {layout.pki}/coredns.kubeconfig {layout.name}
        pods verified
        ttl 5
    }}
}}
"""


def dns_objects(layout: Layout) -> list[dict[str, Any]]:
    """The Service that pods ask, and where CoreDNS listens behind it."""
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    meta = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"clusterIP": layout.dns_vip, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv6" if ":" in layout.cp else "IPv4",
            "endpoints": [{"addresses": [layout.cp], "conditions": {"ready": True}}],
            "ports": ports,
        },
    ]


def cni(node: NodeLayout) -> str:
    """The primary network: routed veths, addresses of its families, host ports."""
    routes = chosen(node.families, ("0.0.0.0/0", "::/0"))
    ptp = {
        "type": "ptp",
        "ipMasq": False,
        "mtu": 1500,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": cidr}] for cidr in node.pod_cidrs],
            "routes": [{"dst": all_of_it} for all_of_it in routes],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [ptp, portmap]}, indent=1)


def containerd(is_v2: bool) -> str:
    """The configuration file of containerd 1.x or 2.x."""
    return _CONTAINERD_V2 if is_v2 else _CONTAINERD_V1


# restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE refuses what the kubelet asks for.
_CONTAINERD_V1: Final = f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""

# Without mkfs.erofs 2.x loads no transfer plugin, hence no CRI, unless the differ is named.
_CONTAINERD_V2: Final = f"""version = 3
disabled_plugins = [
  "io.containerd.differ.v1.erofs", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.mount-handler.v1.erofs", "io.containerd.snapshotter.v1.blockfile",
]
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE}"
[plugins.'io.containerd.service.v1.diff-service']
  default = ["walking"]
[plugins.'io.containerd.transfer.v1.local']
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux/amd64"
    snapshotter = "overlayfs"
    differ = "walking"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
"""


def kubelet(layout: Layout) -> str:
    """KubeletConfiguration."""
    found = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{layout.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": DOMAIN,
        "clusterDNS": [layout.dns_vip],
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "enforceNodeAllocatable": ["pods"],
        "evictionHard": {"memory.available": "100Mi"},
        "maxPods": 200,
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "4s",
        "registryPullQPS": 50,
        "shutdownGracePeriod": "0s",
    }
    return yaml.safe_dump(found)


def kubelet_args(node: NodeLayout) -> list[str]:
    """Arguments of the kubelet."""
    pki = node.root.parent / "pki"
    return [
        f"--config={node.root}/kubelet.yaml",
        f"--kubeconfig={pki}/kubelet-{node.name}.kubeconfig",
        f"--hostname-override={node.name}",
        f"--node-ip={','.join(node.addresses)}",
        "--v=2",
    ]


def kube_proxy(node: NodeLayout) -> str:
    """KubeProxyConfiguration."""
    pki = node.root.parent / "pki"
    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": f"{pki}/proxy.kubeconfig"},
            "clusterCIDR": ",".join(chosen(node.families, POD_CIDRS)),
            "hostnameOverride": node.name,
            "oomScoreAdj": 0,
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
        }
    )

"""A control plane as a process on this machine, with the rights that the chart gives it."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cli.chart.load import Release, load
from mesh.pb import citadel_pb2, citadel_pb2_grpc
from tests.k8s import objects
from tests.k8s.cluster import Cluster
from tests.k8s.installed import until

NS = "istio-system"
NAME = "ambit-control-plane"
MAP = "istio-ca-root-cert"
_RIGHTS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def wait(what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """See until; replicas are on this machine, and answer at once."""
    return until(what, condition, seconds, 0.05)


def give_rights(cluster: Cluster) -> None:
    """Apply the chart's namespace, CRDs, and what is the control plane's own."""
    chart = load()
    values = chart.values([chart.profile("default")])
    rendered = chart.render(values, Release(service="Helm"), ()).objects
    wanted = [
        o
        for o in rendered
        if o["kind"] == "Namespace" or (o["kind"] in _RIGHTS and o["metadata"]["name"] == NAME)
    ]
    crds = chart.crds()
    cluster.apply(*(o for o in wanted if o["kind"] == "Namespace"))
    cluster.apply(*(o for o in wanted if o["kind"] != "Namespace"), *crds)
    for crd in crds:
        name = crd["metadata"]["name"]
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=20s")


def token_of(cluster: Cluster, account: str, *more: str) -> str:
    """Ask the API server for a token of an account of the mesh's namespace."""
    return cluster.kubectl("create", "token", account, "-n", NS, *more).strip()


def kubeconfig(cluster: Cluster, folder: Path) -> Path:
    """Write a configuration with the control plane's own account."""
    admin = yaml.safe_load(cluster.layout.kubeconfig.read_text())
    user = {"name": "u", "user": {"token": token_of(cluster, NAME, "--duration=24h")}}
    config = {**admin, "users": [user]}
    config["contexts"] = [
        {"name": "x", "context": {"cluster": admin["clusters"][0]["name"], "user": "u"}}
    ]
    config["current-context"] = "x"
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def free_port() -> int:
    """Find a port that nobody has."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Plane:
    """One replica. Its log is in `folder`."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, *more: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cluster = cluster
        self.name = name
        self.port, self.admin = free_port(), free_port()
        self.log = folder / f"{name}.log"
        argv = [sys.executable, "-m", "control_plane.app", "--kubernetes"]
        argv += ["--kubeconfig", str(kubeconfig(cluster, folder))]
        argv += [
            "--listen",
            f"127.0.0.1:{self.port}",
            "--metrics-listen",
            f"127.0.0.1:{self.admin}",
        ]
        env = {**os.environ, "POD_NAME": name, "POD_NAMESPACE": NS}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*argv, *more], env=env, stderr=log, stdout=log)

    def fetch(self, path: str) -> str:
        """Read a page of its admin port; raises OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as r:
            return str(r.read().decode())

    def is_ready(self) -> bool:
        """Ask its readiness."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.fetch("/healthz/ready"))
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, seconds: float = 60.0) -> Plane:
        """Wait for it."""
        try:
            wait(f"{self.name} ready", self.is_ready, seconds)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log.read_text()}") from e
        return self

    def metric(self, name: str) -> float:
        """The value of one sample; 0 where there is none."""
        for line in self.fetch("/metrics").splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def leads(self) -> bool:
        """Say whether it says that it leads."""
        return self.metric("ambit_leader") == 1.0

    def registry(self) -> dict[str, dict[str, Any]]:
        """What it serves: resources by name."""
        dump = json.loads(self.fetch("/debug/registry"))
        return {r["name"]: r for r in dump["addresses"]}

    def members(self, service: str) -> set[str]:
        """The workloads of a service."""
        out = set()
        for name, found in self.registry().items():
            if service in (found["resource"].get("workload") or {}).get("services", {}):
                out.add(name)
        return out

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)

    def check_log(self) -> None:
        """No defect left a trace."""
        assert "Traceback" not in self.log.read_text(), self.log.read_text()

    # ---- the CA --------------------------------------------------------------------------------

    def root(self) -> bytes:
        """What proxies are told to trust."""
        found = self.cluster.get("configmap", "-n", NS, "istio-ca-root-cert")
        return str(found["data"]["root-cert.pem"]).encode()

    def sign(self, token: str, identity: str = "") -> list[str]:
        """Ask for a certificate; raises grpc.RpcError."""
        options = [("grpc.ssl_target_name_override", f"istiod.{NS}.svc")]
        credentials = grpc.ssl_channel_credentials(self.root())
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options) as channel:
            request = citadel_pb2.IstioCertificateRequest(csr=csr(identity))
            if identity:
                request.metadata.update({"ImpersonatedIdentity": identity})
            stub = citadel_pb2_grpc.IstioCertificateServiceStub(channel)
            metadata = (("authorization", f"Bearer {token}"),)
            answer = stub.CreateCertificate(request, metadata=metadata, timeout=10)
            return list(answer.cert_chain)


def csr(identity: str) -> str:
    """Make a request as a proxy makes one."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if identity:
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
        builder = builder.add_extension(san, critical=True)
    made = builder.sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def secret_file(cluster: Cluster, name: str, file: str) -> bytes:
    """Read one file of a Secret of the mesh's namespace."""
    return base64.b64decode(cluster.get("secret", "-n", NS, name)["data"][file])


def clean(cluster: Cluster, app: str) -> None:
    """Leave the cluster as if nothing had been installed."""
    cluster.kubectl("delete", "clusterrolebinding,clusterrole", NAME)
    cluster.kubectl("delete", "crd", *(c["metadata"]["name"] for c in load().crds()))
    cluster.kubectl("delete", "namespace", app, NS)


class Node:
    """A ztunnel's pod and a workload's beside it on one node, and one on the other."""

    def __init__(self, world: Cluster, app: str) -> None:
        self.world = world
        self._accounts = accounts = [(NS, "ztunnel"), (app, "near"), (app, "far")]
        self.near, self.far = (f"spiffe://cluster.local/ns/{app}/sa/{n}" for n in ("near", "far"))
        world.apply(
            *(
                {
                    "apiVersion": "v1",
                    "kind": "ServiceAccount",
                    "metadata": {"name": name, "namespace": ns},
                }
                for ns, name in accounts
            )
        )
        for (ns, name), node in zip(accounts, ("n1", "n1", "n2"), strict=True):
            world.apply(objects.pod(ns, f"id-{name}", node, serviceAccountName=name))
        for ns, name in accounts:
            world.kubectl("wait", "-n", ns, f"pod/id-{name}", "--for=condition=Ready")

    def token(self, *more: str) -> str:
        """The proxy's own token, bound to its pod."""
        uid = self.world.get("pod", "-n", NS, "id-ztunnel")["metadata"]["uid"]
        bound = ["--bound-object-kind=Pod", "--bound-object-name=id-ztunnel"]
        audience = [] if any(m.startswith("--audience") for m in more) else ["--audience=istio-ca"]
        return token_of(
            self.world, "ztunnel", *audience, *bound, f"--bound-object-uid={uid}", *more
        )

    def remove(self) -> None:
        """Take the pods away."""
        for ns, name in self._accounts:
            pod = ("pod", "-n", ns, f"id-{name}")
            self.world.kubectl("delete", *pod, "--ignore-not-found", "--now")

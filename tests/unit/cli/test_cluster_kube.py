"""The thin shell: pages of lists, kinds by name, a busy server; and which pod is asked."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from cli.cluster import kube as module
from cli.cluster import target
from cli.cluster.checks import ERROR, OK, Check
from cli.cluster.console import Console
from cli.cluster.kube import Kube
from cli.cluster.objects import Ref
from cli.cluster.target import KubeTarget
from cli.target import Unreachable
from mesh.errors import NotFound, Unavailable
from mesh.kube.api import ApiError


class FakeApi:
    """Answers from a table of "METHOD path"; a list is taken one by one, an error is raised."""

    address = "https://fake"

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[str, Mapping[str, str]]] = []

    def request(self, method: str, path: str, **more: Any) -> Any:
        self.asked.append((f"{method} {path}", more.get("query") or {}))
        found = self.answers.get(f"{method} {path}", ApiError(404, "NotFound", path))
        if isinstance(found, list):
            found = found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


CORE = {
    "resources": [
        {"name": "pods", "kind": "Pod", "namespaced": True, "verbs": ["list", "get"]},
        {"name": "pods/log", "kind": "Pod", "namespaced": True, "verbs": ["get"]},
        {"name": "bindings", "kind": "Binding", "namespaced": True, "verbs": ["create"]},
        {"name": "nodes", "kind": "Node", "namespaced": False, "verbs": ["list"]},
    ]
}


def connect(**answers: Any) -> tuple[Kube, FakeApi]:
    table = {k.replace("__", " "): v for k, v in answers.items()}
    api = FakeApi({"GET /api/v1": CORE, **table})
    return Kube(api), api  # type: ignore[arg-type]


def test_lists_are_read_page_by_page() -> None:
    """Ten thousand pods do not come in one answer."""
    kube, api = connect()
    api.answers["GET /api/v1/pods"] = [
        {"metadata": {"continue": "c1"}, "items": [{"metadata": {"name": "a"}}]},
        {"metadata": {}, "items": [{"metadata": {"name": "b"}}]},
    ]
    found = list(kube.list("v1", "Pod", labelSelector="x=y"))
    assert [(o["kind"], o["metadata"]["name"]) for o in found] == [("Pod", "a"), ("Pod", "b")]
    assert api.asked[1][1]["labelSelector"] == "x=y"
    assert api.asked[2][1]["continue"] == "c1"


def test_kinds_are_looked_up_once() -> None:
    """Resource and place; a subresource is no kind of its own."""
    kube, api = connect()
    assert kube.path(Ref("v1", "Pod", "ns", "p")) == "/api/v1/namespaces/ns/pods/p"
    assert kube.path(Ref("v1", "Node", "", "n")) == "/api/v1/nodes/n"
    assert kube.resource(Ref("v1", "Pod", "", "")) == "pods"
    assert len(api.asked) == 1


def test_an_unknown_kind_has_no_objects() -> None:
    """Its CRD is not there: nothing to list, nothing to get, and applying says so."""
    kube, _ = connect()
    policy = Ref("security.istio.io/v1", "AuthorizationPolicy", "a", "b")
    assert kube.get(policy) is None
    assert list(kube.list(policy.api_version, policy.kind)) == []
    metadata = {"name": "b", "namespace": "a"}
    with pytest.raises(ApiError, match=r"knows no security\.istio\.io/v1 AuthorizationPolicy"):
        kube.apply({"apiVersion": policy.api_version, "kind": policy.kind, "metadata": metadata})


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it asks for it, within bounds; any other refusal is final."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    kube, api = connect()
    busy = ApiError(429, "TooManyRequests", "storage is (re)initializing", 1.5)
    api.answers["GET /api/v1/nodes/n"] = [busy, busy, {"kind": "Node"}]
    assert kube.get(Ref("v1", "Node", "", "n")) == {"kind": "Node"}
    assert slept == [1.5, 1.5]
    api.answers["GET /api/v1/nodes/n"] = ApiError(403, "Forbidden", "no")
    with pytest.raises(ApiError, match="no"):
        kube.get(Ref("v1", "Node", "", "n"))
    monkeypatch.setattr(module, "_BUSY", 0.0)
    api.answers["GET /api/v1/nodes/n"] = busy
    with pytest.raises(ApiError, match="initializing"):
        kube.get(Ref("v1", "Node", "", "n"))


def test_only_what_can_be_listed_is_looked_for_in_a_namespace() -> None:
    """Bindings cannot; an aggregated API whose server is away is passed over."""
    kube, api = connect()
    api.answers["GET /api"] = {"versions": ["v1"]}
    api.answers["GET /apis"] = {"groups": [{"preferredVersion": {"groupVersion": "away/v1"}}]}
    api.answers["GET /apis/away/v1"] = Unavailable("away")
    assert kube.listable() == [("v1", "Pod")]


def test_deleting_what_is_gone_or_replaced_is_no_error() -> None:
    """404, and 409 for another uid."""
    kube, api = connect()
    of = Ref("v1", "Pod", "ns", "p")
    assert not kube.delete(of)
    api.answers["DELETE /api/v1/namespaces/ns/pods/p"] = ApiError(409, "Conflict", "uid")
    assert not kube.delete(of, uid="u")
    api.answers["DELETE /api/v1/namespaces/ns/pods/p"] = {}
    assert kube.delete(of)


# ---- the target ------------------------------------------------------------------------------


def made(app: str, name: str, node: str, ready: bool = True, created: str = "1") -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": "istio-system",
            "creationTimestamp": created,
            "labels": {"app": app, "app.kubernetes.io/part-of": "ambit"},
        },
        "spec": {"nodeName": node},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def mesh_of(*pods: dict[str, Any]) -> KubeTarget:
    kube, api = connect()
    api.answers["GET /api/v1/pods"] = {"items": list(pods)}
    return KubeTarget(kube)


PODS = (
    made("ambit-node-agent", "agent-1", "n1"),
    made("ztunnel", "z-old", "n1", created="1"),
    made("ztunnel", "z-new", "n1", created="2"),
    made("ztunnel", "z-broken", "n1", ready=False, created="3"),
    made("ambit-node-agent", "agent-2", "n2", ready=False),
    made("ambit-control-plane", "cp-1", "n1"),
    made("ambit-control-plane", "cp-2", "n2"),
    made("ambit-control-plane", "cp-3", "n2", ready=False),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Pods and ports that were forwarded to; every page is "page"."""
    found: list[tuple[str, int]] = []

    class Pipe:
        def settimeout(self, seconds: float) -> None: ...
        def sendall(self, data: bytes) -> None: ...
        def close(self) -> None: ...
        def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
            return io.BytesIO(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")

    @contextmanager
    def forward(api: Any, namespace: str, pod: str, port: int) -> Iterator[Pipe]:
        found.append((pod, port))
        if pod == "agent-2":
            raise Unavailable("connection refused")
        yield Pipe()

    monkeypatch.setattr(target, "forward", forward)
    return found


def test_the_pod_that_serves_is_asked(asked: list[tuple[str, int]]) -> None:
    """Of two during an upgrade the newer one, but not one that is not ready."""
    mesh = mesh_of(*PODS)
    assert mesh.nodes() == ["n1", "n2"]
    assert mesh.fetch("n1", 15000, "/config_dump") == b"page"
    assert mesh.fetch("n1", 8000, "/status") == b"page"
    assert asked == [("z-new", 15000), ("agent-1", 8000)]


def test_every_ready_replica_of_the_control_plane_is_asked(asked: list[tuple[str, int]]) -> None:
    """Each knows its own proxies."""
    assert mesh_of(*PODS).fetch_control_plane(15014, "/metrics") == [b"page", b"page"]
    assert [pod for pod, _ in asked] == ["cp-1", "cp-2"]
    with pytest.raises(Unreachable, match="1 pods of ambit-control-plane, none is ready"):
        mesh_of(PODS[-1]).fetch_control_plane(15014, "/metrics")


def test_who_does_not_answer_is_named_with_its_state(asked: list[tuple[str, int]]) -> None:
    """As is a pod that is not there at all."""
    mesh = mesh_of(*PODS)
    with pytest.raises(Unreachable, match=r"connection refused \(pod: starting\)"):
        mesh.fetch("n2", 8000, "/status")
    with pytest.raises(Unreachable, match="node n2: no pod of ztunnel is there"):
        mesh.fetch("n2", 15000, "/config_dump")


def test_logs_are_kubectl_s() -> None:
    """Of the pod that was asked."""
    mesh = mesh_of(*PODS)
    space = "kubectl -n istio-system"
    assert mesh.log_command("agent/n1") == f"{space} logs agent-1 -c agent"
    assert mesh.log_command("ztunnel/n1") == f"{space} logs z-new"
    assert mesh.log_command("ztunnel/n2") == f"{space} describe daemonset ztunnel"
    assert mesh.log_command("control-plane") == f"{space} logs deploy/ambit-control-plane"


def test_a_cluster_without_the_mesh_says_how_to_install_it() -> None:
    """Instead of an empty table."""
    with pytest.raises(NotFound, match="install it with: ambit install"):
        mesh_of()


# ---- the console -----------------------------------------------------------------------------


def test_a_terminal_s_last_line_is_rewritten() -> None:
    """And gone when something is done."""
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    console = Console(out)
    console.doing("a 0/1")
    console.doing("a 0/1")
    console.done("a 1/1", 1.25)
    assert out.getvalue().count("a 0/1") == 1
    assert "\r\x1b[K" in out.getvalue()
    assert out.getvalue().endswith("a 1/1 (1.2 s)\n")


def test_a_file_without_utf8_gets_words_for_marks() -> None:
    """Nothing in an answer of a server moves a cursor."""
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding="ascii"))
    console.check(Check(OK, "fine"))
    console.check(Check(ERROR, "bad \x1b[2J", "do this"))
    assert raw.getvalue() == b"ok fine\nerror bad ?[2J\n    next: do this\n"


def test_a_log_file_is_not_flooded() -> None:
    """What is under way is told now and then."""
    out = io.StringIO()
    console = Console(out)
    for _ in range(50):
        console.doing("waiting")
    assert out.getvalue() == ""

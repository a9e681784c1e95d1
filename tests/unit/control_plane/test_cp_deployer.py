"""Gateways' objects in a cluster: applied by the leader, and what stands in the way is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api import FakeApi

from control_plane.kubernetes import deployer as module
from control_plane.kubernetes import referenced
from control_plane.kubernetes.deployer import ClusterDeployer
from control_plane.kubernetes.referenced import ReferencedObjects
from control_plane.kubernetes.source import ObjectCache
from control_plane.metrics import Metrics
from control_plane.waypoints.deploying import FolderDeployer
from mesh.kube.api import Api
from mesh.manifest import Key
from waypoint.config.gateways import GatewayRecord, read_gateway
from waypoint.config.infrastructure import Runtime

KEY = ("shop", "wp")
RUNTIME = Runtime(("run",), "https://istiod:15012", "cluster.local", "c1", image="ambit:1")
KINDS = {
    ("", "serviceaccounts"): ("ServiceAccount", ("v1",)),
    ("apps", "deployments"): ("Deployment", ("v1",)),
    ("autoscaling", "horizontalpodautoscalers"): ("HorizontalPodAutoscaler", ("v2",)),
    ("policy", "poddisruptionbudgets"): ("PodDisruptionBudget", ("v1",)),
    ("", "configmaps"): ("ConfigMap", ("v1",)),
}
PLURALS = (
    "serviceaccounts",
    "services",
    "deployments",
    "horizontalpodautoscalers",
    "poddisruptionbudgets",
)


def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[FakeApi]:
    api = FakeApi().start()
    api.served.update(KINDS)
    yield api
    api.stop()


def gateway(parameters: str = "", **metadata: Any) -> GatewayRecord:
    ref = {"group": "", "kind": "ConfigMap", "name": parameters}
    return read_gateway(
        {
            "metadata": {"name": "wp", "namespace": "shop", "uid": "u-1", **metadata},
            "spec": {
                "gatewayClassName": "istio-waypoint",
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
                "infrastructure": {"parametersRef": ref} if parameters else {},
            },
        }
    )


class Running:
    def __init__(self, server: FakeApi, folder: Path, runtime: Runtime = RUNTIME) -> None:
        self.leads = True
        self.news = threading.Event()
        self.api = Api.load(server.kubeconfig(folder))
        writes = Metrics().writes
        self.deployer = ClusterDeployer(
            self.api, runtime, lambda: self.leads, writes, self.news.set
        )
        self.deployer.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.deployer.stop()
        self.api.close()


def applied(server: FakeApi) -> list[str]:
    return [path.split("/")[-2] for _, path, _ in server.asked("PATCH", "/wp")]


def config_map(**data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "size", "namespace": "shop"},
        "data": data,
    }


def test_five_objects_once(server: FakeApi, tmp_path: Path) -> None:
    """By server-side apply, forced; asked for again without a change, nothing is written."""
    with Running(server, tmp_path) as r:
        r.deployer.want({KEY: gateway()})
        wait(lambda: len(applied(server)) == 5)
        assert tuple(applied(server)) == PLURALS
        _, _, query = server.asked("PATCH", "/wp")[0]
        assert query == {"fieldManager": "ambit-control-plane", "force": "true"}
        r.deployer.want({KEY: gateway()})
        time.sleep(0.2)
        assert len(applied(server)) == 5
        assert r.deployer.troubles() == {}
        r.deployer.want({KEY: gateway(annotations={"gateway.istio.io/service-account": "x"})})
        wait(lambda: len(applied(server)) == 9)


def test_a_follower_writes_nothing(server: FakeApi, tmp_path: Path) -> None:
    with Running(server, tmp_path) as r:
        r.leads = False
        r.deployer.want({KEY: gateway()})
        time.sleep(0.3)
        assert applied(server) == []
        r.leads = True
        wait(lambda: len(applied(server)) == 5)


def test_it_comes_back(server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody deleted, after a while; a Gateway that is gone is not made again."""
    monkeypatch.setattr(module, "AGAIN", 0.2)
    with Running(server, tmp_path) as r:
        r.deployer.want({KEY: gateway()})
        wait(lambda: server.has("Service", "shop", "wp"))
        server.delete("Service", "shop", "wp")
        wait(lambda: server.has("Service", "shop", "wp"))
        r.deployer.want({})
        time.sleep(0.3)
        count = len(applied(server))
        time.sleep(0.5)
        assert len(applied(server)) == count


def test_what_stands_in_the_way_is_said(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more when it is gone."""
    monkeypatch.setattr(module, "_RETRY", 0.1)
    server.forbidden.add("PATCH deployments")
    with Running(server, tmp_path) as r:
        r.deployer.want({KEY: gateway()})
        wait(r.news.is_set)
        assert "Deployment shop/wp" in r.deployer.troubles()[KEY].problem
        assert "forbidden" in r.deployer.troubles()[KEY].problem
        r.news.clear()
        server.forbidden.clear()
        wait(r.news.is_set)
        assert r.deployer.troubles() == {}


def test_parameters(server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from their ConfigMap; a missing or bad one is said, and nothing is written then."""
    monkeypatch.setattr(module, "_RETRY", 0.1)
    monkeypatch.setattr(module, "AGAIN", 0.1)
    with Running(server, tmp_path) as r:
        r.deployer.want({KEY: gateway("size")})
        wait(r.news.is_set)
        assert "there is no ConfigMap shop/size" in r.deployer.troubles()[KEY].parameters
        server.put(config_map(deployment="- no"), "", "configmaps")
        wait(lambda: "data.deployment" in r.deployer.troubles()[KEY].parameters)
        assert applied(server) == []
        server.put(config_map(deployment="spec: {replicas: 3}"), "", "configmaps")
        wait(lambda: len(applied(server)) >= 5)
        assert r.deployer.troubles() == {}


def test_without_an_image_nothing_is_deployed(server: FakeApi, tmp_path: Path) -> None:
    bare = Runtime(("run",), "https://istiod:15012", "cluster.local", "c1")
    with Running(server, tmp_path, bare) as r:
        r.deployer.want({KEY: gateway()})
        wait(r.news.is_set)
        assert "--waypoint-image" in r.deployer.troubles()[KEY].problem
        assert applied(server) == []


def test_in_a_folder_parameters_are_looked_at() -> None:
    """The lab deploys; the control plane says what is wrong."""
    objects: dict[tuple[str, str | None, str], Any] = {}
    deployer = FolderDeployer(lambda *key: objects.get(key))
    deployer.want({KEY: gateway("size")})
    assert "there is no ConfigMap shop/size" in deployer.troubles()[KEY].parameters
    objects["ConfigMap", "shop", "size"] = config_map(nonsense="x")
    deployer.want({KEY: gateway("size")})
    assert "nonsense" in deployer.troubles()[KEY].parameters
    objects["ConfigMap", "shop", "size"] = config_map(deployment="spec: {replicas: 3}")
    deployer.want({KEY: gateway("size")})
    assert deployer.troubles() == {}


def test_objects_that_are_referred_to(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read while they are wanted, followed, kept when they cannot be read, and then forgotten."""
    monkeypatch.setattr(referenced, "AGAIN", 0.1)
    monkeypatch.setattr(referenced, "_RETRY", 0.1)
    cache = ObjectCache()
    api = Api.load(server.kubeconfig(tmp_path))
    reader = ReferencedObjects(api, cache)
    reader.start()
    key = Key("ConfigMap", "shop", "size")

    def data() -> Any:
        found = cache.object(key)
        return found and found["data"]

    try:
        reader.want([key])
        server.put(config_map(a="1"), "", "configmaps")
        wait(lambda: data() == {"a": "1"})
        server.put(config_map(a="2"), "", "configmaps")
        wait(lambda: data() == {"a": "2"})
        server.forbidden.add("GET configmaps")
        wait(reader.problems)
        assert "ConfigMap shop/size" in reader.problems()[0]
        assert data() == {"a": "2"}
        server.forbidden.clear()
        server.delete("ConfigMap", "shop", "size")
        wait(lambda: data() is None)
        assert reader.problems() == []
        reader.want([])
        wait(lambda: data() is None)
    finally:
        reader.stop()
        api.close()

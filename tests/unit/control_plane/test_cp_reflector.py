"""List and watch against an API server that has good and bad days."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cp_support import pod, policy
from fake_api import FakeApi

from control_plane.kubernetes.kinds import KINDS
from mesh.errors import ConfigError, Unavailable
from mesh.kube import reflector as module
from mesh.kube.api import Api, ApiError
from mesh.kube.backoff import Backoff
from mesh.kube.kinds import Kind, unpack
from mesh.kube.reflector import Reflector
from mesh.manifest import Key

POD = next(k for k in KINDS if k.name == "Pod")
POLICY = next(k for k in KINDS if k.name == "AuthorizationPolicy")


class Recorder:
    """A sink and an observer that remember."""

    def __init__(self) -> None:
        self.objects: dict[Key, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.restarts = 0
        self.relists = 0

    def replace(self, kind: Kind, objects: Mapping[Key, bytes]) -> None:
        self.objects = {k: unpack(d) for k, d in objects.items()}
        self.calls.append(("replace", kind.name))

    def put(self, kind: Kind, key: Key, data: bytes) -> None:
        self.objects[key] = unpack(data)
        self.calls.append(("put", key.name))

    def remove(self, kind: Kind, key: Key) -> None:
        self.objects.pop(key, None)
        self.calls.append(("remove", key.name))

    def watch_restarted(self, kind: str) -> None:
        self.restarts += 1

    def relisted(self, kind: str) -> None:
        self.relists += 1

    @property
    def names(self) -> list[str]:
        return sorted(k.name for k in self.objects)


def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.01)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST", 0.02)
    monkeypatch.setattr(module, "MOST", 0.1)
    monkeypatch.setattr(module, "FORBIDDEN", 0.1)
    monkeypatch.setattr(module, "DISCOVER", 0.1)
    monkeypatch.setattr(module, "_CONFIRM_PAUSE", 0.05)
    monkeypatch.setattr(module, "_HEALTHY", 0.0)


@pytest.fixture
def server(fast: None) -> Iterator[FakeApi]:
    api = FakeApi().start()
    yield api
    if api._server is not None:
        api.stop()


class Running:
    def __init__(self, server: FakeApi, folder: Path, kind: Kind = POD) -> None:
        self.sink = Recorder()
        self.api = Api.load(server.kubeconfig(folder))
        self.reflector = Reflector(self.api, kind, self.sink, self.sink)
        self.reflector.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.reflector.stop()
        self.reflector.join(5)
        self.api.close()


def test_lists_then_follows(server: FakeApi, tmp_path: Path) -> None:
    """What is there, what comes, what changes and what goes."""
    server.put(pod("a"))
    with Running(server, tmp_path) as r:
        wait(lambda: r.reflector.listed)
        assert r.sink.names == ["a"]
        server.put(pod("b"))
        wait(lambda: r.sink.names == ["a", "b"])
        server.put(pod("b", ip="10.9.9.9"))
        key = Key("Pod", "shop", "b")
        wait(lambda: r.sink.objects[key]["status"]["podIPs"] == [{"ip": "10.9.9.9"}])
        server.delete("Pod", "shop", "a")
        wait(lambda: r.sink.names == ["b"])
    assert r.sink.calls.count(("replace", "Pod")) == 1


def test_goes_on_where_it_was_cut(server: FakeApi, tmp_path: Path) -> None:
    """A broken watch resumes: nothing is listed again and nothing is missed."""
    with Running(server, tmp_path) as r:
        wait(lambda: r.reflector.listed)
        for i in range(5):
            wait(lambda: server.watches)
            server.cut()
            server.put(pod(f"p{i}"))
            wait(lambda i=i: f"p{i}" in r.sink.names)
    assert r.sink.calls.count(("replace", "Pod")) == 1
    assert r.sink.restarts >= 5
    assert r.sink.relists == 0


def test_bookmarks_keep_the_place_young(server: FakeApi, tmp_path: Path) -> None:
    """After a bookmark the history before it is not needed any more."""
    server.put(pod("a"))
    with Running(server, tmp_path) as r:
        wait(lambda: server.watches)
        server.bookmark("Pod")
        bookmark = server.rv
        wait(lambda: r.reflector._resource_version == str(bookmark))
        server.compact("Pod")
        server.oldest[("", "pods")] = bookmark
        server.cut()
        server.put(pod("b"))
        wait(lambda: r.sink.names == ["a", "b"])
    watched = [q for _, _, q in server.asked("GET", "/pods") if q.get("watch")]
    assert watched[-1]["resourceVersion"] == str(bookmark)
    assert all(q["allowWatchBookmarks"] == "true" for q in watched)
    assert r.sink.relists == 0


def test_forgotten_history_is_listed_again(server: FakeApi, tmp_path: Path) -> None:
    """410: the list takes the place of the watch, and what was deleted meanwhile is gone."""
    for name in ("a", "b", "c"):
        server.put(pod(name))
    with Running(server, tmp_path) as r:
        wait(lambda: server.watches)
        port = server.port
        server.stop()
        server.delete("Pod", "shop", "b")
        server.put(pod("d"))
        server.compact("Pod")
        assert server.port == port
        server.start()
        wait(lambda: r.sink.names == ["a", "c", "d"])
    assert r.sink.relists == 1
    assert r.sink.calls.count(("replace", "Pod")) == 2


def test_an_absent_server_changes_nothing(server: FakeApi, tmp_path: Path) -> None:
    """Away and back: what was read stays, and is brought up to date without a list."""
    server.put(pod("a"))
    with Running(server, tmp_path) as r:
        wait(lambda: server.watches)
        server.stop()
        wait(lambda: r.reflector.problem)
        assert "stays" in r.reflector.problem
        assert r.sink.names == ["a"]
        server.put(pod("b"))
        server.start()
        wait(lambda: r.sink.names == ["a", "b"])
        wait(lambda: not r.reflector.problem)
    assert r.sink.calls.count(("replace", "Pod")) == 1


def test_permission_denied_is_said_and_tried_again(server: FakeApi, tmp_path: Path) -> None:
    """403 names the missing verbs; when they are given, reading begins."""
    server.forbidden.add("pods")
    server.put(pod("a"))
    with Running(server, tmp_path) as r:
        wait(lambda: "list and watch on pods" in r.reflector.problem)
        assert not r.reflector.listed
        server.forbidden.clear()
        wait(lambda: r.sink.names == ["a"])
        assert r.reflector.problem == ""


def test_an_outage_is_over_for_a_kind_that_is_not_installed_too(
    server: FakeApi, tmp_path: Path
) -> None:
    """Not being there is no problem, so none may stay."""
    del server.served["security.istio.io", "authorizationpolicies"]
    with Running(server, tmp_path, kind=POLICY) as r:
        wait(lambda: r.reflector.listed)
        server.stop()
        wait(lambda: r.reflector.problem)
        server.start()
        wait(lambda: not r.reflector.problem)
        assert not r.reflector.served


def test_a_server_that_forgot_the_roles_for_a_moment_is_asked_again_soon(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has just started refuses what it allowed before."""
    monkeypatch.setattr(module, "FORBIDDEN", 60.0)
    server.put(pod("a"))
    with Running(server, tmp_path) as r:
        wait(lambda: r.sink.names == ["a"])
        server.stop()
        server.forbidden.add("pods")
        server.start()
        wait(lambda: "list and watch on pods" in r.reflector.problem)
        server.forbidden.clear()
        wait(lambda: not r.reflector.problem)


def test_pages_and_a_page_that_is_too_late(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long lists come in pages; when the rest is forgotten, all comes at once."""
    monkeypatch.setattr(module, "PAGE", 10)
    for i in range(35):
        server.put(pod(f"p{i:02}"))
    with Running(server, tmp_path) as r:
        wait(lambda: r.reflector.listed)
        assert len(r.sink.names) == 35
    lists = [q for _, _, q in server.asked("GET", "/pods") if not q.get("watch")]
    assert [q.get("limit") for q in lists] == ["10"] * 4
    original, server.requests = server._list, []

    def expire(parsed: Any, query: dict[str, str]) -> Any:
        if "continue" in query:
            server.compact("Pod")
        return original(parsed, query)

    monkeypatch.setattr(server, "_list", expire)
    with Running(server, tmp_path) as r:
        wait(lambda: r.reflector.listed)
        assert len(r.sink.names) == 35
    lists = [q for _, _, q in server.asked("GET", "/pods") if not q.get("watch")]
    assert ["continue" in q for q in lists] == [False, True, False]
    assert "limit" not in lists[-1]


def test_a_kind_that_is_not_installed_is_picked_up(server: FakeApi, tmp_path: Path) -> None:
    """Without its CRD a kind holds up nobody; installed, it is read; removed, its objects go."""
    key = ("security.istio.io", "authorizationpolicies")
    kind, _ = server.served.pop(key)
    with Running(server, tmp_path, POLICY) as r:
        wait(lambda: r.reflector.listed)
        assert not r.reflector.served
        server.served[key] = (kind, ("v1beta1",))
        server.put(policy("p"))
        wait(lambda: r.sink.names == ["p"])
        assert r.reflector.version == "v1beta1"
        assert next(iter(r.sink.objects.values()))["apiVersion"] == "security.istio.io/v1beta1"
        del server.served[key]
        wait(lambda: r.sink.names == [])
        assert not r.reflector.served
        server.served[key] = (kind, ("v1",))
        wait(lambda: r.sink.names == ["p"])


def test_a_404_for_a_moment_takes_no_policy_away(server: FakeApi, tmp_path: Path) -> None:
    """An API server that starts may not know a CRD yet: objects stay until that is certain."""
    server.put(policy("p"))
    with Running(server, tmp_path, POLICY) as r:
        wait(lambda: server.watches)
        key = ("security.istio.io", "authorizationpolicies")
        kind = server.served.pop(key)
        asked = len(server.asked("GET", "/apis/security.istio.io/v1"))
        wait(lambda: len(server.asked("GET", "/apis/security.istio.io/v1")) > asked + 1)
        assert r.sink.names == ["p"]
        server.served[key] = kind
        server.put(policy("q"))
        wait(lambda: r.sink.names == ["p", "q"])
    assert all(call != ("remove", "p") for call in r.sink.calls)


def test_nonsense_on_the_wire_is_survived(server: FakeApi, tmp_path: Path) -> None:
    """An object without a name is skipped; an error that comes again and again is listed past."""
    server.put(pod("a"))
    with Running(server, tmp_path) as r:
        wait(lambda: server.watches)
        server.raw("Pod", "ADDED", {"metadata": {"labels": 7, "namespace": "shop"}})
        server.raw("Pod", "ERROR", {"code": 500, "reason": "InternalError", "message": "x"})
        server.put(pod("b"))
        wait(lambda: r.sink.names == ["a", "b"])
    assert r.sink.relists == 1


def test_stopping_ends_a_silent_watch_at_once(server: FakeApi, tmp_path: Path) -> None:
    """A watch without events does not hold up the end."""
    with Running(server, tmp_path) as r:
        wait(lambda: server.watches)
        began = time.monotonic()
        r.reflector.stop()
        r.reflector.join(5)
        assert time.monotonic() - began < 1
        assert not any(t.name == "watch-pods" for t in threading.enumerate())


def test_errors_of_the_api_have_status_reason_and_words(server: FakeApi, tmp_path: Path) -> None:
    """Refusals carry Kubernetes' own words; no answer at all is Unavailable."""
    api = Api.load(server.kubeconfig(tmp_path))
    with pytest.raises(ApiError, match=r"404 page not found \(404 NotFound\)") as e:
        api.request("GET", "/apis/nothing.example/v1/things")
    assert (e.value.status, e.value.reason) == (404, "NotFound")
    server.stop()
    with pytest.raises(Unavailable, match="the API server at http://127"):
        api.request("GET", "/api/v1/pods")
    api.close()


def test_no_configuration_is_one_clear_error(tmp_path: Path) -> None:
    """A file that is missing or no kubeconfig names the option."""
    with pytest.raises(ConfigError, match="--kubeconfig"):
        Api.load(tmp_path / "nothing")
    (tmp_path / "bad").write_text("kind: [")
    with pytest.raises(ConfigError, match="--kubeconfig"):
        Api.load(tmp_path / "bad")


def test_what_is_kept_of_objects() -> None:
    """Named parts by a template, everything but noise without one; the size shows it."""
    full = pod("a", labels={"app": "a"})
    full["metadata"]["managedFields"] = [{"manager": "x", "fieldsV1": {"f": "y" * 5000}}]
    full["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = "z" * 999
    full["spec"]["containers"] = [
        {"name": "c", "image": "i", "env": [{"name": "E"}], "ports": [{"containerPort": 80}]}
    ]
    full["spec"]["volumes"] = [{"name": "v"}]
    key, data = POD.pack(full, "v1")
    kept = unpack(data)
    assert key == Key("Pod", "shop", "a")
    assert (kept["apiVersion"], kept["kind"]) == ("v1", "Pod")
    assert kept["spec"] == {
        "nodeName": "n1",
        "serviceAccountName": "default",
        "containers": [{"ports": [{"containerPort": 80}]}],
    }
    assert kept["metadata"] == {
        "name": "a",
        "namespace": "shop",
        "uid": "uid-a",
        "labels": {"app": "a"},
        "annotations": {"ambient.istio.io/redirection": "enabled"},
    }
    assert len(data) < 700
    rule = policy("p", rules=[{}])
    rule["metadata"].update(managedFields=[1], resourceVersion="7", uid="u", generation=3)
    rule["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "istio.io/dry-run": "true",
    }
    _, data = POLICY.pack(rule, "v1")
    assert unpack(data)["metadata"] == {
        "name": "p",
        "namespace": "shop",
        "uid": "u",
        "generation": 3,
        "annotations": {"istio.io/dry-run": "true"},
    }
    assert unpack(data)["spec"] == {"rules": [{}]}


def test_backoff_doubles_is_spread_and_ends() -> None:
    """From half to one and a half of a doubling pause, up to the most."""
    low, high = Backoff(1, 10, lambda: 0.0), Backoff(1, 10, lambda: 0.999)
    assert [low.next() for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert max(high.next() for _ in range(100)) < 15
    low.reset()
    assert low.next() == 0.5

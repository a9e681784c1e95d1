"""Answering the CNI plugin: sockets and descriptors are real, namespaces and capture are not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput, MeshError, NotFound, Unavailable
from mesh.kube.api import ApiError
from mesh.ports import LABEL_DATAPLANE_MODE
from node_agent import cni_server
from node_agent.cni_protocol import MAX_ANSWER, decode_request_untrusted, encode_answer
from node_agent.cni_server import CniServer
from node_agent.enquiry import Enquiry, Found
from node_agent.metrics import Metrics
from node_agent.pod_object import PodObject, read

UID = "0b0a7a53-4a2c-4d0b-9b6e-0d3f5c1f4a11"
POD = {"namespace": "shop", "name": "cart", "uid": UID, "sandbox": "c0ffee"}
ADD = {"command": "ADD", "pod": POD, "addresses": ["10.1.2.3", "fd00::3", "10.1.2.4"]}


# ---- protocol ------------------------------------------------------------------------------------


def test_a_request() -> None:
    """The first address of each family counts."""
    found = decode_request_untrusted(json.dumps(ADD).encode())
    assert (found.command, found.title, found.uid, found.sandbox) == (
        "ADD",
        "shop/cart",
        UID,
        "c0ffee",
    )
    assert found.addresses == ("10.1.2.3", "fd00::3")
    assert decode_request_untrusted(b'{"command": "GC", "valid": ["a"]}').command == "GC"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"command": "RUN"}, "none of"),
        ({"pod": None}, "without a pod"),
        ({"pod": POD | {"name": "../etc"}}, "pod.name"),
        ({"pod": POD | {"namespace": ""}}, "pod.namespace"),
        ({"pod": POD | {"uid": "a b"}}, "pod.uid"),
        ({"pod": POD | {"sandbox": None}}, "pod.sandbox"),
        ({"addresses": []}, "addresses"),
        ({"addresses": ["x"]}, "addresses"),
        ({"addresses": ["10.0.0.1"] * 65}, "addresses"),
    ],
)
def test_bad_requests_say_what_is_wrong(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        decode_request_untrusted(json.dumps(ADD | change).encode())


@given(st.binary(max_size=200), st.integers(0, 250))
def test_any_bytes(noise: bytes, at: int) -> None:
    """A request, cut and corrupted, is one or BadInput."""
    whole = json.dumps(ADD).encode()
    with contextlib.suppress(BadInput):
        decode_request_untrusted(whole[:at] + noise + whole[at + len(noise) // 2 :])


def test_answers_fit_what_the_plugin_reads() -> None:
    assert len(encode_answer(error="\u4e16" * 100_000)) < MAX_ANSWER


# ---- enquiry -------------------------------------------------------------------------------------


class FakeApi:
    """Objects by path; an error instead when there is one for the path."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.asked: list[str] = []

    def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
        self.asked.append(path)
        found = self.objects.get(path, ApiError(404, "NotFound", "no"))
        if isinstance(found, Exception):
            raise found
        return dict(found)


class Cache:
    def __init__(self) -> None:
        self.pods: dict[str, PodObject] = {}
        self.namespaces: dict[str, dict[str, Any]] = {}

    def pod(self, uid: str) -> PodObject | None:
        return self.pods.get(uid)

    def namespace(self, name: str) -> dict[str, Any] | None:
        return self.namespaces.get(name)


NAMESPACE = "/api/v1/namespaces/shop"
PATH = f"{NAMESPACE}/pods/cart"


def labelled(mode: str = "") -> dict[str, Any]:
    return {"metadata": {"name": "shop", "labels": {LABEL_DATAPLANE_MODE: mode} if mode else {}}}


def cart(uid: str = UID, **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "cart", "namespace": "shop", "uid": uid} | metadata}


def ask(api: FakeApi, cache: Cache, **change: str) -> Found | None:
    async def body() -> Found | None:
        enquiry = Enquiry(api, cache)  # type: ignore[arg-type]
        request = decode_request_untrusted(json.dumps(ADD | {"pod": POD | change}).encode())
        try:
            return await enquiry.ask(request)
        finally:
            enquiry.close()

    return asyncio.run(body())


@pytest.fixture
def api() -> FakeApi:
    made = FakeApi()
    made.objects = {NAMESPACE: labelled("ambient"), PATH: cart()}
    return made


@pytest.fixture
def cache() -> Cache:
    return Cache()


def test_the_api_server_knows_before_the_watch(api: FakeApi, cache: Cache) -> None:
    """The namespace is asked for even though the watch has it: the watch may be behind."""
    cache.namespaces["shop"] = labelled()
    found = ask(api, cache)
    assert found is not None
    assert (found.pod.uid, found.wanted) == (UID, True)
    cache.pods[UID] = read(cart(labels={LABEL_DATAPLANE_MODE: "none"}))
    found = ask(api, cache)
    assert found is not None
    assert not found.wanted
    assert api.asked == [NAMESPACE, PATH, NAMESPACE]


def test_the_mesh_s_own_and_the_cluster_s_own_are_not_asked_for(api: FakeApi, cache: Cache) -> None:
    assert ask(api, cache, namespace="kube-system") is None
    assert ask(api, cache, namespace="istio-system") is None
    assert api.asked == []


def test_another_pod_of_the_name_or_none(api: FakeApi, cache: Cache) -> None:
    """kubelet starts a pod that was deleted, or deleted and made again, meanwhile."""
    api.objects[PATH] = cart("another")
    with pytest.raises(NotFound, match=f"shop/cart with uid {UID}"):
        ask(api, cache)
    del api.objects[PATH]
    with pytest.raises(NotFound):
        ask(api, cache)
    assert ask(api, cache, uid="a" * 32) is not None, "a static pod before its mirror"


def test_a_server_that_is_away(api: FakeApi, cache: Cache) -> None:
    """What was last read decides; without it nobody knows."""
    api.objects[NAMESPACE] = Unavailable("the API server is away")
    with pytest.raises(Unavailable, match="namespace shop"):
        ask(api, cache)
    cache.namespaces["shop"] = labelled("ambient")
    cache.pods[UID] = read(cart())
    found = ask(api, cache)
    assert found is not None
    assert found.wanted


def test_pods_that_start_together_ask_for_their_namespace_once(api: FakeApi, cache: Cache) -> None:
    async def body() -> None:
        enquiry = Enquiry(api, cache)  # type: ignore[arg-type]
        cache.pods[UID] = read(cart())
        request = decode_request_untrusted(json.dumps(ADD).encode())
        await asyncio.gather(*(enquiry.ask(request) for _ in range(50)))
        enquiry.close()

    asyncio.run(body())
    assert len(api.asked) == 1


# ---- server --------------------------------------------------------------------------------------


class Node:
    """Enquiry, sandboxes and capture in one; descriptors that are brought are kept open."""

    def __init__(self) -> None:
        self.wanted = True
        self.error: MeshError | None = None
        self.brought: dict[str, int] = {}
        self.dropped: list[str] = []
        self.looks = 0
        self.is_free = asyncio.Event()

    async def ask(self, request: Any) -> Found | None:
        if self.error:
            raise self.error
        return Found(read(cart()), self.wanted)

    def bring(self, pod: PodObject, sandbox: str, netns: int, addresses: tuple[str, ...]) -> str:
        self.brought[sandbox] = netns
        return f"path of {sandbox}"

    def drop(self, sandbox: str) -> None:
        self.dropped.append(sandbox)
        if sandbox in self.brought:
            os.close(self.brought.pop(sandbox))

    def changed(self) -> None:
        pass

    async def captured(self, uid: str, netns: str) -> None:
        await self.is_free.wait()

    def obstacle(self, uid: str) -> str:
        return "no ztunnel is connected"

    def is_captured(self, uid: str) -> bool:
        return self.is_free.is_set()

    def look(self) -> None:
        self.looks += 1


class Rig:
    def __init__(self, node: Node, path: Path, server: CniServer) -> None:
        self.node, self.path, self.server = node, path, server

    async def connect(self, request: object = ADD, fds: int = 1) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(self.path))
        sock.setblocking(False)
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(fds)]
        data = request if isinstance(request, bytes) else json.dumps(request).encode()
        socket.send_fds(sock, [data], held)
        for fd in held:
            os.close(fd)
        return sock

    async def answer(self, sock: socket.socket) -> dict[str, Any]:
        async with asyncio.timeout(5):
            data = await asyncio.get_running_loop().sock_recv(sock, MAX_ANSWER)
        sock.close()
        return dict(json.loads(data)) if data else {}

    async def ask(self, request: object = ADD, fds: int = 1) -> dict[str, Any]:
        return await self.answer(await self.connect(request, fds))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(cni_server, "check_namespace", lambda fd, path: None)
    monkeypatch.setattr(cni_server, "check_addresses", lambda fd, path, addresses: None)

    def runner(body: Callable[[Rig], Awaitable[None]], timeout: float = 5.0) -> None:
        async def main() -> None:
            node = Node()
            path = tmp_path / "cni.sock"
            server = CniServer(
                path,
                node,  # type: ignore[arg-type]
                node,
                node,
                Metrics(),
                node.look,
                timeout,
            )
            server.open()
            await body(Rig(node, path, server))
            await server.close()
            for fd in node.brought.values():
                os.close(fd)

        before = len(os.listdir("/proc/self/fd"))
        asyncio.run(main())
        assert len(os.listdir("/proc/self/fd")) == before, "descriptors leaked"

    return runner


def test_a_pod_of_the_mesh_waits_for_its_capture(run: Callable[..., None]) -> None:
    async def body(rig: Rig) -> None:
        sock = await rig.connect()
        await asyncio.sleep(0.1)
        assert list(rig.node.brought) == ["c0ffee"]
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        rig.node.is_free.set()
        assert await rig.answer(sock) == {"captured": True, "error": ""}
        assert rig.node.dropped == []

    run(body)


def test_other_pods_are_let_go_at_once(run: Callable[..., None]) -> None:
    async def body(rig: Rig) -> None:
        rig.node.wanted = False
        assert await rig.ask() == {"captured": False, "error": ""}
        assert rig.node.brought == {}

    run(body)


def test_hundreds_at_once(run: Callable[..., None]) -> None:
    async def body(rig: Rig) -> None:
        socks = [await rig.connect(ADD | {"pod": POD | {"sandbox": f"s{i}"}}) for i in range(300)]
        rig.node.is_free.set()
        answers = await asyncio.gather(*(rig.answer(s) for s in socks))
        assert all(a["captured"] for a in answers)

    run(body)


def test_a_capture_that_takes_too_long_is_refused_and_let_go(run: Callable[..., None]) -> None:
    async def body(rig: Rig) -> None:
        answer = await rig.ask()
        assert "no ztunnel is connected" in answer["error"]
        assert rig.node.dropped == ["c0ffee"]

    run(body, timeout=0.05)


def test_a_plugin_that_hangs_up_is_not_waited_for(run: Callable[..., None]) -> None:
    async def body(rig: Rig) -> None:
        sock = await rig.connect()
        await asyncio.sleep(0.1)
        sock.close()
        await asyncio.sleep(0.1)
        assert rig.node.dropped == ["c0ffee"]

    run(body)


def test_an_agent_that_ends_answers_nothing(run: Callable[..., None]) -> None:
    """The plugin asks the next one then; what was brought is let go."""

    async def body(rig: Rig) -> None:
        sock = await rig.connect()
        await asyncio.sleep(0.1)
        await rig.server.close()
        assert await rig.answer(sock) == {}
        assert rig.node.dropped == ["c0ffee"]

    run(body)


def test_what_nobody_can_say_is_refused(run: Callable[..., None]) -> None:
    async def body(rig: Rig) -> None:
        rig.node.error = Unavailable("the API server is away")
        assert (await rig.ask())["error"] == "the API server is away"

    run(body)


@pytest.mark.parametrize(
    ("request_", "fds", "complaint"),
    [(b"{", 1, "JSON"), (ADD, 0, "0 descriptors"), (ADD, 2, "2 descriptors")],
)
def test_bad_requests_are_answered(
    run: Callable[..., None], request_: object, fds: int, complaint: str
) -> None:
    async def body(rig: Rig) -> None:
        assert complaint in (await rig.ask(request_, fds))["error"]
        rig.node.is_free.set()
        assert (await rig.ask())["captured"]

    run(body)


def test_the_other_commands(run: Callable[..., None]) -> None:
    async def body(rig: Rig) -> None:
        check = {"command": "CHECK", "pod": POD}
        assert "no ztunnel" in (await rig.ask(check, 0))["error"]
        rig.node.is_free.set()
        assert (await rig.ask(check, 0))["captured"]
        rig.node.wanted = False
        assert not (await rig.ask(check, 0))["captured"]
        assert (await rig.ask({"command": "DEL", "pod": POD}, 0))["error"] == ""
        assert rig.node.dropped == ["c0ffee"]
        await rig.ask({"command": "GC"}, 0)
        assert rig.node.looks == 1

    run(body)


def test_only_root_is_let_in(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket's rights say so already; the kernel's word counts."""

    class Stranger:
        size = 12

        @staticmethod
        def unpack(data: bytes) -> tuple[int, int, int]:
            return 1, 1000, 1000

    monkeypatch.setattr(cni_server, "_UCRED", Stranger)

    async def body(rig: Rig) -> None:
        assert os.stat(rig.path).st_mode & 0o777 == 0o600
        assert "only root" in (await rig.ask())["error"]
        assert rig.node.brought == {}

    run(body)

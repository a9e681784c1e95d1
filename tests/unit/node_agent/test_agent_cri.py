"""Asking the container runtime: answers of containerd and CRI-O, and a runtime that is away."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import BadInput, Unavailable
from mesh.pb import cri_pb2, cri_pb2_grpc
from node_agent.cri import Runtime, first_of_each_family, read_status_untrusted

INFO = {
    "pid": 4711,
    "runtimeSpec": {
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/cni-1"}],
        }
    },
    "config": {"log_directory": "/var/log/pods/shop_web_u-1"},
}


def status(info: object = INFO, **network: Any) -> cri_pb2.PodSandboxStatusResponse:
    answer = cri_pb2.PodSandboxStatusResponse()
    answer.status.id = "c0ffee"
    answer.status.metadata.uid = "u-1"
    answer.status.network.ip = network.get("ip", "10.1.2.3")
    for ip in network.get("more", ["fd00::3"]):
        answer.status.network.additional_ips.add(ip=ip)
    if info is not None:
        answer.info["info"] = info if isinstance(info, str) else json.dumps(info)
    return answer


def test_a_verbose_status() -> None:
    """Process, namespace, addresses and logs."""
    facts = read_status_untrusted(status())
    assert (facts.sandbox, facts.uid, facts.pid) == ("c0ffee", "u-1", 4711)
    assert facts.netns == "/run/netns/cni-1"
    assert facts.addresses == ("10.1.2.3", "fd00::3")
    assert facts.logs == "/var/log/pods/shop_web_u-1"
    assert not facts.host_network


def test_a_sandbox_on_the_host_s_network() -> None:
    """It has no namespace of its own to capture."""
    answer = status({"pid": 1})
    answer.status.linux.namespaces.options.network = cri_pb2.NODE
    facts = read_status_untrusted(answer)
    assert facts.host_network
    assert facts.netns == ""


@pytest.mark.parametrize("info", [None, "", "[", "[]", '"x"', "1"])
def test_no_verbose_information(info: object) -> None:
    """Nothing is guessed."""
    with pytest.raises(BadInput, match="verbose"):
        read_status_untrusted(status(info))


@pytest.mark.parametrize(
    "info", [{}, {"pid": "1"}, {"pid": -1, "runtimeSpec": []}, {"runtimeSpec": {"linux": 3}}]
)
def test_odd_information_names_nothing(info: dict[str, Any]) -> None:
    """What has another shape is taken for absent."""
    facts = read_status_untrusted(status(info))
    assert (facts.pid, facts.netns) == (0, "")


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """BadInput or facts, nothing else."""
    answer = status(data.decode("latin-1"))
    with contextlib.suppress(BadInput):
        read_status_untrusted(answer)


def test_first_address_of_each_family() -> None:
    """As kubelet shows them; nonsense is left out."""
    assert first_of_each_family(["x", "10.0.0.1", "10.0.0.2", "FD00::0:1", ""]) == (
        "10.0.0.1",
        "fd00::1",
    )


class Service(cri_pb2_grpc.RuntimeServiceServicer):
    def Version(self, request: Any, context: Any) -> cri_pb2.VersionResponse:
        return cri_pb2.VersionResponse(runtime_name="containerd", runtime_version="2.3.0")

    def ListPodSandbox(self, request: Any, context: Any) -> cri_pb2.ListPodSandboxResponse:
        assert request.filter.state.state == cri_pb2.SANDBOX_READY
        answer = cri_pb2.ListPodSandboxResponse()
        for sandbox, uid, state in (("a", "u-1", 0), ("b", "u-2", 1), ("", "u-3", 0), ("d", "", 0)):
            answer.items.add(
                id=sandbox, metadata=cri_pb2.PodSandboxMetadata(uid=uid), state=state, created_at=7
            )
        return answer

    def PodSandboxStatus(self, request: Any, context: Any) -> cri_pb2.PodSandboxStatusResponse:
        assert request.verbose
        if request.pod_sandbox_id == "gone":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such sandbox")
        if request.pod_sandbox_id == "broken":
            context.abort(grpc.StatusCode.INTERNAL, "disk on fire")
        return status()


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    cri_pb2_grpc.add_RuntimeServiceServicer_to_server(Service(), server)
    server.add_insecure_port(f"unix://{tmp_path}/cri.sock")
    server.start()
    yield tmp_path / "cri.sock"
    server.stop(None)


def test_a_runtime_that_answers(socket: Path) -> None:
    """Only ready sandboxes with an id and a pod count; one that is gone is no error."""
    runtime = Runtime(socket)
    assert runtime.version() == "containerd 2.3.0"
    assert [(s.sandbox, s.uid, s.created) for s in runtime.ready()] == [("a", "u-1", 7)]
    facts = runtime.facts("a")
    assert facts is not None
    assert facts.pid == 4711
    assert runtime.facts("gone") is None
    with pytest.raises(Unavailable, match="disk on fire"):
        runtime.facts("broken")
    runtime.close()


def test_a_runtime_that_is_away(tmp_path: Path) -> None:
    """The error names the socket."""
    runtime = Runtime(tmp_path / "nobody.sock")
    with pytest.raises(Unavailable, match=r"nobody\.sock"):
        runtime.ready()
    runtime.close()

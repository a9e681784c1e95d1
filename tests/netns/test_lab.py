"""The lab itself, without the mesh: what the other tests stand on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, cleanup
from lab.errors import LabError
from lab.layout import Layout
from mesh.errors import MeshError
from tests.netns.mesh_objects import TOOL, client, line, namespace, pod, server

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def deployment(name: str, replicas: int, command: list[str], probe: int | None) -> dict[str, Any]:
    """A Deployment in `plain`, spread over the nodes."""
    container: dict[str, Any] = {"name": "app", "command": command}
    if probe:
        container["readinessProbe"] = {"tcpSocket": {"port": probe}, "periodSeconds": 1}
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "plain"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def objects() -> list[dict[str, Any]]:
    return [
        namespace("plain", captured=False),
        *client("plain", "client", "node1"),
        *server("plain", "server", "node2"),
        deployment("web", 2, [sys.executable, TOOL, "serve"], 9000),
    ]


def wait_for(what: str, seen: Callable[[], Any], seconds: float = 15) -> Any:
    """Poll until seen() is true."""
    deadline = time.monotonic() + seconds
    while not (value := seen()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


def pids(command: str) -> list[str]:
    """Processes with exactly this command line."""
    done = subprocess.run(["pgrep", "-fx", command], capture_output=True, text=True)
    return done.stdout.split()


def names(lab: Lab, app: str) -> set[str]:
    return {
        p["metadata"]["name"]
        for p in lab.pods()
        if p["metadata"].get("labels", {}).get("app") == app
    }


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("t-lab", mesh=False) as made:
        made.up(objects())
        yield made


def who(lab: Lab, host: str) -> dict[str, Any]:
    done = lab.exec("plain/client", [sys.executable, TOOL, "who", host])
    assert done.returncode == 0, done.stderr
    return line(done.stdout)


def addresses(lab: Lab, name: str) -> list[str]:
    return [i["ip"] for i in lab.get("Pod", "plain", name)["status"]["podIPs"]]


# ---- life ------------------------------------------------------------------------------------


def test_up_and_down_leave_nothing_behind() -> None:
    """No namespace, control group, pin, folder or process of it is left."""
    lab = Lab("t-gone", mesh=False)
    try:
        lab.up([namespace("plain", False), *pod("plain", "a", "node1", ["sleep", "7654321"])])
        assert cleanup.remains(lab.layout)
    finally:
        lab.down()
    assert cleanup.remains(lab.layout) == []
    assert "t-gone" not in cleanup.known()
    assert not pids("sleep 7654321")
    lab.down()  # and again


def test_a_killed_manager_takes_its_pods_along_and_the_next_up_cleans() -> None:
    """kill -9: nothing goes on running, and the second start finds no trace of the first."""
    lab = Lab("t-killed", mesh=False)
    nested = ["sh", "-c", "sleep 7654322 & wait"]
    wanted = [namespace("plain", False), *pod("plain", "a", "node1", nested)]
    try:
        lab.up(wanted)
        dns = lab.components()["dns"]["pid"]
        os.kill(int(lab.layout.lock.read_text()), signal.SIGKILL)
        wait_for("the manager's end", lambda: not lab.live)
        wait_for("the end of cluster DNS", lambda: not Path(f"/proc/{dns}").exists(), 2)
        assert not pids("sleep 7654322")
        lab.up(wanted)  # needs no --replace: the lab is dead
        assert len(pids("sleep 7654322")) == 1
    finally:
        lab.down()
    assert cleanup.remains(lab.layout) == []


def test_a_live_lab_is_not_replaced_by_accident(lab: Lab) -> None:
    """The error names the lab and the ways on."""
    with pytest.raises(LabError, match=r"t-lab.*--replace"), Lab("t-lab", mesh=False) as second:
        second.up(objects())
    assert lab.live


def test_two_labs_stand_side_by_side(lab: Lab) -> None:
    """The same addresses in both, and each answers for itself."""
    with Lab("t-second", mesh=False) as second:
        second.up(objects())
        assert addresses(lab, "client") == addresses(second, "client")
        for each in (lab, second):
            assert who(each, "server")["seen"]["peer"] in addresses(each, "client")
        second.delete([p for p in objects() if p["metadata"]["name"] == "server"])
    assert who(lab, "server")


def test_a_failed_up_says_which_pod_and_why_and_leaves_nothing() -> None:
    """A command that does not exist; the log's tail is in the message."""
    lab = Lab("t-failed", mesh=False)
    with pytest.raises(LabError) as error, lab:
        lab.up([namespace("plain", False), *pod("plain", "broken", "node1", ["no-such-thing"])])
    assert "plain/broken" in str(error.value)
    assert "no-such-thing: not found" in str(error.value)
    assert cleanup.remains(lab.layout) == []


@pytest.mark.parametrize("spec", [{"nodeName": "mars"}, {"nodeSelector": {"disk": "ssd"}}])
def test_a_pod_that_fits_no_node_is_named(spec: dict[str, Any]) -> None:
    """At once, not after the timeout."""
    made = pod("plain", "lost", "x", ["sleep", "infinity"])
    del made[1]["spec"]["nodeName"]
    made[1]["spec"] |= spec
    began = time.monotonic()
    with pytest.raises(LabError, match=r"plain/lost: .*(mars|disk)"):
        Lab("t-lost", mesh=False).up([namespace("plain", False), *made])
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("name", ["a-p-b", "x-cp", "Upper", "a_b", "n-n", "-a", "a" * 40])
def test_names_that_could_be_mistaken_are_refused(name: str) -> None:
    """A lab's parts must not look like another lab."""
    with pytest.raises(LabError, match="lab name"):
        Lab(name)


# ---- inside ----------------------------------------------------------------------------------


def test_exec_carries_stdin_stdout_and_exit_code(lab: Lab) -> None:
    """From Python and from the command line."""
    done = lab.exec("plain/client", ["sh", "-c", "cat; echo err >&2; exit 7"], input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "err\n")
    command = [sys.executable, "-m", "cli.main", "lab", "exec", "plain/client", "--name", "t-lab"]
    shell = subprocess.run(
        [*command, "--", "sh", "-c", "cat; exit 7"], input="in\n", capture_output=True, text=True
    )
    assert (shell.returncode, shell.stdout) == (7, "in\n"), shell.stderr


def test_a_command_that_does_not_exist_exits_127(lab: Lab) -> None:
    """As in a shell."""
    assert lab.exec("plain/client", ["no-such-thing"]).returncode == 127


def test_a_process_sees_its_pod(lab: Lab) -> None:
    """Environment, addresses, control group, hosts and resolver are the pod's own."""
    script = "echo $POD_NAMESPACE/$POD_NAME $POD_IP $NODE_NAME; cat /etc/hosts /etc/resolv.conf"
    done = lab.exec("plain/client", ["sh", "-c", f"{script}; cat /proc/self/cgroup"])
    address = addresses(lab, "client")[0]
    assert f"plain/client {address} node1" in done.stdout
    assert f"{address}\tclient" in done.stdout
    assert "search plain.svc.cluster.local" in done.stdout
    assert "/ambit/t-lab/node1/pods/" in done.stdout


def test_unknown_pods_and_components_are_errors_that_help(lab: Lab) -> None:
    """They name what there is."""
    with pytest.raises(MeshError, match="client"):
        lab.exec("plain/nobody", ["true"])
    with pytest.raises(MeshError, match="dns"):
        lab.restart("nothing")
    with pytest.raises(MeshError, match="manager"):
        lab.logs("nothing")


def test_logs_are_the_pods_output(lab: Lab) -> None:
    """Both streams, as they come."""
    lab.apply(pod("plain", "talker", "node1", ["sh", "-c", "echo out; echo err >&2; sleep 600"]))
    wait_for("both lines", lambda: {"out", "err"} <= set(_log(lab, "plain/talker").split()))
    lab.delete(pod("plain", "talker", "node1", []))


def _log(lab: Lab, what: str) -> str:
    try:
        return lab.logs(what)
    except MeshError:
        return ""


def test_capture_sees_the_fabric(lab: Lab) -> None:
    """Packets between nodes, from the first one on."""
    capture = lab.capture("node1", ["-nn", "-i", "eth0", "tcp port 9005"])
    who(lab, addresses(lab, "server")[0])
    time.sleep(0.3)
    capture.terminate()
    text = capture.communicate(timeout=10)[0]
    assert f"{addresses(lab, 'client')[0]}." in text
    assert "Flags [S]" in text


# ---- network ---------------------------------------------------------------------------------


def test_pods_reach_each_other_unchanged(lab: Lab) -> None:
    """No address translation between pods, over both families."""
    for theirs, mine in zip(addresses(lab, "server"), addresses(lab, "client"), strict=True):
        answer = who(lab, theirs)
        assert answer["peer"][0] == theirs
        assert answer["seen"]["peer"].removeprefix("::ffff:") == mine


@pytest.mark.parametrize("family", [4, 6])
def test_services_answer_by_name_over_both_families(lab: Lab, family: int) -> None:
    """DNS name to virtual address to pod."""
    name = "server.plain.svc.cluster.local"
    done = lab.exec("plain/client", ["getent", f"ahostsv{family}", name])
    vip = done.stdout.split()[0]
    assert vip in lab.get("Service", "plain", "server")["spec"]["clusterIPs"]
    assert (":" in vip) == (family == 6)
    assert who(lab, vip)["peer"][0] == vip


def test_short_names_are_searched(lab: Lab) -> None:
    """As a pod's programs expect it."""
    for name in ("server", "server.plain", "server.plain.svc"):
        assert lab.exec("plain/client", ["getent", "hosts", name]).returncode == 0


def test_unknown_names_do_not_exist_at_once(lab: Lab) -> None:
    """Inside the cluster's domain and outside of it."""
    began = time.monotonic()
    for name in ("nobody.plain", "example.com"):
        assert lab.exec("plain/client", ["getent", "hosts", name]).returncode == 2
    assert time.monotonic() - began < 3


def test_cluster_dns_answers_over_tcp_too(lab: Lab) -> None:
    """Through its Service address."""
    code = (
        "import socket,struct,sys;q=b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0';"
        "q+=b''.join(bytes([len(p)])+p.encode() for p in "
        "'server.plain.svc.cluster.local'.split('.'))+b'\\0\\0\\1\\0\\1';"
        "s=socket.create_connection(('10.96.0.10',53),3);s.sendall(struct.pack('!H',len(q))+q);"
        "a=s.recv(4096);print(socket.inet_ntoa(a[-4:]))"
    )
    done = lab.exec("plain/client", [sys.executable, "-c", code])
    assert done.stdout.strip() in lab.get("Service", "plain", "server")["spec"]["clusterIPs"]


def test_a_pod_reaches_itself_through_its_service(lab: Lab) -> None:
    """The way there and back is the node's."""
    done = lab.exec("plain/server", [sys.executable, TOOL, "who", "server"])
    assert done.returncode == 0, done.stderr


def test_a_service_without_ready_pods_refuses(lab: Lab) -> None:
    """Refused, not a timeout; and never sent anywhere else."""
    lone = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "lone", "namespace": "plain"},
        "spec": {"selector": {"app": "nobody"}, "ports": [{"port": 80}]},
    }
    lab.apply([lone])
    try:
        vip = wait_for(
            "a VIP", lambda: lab.get("Service", "plain", "lone")["spec"].get("clusterIP")
        )
        lab.wait_ready()
        began = time.monotonic()
        done = lab.exec("plain/client", ["curl", "-sS", "-m5", f"http://{vip}/"])
        assert done.returncode == 7, done.stderr
        assert time.monotonic() - began < 2
    finally:
        lab.delete([lone])


def test_headless_services_name_their_pods(lab: Lab) -> None:
    """All ready pods' addresses, no virtual one."""
    headless = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "each", "namespace": "plain"},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 9000}]},
    }
    lab.apply([headless])
    lab.wait_ready()
    try:
        done = lab.exec("plain/client", ["getent", "ahostsv4", "each"])
        found = {row.split()[0] for row in done.stdout.splitlines()}
        assert found == {addresses(lab, n)[0] for n in names(lab, "web")}
    finally:
        lab.delete([headless])


# ---- change ----------------------------------------------------------------------------------


def test_apply_and_delete_change_what_runs(lab: Lab) -> None:
    """A pod comes and goes; nothing of it is left."""
    extra = pod("plain", "extra", "node2", ["sleep", "7654323"])
    lab.apply(extra)
    lab.wait_ready()
    netns = Path("/run/netns", Layout("t-lab").pod_netns("plain", "extra"))
    uid = lab.get("Pod", "plain", "extra")["metadata"]["uid"]
    runtime = lab.layout.runtime("node2") / f"{uid}.json"
    known = json.loads(runtime.read_text())
    assert known["netns"] == str(netns)
    assert netns.exists()
    lab.delete(extra)
    wait_for("the sandbox gone", lambda: not netns.exists() and not runtime.exists())
    assert not Path(known["cgroup"]).exists()
    assert not pids("sleep 7654323")


def test_scaling_adds_and_removes_pods(lab: Lab) -> None:
    """Up, down, and back."""
    for wanted in (4, 1, 2):
        lab.scale("plain", "web", wanted)
        lab.wait_ready()
        assert len(names(lab, "web")) == wanted


def test_relabelling_a_pod_takes_it_out_of_its_service(lab: Lab) -> None:
    """A Service follows labels, not names; the pod itself is not restarted."""
    uid = lab.get("Pod", "plain", "server")["metadata"]["uid"]
    lab.label("Pod", "plain", "server", {"app": "other"})
    lab.wait_ready()
    curl = ["curl", "-sS", "-m3", "--http0.9", "http://server:9002/"]
    assert lab.exec("plain/client", curl).returncode == 7
    lab.label("Pod", "plain", "server", {"app": "server"})
    lab.wait_ready()
    assert who(lab, "server")
    assert lab.get("Pod", "plain", "server")["metadata"]["uid"] == uid


def test_a_new_template_rolls_over_without_a_gap(lab: Lab) -> None:
    """There are always as many ready pods as wanted while all are replaced."""
    before = names(lab, "web")
    changed = deployment("web", 2, [sys.executable, TOOL, "serve"], 9000)
    changed["spec"]["template"]["metadata"]["annotations"] = {"version": "2"}
    lab.apply([changed])
    fewest = 2

    def rolled() -> bool:
        nonlocal fewest
        status = lab.get("Deployment", "plain", "web")["status"]
        fewest = min(fewest, status["readyReplicas"])
        return not names(lab, "web") & before

    wait_for("all pods replaced", rolled, 30)
    lab.wait_ready()
    assert len(names(lab, "web")) == 2
    assert fewest == 2


def test_the_spec_of_a_pod_that_runs_cannot_change(lab: Lab) -> None:
    """The error says what to do instead."""
    with pytest.raises(LabError, match="delete the pod first"):
        lab.apply(pod("plain", "client", "node1", ["sleep", "1"]))
    assert any("unchanged" in text for text in lab.apply(client("plain", "client", "node1")))


def test_a_crashing_container_is_started_again_with_growing_pauses(lab: Lab) -> None:
    """The count is in its status, and it does not spin."""
    crash = pod("plain", "crash", "node1", ["sh", "-c", "exit 3"])
    lab.apply(crash)
    try:

        def restarts() -> int:
            status = lab.get("Pod", "plain", "crash").get("status", {})
            return sum(c["restartCount"] for c in status.get("containerStatuses", []))

        wait_for("restarts", lambda: restarts() >= 3)
        count = restarts()
        time.sleep(1)
        assert restarts() <= count + 1
    finally:
        lab.delete(crash)


def test_a_component_killed_is_back_at_once(lab: Lab) -> None:
    """Cluster DNS, the one component a lab without a mesh has."""
    before = lab.components()["dns"]["pid"]
    after = lab.restart("dns", kill=True)
    assert after != before
    wait_for("names", lambda: lab.exec("plain/client", ["getent", "hosts", "server"]).stdout)
    assert lab.restart("dns") != after


def test_a_file_dropped_by_hand_counts(lab: Lab) -> None:
    """The folder is the API: no command is needed."""
    path = lab.layout.objects / "mine.yaml"
    path.write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: byhand, namespace: later}\n"
        "spec:\n  containers: [{name: a, command: [sleep, infinity]}]\n"
    )
    try:
        wait_for("the pod", lambda: any(p["metadata"]["name"] == "byhand" for p in lab.pods()))
        lab.wait_ready()
        assert lab.exec("later/byhand", ["true"]).returncode == 0
    finally:
        path.unlink()
        wait_for("its end", lambda: all(p["metadata"]["name"] != "byhand" for p in lab.pods()))


def test_nonsense_dropped_by_hand_harms_nobody(lab: Lab) -> None:
    """Objects the lab cannot work with are left alone, and the log says why; others go on."""
    path = lab.layout.objects / "nonsense.yaml"
    path.write_text(
        "\n---\n".join(
            f"kind: {kind}\nmetadata: {{name: bad, namespace: plain}}\nspec: {spec}"
            for kind, spec in (
                ("Pod", "{}"),
                ("Service", "{ports: [{port: x}], clusterIPs: 7}"),
                ("Deployment", "{replicas: many}"),
            )
        )
    )
    try:
        for kind in ("Pod", "Service", "Deployment"):
            wait_for(kind, lambda k=kind: f"{k} plain/bad is left alone" in lab.logs("manager"))  # type: ignore[misc]
        assert who(lab, "server")
    finally:
        path.unlink()
    lab.wait_ready()


def test_a_deleted_namespace_takes_its_objects_along(lab: Lab) -> None:
    """And is not made again for their sake."""
    lab.apply([namespace("brief", False), *pod("brief", "a", "node1", ["sleep", "infinity"])])
    lab.wait_ready()
    lab.delete([namespace("brief", False)])
    wait_for("the pod gone", lambda: all(p["metadata"]["namespace"] != "brief" for p in lab.pods()))
    time.sleep(0.3)
    assert lab.store.get("Namespace", None, "brief") is None

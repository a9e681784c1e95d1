"""Names, addresses, tokens and objects of a lab."""

from __future__ import annotations

import stat
from pathlib import Path

import jwt
import pytest

from lab import objects, tokens
from lab.errors import LabError
from lab.layout import Layout, NodeAddress, check_name
from mesh.store import FolderStore

SUBJECT = tokens.Subject("istio-system", "ztunnel", "u1", "ztunnel-n1", "u2", "n1", "u3")


def test_one_labs_namespaces_are_not_anothers() -> None:
    """For every pair of names that check_name lets through here."""
    labs = [Layout(check_name(n)) for n in ("a", "a-b", "b", "ab", "pn", "n")]
    for one in labs:
        for other in labs:
            made = [other.prefix, other.control_plane_netns]
            made += [other.node_netns("node1"), other.pod_netns("b-p-b", "x")]
            assert all(one.owns_netns(n) == (one is other) for n in made)


def test_long_pod_names_are_shortened_and_stay_apart() -> None:
    """A file name has 255 bytes."""
    layout = Layout("a")
    one, two = (layout.pod_netns("n" * 63, "p" * 240 + end) for end in "xy")
    assert one != two
    assert len(one) == len(two) == 200
    assert layout.owns_netns(one)


def test_addresses_are_the_contracts() -> None:
    """Node 3 and its pod 10."""
    node = NodeAddress(3)
    assert (node.v4, node.v6) == ("10.99.1.3", "fd00:10:99::1:3")
    assert (node.pod_v4(10), node.pod_v6(10)) == ("10.244.3.10", "fd00:10:244:3::a")


def test_tokens_carry_what_kubernetes_projects(tmp_path: Path) -> None:
    """Verified with the public half, as the control plane does it."""
    private, public = tmp_path / "key", tmp_path / "pub"
    tokens.create_key(private, public)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    now = 4_000_000_000.0
    token = tokens.sign(private.read_text(), SUBJECT, now)
    claims = jwt.decode(
        token, public.read_text(), algorithms=["ES256"], audience="istio-ca",
        options={"verify_nbf": False, "verify_iat": False},
    )  # fmt: skip
    assert claims["sub"] == "system:serviceaccount:istio-system:ztunnel"
    assert claims["exp"] == now + tokens.LIFETIME
    assert claims["kubernetes.io"]["pod"] == {"name": "ztunnel-n1", "uid": "u2"}
    assert claims["kubernetes.io"]["node"] == {"name": "n1", "uid": "u3"}


def test_a_token_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    """Readers never see half of one."""
    path = tmp_path / "token"
    tokens.write(path, "one")
    before = path.stat().st_ino
    tokens.write(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("word", "kind"),
    [("pods", "Pod"), ("svc", "Service"), ("deploy", "Deployment"), ("Pod", "Pod"),
     ("authorizationpolicies", "AuthorizationPolicy"), ("ns", "Namespace"), ("Odd", "Odd")],
)  # fmt: skip
def test_kinds_by_the_words_people_type(word: str, kind: str) -> None:
    """Plural, short, or as it is."""
    assert objects.kind_of(word) == kind


def test_files_with_mistakes_are_named_with_their_line(tmp_path: Path) -> None:
    """Nothing is applied from them."""
    path = tmp_path / "bad.yaml"
    path.write_text("kind: Pod\nmetadata: {name: a}\n---\nkind: [\n")
    with pytest.raises(LabError, match=r"bad\.yaml:\d"):
        objects.read([path])
    with pytest.raises(LabError, match=r"nowhere\.yaml: No such file"):
        objects.read([tmp_path / "nowhere.yaml"])


def pod(**spec: object) -> dict[str, object]:
    spec = {"containers": [{"name": "c"}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def test_what_the_cluster_filled_in_is_kept(tmp_path: Path) -> None:
    """An object applied again need not repeat it; but another spec of a pod is refused."""
    store = FolderStore(tmp_path)
    assert objects.apply(store, objects.read([pod(hostname="a", nodeName="n1")])[0]) == "created"
    assert objects.apply(store, objects.read([pod(hostname="a")])[0]) == "unchanged"
    kept = store.get("Pod", "default", "p")
    assert kept is not None
    assert kept["spec"]["nodeName"] == "n1"
    with pytest.raises(LabError, match=r"default/p.*Deployment"):
        objects.apply(store, objects.read([pod(hostname="b")])[0])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"containers": None}, "spec.containers is missing"),
        ({"containers": [{"name": "c", "command": "sleep 1"}]}, "containers[0].command is not a"),
        ({"nodeName": 5}, "spec.nodeName is 5"),
        ({"containers": [{"name": "c", "env": [{"name": "A", "value": 1}]}]}, "env[0].value is 1"),
        ({"containers": [{"name": "c", "readinessProbe": {"tcpSocket": {}}}]}, "port is missing"),
        ({"terminationGracePeriodSeconds": True}, "Seconds is True"),
    ],
)
def test_objects_that_cannot_work_are_refused_with_the_field(
    spec: dict[str, object], said: str
) -> None:
    """As an API server would, for the fields that the lab uses."""
    with pytest.raises(LabError, match="Pod default/p") as error:
        objects.read([pod(**spec)])
    assert said in str(error.value)

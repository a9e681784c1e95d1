"""EndpointSlices rule who backs a Service, wherever there are any."""

from __future__ import annotations

from typing import Any

from cp_support import pod, service

from control_plane.registry import Registry
from control_plane.translate.endpoints import translate_slice
from control_plane.translate.pods import MeshConfig
from mesh.manifest import Key
from mesh.model import Service, Tunnel, Workload
from mesh.model.convert import ADDRESS_TYPE, address_untrusted

S = "shop/s.shop.svc.cluster.local"
A = "Kubernetes//Pod/shop/a"


def key(obj: dict[str, Any]) -> Key:
    return Key(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])


class World:
    def __init__(self, *objects: dict[str, Any]) -> None:
        self.registry = Registry(
            MeshConfig("istio-system", "cluster.local", "Kubernetes", "cluster.local")
        )
        self.apply(*objects)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.registry.update({key(o): o for o in objects}, set())

    def delete(self, *objects: dict[str, Any]) -> None:
        self.registry.update({}, {key(o) for o in objects})

    def members(self, service: str = S) -> tuple[str, ...]:
        return self.registry.snapshot.members.get(service, ())

    def names(self) -> set[str]:
        return set(self.registry.snapshot.resources[ADDRESS_TYPE])

    def workload(self, name: str) -> Workload:
        found = address_untrusted(self.registry.snapshot.resources[ADDRESS_TYPE][name].payload)
        assert not isinstance(found, Service)
        return found

    def ports(self, name: str, service: str = S) -> list[tuple[int, int]]:
        return [(p.service_port, p.target_port) for p in self.workload(name).services[service]]


def endpoint(address: str, of: str = "", ready: bool | None = True, **more: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"addresses": [address], "conditions": {}, **more}
    if ready is not None:
        out["conditions"]["ready"] = ready
    if of:
        out["targetRef"] = {"kind": "Pod", "namespace": "shop", "name": of, "uid": f"uid-{of}"}
    return out


def piece(
    *endpoints: dict[str, Any],
    name: str = "s-1",
    of: str = "s",
    namespace: str = "shop",
    ports: list[dict[str, Any]] | None = None,
    family: str = "IPv4",
) -> dict[str, Any]:
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}] if ports is None else ports,
    }


def test_slices_beat_the_selector_and_give_the_ports() -> None:
    """Who is in the slice is a member, on the slice's port, whatever the labels say."""
    w = World(
        pod("a"),
        pod("b", ip="10.244.1.6", labels={"app": "s"}),
        service("s", "10.96.0.1", {"app": "s"}),
    )
    assert w.members() == ("Kubernetes//Pod/shop/b",)
    w.apply(piece(endpoint("10.244.1.5", "a"), ports=[{"name": "http", "port": 9090}]))
    assert w.members() == (A,)
    assert w.ports(A) == [(80, 9090)]
    w.delete(piece())
    assert w.members() == ("Kubernetes//Pod/shop/b",)
    assert not w.workload(A).services


def test_order_of_arrival_does_not_matter() -> None:
    """Slice, Service and pod may come in any order, and go in any."""
    objects = [
        piece(endpoint("10.244.1.5", "a")),
        service("s", "10.96.0.1", {"app": "s"}),
        pod("a"),
    ]
    for first in range(3):
        w = World()
        for i in range(3):
            assert w.members() == ()
            w.apply(objects[(first + i) % 3])
        assert w.members() == (A,)
        for i in range(3):
            w.delete(objects[(first + i) % 3])
            assert w.members() == ()
        assert w.names() == set()


def test_stale_entries_name_nobody_else() -> None:
    """An entry of an earlier pod of that name or address does not pass to the one there now."""
    w = World(service("s", "10.96.0.1", {"app": "s"}), pod("a"))
    w.apply(piece(endpoint("10.244.1.5", "gone")))
    assert w.members() == ()
    old = endpoint("10.244.1.5", "a")
    old["targetRef"]["uid"] = "uid-of-an-earlier-a"
    w.apply(piece(old))
    assert w.members() == ()
    w.apply(piece(endpoint("10.244.1.99", "a")))
    assert w.members() == ()
    assert w.names() == {S, A}


def test_readiness_of_slice_and_pod() -> None:
    """Not ready for the Service is no member; an unready pod stays one, marked unhealthy."""
    w = World(service("s", "10.96.0.1", {"app": "s"}), pod("a"))
    w.apply(piece(endpoint("10.244.1.5", "a", ready=False)))
    assert w.members() == ()
    w.apply(piece(endpoint("10.244.1.5", "a", ready=None)))
    assert w.members() == (A,)
    unready = pod("a")
    unready["status"]["conditions"][0]["status"] = "False"
    w.apply(unready, piece(endpoint("10.244.1.5", "a", ready=False)))
    assert w.members() == (A,)
    assert not w.workload(A).healthy


def test_published_unready_addresses() -> None:
    """publishNotReadyAddresses takes every entry, and tells clients to use them."""
    s = service("s", "10.96.0.1", {"app": "s"})
    s["spec"]["publishNotReadyAddresses"] = True
    w = World(s, pod("a"), piece(endpoint("10.244.1.5", "a", ready=False)))
    assert w.members() == (A,)


def test_terminating_pods_stay_members_but_unhealthy() -> None:
    """A draining pod gets no new connections; its membership ends with its entry."""
    leaving = pod("a")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    entry = endpoint("10.244.1.5", "a", ready=False)
    entry["conditions"].update(serving=True, terminating=True)
    w = World(service("s", "10.96.0.1", {"app": "s"}), leaving, piece(entry))
    assert not w.workload(A).healthy
    w.apply(piece())
    assert w.members() == ()


def test_finished_pods_are_gone_although_listed() -> None:
    """A pod in a terminal phase leaves, even where a slice still has it."""
    done = pod("a")
    done["status"]["phase"] = "Succeeded"
    w = World(service("s", "10.96.0.1", {"app": "s"}), done, piece(endpoint("10.244.1.5", "a")))
    assert w.names() == {S}
    assert w.members() == ()


def test_selectorless_service_of_plain_addresses() -> None:
    """An address that no pod has is a workload without identity, and not known by its address."""
    s = service("s", "10.96.0.1", {})
    w = World(s, piece(endpoint("192.0.2.7"), endpoint("192.0.2.8", ready=False), name="s-x"))
    (name,) = w.members()
    assert name == "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s-x/192.0.2.7"
    found = w.workload(name)
    assert (found.addresses, found.tunnel) == (("192.0.2.7",), Tunnel.NONE)
    assert w.ports(name) == [(80, 8080)]
    assert "/192.0.2.7" not in w.registry.snapshot.aliases
    w.apply(piece(endpoint("192.0.2.9"), name="s-x"))
    assert w.members() == ("Kubernetes/discovery.k8s.io/EndpointSlice/shop/s-x/192.0.2.9",)
    w.delete(s)
    assert w.names() == set()


def test_plain_address_of_a_pod_is_the_pod() -> None:
    """A hand-written entry that names a pod's address means that pod, identity and all."""
    w = World(service("s", "10.96.0.1", {}), piece(endpoint("10.244.1.5")))
    (plain,) = w.members()
    assert plain.startswith("Kubernetes/discovery.k8s.io/")
    w.apply(pod("a"))
    assert w.members() == (A,)
    assert plain not in w.names()
    w.delete(pod("a"))
    assert w.members() == (plain,)


def test_one_plain_address_of_two_services() -> None:
    """Two slices that name one address make one workload of both services."""
    t = service("t", "10.96.0.2", {}, namespace="other")
    entries = piece(endpoint("192.0.2.7"), of="t", namespace="other", name="t-1")
    w = World(service("s", "10.96.0.1", {}), t, piece(endpoint("192.0.2.7")), entries)
    assert w.members() == w.members("other/t.other.svc.cluster.local")
    assert len(w.members()) == 1
    w.delete(entries)
    assert w.members() == ("Kubernetes/discovery.k8s.io/EndpointSlice/shop/s-1/192.0.2.7",)
    assert w.members("other/t.other.svc.cluster.local") == ()


def test_host_network_pods_are_told_apart_by_reference() -> None:
    """Pods that share their node's address are members by targetRef alone."""
    w = World(
        service("s", "10.96.0.1", {"app": "s"}),
        pod("a", ip="10.0.0.1", hostNetwork=True),
        pod("b", ip="10.0.0.1", hostNetwork=True),
        piece(endpoint("10.0.0.1", "b")),
    )
    assert w.members() == ("Kubernetes//Pod/shop/b",)
    assert w.workload("Kubernetes//Pod/shop/b").host_network


def test_dual_stack_headless_service() -> None:
    """Two families are two slices and one member; without a VIP nothing but members is there."""
    both = pod("a")
    both["status"]["podIPs"] = [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}]
    s = service("s", "None", {"app": "s"})
    s["spec"].update(clusterIPs=["None"], ipFamilies=["IPv4", "IPv6"])
    six = piece(endpoint("fd00::5", "a"), name="s-6", family="IPv6")
    w = World(s, both, piece(endpoint("10.244.1.5", "a"), name="s-4"), six)
    assert w.members() == (A,)
    assert w.ports(A) == [(80, 8080)]
    w.delete(piece(name="s-4"))
    assert w.members() == (A,)
    w.delete(six)
    assert w.members() == ()


def test_ports_by_name() -> None:
    """Ports meet by name; UDP is not ours; no number means the Service's own."""
    s = service("s", "10.96.0.1", {})
    s["spec"]["ports"] = [
        {"name": "http", "port": 80, "targetPort": "web"},
        {"name": "raw", "port": 81},
        {"name": "dns", "port": 53},
        {"name": "dns-udp", "port": 53, "protocol": "UDP"},
    ]
    ports = [
        {"name": "http", "port": 8081, "protocol": "TCP"},
        {"name": "raw", "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    w = World(s, pod("a"), piece(endpoint("10.244.1.5", "a"), ports=ports))
    assert w.ports(A) == [(80, 8081), (81, 81)]
    s["spec"]["ports"] = [{"port": 80}]
    w.apply(s, piece(endpoint("10.244.1.5", "a"), ports=[{"name": "", "port": 1234}]))
    assert w.ports(A) == [(80, 1234)]


def test_odd_slices_are_read_as_far_as_they_go() -> None:
    """No Service, DNS names, rubbish where a list should be: nothing, and nothing breaks."""
    nobody = piece(endpoint("10.244.1.5"))
    nobody["metadata"]["labels"] = {}
    assert translate_slice(nobody) is None
    assert translate_slice(piece(endpoint("db.example"), family="FQDN")) is None
    odd = piece(endpoint("not an address"), {"addresses": None}, {"conditions": 7})
    odd["ports"] = 9
    record = translate_slice(odd)
    assert record is not None
    assert record.endpoints == ()


def test_a_change_of_a_slice_touches_its_difference_only() -> None:
    """One more endpoint encodes one more workload again, not all members."""
    entries = [endpoint(f"10.244.1.{i}", f"p{i}") for i in range(1, 40)]
    w = World(
        service("s", "10.96.0.1", {}),
        *(pod(f"p{i}", ip=f"10.244.1.{i}") for i in range(1, 40)),
        piece(*entries[:-1]),
    )
    before = w.registry.snapshot.resources[ADDRESS_TYPE]
    w.apply(piece(*entries))
    after = w.registry.snapshot.resources[ADDRESS_TYPE]
    assert [n for n in after if after[n] is not before[n]] == ["Kubernetes//Pod/shop/p39"]


def test_churn_leaves_nothing_behind() -> None:
    """Pods, accounts and slices that come and go leave no index entries."""
    w = World(service("s", "10.96.0.1", {}))
    for i in range(50):
        p = pod(f"p{i}", ip=f"10.244.1.{i}", account=f"sa{i}", namespace="shop")
        entry = piece(endpoint(f"10.244.1.{i}", f"p{i}"), endpoint(f"192.0.2.{i}"), name=f"s-{i}")
        w.apply(p, entry)
        w.delete(p, entry)
    r = w.registry
    assert (r._pods, r._accounts, r._holders, r._workloads) == ({}, {}, {}, {})
    assert (r.snapshot.members, r.snapshot.aliases.keys()) == ({}, {"/10.96.0.1"})
    assert (r._endpoints._slices, r._endpoints._services, r._endpoints._addresses) == ({}, {}, {})

"""What the state finds, and what it says a change touched."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from dataclasses import replace

from mesh.model import Action, Authorization, Port, Scope, Service, Workload
from mesh.model.convert import address_untrusted, workload_to_pb
from ztunnel.state import Effects, State, endpoint_port

HOST = "web.shop.svc.cluster.local"
WEB = Service("web", "shop", HOST, vips=("10.96.0.1",), ports=(Port(80, 8080),))
POD = Workload(
    "c//Pod/shop/web-1",
    "web-1",
    "shop",
    ("10.244.1.5",),
    "web",
    services={WEB.key: (Port(80, 8080),)},
)


def state(*values: Workload | Service | Authorization) -> State:
    s = State()
    for v in values:
        if isinstance(v, Authorization):
            s.set_policy(v, Effects())
        else:
            s.set_address(v.uid if isinstance(v, Workload) else v.key, v, Effects())
    return s


def policy(name: str, scope: Scope, namespace: str = "shop") -> Authorization:
    return Authorization(name, namespace, scope, Action.DENY)


def test_finds_by_vip_and_address() -> None:
    """Exact addresses, of their own network alone."""
    s = state(WEB, POD)
    assert s.service_at("", "10.96.0.1", "any") == WEB
    assert s.service_at("other", "10.96.0.1", "any") is None
    assert s.workload_at("", "10.244.1.5") == POD
    assert s.workload_at("", "10.244.1.6") is None


def test_longest_cidr_wins_and_an_exact_vip_before_all() -> None:
    """Address blocks nest; v4 and v6 do not mix."""
    wide = Service("wide", "a", "wide", cidrs=("10.0.0.0/8", "fd00::/16"))
    narrow = Service("narrow", "a", "narrow", cidrs=("10.1.0.0/16",))
    s = state(wide, narrow, replace(WEB, vips=("10.1.2.3",)))
    assert s.service_at("", "10.2.0.1", "").name == "wide"  # type: ignore[union-attr]
    assert s.service_at("", "10.1.0.1", "").name == "narrow"  # type: ignore[union-attr]
    assert s.service_at("", "10.1.2.3", "").name == "web"  # type: ignore[union-attr]
    assert s.service_at("", "fd00::5", "").name == "wide"  # type: ignore[union-attr]
    assert s.service_at("", "fe00::5", "") is None
    s.remove_address(narrow.key, Effects())
    assert s.service_at("", "10.1.0.1", "").name == "wide"  # type: ignore[union-attr]


def test_of_services_with_one_vip_the_own_namespace_then_the_canonical() -> None:
    """Several ServiceEntries may claim a VIP."""
    one = replace(WEB, namespace="a")
    canonical = replace(WEB, namespace="b", canonical=True)
    s = state(one, canonical)
    assert s.service_at("", "10.96.0.1", "a") == one
    assert s.service_at("", "10.96.0.1", "z") == canonical


def test_endpoints_may_come_before_their_service_and_leave_it() -> None:
    """Order of arrival does not matter; a workload that changes services leaves the old one."""
    s = state(POD)
    assert list(s.endpoints(WEB.key)) == [POD]
    s.set_address(WEB.key, WEB, Effects())
    s.set_address(POD.uid, replace(POD, services={}), Effects())
    assert list(s.endpoints(WEB.key)) == []


def test_endpoint_port_prefers_the_workloads_own() -> None:
    """Named target ports differ from pod to pod."""
    other = replace(POD, services={WEB.key: (Port(80, 9999),)})
    assert endpoint_port(other, WEB, 80) == 9999
    assert endpoint_port(replace(POD, services={WEB.key: ()}), WEB, 80) == 8080
    assert endpoint_port(POD, WEB, 81) == 0


def test_address_shared_on_a_host_is_the_pods_own() -> None:
    """A pod beats host-network workloads at its address; several of those are nobody."""
    host = replace(POD, uid="h1", name="h1", host_network=True)
    s = state(host, POD)
    assert s.workload_at("", "10.244.1.5") == POD
    assert state(host).workload_at("", "10.244.1.5") == host
    assert state(host, replace(host, uid="h2")).workload_at("", "10.244.1.5") is None


def test_local_pod_is_found_by_name_and_account() -> None:
    """A pod of the right name but another service account is not it."""
    s = state(POD)
    assert s.workload_named("shop", "web-1", "web") == POD
    assert s.workload_named("shop", "web-1", "default") is None


def test_removing_forgets_everything() -> None:
    """No index keeps a removed workload, service or policy."""
    everywhere = policy("p", Scope.GLOBAL)
    s = state(WEB, POD, everywhere, policy("q", Scope.NAMESPACE))
    for name in (WEB.key, POD.uid):
        s.remove_address(name, Effects())
    for key in ("shop/p", "shop/q"):
        s.remove_policy(key, Effects())
    empty = State()
    for name in vars(empty):
        assert getattr(s, name) == getattr(empty, name), name


def test_effective_policies() -> None:
    """GLOBAL ones, the namespace's, and listed ones that exist; each once."""
    s = state(
        policy("g", Scope.GLOBAL, "istio-system"),
        policy("n", Scope.NAMESPACE),
        policy("other", Scope.NAMESPACE, "else"),
        policy("w", Scope.WORKLOAD_SELECTOR),
        policy("unlisted", Scope.WORKLOAD_SELECTOR),
    )
    keys = [p.key for p in s.policies_of("shop", ("shop/w", "shop/unknown"))]
    assert keys == ["istio-system/g", "shop/n", "shop/w"]


def test_policy_that_changes_scope_moves() -> None:
    """An update may turn a namespace's policy into a selector's; both are noted."""
    s = state(policy("p", Scope.NAMESPACE))
    effects = Effects()
    s.set_policy(policy("p", Scope.WORKLOAD_SELECTOR), effects)
    assert s.policies_of("shop", ()) == ()
    assert effects.namespaces == {"shop"}
    assert effects.policies == {"shop/p"}


def test_changes_say_old_and_new_places() -> None:
    """An address that moves touches both ends, and the services on both sides."""
    s = state(WEB, POD)
    effects = Effects()
    s.set_address(POD.uid, replace(POD, addresses=("10.244.1.9",), services={}), effects)
    assert {"/10.244.1.5", "/10.244.1.9", POD.uid, WEB.key} <= effects.touched


def test_inbound_service_is_guessed_by_host_then_port() -> None:
    """The host that the client named, else a service with that target port, else none."""
    admin = Service("admin", "shop", "admin", ports=(Port(1, 9090),))
    pod = replace(POD, services={WEB.key: (Port(80, 8080),), admin.key: ()})
    s = state(WEB, admin, pod)
    assert s.service_behind(pod, 9090) == admin
    assert s.service_behind(pod, 9090, HOST) == WEB
    assert s.service_behind(pod, 1234) is None


def test_a_workload_costs_what_is_stated() -> None:
    """Memory per workload, with its services and indexes, stays under 3 kB."""
    count = 2000
    raw = [
        workload_to_pb(
            replace(
                POD,
                uid=f"Kubernetes//Pod/ns-{i % 20}/app-{i // 5}-{i:05x}",
                name=f"app-{i // 5}-{i:05x}",
                namespace=f"ns-{i % 20}",
                addresses=(f"10.{i % 250}.{i // 250}.7",),
                workload_name=f"app-{i // 5}",
                canonical_name=f"app-{i // 5}",
                services={f"ns-{i % 20}/app-{i // 5}.svc": (Port(80, 8080),)},
            )
        ).SerializeToString()
        for i in range(count)
    ]
    s = State()
    gc.collect()
    tracemalloc.start()
    for each in raw:
        w = address_untrusted(each)
        assert isinstance(w, Workload)
        s.set_address(w.uid, w, Effects())
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sys.stderr.write(f"{used / count:.0f} bytes a workload\n")
    assert used / count < 3000

"""What routes of a mesh are told about parents and backends, and what works in spite of it."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model import Port
from tests.unit.waypoint.mesh_conformance import CONSUMER, NS, Mesh, service
from tests.unit.waypoint.mesh_conformance_objects import grant, mesh, route, to, under

OTHER = "gateway-conformance-web-backend"
ACCEPTED = (True, "Accepted")
RESOLVED = (True, "ResolvedRefs")


def with_other(*texts: str) -> Mesh:
    """The mesh with a service `web` in another namespace."""
    m = Mesh(service("web", OTHER, (Port(8080, 8080, 1),)), service("web2", OTHER))
    for text in texts:
        m.apply(text)
    return m


def told(m: Mesh, text: str, **state: Any) -> dict[str, tuple[bool, str]]:
    """Apply one route; what its first parent says."""
    return m.parent(m.apply(text)[0], **state)


def said(m: Mesh, text: str, condition: str) -> str:
    """Apply one route; the message of a condition of its first parent."""
    conditions = m.status(m.apply(text)[0]).parents[0].conditions
    return next(c.message for c in conditions if c.type == condition)


# A port that each kind may be at.
KINDS = [("HTTPRoute", 80), ("GRPCRoute", 7070), ("TLSRoute", 443), ("TCPRoute", 9090)]


@pytest.mark.parametrize(("kind", "port"), KINDS)
def test_a_good_route(kind: str, port: int) -> None:
    """A route whose parent and backends are there is accepted and resolved."""
    got = told(Mesh(), route(to("echo-v1", 8080), kind=kind, port=port))
    assert got["Accepted"] == ACCEPTED
    assert got["ResolvedRefs"] == RESOLVED
    assert "PartiallyInvalid" not in got


def test_the_parent_is_named_as_it_is_written() -> None:
    """A status entry repeats its parentRef."""
    m = Mesh()
    (key,) = m.apply(route(to("echo-v1")))
    (parent,) = m.status(key).parents
    assert {k: parent.ref[k] for k in ("kind", "name", "port")} == {
        "kind": "Service",
        "name": "echo",
        "port": 80,
    }


def test_nobody_handles_it() -> None:
    """Without a waypoint a route is told that it has no effect; with one, which one it is."""
    m = Mesh()
    (key,) = m.apply(route(to("echo-v1")))

    def text(*bound: str) -> str:
        return " ".join(c.message for c in m.status(key, bound).parents[0].conditions)

    assert "waypoint" in text()
    assert f"{NS}/waypoint" not in text()
    assert f"{NS}/waypoint" in text(f"{NS}/waypoint")


# ---- parents ---------------------------------------------------------------------------------


def test_a_port_that_the_parent_does_not_have() -> None:
    """No such port: no matching parent, and the service's ports go on without routes."""
    m = Mesh()
    assert told(m, route(to("echo-v1"), port=81))["Accepted"] == (False, "NoMatchingParent")
    assert m.ask("echo").backend == "echo:80"


def test_a_parent_that_does_not_exist() -> None:
    """A Service that is not there is no matching parent, until it is there."""
    m = Mesh()
    (key,) = m.apply(route(to("echo-v1"), parent="later"))
    assert m.parent(key)["Accepted"] == (False, "NoMatchingParent")
    later = service("later")
    assert later.key in m.index.put_service(later.key, later)
    assert m.parent(key)["Accepted"] == ACCEPTED
    assert m.ask("later").backend == "echo-v1:8080"
    m.index.put_service(later.key, None)
    assert m.parent(key)["Accepted"] == (False, "NoMatchingParent")


def test_parents_of_others_are_left_to_them() -> None:
    """A parentRef of kind Gateway gets no entry from the mesh."""
    m = Mesh()
    text = route(to("echo-v1")).replace("kind: Service", "kind: Gateway")
    text = text.replace("group: ''", "group: gateway.networking.k8s.io")
    (key,) = m.apply(text)
    assert m.status(key).parents == ()
    assert m.routes("echo") == {}


# ---- backends --------------------------------------------------------------------------------


def test_invalid_nonexistent_backend_ref() -> None:
    """A Service that is not there: 500 for what would go there, and the route says so."""
    m = Mesh()
    got = told(m, route(to("nowhere")))
    assert got["Accepted"] == ACCEPTED
    assert got["ResolvedRefs"] == (False, "BackendNotFound")
    assert m.ask("echo").status == 500


def test_a_port_that_the_backend_does_not_have() -> None:
    """A port that is not there is no backend either."""
    m = Mesh()
    assert told(m, route(to("echo-v1", 81)))["ResolvedRefs"] == (False, "BackendNotFound")
    assert m.ask("echo").status == 500


def test_invalid_backend_ref_unknown_kind() -> None:
    """Only Services are backends."""
    m = Mesh()
    unknown = to("echo-v1", kind="NonExistent", group="unknownkind.example.com")
    got = told(m, route(unknown))
    assert got["Accepted"] == ACCEPTED
    assert got["ResolvedRefs"] == (False, "InvalidKind")
    assert m.ask("echo").status == 500


def test_a_backend_may_come_later() -> None:
    """A route takes effect when its backend appears, and says 500 again when it is gone."""
    m = Mesh()
    (key,) = m.apply(route(to("later")))
    later = service("later")
    assert "echo" in " ".join(m.index.put_service(later.key, later))
    assert m.parent(key)["ResolvedRefs"] == RESOLVED
    assert m.ask("echo").backend == "later:8080"
    m.index.put_service(later.key, None)
    assert m.parent(key)["ResolvedRefs"] == (False, "BackendNotFound")
    assert m.ask("echo").status == 500


def test_a_bad_backend_has_its_share() -> None:
    """A backend that cannot be used keeps its weight: that share of requests gets 500."""
    m = Mesh()
    backends = [
        {"name": "echo-v1", "port": 8080, "weight": 3},
        {"name": "nowhere", "port": 8080, "weight": 1},
    ]
    got = told(m, route({"backendRefs": backends}))
    assert got["ResolvedRefs"] == (False, "BackendNotFound")
    assert m.ask("echo").shares == {"echo-v1:8080": 0.75, "500": 0.25}


def test_omitted_backend_refs() -> None:
    """A rule without backends answers 500, as one whose weights are all 0 does."""
    m = Mesh()
    got = told(m, route({"matches": [under("/none")]}, {**to("echo-v1", weight=0)}))
    assert got["Accepted"] == ACCEPTED
    assert m.ask("echo", "/none").status == 500
    assert m.ask("echo", "/").status == 500


# ---- ReferenceGrants -------------------------------------------------------------------------

CROSS = route(to("web", namespace=OTHER))


def test_invalid_cross_namespace_backend_ref() -> None:
    """A backend of another namespace needs a grant."""
    m = with_other()
    got = told(m, CROSS)
    assert got["Accepted"] == ACCEPTED
    assert got["ResolvedRefs"] == (False, "RefNotPermitted")
    assert m.ask("echo").status == 500


@pytest.mark.parametrize("services", [(), ("web",), ("other", "web")])
def test_reference_grant(services: tuple[str, ...]) -> None:
    """A grant for a service or for all of them lets it through, as long as it is there."""
    m = with_other()
    (key,) = m.apply(CROSS)
    (permit,) = m.apply(grant(OTHER, *services))
    assert m.parent(key)["ResolvedRefs"] == RESOLVED
    assert m.ask("echo").backend == "web:8080"
    assert "echo" in " ".join(m.index.put(permit, None))
    assert m.parent(key)["ResolvedRefs"] == (False, "RefNotPermitted")
    assert m.ask("echo").status == 500


@pytest.mark.parametrize(
    "text",
    [
        grant(NS, "web"),
        grant(OTHER, "web", from_group="not-the-group.example.com"),
        grant(OTHER, "web", from_kind="Gateway"),
        grant(OTHER, "web", from_namespace="elsewhere"),
        grant(OTHER, "web", to_group="not-the-group.example.com"),
        grant(OTHER, "web", to_kind="Secret"),
        grant(OTHER, "not-web"),
    ],
    ids=["where", "from-group", "from-kind", "from-namespace", "to-group", "to-kind", "to-name"],
)
def test_invalid_reference_grant(text: str) -> None:
    """A grant that is wrong in any one field permits nothing."""
    m = with_other(text)
    assert told(m, CROSS)["ResolvedRefs"] == (False, "RefNotPermitted")
    assert m.ask("echo").status == 500


def test_partially_invalid_by_reference_grant() -> None:
    """One rule's backend that is not permitted leaves the other rule working."""
    m = with_other(grant(OTHER, "web"))
    bad = {"matches": [under("/v2")], **to("web2", namespace=OTHER)}
    got = told(m, route(bad, to("web", namespace=OTHER)))
    assert got["Accepted"] == ACCEPTED
    assert got["ResolvedRefs"] == (False, "RefNotPermitted")
    assert m.ask("echo", "/v2").status == 500
    assert m.ask("echo", "/").backend == "web:8080"


def test_consumer_routes_may_name_their_own_backends() -> None:
    """A consumer's backends in its own namespace need no grant; other namespaces' do."""
    m = Mesh(service("mine", CONSUMER), service("web", OTHER))
    text = route(to("mine"), namespace=CONSUMER, name="own")
    assert told(m, text)["ResolvedRefs"] == RESOLVED
    assert m.ask("echo", caller=CONSUMER).backend == "mine:8080"
    text = route(to("web", namespace=OTHER), namespace=CONSUMER, name="own")
    assert told(m, text)["ResolvedRefs"] == (False, "RefNotPermitted")


# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        (
            {"matches": [{"path": {"type": "RegularExpression", "value": "/a("}}]},
            "spec.rules[0].matches[0].path.value",
        ),
        ({"matches": [{"method": "GET it"}]}, "spec.rules[0].matches[0].method"),
        ({"filters": [{"type": "Teleport"}]}, "spec.rules[0].filters[0].type"),
        ({"timeouts": {"request": "soon"}}, "spec.rules[0].timeouts.request"),
    ],
)
def test_a_bad_rule_beside_a_good_one(bad: dict[str, Any], path: str) -> None:
    """What is wrong is named by its path; the good rule keeps working (PartiallyInvalid)."""
    m = Mesh()
    rules = ({**bad, **to("echo-v2")}, {"matches": [under("/good")], **to("echo-v1")})
    text = route(*rules)
    got = told(m, text)
    assert got["Accepted"][0] is True
    assert got["PartiallyInvalid"] == (True, "UnsupportedValue")
    assert path in said(m, text, "PartiallyInvalid")
    assert m.ask("echo", "/good").backend == "echo-v1:8080"


@pytest.mark.parametrize(("kind", "port"), KINDS)
def test_a_route_that_goes(kind: str, port: int) -> None:
    """A route that is deleted leaves its port as if it had never been."""
    m = Mesh()
    (key,) = m.apply(route(to("echo-v1"), kind=kind, port=port))
    assert m.routes("echo") != {}
    assert "echo" in " ".join(m.index.put(key, None))
    assert m.routes("echo") == {}
    assert key not in m.index


def test_two_parents() -> None:
    """Each parent has its own entry, and its own verdict."""
    m = mesh()
    text = route(to("echo-v1")).replace(
        "  parentRefs:\n", "  parentRefs:\n  - {group: '', kind: Service, name: echo-v2, port: 9}\n"
    )
    (key,) = m.apply(text)
    assert [m.parent(key, at)["Accepted"] for at in (0, 1)] == [
        (False, "NoMatchingParent"),
        ACCEPTED,
    ]
    assert m.ask("echo").backend == "echo-v1:8080"

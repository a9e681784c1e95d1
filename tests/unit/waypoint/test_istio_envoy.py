"""Whatever the readers of Istio's objects let through, the real Envoy takes.

One resource that it refuses keeps a waypoint at its last configuration: what is wrong must have
been told, and left out, before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from envoy_verdict import backend, bound_service, verdict
from hostile_rig import EDGES, JUNK, added, edge, places, replaced
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from istio_rig import Mesh as IstioMesh
from istio_rig import service as istio_service
from routes_rig import GRPC, HTTP, TCP, TLS, UNKNOWN
from test_istio_hostile import GOOD_RULE, GOOD_VIRTUAL

from tests.k8s import crd_routing_cases as cases
from waypoint.config.model import Backend, Bound
from waypoint.config.routing import Routes
from waypoint.config.traffic import DEFAULT

_ALL = ((80, HTTP), (90, GRPC), (443, TLS), (5432, TCP), (99, UNKNOWN))


def _istio(specs: Iterable[tuple[str, Any]]) -> tuple[list[Bound], list[Backend]]:
    """What each of these objects, alone in a mesh, comes to."""
    bound, backends = [], []
    for number, (kind, spec) in enumerate(specs):
        names = ("web", "a", "api", "db")
        mesh = IstioMesh(*(istio_service(n, ports=(80, 90, 443, 99)) for n in names))
        mesh.rule({"host": "api", "subsets": [{"name": "v1"}]}, "subsets")
        (mesh.virtual if kind == "VirtualService" else mesh.rule)(spec)
        for name in ("web", "a"):
            traffic = mesh.index.traffic(istio_service(name).key)
            found = bound_service(2 * number + (name == "a"), mesh.routes(name), traffic)
            bound.append(found)
            backends.append(backend(found.service, traffic))
    return bound, backends


@pytest.mark.parametrize("kind", ["VirtualService", "DestinationRule"])
def test_all_that_the_crds_take(tmp_path: Path, kind: str) -> None:
    """And what they refuse, as far as anything of it is in effect."""
    specs = [*cases.GOOD[kind], *(spec for spec, _ in cases.BAD[kind])]
    small = [spec for spec in specs if len(spec.get("http") or ()) < 100]
    taken, said = verdict(tmp_path, *_istio((kind, spec) for spec in small))
    assert taken, said


def test_a_verdict_can_be_no(tmp_path: Path) -> None:
    """So that the others mean something."""
    from waypoint.config.routing import HttpRule, PathMatch, RouteMatch

    mesh = IstioMesh()
    key = mesh.virtual(GOOD_VIRTUAL)
    broken = HttpRule(key, "broken", RouteMatch(PathMatch("regex", "(?=a)")))
    bound = bound_service(1, {80: Routes(http=(broken,))}, DEFAULT)
    taken, said = verdict(tmp_path, [bound])
    assert not taken
    assert "invalid perl operator" in said


def _changed(draw: st.DrawFn, good: dict[str, Any]) -> Any:
    spec: Any = good
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.sampled_from(places(spec)))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            spec = replaced(spec, place, draw(JUNK))
        elif kind == 1:
            spec = added(spec, place, draw(JUNK))
        elif _at(spec, place).__class__ in EDGES:
            spec = edge(draw, spec, place)
    return spec


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@st.composite
def _istio_objects(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from(["VirtualService", "DestinationRule"]))
    return kind, _changed(draw, GOOD_VIRTUAL if kind == "VirtualService" else GOOD_RULE)


# All objects of an example are one configuration: one that was refused would take all with it.
_SETTINGS = settings(
    max_examples=2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
    derandomize=True,
)


@_SETTINGS
@given(objects=st.lists(_istio_objects(), min_size=60, max_size=60))
def test_hostile_istio_objects(
    objects: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    taken, said = verdict(tmp_path_factory.mktemp("envoy"), *_istio(objects))
    assert taken, said

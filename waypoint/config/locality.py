"""Nearby first: which endpoints the pod of a waypoint sends to, by where both are. Pure.

As Istio has it (LocalityLoadBalancerSetting, and Service.spec.trafficDistribution):

- `distribute` shares requests out between places, by weights.
- failover makes groups in an order; the next one gets what the one before it cannot take. Only an
  endpoint that is ejected counts as lost, so it needs outlierDetection; with that alone, the order
  is that of the places: subzone, zone, region, the rest. trafficDistribution needs none: endpoints
  that are gone or not ready are no part of any group.
- What a DestinationRule says of places counts before trafficDistribution.

Where something is, is told by labels: its own, those of its node's place, the node's name and the
cluster's. A pod of a waypoint is known by those labels that somebody asks for, so that all pods of
a zone are one and the same where only zones count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mesh.model import Locality, Service, Workload
from waypoint.config.model import Backend, Endpoint
from waypoint.config.traffic import LocalityBalancing, ServiceTraffic, TrafficPolicy

REGION: Final = "topology.kubernetes.io/region"
ZONE: Final = "topology.kubernetes.io/zone"
SUBZONE: Final = "topology.istio.io/subzone"
NODE: Final = "kubernetes.io/hostname"
CLUSTER: Final = "topology.istio.io/cluster"
TOPOLOGY: Final = frozenset({REGION, ZONE, SUBZONE, NODE, CLUSTER})

# istio.workload.LoadBalancing: scopes by number. All endpoints are of one network.
_SCOPES: Final = {1: REGION, 2: ZONE, 3: SUBZONE, 4: NODE, 5: CLUSTER}
_FAILOVER: Final = 2  # its Mode
_PLACES: Final = frozenset({REGION, ZONE, SUBZONE})
_SCALE: Final = 1000  # a place's weight is shared by its groups, in whole numbers

Place = tuple[tuple[str, str], ...]  # labels, sorted, without empty ones
NOWHERE: Final[Place] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """How places count for a service. priority: (label, the value it must have; None: our own)."""

    distribute: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    priority: tuple[tuple[str, str | None], ...] = ()
    by_place: bool = False  # order by subzone, zone and region, after `priority`
    failover: tuple[tuple[str, str], ...] = ()  # (from region, to region)

    @property
    def keys(self) -> frozenset[str]:
        """The labels of a waypoint's pod that make a difference."""
        own = frozenset(label for label, value in self.priority if value is None)
        return own | _PLACES if self.distribute or self.by_place else own


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints of one locality. weight: among those of its priority; 0 is the highest of these."""

    locality: Locality
    priority: int
    weight: int
    endpoints: tuple[Endpoint, ...]


# ---- what counts ---------------------------------------------------------------------------------


def preference_of(service: Service, policy: TrafficPolicy) -> Preference | None:
    """Say how places count for what a policy is of; None: not at all."""
    asked, failing_over = policy.locality, policy.outliers is not None
    if asked is None:
        scopes = service.load_balancing
        if scopes is not None and scopes.mode == _FAILOVER:
            known = (_SCOPES.get(scope) for scope in scopes.routing_preference)
            return Preference(priority=tuple((label, None) for label in known if label))
        return Preference(by_place=True) if failing_over else None
    if not asked.enabled:
        return None
    if asked.distribute:
        return Preference(distribute=asked.distribute)
    return _failover(asked) if failing_over else None


def _failover(asked: LocalityBalancing) -> Preference:
    return Preference(
        priority=tuple(map(read_priority, asked.failover_priority)),
        by_place=bool(asked.failover) or not asked.failover_priority,
        failover=asked.failover,
    )


def read_priority(text: str) -> tuple[str, str | None]:
    """Read "label" or "label=value"."""
    label, given, value = text.partition("=")
    return label, value if given else None


def keys_of(backend: Backend) -> frozenset[str]:
    """Name the labels of a waypoint's pod that a service's endpoints depend on."""
    found = (preference_of(backend.service, policy) for policy in backend.traffic.policies())
    return frozenset[str]().union(*(p.keys for p in found if p is not None))


def needs_labels(service: Service, traffic: ServiceTraffic) -> bool:
    """Say whether labels of a service's pods count, besides those of their place."""
    if traffic.subsets:
        return True
    found = (preference_of(service, policy) for policy in traffic.policies())
    return any(label not in TOPOLOGY for p in found if p is not None for label, _ in p.priority)


# ---- where things are ----------------------------------------------------------------------------


def place_of(workload: Workload, labels: Mapping[str, str], keys: Iterable[str]) -> Place:
    """Tell the place of a waypoint's pod, as far as these labels go."""
    found = {**labels, **_topology(workload.locality, workload.node, workload.cluster_id)}
    return tuple((key, found[key]) for key in sorted(keys) if found.get(key))


def narrow(place: Place, keys: frozenset[str]) -> Place:
    """Leave out of a place what makes no difference."""
    return tuple(label for label in place if label[0] in keys)


def _topology(locality: Locality, node: str, cluster: str) -> dict[str, str]:
    found = {
        REGION: locality.region,
        ZONE: locality.zone,
        SUBZONE: locality.subzone,
        NODE: node,
        CLUSTER: cluster,
    }
    return {label: value for label, value in found.items() if value}


def _labels(endpoint: Endpoint) -> dict[str, str]:
    return dict(endpoint.labels) | _topology(endpoint.locality, endpoint.node, endpoint.cluster)


def _locality(place: Mapping[str, str]) -> Locality:
    return Locality(place.get(REGION, ""), place.get(ZONE, ""), place.get(SUBZONE, ""))


# ---- groups --------------------------------------------------------------------------------------


def groups_of(
    endpoints: Iterable[Endpoint], preference: Preference | None, place: Place = NOWHERE
) -> list[Group]:
    """Arrange endpoints as a waypoint's pod at `place` is to send to them."""
    own = dict(place)
    sorted_in: dict[tuple[tuple[int, ...], Locality], list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        rank = () if preference is None else _rank(endpoint, preference, own)
        sorted_in[rank, endpoint.locality].append(endpoint)
    # Envoy takes no gaps between priorities.
    order = {rank: i for i, rank in enumerate(sorted({rank for rank, _ in sorted_in}))}
    groups = [
        Group(where, order[rank], sum(e.weight for e in found), tuple(found))
        for (rank, where), found in sorted_in.items()
    ]
    groups.sort(key=lambda g: (g.priority, _order(g.locality)))
    if preference is not None and preference.distribute:
        return _distributed(groups, preference, _locality(own))
    return groups


def _order(place: Locality) -> tuple[str, str, str]:
    return (place.region, place.zone, place.subzone)


def _rank(endpoint: Endpoint, preference: Preference, own: Mapping[str, str]) -> tuple[int, ...]:
    """Say how far away an endpoint is; less is nearer."""
    rank: list[int] = []
    if preference.priority:
        rank.append(_unlike(_labels(endpoint), preference.priority, own))
    if preference.by_place:
        rank.append(_distance(endpoint.locality, _locality(own), preference.failover))
    return tuple(rank)


def _unlike(
    labels: Mapping[str, str],
    priority: tuple[tuple[str, str | None], ...],
    own: Mapping[str, str],
) -> int:
    """Count the labels that do not agree, from the first of these on."""
    for i, (label, wanted) in enumerate(priority):
        value = own.get(label, "") if wanted is None else wanted
        if labels.get(label, "") != value:
            return len(priority) - i
    return 0


def _distance(there: Locality, here: Locality, failover: tuple[tuple[str, str], ...]) -> int:
    if not here.region:
        return 0  # who does not know where it is prefers nobody
    if there == here:
        return 0
    if (there.region, there.zone) == (here.region, here.zone):
        return 1
    if there.region == here.region:
        return 2
    to = next((to for origin, to in failover if origin == here.region), there.region)
    return 3 if to == there.region else 4


def _distributed(groups: list[Group], preference: Preference, here: Locality) -> list[Group]:
    """Give groups the weights of their places; what no place names gets nothing."""
    shares = next((to for origin, to in preference.distribute if matches(here, origin)), None)
    if shares is None:
        return groups
    out = []
    for where, weight in shares:
        found = [g for g in groups if matches(g.locality, where)]
        total = sum(g.weight for g in found)
        for g in found:
            share = max(1, round(weight * _SCALE * g.weight / total))
            out.append(Group(g.locality, g.priority, share, g.endpoints))
    return sorted(out, key=lambda g: _order(g.locality))


def matches(place: Locality, pattern: str) -> bool:
    """Say whether a place is one that "region/zone/subzone" means; what is left out is any."""
    parts = pattern.split("/")
    return all(want in ("*", have) for want, have in zip(parts, _order(place), strict=False))

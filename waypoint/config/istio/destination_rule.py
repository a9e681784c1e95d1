"""DestinationRule (networking.istio.io/v1) to ServiceTraffic.

Reading one object needs nothing else; several for one host become one, and Secrets are filled in,
in `compose`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mesh.manifest import Key
from waypoint.config.istio import hosts
from waypoint.config.istio.balancing import Balance
from waypoint.config.istio.policy import Blocks, Policy, read_policy
from waypoint.config.istio.tls import Data, resolve_tls
from waypoint.config.reading import Fields, Report
from waypoint.config.traffic import Pool, ServiceTraffic, Subset, TrafficPolicy

SUBSET_NAME: Final = re.compile(
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)  # RFC 1123 label: part of cluster names
_MAX_SUBSETS: Final = 1000
_NO_SELECTOR: Final = (
    "spec.workloadSelector: rules for some callers only are not supported at a waypoint, where"
    " all callers meet: the rule is not in effect"
)
_NO_OUTLIERS: Final = (
    "failover needs outlierDetection beside loadBalancer, which tells what is lost: without it all"
    " places are used alike"
)

Secrets = Callable[[str, str], Data | None]  # (namespace, name)


@dataclass(frozen=True, slots=True)
class SubsetRule:
    """A named part of a service's endpoints."""

    name: str
    labels: tuple[tuple[str, str], ...]
    policy: Policy | None


@dataclass(frozen=True, slots=True)
class DestinationRule:
    """One object, read. `host` is complete; "" if it cannot be used."""

    key: Key
    host: str
    created: str
    export: frozenset[str]
    policy: Policy | None
    subsets: tuple[SubsetRule, ...]
    report: Report = field(compare=False)

    @property
    def age(self) -> tuple[str, str, str]:
        """Order rules: the oldest first, then by name."""
        return self.created, self.key.namespace, self.key.name

    def credentials(self) -> set[str]:
        """Name the Secrets that it needs."""
        policies = [self.policy, *(s.policy for s in self.subsets)]
        blocks = [b for p in policies if p for b in (p.blocks, *(own for _, own in p.ports))]
        return {b.tls.credential for b in blocks if b.tls is not None and b.tls.credential}


def _read_labels(f: Fields) -> tuple[tuple[str, str], ...] | None:
    before = len(f.report.invalid)
    labels = f.text_map("labels")
    if len(f.report.invalid) != before or f.report.left_out:
        return None
    return tuple(sorted(labels.items()))


def _read_subsets(spec: Fields) -> tuple[SubsetRule, ...]:
    found: dict[str, SubsetRule] = {}
    for f in spec.each("subsets"):
        name = f.text("name")
        labels = _read_labels(f)
        own = f.inner("trafficPolicy", read_policy)
        f.done()
        if not SUBSET_NAME.fullmatch(name):
            f.bad("name", f"{name[:80]!r} is not a name (letters, digits, '-'): not used")
        elif name in found:
            f.bad("name", f"{name!r} is there already: this one is not used")
        elif labels is None:
            f.bad("labels", "the subset is left out, as it would select other pods than asked for")
        elif len(found) >= _MAX_SUBSETS:
            f.bad("name", f"more than {_MAX_SUBSETS} subsets: not used")
        else:
            found[name] = SubsetRule(name, labels, own)
    return tuple(found.values())


def _created(obj: Mapping[str, Any]) -> str:
    value = obj["metadata"].get("creationTimestamp")
    return value if isinstance(value, str) else ""


def read_destination_rule(key: Key, obj: Mapping[str, Any], domain: str) -> DestinationRule:
    """Read one object; what is wrong is in its report, what is right is kept."""
    report = Report()
    spec = Fields(obj.get("spec"), "spec", report)
    host = spec.text("host")
    why = hosts.fault(host)
    if why:
        report.refused = f"spec.host: {why}"
    if spec.has("workloadSelector"):
        report.refused = report.refused or _NO_SELECTOR
    rule = DestinationRule(
        key=key,
        host="" if report.refused else hosts.resolve(host, key.namespace, domain),
        created=_created(obj),
        export=frozenset(spec.texts("exportTo")),
        policy=spec.inner("trafficPolicy", read_policy),
        subsets=_read_subsets(spec),
        report=report,
    )
    spec.done()
    return rule


# ---- several become one ------------------------------------------------------------------------


class _Builder:
    """Makes policies of blocks, and keeps what is wrong with their Secrets."""

    def __init__(self, secrets: Secrets, reports: Mapping[Key, Report]) -> None:
        self._secrets = secrets
        self._reports = reports

    def policy(self, blocks: Blocks, owner: Key, balancing: Key | None = None) -> TrafficPolicy:
        """Make a policy; its TLS is of `owner`, and its loadBalancer, if that is another's."""
        tls = None
        if blocks.tls is not None:
            name = blocks.tls.credential
            secret = self._secrets(owner.namespace, name) if name else None
            tls, why = resolve_tls(blocks.tls, secret)
            if why:
                path, _, text = why.partition(": ")
                self._reports[owner].bad(path, text)
        balance = blocks.balance or Balance()
        if balance.fails_over and blocks.outliers is None:
            path = f"{balance.path}.localityLbSetting"
            self._reports[balancing or owner].skip(path, _NO_OUTLIERS)
        return TrafficPolicy(
            balancing=balance.balancing,
            hash=balance.hash,
            warmup=balance.warmup,
            locality=balance.locality,
            pool=blocks.pool or Pool(),
            outliers=blocks.outliers,
            tls=tls,
            budget=blocks.budget,
        )


def _port_numbers(*policies: Policy | None) -> list[int]:
    return sorted({number for p in policies if p for number, _ in p.ports})


def compose(
    rules: Sequence[DestinationRule], secrets: Secrets
) -> tuple[ServiceTraffic, dict[Key, Report]]:
    """Merge the rules of one namespace for one host, the oldest first.

    The oldest trafficPolicy counts; subsets come from all of them, a name from the oldest that has
    it. Returns also what each rule is to be told about that.
    """
    reports = {rule.key: Report() for rule in rules}
    build = _Builder(secrets, reports)
    base, base_owner = Policy(), rules[0].key
    having = [rule for rule in rules if rule.policy not in (None, Policy())]
    for i, rule in enumerate(having):
        if i:
            reports[rule.key].bad("spec.trafficPolicy", f"{base_owner} is older and counts")
        else:
            base, base_owner = rule.policy or base, rule.key
    subsets: dict[str, Subset] = {}
    first: dict[str, Key] = {}
    for rule in rules:
        for part in rule.subsets:
            if part.name in subsets:
                reports[rule.key].bad(
                    "spec.subsets", f"{part.name!r} of {first[part.name]} is older and counts"
                )
                continue
            first[part.name] = rule.key
            subsets[part.name] = _subset(part, base, (rule.key, base_owner), build)
    traffic = ServiceTraffic(
        policy=build.policy(base.blocks, base_owner),
        ports=tuple(
            (n, build.policy(Blocks(budget=base.blocks.budget).under(own), base_owner))
            for n, own in base.ports
        ),
        subsets=tuple(sorted(subsets.values(), key=lambda s: s.name)),
        origin=rules[0].key,
    )
    return traffic, reports


def _subset(part: SubsetRule, base: Policy, owners: tuple[Key, Key], build: _Builder) -> Subset:
    """Lay a subset's policy over the service's, port by port."""

    def at(port: int | None) -> TrafficPolicy:
        below, _ = base.at(port)
        budget = Blocks(budget=base.blocks.budget)
        below = budget.under(below)
        own, whole = (part.policy or Policy()).at(port)
        # A block of TLS names a Secret of the rule that it was written in.
        owner = owners[0] if own.tls is not None else owners[1]
        balancing = owners[0] if own.balance is not None else owners[1]
        return build.policy(below.under(own, whole=whole), owner, balancing)

    numbers = _port_numbers(base, part.policy)
    return Subset(part.name, part.labels, at(None), tuple((n, at(n)) for n in numbers))

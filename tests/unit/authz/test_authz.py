"""L4 policy decisions, against a slow and obvious evaluator and case by case."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.authz import PolicySet, Subject
from mesh.model import Action, Authorization, Clause, Match, Rule, Scope, SpiffeId, StringMatch

TRUST = "cluster.local"


# ---- the reference: as the contract is written, without any cleverness -------------------------


def ref_string(m: StringMatch, value: str) -> bool:
    return {
        "exact": value == m.value,
        "prefix": value.startswith(m.value),
        "suffix": value.endswith(m.value),
        "presence": value != "",
    }[m.kind]


def ref_principal(m: StringMatch, uri: str) -> bool:
    return uri.startswith("spiffe://") and ref_string(m, uri.removeprefix("spiffe://"))


def ref_net(net: str, ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address in ipaddress.ip_network(net)


def ref_match(m: Match, s: Subject) -> bool:
    uri = str(s.identity) if s.identity else ""
    namespace = s.identity.namespace if s.identity else ""
    account = (s.identity.namespace, s.identity.service_account) if s.identity else None
    kinds = [
        (m.principals, m.not_principals, lambda v: ref_principal(v, uri)),
        (m.namespaces, m.not_namespaces, lambda v: ref_string(v, namespace)),
        (m.service_accounts, m.not_service_accounts, lambda v: v == account),
        (m.source_ips, m.not_source_ips, lambda v: ref_net(v, s.source_ip)),
        (m.destination_ips, m.not_destination_ips, lambda v: ref_net(v, s.destination_ip)),
        (m.destination_ports, m.not_destination_ports, lambda v: v == s.destination_port),
    ]
    if not any(positive or negative for positive, negative, _ in kinds):
        return False
    for positive, negative, holds in kinds:
        if positive and not any(holds(v) for v in positive):
            return False
        if any(holds(v) for v in negative):
            return False
    return True


def ref_policy(p: Authorization, s: Subject) -> bool:
    def clause(c: Clause) -> bool:
        return not c.matches or any(ref_match(m, s) for m in c.matches)

    return any(all(clause(c) for c in r.clauses) for r in p.rules)


def ref_allowed(policies: list[Authorization], s: Subject) -> bool:
    enforced = [p for p in policies if not p.dry_run]
    if any(p.action == Action.DENY and ref_policy(p, s) for p in enforced):
        return False
    allow = [p for p in enforced if p.action == Action.ALLOW]
    return not allow or any(ref_policy(p, s) for p in allow)


def ref_dry_run(policies: list[Authorization], s: Subject) -> set[str]:
    dry = [p for p in policies if p.dry_run]
    refusing = {p.key for p in dry if p.action == Action.DENY and ref_policy(p, s)}
    allows = [p for p in dry if p.action == Action.ALLOW]
    enforced = [p for p in policies if not p.dry_run]
    denied = any(p.action == Action.DENY and ref_policy(p, s) for p in enforced)
    matched = [p for p in enforced if p.action == Action.ALLOW and ref_policy(p, s)]
    if (denied or not matched) and not any(ref_policy(p, s) for p in allows):
        refusing |= {p.key for p in allows}
    return refusing


# ---- strategies: few values, so that things match often ----------------------------------------

NAMES = st.sampled_from(["a", "b", "ab"])
IPS = st.sampled_from(["10.0.0.1", "10.0.1.1", "fd00::1", "::ffff:10.0.0.1"])
NETS = st.sampled_from(["10.0.0.0/24", "10.0.0.1/32", "0.0.0.0/0", "fd00::/16", "::/0"])
PORTS = st.sampled_from([80, 443])
WORDS = ["a", "b", "ab", "", "cluster.local/ns/a/sa/b", "cluster.local/ns/a", "/sa/b"]
STRINGS = st.one_of(
    st.just(StringMatch("presence")),
    st.builds(StringMatch, st.sampled_from(["exact", "prefix", "suffix"]), st.sampled_from(WORDS)),
)


def few(values: st.SearchStrategy) -> st.SearchStrategy:  # type: ignore[type-arg]
    return st.one_of(st.just(()), st.lists(values, max_size=2).map(tuple))


MATCHES = st.builds(
    Match,
    few(STRINGS),
    few(STRINGS),
    few(STRINGS),
    few(STRINGS),
    few(st.tuples(NAMES, NAMES)),
    few(st.tuples(NAMES, NAMES)),
    few(NETS),
    few(NETS),
    few(NETS),
    few(NETS),
    few(PORTS),
    few(PORTS),
)
ONE_KIND = st.one_of(
    st.builds(lambda v: Match(principals=(v,)), STRINGS),
    st.builds(lambda v: Match(not_principals=(v,)), STRINGS),
    st.builds(lambda v: Match(source_ips=(v,)), NETS),
    st.builds(lambda v: Match(destination_ports=(v,)), PORTS),
)
CLAUSES = st.builds(Clause, st.lists(st.one_of(MATCHES, ONE_KIND), max_size=2).map(tuple))
RULES = st.builds(Rule, st.lists(CLAUSES, max_size=2).map(tuple))
POLICIES = st.builds(
    Authorization,
    st.sampled_from(["p", "q", "r", "s"]),
    st.just("ns"),
    st.just(Scope.NAMESPACE),
    st.sampled_from(Action),
    st.lists(RULES, max_size=2).map(tuple),
    st.booleans(),
)
IDENTITIES = st.one_of(st.none(), st.builds(SpiffeId, st.just(TRUST), NAMES, NAMES))
SUBJECTS = st.builds(Subject, IDENTITIES, IPS, IPS, PORTS)


@settings(max_examples=300, deadline=None)
@given(st.lists(POLICIES, max_size=4, unique_by=lambda p: p.key), SUBJECTS)
def test_judges_as_the_reference(policies: list[Authorization], subject: Subject) -> None:
    """Whatever the policies: the same verdict and the same dry-run reports as by the book."""
    decision = PolicySet(policies).judge(subject)
    assert decision.allowed == ref_allowed(policies, subject)
    assert set(decision.dry_run) == ref_dry_run(policies, subject)


# ---- case by case ------------------------------------------------------------------------------


def policy(
    action: Action, *matches: Match, name: str = "p", dry_run: bool = False
) -> Authorization:
    rules = (Rule((Clause(matches),)),)
    return Authorization(name, "ns", Scope.NAMESPACE, action, rules, dry_run)


def subject(account: str | None = "web", ip: str = "10.0.0.1", port: int = 80) -> Subject:
    identity = SpiffeId(TRUST, "shop", account) if account else None
    return Subject(identity, ip, "10.0.0.9", port)


def exact(value: str) -> StringMatch:
    return StringMatch("exact", value)


def test_nothing_is_allowed_by_default_refusal_but_by_absence() -> None:
    """No policies: allowed, and no policy is named."""
    decision = PolicySet().judge(subject())
    assert decision.allowed
    assert decision.policy == ""


def test_deny_beats_allow_and_is_named() -> None:
    """A DENY that matches decides, whatever allows."""
    web = Match(principals=(exact("cluster.local/ns/shop/sa/web"),))
    policies = [policy(Action.ALLOW, web, name="yes"), policy(Action.DENY, web, name="no")]
    decision = PolicySet(policies).judge(subject())
    assert not decision.allowed
    assert decision.policy == "ns/no"
    assert decision.reason == "explicitly denied by: ns/no"


def test_an_allow_that_does_not_match_refuses() -> None:
    """One ALLOW policy is enough to refuse everybody it does not name."""
    allow = policy(Action.ALLOW, Match(principals=(exact("cluster.local/ns/shop/sa/web"),)))
    assert PolicySet([allow]).judge(subject("web")).policy == "ns/p"
    decision = PolicySet([allow]).judge(subject("other"))
    assert not decision.allowed
    assert decision.reason == "allow policies exist, but none allowed"


@pytest.mark.parametrize(
    ("rules", "matches"),
    [
        ((), False),
        ((Rule(),), True),
        ((Rule((Clause(),)),), True),
        ((Rule((Clause((Match(),)),)),), False),
        ((Rule((Clause((Match(), Match(destination_ports=(80,)))),)),), True),
    ],
    ids=["no rules", "no clauses", "no matches", "an empty match", "an empty match beside one"],
)
def test_what_is_empty(rules: tuple[Rule, ...], matches: bool) -> None:
    """Each level of emptiness means what the contract says."""
    allow = Authorization("p", "ns", Scope.NAMESPACE, Action.ALLOW, rules)
    assert PolicySet([allow]).judge(subject()).allowed == matches


def test_strict_mtls_refuses_who_proved_nothing() -> None:
    """DENY notPrincipals: presence (PeerAuthentication STRICT) refuses plaintext alone."""
    strict = policy(Action.DENY, Match(not_principals=(StringMatch("presence"),)))
    assert not PolicySet([strict]).judge(subject(None)).allowed
    assert PolicySet([strict]).judge(subject("web")).allowed


def test_no_identity_matches_no_principal_at_all() -> None:
    """An empty prefix matches every principal, but not the absence of one."""
    anyone = policy(Action.ALLOW, Match(principals=(StringMatch("prefix", ""),)))
    assert PolicySet([anyone]).judge(subject("web")).allowed
    assert not PolicySet([anyone]).judge(subject(None)).allowed


def test_mapped_address_is_its_ipv4_address() -> None:
    """A v4 client of a dual-stack listener is judged as v4."""
    block = policy(Action.DENY, Match(source_ips=("10.0.0.0/8",)))
    assert not PolicySet([block]).judge(subject(ip="::ffff:10.1.2.3")).allowed


def test_unreadable_address_is_in_no_network() -> None:
    """A source that is no address cannot be allowed by one."""
    allow = policy(Action.ALLOW, Match(source_ips=("0.0.0.0/0", "::/0")))
    assert not PolicySet([allow]).judge(subject(ip="?")).allowed


def test_dry_run_is_reported_and_not_enforced() -> None:
    """A dry-run DENY lets pass and is named; so is a dry-run ALLOW that would have refused."""
    everyone = Match(destination_ports=(80,))
    nobody = Match(destination_ports=(1,))
    policies = [
        policy(Action.DENY, everyone, name="d", dry_run=True),
        policy(Action.ALLOW, nobody, name="a", dry_run=True),
    ]
    decision = PolicySet(policies).judge(subject())
    assert decision.allowed
    assert set(decision.dry_run) == {"ns/d", "ns/a"}

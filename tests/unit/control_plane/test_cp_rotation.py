"""Roots replace each other, and at no moment do two proxies fail to trust each other."""

from __future__ import annotations

import base64
import datetime
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cp_support import NOW
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.ca.root import SigningCa, fingerprint, key_pem, new_root, pem
from control_plane.ca.rotation import (
    MARGIN,
    Entry,
    Ledger,
    advance,
    choose_signer,
    is_ending,
    overlap_of,
    trusted_roots,
)
from control_plane.kubernetes.secrets import (
    PHASE,
    REQUEST,
    SIGN,
    TRUST,
    SelfSigned,
    make_secret,
    next_step,
    read_plugged,
    read_self_signed,
    write_back,
)
from mesh.errors import BadInput, ConfigError

HOUR = datetime.timedelta(hours=1)
DAY = 24 * HOUR
LIFE = 4 * HOUR  # of certificates in these stories: short ones are told faster
SOON = LIFE / 12
OVERLAP = LIFE + MARGIN


@dataclass
class Proxy:
    """One proxy's certificate and what it trusts; renewed at half life, sometimes in vain."""

    issuer: x509.Certificate | None = None
    trusts: frozenset[x509.Certificate] = frozenset()
    renew_at: datetime.datetime = NOW
    ends: datetime.datetime = NOW


@dataclass
class Cluster:
    """The API server's state."""

    own: SelfSigned
    plugged: SigningCa | None = None
    ledger: Ledger = field(default_factory=Ledger)
    roots: tuple[x509.Certificate, ...] = ()
    phases: list[str] = field(default_factory=list)

    @property
    def candidates(self) -> list[SigningCa]:
        return [*([self.plugged] if self.plugged else []), *self.own.candidates]


class Replica:
    """One control plane: it sees the cluster as it was some minutes ago."""

    def __init__(self) -> None:
        self.previous: SigningCa | None = None
        self.signer: SigningCa | None = None
        self.roots: tuple[x509.Certificate, ...] = ()

    def look(self, c: Cluster, now: datetime.datetime) -> None:
        self.signer = choose_signer(c.candidates, self.previous, c.ledger, OVERLAP, now)
        assert self.signer is not None
        self.roots = trusted_roots(self.signer, c.candidates, c.roots, c.ledger, OVERLAP, now)
        self.previous = replace(self.signer, roots=(self.signer.root,))

    def lead(self, c: Cluster, now: datetime.datetime) -> None:
        assert self.signer is not None
        if c.roots != self.roots:
            c.roots = self.roots
            return  # seen everywhere at the next look
        new = advance(c.ledger, self.signer, self.roots, LIFE, now)
        if new != c.ledger:
            c.ledger = new
            return
        step = next_step(c.own, c.plugged is None, c.ledger, OVERLAP, "cluster.local", now)
        if step is not None:
            c.own = step.own
            c.phases.append(step.reason)

    def issue(self, proxy: Proxy, now: datetime.datetime, life: datetime.timedelta) -> None:
        assert self.signer is not None
        proxy.issuer, proxy.trusts = self.signer.root, frozenset(self.roots)
        proxy.renew_at, proxy.ends = now + life / 2, now + life


class World:
    """Two replicas, one of them leading, a few proxies, and time in steps of five minutes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.now = NOW
        self.cluster = Cluster(SelfSigned(new_root("cluster.local", NOW)))
        self.replicas = [Replica(), Replica()]
        self.proxies = [Proxy() for _ in range(8)]
        self.seen_signers: list[str] = []

    def run(self, span: datetime.timedelta) -> None:
        end = self.now + span
        while self.now < end:
            self.now += datetime.timedelta(minutes=5)
            leader = self.rng.choice(self.replicas)
            for replica in self.replicas:
                if replica is leader or self.rng.random() < 0.9 or replica.signer is None:
                    replica.look(self.cluster, self.now)
            leader.lead(self.cluster, self.now)
            for proxy in self.proxies:
                late = proxy.ends <= self.now
                if late or (proxy.renew_at <= self.now and self.rng.random() < 0.1):
                    life = LIFE * self.rng.choice((1, 1, 0.25))
                    self.rng.choice(self.replicas).issue(proxy, self.now, life)
            self.check()

    def check(self) -> None:
        for a in self.proxies:
            for b in self.proxies:
                assert a.issuer in b.trusts, f"{self.now}: a handshake fails"

    def restart(self, which: int) -> None:
        self.replicas[which] = Replica()

    @property
    def signer(self) -> x509.Certificate:
        found = {r.signer.root for r in self.replicas if r.signer is not None}
        assert len(found) == 1
        return found.pop()


def test_a_root_that_is_asked_for() -> None:
    """Trusted first, signing later, and the old one goes last; each phase takes its time."""
    w = World()
    w.run(2 * LIFE)
    old = w.signer
    w.cluster.own = replace(w.cluster.own, requested=True)
    w.run(SOON)
    assert w.cluster.phases == ["RootDistributed"]
    assert w.cluster.own.phase == TRUST
    assert w.signer == old
    assert len(w.cluster.roots) == 2
    w.run(LIFE - SOON)
    assert w.signer == old
    w.run(2 * SOON)
    new = w.signer
    assert new != old
    assert w.cluster.own.phase == SIGN
    assert w.cluster.phases == ["RootDistributed", "RootSigns"]
    w.run(LIFE - 2 * SOON)
    assert old in w.cluster.roots
    w.run(4 * SOON)
    assert w.cluster.phases == ["RootDistributed", "RootSigns", "RootRotated"]
    assert w.cluster.own == SelfSigned(replace(w.cluster.own.ca, roots=(new,)))
    assert w.cluster.roots == (new,)
    assert list(w.cluster.ledger.roots) == [fingerprint(new)]


def test_a_root_near_its_end_is_replaced_by_itself() -> None:
    """Nobody has to think of it: a fifth of its life before its end the next one comes."""
    w = World()
    w.run(SOON)
    root = w.signer
    assert not is_ending(root, OVERLAP, root.not_valid_after_utc - 731 * DAY)
    w.now = root.not_valid_after_utc - 729 * DAY
    for proxy in w.proxies:
        proxy.ends = w.now
    w.run(4 * LIFE)
    assert w.cluster.phases == ["RootDistributed", "RootSigns", "RootRotated"]
    assert w.signer.not_valid_after_utc > root.not_valid_after_utc


def test_a_ca_plugged_into_a_running_mesh_and_taken_out_again() -> None:
    """It signs when everybody trusts it; without it the self-signed root comes back likewise."""
    w = World()
    w.run(2 * LIFE)
    own = w.signer
    w.cluster.plugged = new_root("corp", NOW)
    w.run(LIFE)
    assert w.signer == own
    w.run(SOON)
    assert w.signer == w.cluster.plugged.root
    w.run(2 * LIFE)
    assert w.cluster.roots == (w.cluster.plugged.root,)
    w.cluster.plugged = None
    w.run(LIFE)
    assert w.signer != own
    w.run(SOON)
    assert w.signer == own
    w.run(2 * LIFE)
    assert w.cluster.roots == (own,)


def test_a_plugged_in_ca_swapped_for_another_without_care() -> None:
    """As long as one replica lives that has the old one's key, even that fails no handshake."""
    w = World()
    w.run(SOON)
    w.cluster.plugged = first = new_root("corp", NOW)
    w.run(4 * LIFE)
    assert w.signer == first.root
    w.cluster.plugged = second = new_root("corp", NOW)
    w.run(LIFE)
    assert w.signer in (first.root, w.cluster.own.ca.root)
    w.run(3 * LIFE)
    assert w.signer == second.root
    assert w.cluster.roots == (second.root,)


def test_a_swap_in_three_steps_by_the_operator() -> None:
    """Both roots, then the new issuer, then the new root alone: nothing waits a second time."""
    w = World()
    first, second = new_root("corp", NOW), new_root("corp", NOW)
    w.cluster.plugged = first
    w.run(2 * LIFE)
    w.cluster.plugged = replace(first, roots=(first.root, second.root))
    w.run(LIFE + SOON)
    assert w.signer == first.root
    w.cluster.plugged = replace(second, roots=(second.root, first.root))
    w.run(SOON / 2)
    assert w.signer == second.root
    w.run(LIFE + SOON)
    w.cluster.plugged = second
    w.run(LIFE)
    assert w.cluster.roots == (second.root,)


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_events_with_restarts(seed: int) -> None:
    """Requests, plugging, unplugging and restarts of replicas, at random."""
    w = World(seed)
    w.run(2 * LIFE)
    for _ in range(12):
        event = w.rng.randrange(4)
        if event == 0:
            w.cluster.own = replace(w.cluster.own, requested=True)
        elif event == 1:
            w.cluster.plugged = w.cluster.plugged or new_root("corp", w.now)
        elif event == 2:
            # Whose key was taken away can sign for as long as its process lives, no longer.
            if any(w.signer == ca.root for ca in w.cluster.candidates):
                w.restart(0)
                w.restart(w.rng.randrange(2))
        else:
            w.cluster.plugged = None
        w.run(w.rng.choice((SOON, 6 * SOON, LIFE, 2 * LIFE)))
    w.run(5 * LIFE)
    wanted = w.cluster.plugged or w.cluster.own.ca
    assert w.signer == wanted.root
    assert w.cluster.roots == (w.signer,)


# ---- the record ------------------------------------------------------------------------------


def test_nothing_known_means_the_most_wanted_signs() -> None:
    """At the very first start there is nobody to wait for."""
    first, second = new_root("a", NOW), new_root("b", NOW)
    assert choose_signer([first, second], None, Ledger(), OVERLAP, NOW) is first
    assert choose_signer([first], second, Ledger(), OVERLAP, NOW) is second
    assert choose_signer([], None, Ledger(), OVERLAP, NOW) is None


def test_a_shorter_life_counts_when_the_long_lived_are_gone() -> None:
    """Certificates of a day are reckoned with for a day after the life was set to an hour."""
    ca = new_root("a", NOW)
    ledger = advance(Ledger(), ca, ca.roots, DAY, NOW)
    assert overlap_of(ledger, HOUR, None) == DAY + MARGIN
    assert overlap_of(ledger, HOUR, HOUR) == HOUR
    ledger = advance(ledger, ca, ca.roots, HOUR, NOW)
    ledger = advance(ledger, ca, ca.roots, HOUR, NOW + 23 * HOUR)
    assert overlap_of(ledger, HOUR, None) == DAY + MARGIN
    ledger = advance(ledger, ca, ca.roots, HOUR, NOW + DAY)
    assert overlap_of(ledger, HOUR, None) == HOUR + MARGIN


_times = st.none() | st.integers(0, 10**9).map(
    lambda s: NOW + datetime.timedelta(seconds=s % 10**8)
)


@given(
    st.dictionaries(
        st.text("0123456789abcdef", min_size=1, max_size=32),
        st.builds(Entry, _times, st.booleans(), _times),
        max_size=4,
    ),
    st.integers(0, 10**7),
    _times,
)
def test_the_record_survives_writing(roots: Any, longest: int, until: Any) -> None:
    """What was written down is read back the same."""
    ledger = Ledger(roots, datetime.timedelta(seconds=longest), until)
    assert Ledger.load_untrusted(ledger.dump()) == ledger


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=100) | st.sampled_from(["[]", "{}", '{"roots":7}', '{"roots":{"a":1}}']))
def test_a_broken_record_is_bad_input(text: str) -> None:
    """An annotation that somebody has edited raises nothing else."""
    with pytest.raises(BadInput):
        Ledger.load_untrusted(text)


# ---- Secrets ---------------------------------------------------------------------------------


def secret(name: str, **files: bytes) -> dict[str, Any]:
    data = {k.replace("_", "-") + ".pem": base64.b64encode(v).decode() for k, v in files.items()}
    return {"metadata": {"name": name, "namespace": "istio-system"}, "data": data}


def test_the_self_signed_secret_comes_back_from_each_phase() -> None:
    """Every step is whole in the Secret: whoever reads it goes on from there."""
    made = make_secret("istio-system", "cluster.local", NOW)
    own = read_self_signed(made, NOW)
    assert own == SelfSigned(own.ca)
    assert made["metadata"]["labels"] == {"app.kubernetes.io/part-of": "ambit"}
    made["metadata"]["annotations"] = {REQUEST: "please", "other": "kept"}
    made["data"]["other"] = "a2VwdA=="
    own = read_self_signed(made, NOW)
    step = next_step(own, True, Ledger(), OVERLAP, "cluster.local", NOW)
    assert step is not None
    made = write_back(made, step.own, NOW)
    assert made["metadata"]["annotations"][PHASE] == TRUST
    assert REQUEST not in made["metadata"]["annotations"]
    own = read_self_signed(made, NOW)
    assert own == step.own
    assert own.successor is not None
    assert next_step(own, True, Ledger(), OVERLAP, "cluster.local", NOW) is None
    settled = advance(Ledger(), own.ca, (own.ca.root, own.successor.root), LIFE, NOW)
    later = NOW + OVERLAP
    step = next_step(own, True, settled, OVERLAP, "cluster.local", later)
    assert step is not None
    made = write_back(made, step.own, later)
    own = read_self_signed(made, later)
    assert own == step.own
    assert len(own.ca.roots) == 2
    assert next_step(own, True, settled, OVERLAP, "cluster.local", later + LIFE) is None
    step = next_step(own, True, settled, OVERLAP, "cluster.local", later + OVERLAP)
    assert step is not None
    made = write_back(made, step.own, later + OVERLAP)
    assert made["metadata"]["annotations"] == {"other": "kept"}
    assert made["data"]["other"] == "a2VwdA=="
    own = read_self_signed(made, later + OVERLAP)
    assert own.ca.roots == (own.ca.root,)


def test_istios_own_secret_is_taken_over() -> None:
    """root-cert.pem and cert-chain.pem may be empty: the certificate is its own root."""
    ca = new_root("cluster.local", NOW)
    theirs = secret("istio-ca-secret", ca_cert=pem(ca.root), ca_key=key_pem(ca.key))
    theirs["data"].update({"root-cert.pem": "", "cert-chain.pem": ""})
    assert read_self_signed(theirs, NOW).ca.root == ca.root


def test_plugged_in_names_of_cert_manager() -> None:
    """tls.crt, tls.key and ca.crt do as well; several roots are all told."""
    ca, other = new_root("corp", NOW), new_root("corp", NOW)
    data = {"tls.crt": pem(ca.root), "tls.key": key_pem(ca.key), "ca.crt": pem(other.root)}
    data["ca.crt"] += pem(ca.root)
    made = secret("cacerts")
    made["data"] = {k: base64.b64encode(v).decode() for k, v in data.items()}
    read = read_plugged(made, NOW)
    assert read.root == ca.root
    assert read.roots == (other.root, ca.root)


def test_secrets_that_cannot_be_used_are_named() -> None:
    """What is wrong, in which Secret, under which name."""
    ca, other = new_root("corp", NOW), new_root("corp", NOW)
    with pytest.raises(ConfigError, match=r"Secret istio-system/cacerts: ca-key\.pem is missing"):
        read_plugged(secret("cacerts", ca_cert=pem(ca.root)), NOW)
    wrong = secret(
        "cacerts", ca_cert=pem(ca.root), ca_key=key_pem(other.key), root_cert=pem(ca.root)
    )
    with pytest.raises(ConfigError, match="is not the key of"):
        read_plugged(wrong, NOW)
    wrong["data"]["ca-key.pem"] = "%%%"
    with pytest.raises(ConfigError, match=r"ca-key\.pem: not base64"):
        read_plugged(wrong, NOW)
    with pytest.raises(ConfigError, match="istio-ca-secret: ca-cert"):
        read_self_signed(secret("istio-ca-secret"), NOW)

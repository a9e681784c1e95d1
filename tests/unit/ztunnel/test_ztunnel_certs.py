"""When certificates are asked for, and what answers are accepted."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from ztunnel_rig import Authority, private_pem

from mesh.ca.csr import held_untrusted, new_request
from mesh.ca.held import Certificate, Held
from mesh.ca.store import MAX_IN_FLIGHT, RETRY_MOST, CertStore
from mesh.errors import BadInput

A = "spiffe://cluster.local/ns/shop/sa/a"
B = "spiffe://cluster.local/ns/shop/sa/b"


def held(name: str, begins: float, ends: float) -> Held:
    return Held(Certificate(name, b"", b"", b"", ends), begins, (), ())


def store(random: float = 0.5) -> CertStore:
    return CertStore(lambda: random)


# ---- the schedule ------------------------------------------------------------------------------


def test_asked_for_once_while_it_is_under_way() -> None:
    """Two pods of one identity cost one request."""
    s = store()
    s.acquire(A, "pod-1", 0)
    s.acquire(A, "pod-2", 0)
    assert s.due(0) == [A]
    assert s.due(0) == []


def test_renewed_at_half_its_life() -> None:
    """Half between not_before and not_after."""
    s = store()
    s.acquire(A, "p", 0)
    s.due(0)
    assert s.granted(A, held(A, 0, 1000), 3)
    assert s.next_timer() == 500
    assert s.due(499) == []
    assert s.due(500) == [A]


@pytest.mark.parametrize("random", [0.0, 0.999])
def test_renewal_is_spread(random: float) -> None:
    """Not all at the same second, and never far from the half."""
    s = store(random)
    s.acquire(A, "p", 0)
    s.due(0)
    s.granted(A, held(A, 0, 1000), 0)
    timer = s.next_timer()
    assert timer is not None
    assert timer != 500
    assert 449 <= timer <= 551


def test_failed_renewal_keeps_the_certificate_and_backs_off() -> None:
    """0.5 s, doubling to 150 s; the one in use stays; success resets."""
    s = store()
    s.acquire(A, "p", 0)
    s.due(0)
    good = held(A, 0, 1000)
    s.granted(A, good, 0)
    now, pauses = 500.0, []
    for _ in range(12):
        assert s.due(now) == [A]
        s.failed(A, "CA is away", now)
        timer = s.next_timer()
        assert timer is not None
        pauses.append(timer - now)
        now = timer
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == RETRY_MOST
    assert s.identities[A].held is good
    assert s.identities[A].state(999) == "Available"
    assert s.identities[A].state(1000) == "Unavailable: CA is away"
    s.due(now)
    s.granted(A, held(A, now, now + 10), now)
    s.due(now + 5)
    s.failed(A, "again", now + 5)
    assert s.next_timer() == now + 5.5


def test_first_ones_go_before_renewals_and_few_at_once() -> None:
    """A new pod does not wait behind a node's renewals."""
    s = store()
    for i in range(MAX_IN_FLIGHT + 3):
        name = f"{A}{i}"
        s.acquire(name, "p", 0)
        s.identities[name].held = held(name, 0, 10)
    s.acquire(B, "p", 5)
    due = s.due(5)
    assert due[0] == B
    assert len(due) == MAX_IN_FLIGHT
    assert s.next_timer() is None, "nothing can be asked for until an answer comes"


def test_new_pod_does_not_wait_for_the_backoff() -> None:
    """An identity that failed is asked for again at once when a pod needs it."""
    s = store()
    s.acquire(A, "p", 0)
    s.due(0)
    for _ in range(8):
        s.failed(A, "no", 0)
    s.acquire(A, "q", 1)
    assert s.due(1) == [A]


def test_identity_goes_with_its_last_pod() -> None:
    """And an answer that comes late is dropped."""
    s = store()
    s.acquire(A, "p", 0)
    s.acquire(A, "q", 0)
    s.due(0)
    s.release(A, "p")
    assert A in s.identities
    s.release(A, "q")
    assert s.identities == {}
    assert not s.granted(A, held(A, 0, 10), 1)
    assert s.next_timer() is None


def test_certificate_that_is_old_already_is_not_asked_for_without_pause() -> None:
    """A CA whose clock is behind must not be asked in a loop."""
    s = store()
    s.acquire(A, "p", 1000)
    s.due(1000)
    s.granted(A, held(A, 0, 1500), 1000)
    assert s.due(1000.5) == []


# ---- requests and answers ----------------------------------------------------------------------


def test_request_has_a_uri_and_no_subject() -> None:
    """P-256, the identity as the only name."""
    made = new_request(A)
    csr = x509.load_pem_x509_csr(made.csr_pem.encode())
    assert csr.is_signature_valid
    assert not list(csr.subject)
    key: Any = csr.public_key()
    assert isinstance(key.curve, ec.SECP256R1)
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(A)]


def test_answer_is_split_into_chain_and_root() -> None:
    """Workers get leaf first; the self-signed end is what peers are checked against."""
    ca, made = Authority(), new_request(A)
    got = held_untrusted(A, made.key_pem, ca.sign(made.csr_pem))
    assert got.certificate.roots_pem.decode() == ca.root_pem
    assert got.certificate.chain_pem.count(b"BEGIN") == 1
    assert got.certificate.not_after == got.chain[0].not_after > got.not_before


def test_several_roots_are_all_trusted() -> None:
    """During a root rotation: those of the answer and those of the file, each once."""
    ca, other, more, made = Authority(), Authority(), Authority(), new_request(A)
    answer = [*ca.sign(made.csr_pem), other.root_pem]
    file = (more.root_pem + ca.root_pem).encode()
    got = held_untrusted(A, made.key_pem, answer, file)
    assert got.certificate.roots_pem.decode() == ca.root_pem + other.root_pem + more.root_pem


@pytest.mark.parametrize("case", ["other identity", "other key", "no root", "garbage", "empty"])
def test_wrong_answers_are_refused(case: str) -> None:
    """Nothing that this key and identity did not ask for is used."""
    ca, made, other = Authority(), new_request(A), new_request(B)
    answers = {
        "other identity": ca.sign(other.csr_pem),
        "other key": ca.sign(made.csr_pem),
        "no root": ca.sign(made.csr_pem)[:1],
        "garbage": ["garbage"],
        "empty": [],
    }
    key = made.key_pem
    if case == "other key":
        key = private_pem(ec.generate_private_key(ec.SECP256R1()))
    if case == "other identity":
        key = other.key_pem
    with pytest.raises(BadInput):
        held_untrusted(A, key, answers[case])

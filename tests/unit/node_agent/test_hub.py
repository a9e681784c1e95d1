"""What each proxy is told, against scripted proxies."""

from __future__ import annotations

from mesh.wire import zds
from node_agent import hub as h

T = 50.0
HELD = zds.encode_hello(zds.Hello(held_listeners=True))
PLAIN = zds.encode_hello(zds.Hello())
OK = zds.encode_response(zds.Ack())


def workload(uid: str) -> h.Workload:
    return h.Workload(uid, "shop", f"pod-{uid}", "sa", zds.ROLES, zds.REDIRECT_EBPF)


def add(uid: str) -> zds.Add:
    return workload(uid).request(True)


class Proxies:
    """A hub and its proxies; `log` has what each was sent, in order, as (proxy, request)."""

    def __init__(self) -> None:
        self.hub = h.Hub()
        self.log: list[tuple[int, zds.Request]] = []
        self.events: list[h.Output] = []

    def take(self, outputs: list[h.Output]) -> None:
        for output in outputs:
            if isinstance(output, h.Send):
                self.log.append((output.session, output.request))
            else:
                self.events.append(output)

    def connect(self, hello: bytes = HELD) -> int:
        number = self.hub.connected(T)
        self.take(self.hub.received(number, hello, T))
        self.take(self.hub.start(number, T))
        return number

    def want(self, *uids: str) -> None:
        for uid in uids:
            self.take(self.hub.want(workload(uid), T))

    def answer(self, number: int, error: str = "") -> None:
        self.take(self.hub.received(number, zds.encode_response(zds.Ack(error)), T))

    def answer_all(self, number: int) -> None:
        while self.hub.sessions[number].in_flight is not None:
            self.answer(number)

    def sent(self, number: int) -> list[zds.Request]:
        return [request for to, request in self.log if to == number]


def test_a_snapshot_is_sent_one_request_at_a_time() -> None:
    """Each request waits for the ack of the one before; SnapshotSent is the last."""
    p = Proxies()
    p.want("a", "b")
    one = p.connect()
    assert p.sent(one) == [add("a")]
    p.answer(one)
    assert p.sent(one) == [add("a"), add("b")]
    p.answer(one)
    assert p.sent(one)[2:] == [zds.SnapshotSent()]
    p.answer(one)
    assert p.events == [h.Greeted(one, True), h.Acked("a"), h.Acked("b"), h.Synced(one)]


def test_a_proxy_of_the_plain_contract_gets_plain_adds() -> None:
    """Nothing of ours is on the wire toward a proxy that did not ask for it."""
    p = Proxies()
    p.want("a")
    one = p.connect(PLAIN)
    assert p.sent(one) == [zds.Add("a", "pod-a", "shop", "sa")]


def test_pods_without_a_netns_are_kept_before_the_snapshot_ends() -> None:
    """An agent that cannot open a pod's namespace must not have a running proxy drop it."""
    p = Proxies()
    p.want("a")
    p.hub.keep("gone")
    p.hub.keep("a")
    one = p.connect()
    p.answer_all(one)
    assert p.sent(one) == [add("a"), zds.Keep("gone"), zds.SnapshotSent()]
    p.take(p.hub.unwant("gone", T))
    assert p.sent(one)[-1] == zds.Del("gone")


def test_later_adds_go_to_the_newest_and_deletes_to_all() -> None:
    """While an upgrade overlaps two proxies."""
    p = Proxies()
    p.want("a")
    old = p.connect()
    p.answer_all(old)
    new = p.connect()
    p.answer_all(new)
    p.want("b")
    p.answer_all(new)
    assert add("b") in p.sent(new)
    assert add("b") not in p.sent(old)
    p.take(p.hub.unwant("a", T))
    assert p.sent(old)[-1] == p.sent(new)[-1] == zds.Del("a")
    p.answer(old)
    assert h.Withdrawn("a") not in p.events
    p.answer(new)
    assert p.events[-1] == h.Withdrawn("a")


def test_when_the_newest_leaves_the_one_before_gets_what_it_missed() -> None:
    """A failed upgrade must not lose the pods that were added during it."""
    p = Proxies()
    p.want("a")
    old = p.connect()
    p.answer_all(old)
    new = p.connect()
    p.answer_all(new)
    p.want("b")
    p.answer_all(new)
    p.events.clear()
    p.take(p.hub.disconnected(new, T))
    assert p.sent(old)[-1] == add("b")
    p.answer_all(old)
    assert p.events == [h.Acked("b")]


def test_an_add_in_flight_to_a_dying_proxy_goes_to_the_next() -> None:
    """The want stands: whoever comes is told."""
    p = Proxies()
    one = p.connect()
    p.answer_all(one)
    p.want("a")
    p.take(p.hub.disconnected(one, T))
    assert p.hub.newest() is None
    two = p.connect()
    p.answer_all(two)
    assert p.events[-2:] == [h.Acked("a"), h.Synced(two)]


def test_a_refusal_is_reported_and_wanting_again_retries() -> None:
    """The proxy's error text comes through."""
    p = Proxies()
    one = p.connect()
    p.answer_all(one)
    p.want("a")
    p.answer(one, "no certificate")
    assert p.events[-1] == h.Refused("a", "no certificate")
    p.want("a")
    p.answer(one)
    assert p.events[-1] == h.Acked("a")


def test_an_answer_to_an_older_want_is_not_taken_for_the_newer() -> None:
    """Unwanted and wanted again while the first add is in flight: del and add follow, and only
    the second add's ack counts."""
    p = Proxies()
    one = p.connect()
    p.answer_all(one)
    p.want("a")
    p.take(p.hub.unwant("a", T))
    p.want("a")
    p.events.clear()
    p.answer(one)
    assert p.events == []
    p.answer_all(one)
    assert p.events == [h.Acked("a")]


def test_a_pod_wanted_again_is_not_called_withdrawn() -> None:
    """The answer to a del that was overtaken by another want is no news."""
    p = Proxies()
    p.want("a")
    one = p.connect()
    p.answer_all(one)
    p.take(p.hub.unwant("a", T))
    p.want("a")
    p.events.clear()
    p.answer_all(one)
    assert p.events == [h.Acked("a")]
    assert p.sent(one)[-2:] == [zds.Del("a"), add("a")]


def test_an_older_proxys_refusal_does_not_count() -> None:
    """A draining proxy may say no; the newest serves the pod."""
    p = Proxies()
    p.want("a")
    old = p.connect()
    new = p.connect()
    p.answer_all(new)
    p.answer(old, "draining")
    assert not any(isinstance(e, h.Refused) for e in p.events)


def test_a_proxy_that_does_not_answer_is_dropped_and_the_pod_hears_why() -> None:
    """5 s, and not a moment before."""
    p = Proxies()
    p.want("a")
    one = p.connect()
    wake = p.hub.wake_at()
    assert wake == T + zds.ACK_DEADLINE
    assert p.hub.tick(wake - 0.01) == []
    p.take(p.hub.tick(wake))
    refused, dropped = p.events[-2:]
    assert isinstance(refused, h.Refused)
    assert isinstance(dropped, h.Drop)
    assert dropped.session == one
    assert p.hub.sessions == {}
    assert p.hub.wake_at() is None


def test_a_proxy_that_says_no_hello_is_dropped() -> None:
    """A connection costs nothing for longer than the deadline."""
    p = Proxies()
    p.hub.connected(T)
    p.take(p.hub.tick(T + zds.ACK_DEADLINE))
    assert [type(e) for e in p.events] == [h.Drop]


def test_garbage_and_unasked_acks_end_the_connection() -> None:
    """Bad hello, bad ack, an ack nobody waits for: that proxy goes, others stay."""
    p = Proxies()
    good = p.connect()
    p.answer_all(good)
    bad_hello = p.hub.connected(T)
    p.take(p.hub.received(bad_hello, b"\xff\xff", T))
    p.take(p.hub.received(good, OK, T))
    other = p.connect()
    p.take(p.hub.received(other, b"\x0a\xff", T))
    assert [e.session for e in p.events if isinstance(e, h.Drop)] == [bad_hello, good, other]
    assert p.hub.sessions == {}
    assert p.hub.received(good, OK, T) == []


def test_a_delete_that_the_proxy_does_not_know_is_a_delete() -> None:
    """Its error changes nothing: it does not serve the pod."""
    p = Proxies()
    p.want("a")
    one = p.connect()
    p.answer_all(one)
    p.take(p.hub.unwant("a", T))
    p.answer(one, "unknown workload")
    assert p.events[-1] == h.Withdrawn("a")


def test_withdrawing_is_done_at_once_when_no_proxy_was_told() -> None:
    """With no proxy there is nobody to wait for; one that leaves is not waited for either."""
    p = Proxies()
    p.want("a")
    p.take(p.hub.unwant("a", T))
    assert p.events == [h.Withdrawn("a")]
    p.want("b")
    one = p.connect()
    p.answer_all(one)
    p.take(p.hub.unwant("b", T))
    p.take(p.hub.disconnected(one, T))
    assert p.events[-1] == h.Withdrawn("b")


def test_everyone_is_told_when_asked() -> None:
    """A proxy that has a pod from an earlier agent lets go of it too."""
    p = Proxies()
    one = p.connect()
    p.answer_all(one)
    p.take(p.hub.unwant("a", T))
    assert zds.Del("a") not in p.sent(one)
    p.take(p.hub.unwant("a", T, everyone=True))
    assert p.sent(one)[-1] == zds.Del("a")

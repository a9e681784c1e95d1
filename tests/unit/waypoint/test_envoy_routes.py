"""What the real Envoy does with rules: which takes a request, and what then happens to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from http.cookies import SimpleCookie

import pytest
from envoy_rig import Proxy, bound, proxy, ref, rule, to

from waypoint.config.routing import (
    DirectResponse,
    Fault,
    HeaderChange,
    HttpRule,
    Mirror,
    PathMatch,
    Redirect,
    Retry,
    Rewrite,
    RouteMatch,
    Session,
    TextMatch,
    WeightedBackend,
)

INVALID = WeightedBackend(None)
EARLY = 0.01  # seconds: Envoy's timers count from when its event loop last looked at the clock


def answers(text: str, **match: object) -> HttpRule:
    """A rule that answers with this text what it takes."""
    return rule(match=RouteMatch(**match), response=DirectResponse(200, text))  # type: ignore[arg-type]


def text(kind: str, value: str = "", **more: bool) -> TextMatch:
    return TextMatch(kind, value, **more)  # type: ignore[arg-type]


def under(path: str) -> RouteMatch:
    return RouteMatch(path=PathMatch("segments", path))


CASES: dict[str, list[HttpRule] | None] = {
    "none": None,
    "empty": [],
    "paths": [
        answers("exact", path=PathMatch("exact", "/a/exact")),
        answers("segments", path=PathMatch("segments", "/a")),
        answers("text", path=PathMatch("prefix", "/t")),
        answers("regex", path=PathMatch("regex", "/r/[0-9]+")),
        answers("any case", path=PathMatch("segments", "/CASE", ignore_case=True)),
        answers("any case regex", path=PathMatch("regex", "/Rx/[a-c]+", ignore_case=True)),
    ],
    "root": [answers("root", path=PathMatch("segments", "/"))],
    "methods": [
        answers("post", method=text("exact", "POST")),
        answers("not get", method=text("exact", "GET", invert=True)),
    ],
    "names": [
        answers("shop", authority=text("exact", "shop.example")),
        answers("suffix", authority=text("suffix", ".example")),
    ],
    "headers": [
        answers("exact", headers=(("x-h", text("exact", "1")), ("x-i", text("present")))),
        answers("prefix", headers=(("x-h", text("prefix", "p-")),)),
        answers("regex", headers=(("x-h", text("regex", "[x-z]{3}", ignore_case=True)),)),
        answers("case", headers=(("x-h", text("exact", "ABC", ignore_case=True)),)),
        answers(
            "unlike",
            headers=(("x-t", text("exact", "u")), ("x-no", text("exact", "1", invert=True))),
        ),
        answers(
            "absent", headers=(("x-t", text("exact", "v")), ("x-no", text("present", invert=True)))
        ),
    ],
    "queries": [
        answers("exact", query=(("q", text("exact", "1")),)),
        answers("regex", query=(("q", text("regex", "[a-c]+")),)),
        answers("present", query=(("p", text("present")),)),
    ],
    "grpc": [answers("grpc", grpc=True), answers("http")],
    "callers": [answers("consumer", source_namespaces=("other", "third")), answers("producer")],
    "weights": [rule(to("a", 75), to("b", 25), to("dead", 0))],
    "invalid": [rule(INVALID, match=under("/all")), rule(to("a", 1), INVALID)],
    "no share": [
        rule(to("a", 0), match=under("/zero")),
        rule(INVALID, match=RouteMatch(grpc=True)),
    ],
    "shares": [
        rule(
            to("a", 1, request=HeaderChange(set=(("x-s", "a"),))),
            to("b", 1, rewrite=Rewrite(host="b.example")),
            request_headers=HeaderChange(add=(("x-rule", "1"),)),
        )
    ],
    "redirects": [
        rule(match=under("/host"), redirect=Redirect(301, scheme="https", host="h.example")),
        rule(match=under("/full"), redirect=Redirect(307, path="/new?", full=True)),
        rule(match=under("/old"), redirect=Redirect(308, path="/new")),
        rule(match=under("/root"), redirect=Redirect(303, path="/")),
        rule(match=under("/port"), redirect=Redirect(302, port=8443)),
    ],
    "rewrites": [
        rule(match=under("/full"), rewrite=Rewrite(host="h.example", path="/new", full=True)),
        rule(match=under("/a/b"), rewrite=Rewrite(path="/c")),
        rule(match=under("/root"), rewrite=Rewrite(path="/")),
        rule(match=under("/back"), rewrite=Rewrite(path=r"/\1\\", full=True)),
        rule(match=under("/re"), rewrite=Rewrite(regex="/re/([a-z]+)/(.*)", path=r"/\2/\1")),
        rule(match=RouteMatch(path=PathMatch("prefix", "/pre")), rewrite=Rewrite(path="/post")),
        rule(match=RouteMatch(), rewrite=Rewrite(path="/under")),
    ],
    "changes": [
        rule(
            request_headers=HeaderChange(
                set=(("x-set", "100% %REQ(x-in)%"), ("host", "set.example")),
                add=(("x-add", "2"), ("x-both", "new")),
                remove=("x-gone", "x-both"),
            ),
            response_headers=HeaderChange(set=(("x-app", "hidden"),), add=(("x-more", "50%"),)),
        )
    ],
    "mirrors": [
        rule(match=under("/all"), mirrors=(Mirror(ref("b")), Mirror(ref("web")))),
        rule(match=under("/none"), mirrors=(Mirror(ref("b"), 0.0),)),
        rule(match=under("/half"), mirrors=(Mirror(ref("b"), 50.0),)),
        rule(match=under("/dead"), mirrors=(Mirror(ref("dead")), Mirror(ref("absent")))),
    ],
    "timeouts": [
        rule(match=under("/whole"), timeout=0.3),
        rule(match=under("/try"), backend_timeout=0.3, retry=Retry(0)),
        rule(match=under("/tries"), backend_timeout=0.2, timeout=0.5, retry=Retry(5)),
        rule(match=under("/default"), backend_timeout=0.2),
        rule(match=under("/any")),
    ],
    "retries": [
        rule(match=under("/codes"), retry=Retry(2, codes=(500, 503), backoff=0.01)),
        rule(match=under("/off"), retry=Retry(0)),
        rule(to("half"), match=under("/half"), retry=Retry(1)),
    ],
    "sessions": [
        rule(match=under("/cookie"), session=Session("cookie", "s", "/cookie")),
        rule(
            match=under("/long"),
            session=Session("cookie", "s", absolute_timeout=60.0, permanent=True),
        ),
        rule(match=under("/header"), session=Session("header", "x-session")),
    ],
    "faults": [
        rule(match=under("/abort"), fault=Fault(abort_code=418, abort_percent=100.0)),
        rule(match=under("/delay"), fault=Fault(delay=0.3, delay_percent=100.0)),
        rule(match=under("/never"), fault=Fault(abort_code=418, abort_percent=0.0)),
        rule(match=under("/grpc"), fault=Fault(abort_grpc=14, abort_percent=100.0)),
        rule(match=under("/half"), fault=Fault(abort_code=418, abort_percent=50.0)),
    ],
    "answers": [
        rule(match=under("/teapot"), response=DirectResponse(418, "50% tea\n")),
        rule(match=under("/long"), response=DirectResponse(200, "x" * 4096)),
        rule(match=under("/nothing"), response=DirectResponse(204)),
    ],
}


@pytest.fixture(scope="module")
def wp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    cases = {name: bound(rules) for name, rules in CASES.items()}
    with proxy(tmp_path_factory.mktemp("envoy"), cases) as running:
        yield running


# ---- which rule ------------------------------------------------------------------------------


def test_without_routes_requests_go_to_the_service(wp: Proxy) -> None:
    got = wp.ask("none", "/any?x=1", headers=[("host", "whatever.example")])
    assert (got.status, got.app) == (200, "web")
    assert got.seen["path"] == "/any?x=1"
    assert got.seen["headers"]["host"] == "whatever.example"


def test_what_no_rule_takes_is_not_found(wp: Proxy) -> None:
    assert wp.ask("empty").status == 404
    assert wp.ask("paths", "/elsewhere").status == 404


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/a/exact", "exact"),
        ("/a/exact?q=1", "exact"),
        ("/a/exact/", "segments"),
        ("/a", "segments"),
        ("/a/", "segments"),
        ("/a?q=1", "segments"),
        ("/ab", ""),
        ("/A", ""),
        ("/text/x", "text"),
        ("/r/12", "regex"),
        ("/r/12?x=y", "regex"),
        ("/r/12x", ""),
        ("/x/r/12", ""),
        ("/case/x", "any case"),
        ("/CaSe", "any case"),
        ("/cased", ""),
        ("/rX/ABC", "any case regex"),
    ],
)
def test_paths(wp: Proxy, path: str, taken: str) -> None:
    got = wp.ask("paths", path)
    assert (got.status, got.text) == ((200, taken) if taken else (404, ""))


def test_the_root_is_every_path(wp: Proxy) -> None:
    assert [wp.ask("root", p).text for p in ("/", "/a", "/a/b?c")] == ["root"] * 3


def test_methods(wp: Proxy) -> None:
    got = [wp.ask("methods", method=m).text for m in ("POST", "PUT", "GET")]
    assert got == ["post", "not get", ""]


def test_names(wp: Proxy) -> None:
    names = ("shop.example", "a.example", "example")
    assert [wp.ask("names", headers=[("host", n)]).text for n in names] == ["shop", "suffix", ""]


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({"x-h": "1", "x-i": ""}, "exact"),
        ({"x-h": "1"}, ""),
        ({"x-h": "p-1"}, "prefix"),
        ({"x-h": "xYz"}, "regex"),
        ({"x-h": "xyzx"}, ""),
        ({"x-h": "aBc"}, "case"),
        ({"x-t": "u"}, "unlike"),
        ({"x-t": "u", "x-no": "2"}, "unlike"),
        ({"x-t": "u", "x-no": "1"}, ""),
        ({"x-t": "v"}, "absent"),
        ({"x-t": "v", "x-no": ""}, ""),
    ],
)
def test_headers(wp: Proxy, headers: dict[str, str], taken: str) -> None:
    assert wp.ask("headers", headers=list(headers.items())).text == taken


def test_queries(wp: Proxy) -> None:
    asked = ("/?q=1", "/?q=ab", "/?q=abx", "/?p", "/?z=1")
    assert [wp.ask("queries", p).text for p in asked] == ["exact", "regex", "", "present", ""]


def test_grpc_is_told_by_its_content_type(wp: Proxy) -> None:
    grpc = wp.ask("grpc", method="POST", headers=[("content-type", "application/grpc+proto")])
    assert grpc.headers["grpc-message"] == "grpc"
    assert wp.ask("grpc", headers=[("content-type", "application/grpcx")]).text == "http"


def test_callers_are_told_apart_by_namespace(wp: Proxy) -> None:
    assert wp.ask("callers", caller="other").text == "consumer"
    assert wp.ask("callers", caller="shop").text == "producer"


# ---- where to --------------------------------------------------------------------------------


def test_weights(wp: Proxy) -> None:
    got = Counter(wp.ask("weights").app for _ in range(400))
    assert set(got) == {"a", "b"}
    assert 60 <= got["b"] <= 140  # 100 by expectation, 4.6 standard deviations


def test_an_invalid_backend_is_an_error_for_its_share(wp: Proxy) -> None:
    assert wp.ask("invalid", "/all").status == 500
    got = Counter(wp.ask("invalid").status for _ in range(100))
    assert set(got) == {200, 500}
    assert 25 <= got[500] <= 75


def test_without_any_share_it_is_an_error(wp: Proxy) -> None:
    assert wp.ask("no share", "/zero").status == 500
    grpc = wp.ask("no share", method="POST", headers=[("content-type", "application/grpc")])
    assert grpc.headers["grpc-status"] == "14"


def test_shares_change_requests_of_their_own(wp: Proxy) -> None:
    found = {}
    for _ in range(40):
        got = wp.ask("shares", headers=[("host", "web.example")])
        found[got.app] = got.seen["headers"]
    assert (found["a"]["x-s"], found["a"]["host"]) == ("a", "web.example")
    assert (found["b"].get("x-s"), found["b"]["host"]) == (None, "b.example")
    assert found["a"]["x-rule"] == found["b"]["x-rule"] == "1"


# ---- what happens to it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [
        ("/host/x?q=1", 301, "https://h.example/host/x?q=1"),
        ("/old/x?q=1", 308, "http://web.example/new/x?q=1"),
        ("/old", 308, "http://web.example/new"),
        ("/root", 303, "http://web.example/"),
        ("/root/x", 303, "http://web.example/x"),
        ("/port", 302, "http://web.example:8443/port"),
    ],
)
def test_redirects(wp: Proxy, path: str, status: int, location: str) -> None:
    got = wp.ask("redirects", path, headers=[("host", "web.example")])
    assert (got.status, got.headers["location"]) == (status, location)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/full/x?q=1", "/new?q=1"),
        ("/a/b", "/c"),
        ("/a/b/", "/c/"),
        ("/a/b/d?q=1", "/c/d?q=1"),
        ("/root", "/"),
        ("/root/x", "/x"),
        ("/root?q=1", "/?q=1"),
        ("/back", r"/\1\\"),
        ("/re/ab/cd", "/cd/ab"),
        ("/prefix", "/postfix"),
        ("/x", "/under/x"),
    ],
)
def test_rewrites(wp: Proxy, path: str, sent: str) -> None:
    got = wp.ask("rewrites", path, headers=[("host", "web.example")])
    assert got.seen["path"] == sent
    assert got.seen["headers"]["host"] == ("h.example" if "full" in path else "web.example")


def test_changes_of_headers(wp: Proxy) -> None:
    sent = [("x-in", "1"), ("x-add", "1"), ("x-gone", "1"), ("x-both", "old"), ("x-set", "0")]
    got = wp.ask("changes", headers=sent)
    seen = got.seen["headers"]
    assert seen["x-set"] == "100% %REQ(x-in)%"  # a text, not a command
    assert seen["x-add"].replace(" ", "") == "1,2"
    assert seen["x-both"] == "new"  # removed first, then added
    assert "x-gone" not in seen
    assert seen["host"] == "set.example"
    assert (got.headers["x-app"], got.headers["x-more"]) == ("hidden", "50%")


def test_mirrors(wp: Proxy) -> None:
    copies = wp.seen.of
    assert [wp.ask("mirrors", path).app for path in ("/all", "/dead")] == ["a", "a"]
    for _ in range(60):
        assert wp.ask("mirrors", "/half").app == "a"
    assert wp.ask("mirrors", "/none").app == "a"
    deadline = time.monotonic() + 10
    while not (copies("b", "/all") == copies("web", "/all") == 1 and copies("b", "/half") >= 10):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert copies("b", "/half") <= 50
    assert copies("b", "/none") == 0
    assert not [host for host in wp.seen.hosts if "shadow" in host]  # not Envoy's own suffix


@pytest.mark.parametrize(
    ("path", "status", "least"),
    [
        ("/whole?delay=5", 504, 0.3),
        ("/try?delay=5", 504, 0.3),
        ("/tries?delay=5", 504, 0.5),
        ("/any?delay=0.4", 200, 0.4),
    ],
)
def test_timeouts(wp: Proxy, path: str, status: int, least: float) -> None:
    begun = time.monotonic()
    assert wp.ask("timeouts", path).status == status
    assert least - EARLY <= time.monotonic() - begun < 4


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_slow_backend_gets_a_request_once(wp: Proxy, method: str) -> None:
    """Without `retry`, a limit of tries makes no more of them."""
    path = f"/default?delay=3&m={method}"
    begun = time.monotonic()
    assert wp.ask("timeouts", path, method, [("content-length", "0")]).status == 504
    assert 0.2 - EARLY <= time.monotonic() - begun < 2
    assert wp.seen.of("a", path) == 1


def test_with_a_limit_of_tries_lost_ones_are_still_repeated(wp: Proxy) -> None:
    path = "/default?cut=2"
    assert wp.ask("timeouts", path).status == 200
    assert wp.seen.of("a", path) == 3


def test_slow_tries_are_repeated_where_a_route_asks_for_retries(wp: Proxy) -> None:
    path = "/tries?delay=5&counted=1"
    assert wp.ask("timeouts", path).status == 504
    assert wp.seen.of("a", path) > 1


def test_retries_by_code(wp: Proxy) -> None:
    assert wp.ask("retries", "/codes?status=503&flaky=2").status == 200
    assert wp.seen.of("a", "/codes?status=503&flaky=2") == 3
    assert wp.ask("retries", "/codes?status=500&flaky=9").status == 500
    assert wp.seen.of("a", "/codes?status=500&flaky=9") == 3
    assert wp.ask("retries", "/codes?status=502").status == 502
    assert wp.seen.of("a", "/codes?status=502") == 1


def test_another_endpoint_is_tried(wp: Proxy) -> None:
    """The dead one of two looks idle while the other is busy: a retry must not meet it again."""
    assert wp.asks("retries", "/half?delay=0.02", 320) == {200: 320}  # with 5 picks 40 of them fail


@pytest.mark.parametrize(
    ("case", "method", "status", "tries"),
    [
        ("none", "GET", 200, 3),  # what may be repeated is, without anybody asking for it
        ("none", "PUT", 200, 3),
        ("none", "POST", 503, 1),
        ("retries", "GET", 503, 1),
    ],
)
def test_default_retries(wp: Proxy, case: str, method: str, status: int, tries: int) -> None:
    path = f"/off?cut=2&of={case}{method}"
    name = "web" if case == "none" else "a"
    assert wp.ask(case, path, method, [("content-length", "0")]).status == status
    assert wp.seen.of(name, path) == tries


def test_sessions(wp: Proxy) -> None:
    first = wp.ask("sessions", "/cookie")
    cookie = SimpleCookie(first.headers["set-cookie"])["s"]
    assert (cookie["path"], cookie["max-age"]) == ("/cookie", "")
    held = [("cookie", f"s={cookie.coded_value}")]
    again = [wp.ask("sessions", "/cookie", headers=held) for _ in range(6)]
    assert {a.status for a in again} == {200}
    assert not any("set-cookie" in a.headers for a in again)  # it stayed where it was
    long = SimpleCookie(wp.ask("sessions", "/long").headers["set-cookie"])["s"]
    assert long["max-age"] == "60"
    assert wp.ask("sessions", "/header").headers["x-session"]
    assert "set-cookie" not in wp.ask("none").headers


def test_faults(wp: Proxy) -> None:
    assert wp.ask("faults", "/abort").status == 418
    assert wp.ask("faults", "/never").status == 200
    begun = time.monotonic()
    assert wp.ask("faults", "/delay").status == 200
    assert time.monotonic() - begun >= 0.3 - EARLY
    grpc = wp.ask("faults", "/grpc", "POST", [("content-type", "application/grpc")])
    assert grpc.headers["grpc-status"] == "14"
    got = Counter(wp.ask("faults", "/half").status for _ in range(60))
    assert set(got) == {200, 418}


def test_answers(wp: Proxy) -> None:
    teapot = wp.ask("answers", "/teapot")
    assert (teapot.status, teapot.text) == (418, "50% tea\n")
    assert len(wp.ask("answers", "/long").text) == 4096
    assert wp.ask("answers", "/nothing").status == 204

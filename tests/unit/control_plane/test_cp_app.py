"""The process: its command line, its errors, its start and its end."""

from __future__ import annotations

import datetime
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from cp_support import Tokens, pod

from control_plane.admin import _is_loopback
from control_plane.app import main
from control_plane.options import parse_options
from mesh.env import everywhere
from mesh.store import FolderStore

NEEDED = ["--objects", "o", "--data", "d", "--token-key", "k"]


def test_defaults_are_the_contract() -> None:
    """Ports, accounts, names and lifetimes as operators of the field know them."""
    o = parse_options(NEEDED)
    assert o.listen == (everywhere(), 15012)
    assert o.metrics_listen == (everywhere(), 15014)
    assert o.sans == ("istiod.istio-system.svc",)
    assert o.proxy_accounts == {"istio-system/ztunnel"}
    assert o.token_audience == "istio-ca"
    assert (o.default_ttl, o.max_ttl) == (datetime.timedelta(days=1), datetime.timedelta(days=1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.99.0.2", ("10.99.0.2", 15012)),
        ("10.99.0.2:1", ("10.99.0.2", 1)),
        ("fd00::2", ("fd00::2", 15012)),
        ("[fd00::2]:1", ("fd00::2", 1)),
        ("[fd00::2]", ("fd00::2", 15012)),
        (":1", (everywhere(), 1)),
    ],
)
def test_listen_addresses(text: str, expected: tuple[str, int]) -> None:
    """IPv4 and IPv6, with a port and without; the address is one of the certificate's names."""
    o = parse_options([*NEEDED, "--listen", text])
    assert o.listen == expected
    assert (expected[0] in o.sans) is (expected[0] != everywhere())


@pytest.mark.parametrize(
    "bad",
    [
        ["--listen", "host"],
        ["--listen", "1.2.3.4:99999"],
        ["--listen", "[::1"],
        ["--san", "a b"],
        ["--proxy-account", "ztunnel"],
        ["--max-cert-ttl", "0"],
        ["--max-cert-ttl", "1w"],
    ],
)
def test_bad_options_are_named(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value stops the start with the option's name."""
    with pytest.raises(SystemExit):
        parse_options([*NEEDED, *bad])
    assert bad[0] in capsys.readouterr().err


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _arguments(folder: Path, tokens: Tokens, port: int, metrics: int) -> list[str]:
    return [
        *("--objects", str(folder / "objects")),
        *("--data", str(folder / "cp")),
        *("--token-key", str(tokens.file)),
        *("--listen", f"127.0.0.1:{port}"),
        *("--metrics-listen", f"127.0.0.1:{metrics}"),
    ]


def test_wrong_surroundings_are_one_clear_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing key, ports in use: exit code 1 and a line that names the option."""
    tokens = Tokens(tmp_path)
    port, metrics = _free_port(), _free_port()
    tokens.file.rename(tmp_path / "elsewhere")
    assert main(_arguments(tmp_path, tokens, port, metrics)) == 1
    assert "--token-key" in caplog.text
    (tmp_path / "elsewhere").rename(tokens.file)
    for taken, option in ((port, "--listen"), (metrics, "--metrics-listen")):
        with socket.socket() as s:
            s.bind(("127.0.0.1", taken))
            s.listen()
            caplog.clear()
            assert main(_arguments(tmp_path, tokens, port, metrics)) == 1
            assert option in caplog.text


def _wait_ready(metrics: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/healthz/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError("not ready in 30 s")


def test_process_starts_on_a_messy_folder_and_ends_on_sigterm(tmp_path: Path) -> None:
    """Broken files are said once and do not stop it; SIGTERM ends it cleanly and soon."""
    tokens = Tokens(tmp_path)
    store = FolderStore(tmp_path / "objects")
    store.apply(pod("a"))
    hostile: dict[str, Any] = {
        "broken.yaml": "kind: [",
        "binary.yaml": "\0\1\2",
        "odd.yaml": "kind: Pod\nmetadata: {name: b, namespace: shop}\nspec: {containers: 7}\n"
        "status: {podIPs: 7, conditions: 9}\n",
        "odder.yaml": "kind: Service\nmetadata: {name: b, namespace: shop}\n"
        "spec: {ports: 5, selector: [1], clusterIPs: 4}\n",
        "oddest.yaml": "kind: PeerAuthentication\nmetadata: {name: b}\nspec: {mtls: 1}\n",
    }
    for name, text in hostile.items():
        (tmp_path / "objects" / name).write_text(text)
    metrics = _free_port()
    arguments = _arguments(tmp_path, tokens, _free_port(), metrics)
    process = subprocess.Popen(
        [sys.executable, "-m", "control_plane.app", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_ready(metrics, process)
        url = f"http://127.0.0.1:{metrics}/debug/registry"
        with urllib.request.urlopen(url, timeout=5) as r:
            assert b"Kubernetes//Pod/shop/a" in r.read()
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=15)
        assert process.returncode == 0
        assert time.monotonic() - started < 10
        assert log.count("broken.yaml:1:") == 1
        assert log.count("Service shop/b: cannot be read") == 1
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("client", "allowed"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.244.1.5", False),
        ("fe80::1%eth0", False),
    ],
)
def test_debug_pages_are_for_loopback(client: str, allowed: bool) -> None:
    """The dump tells who runs where: it is not for every pod that reaches the metrics port."""
    assert _is_loopback(client) is allowed

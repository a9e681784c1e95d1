"""A CA in files may change under a running control plane."""

from __future__ import annotations

import asyncio
import datetime
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cp_support import NOW, Tokens, make_plane, private_pem
from cryptography import x509

from control_plane.ca.current import CurrentCa
from control_plane.ca.folder import FolderCa
from control_plane.ca.root import SigningCa, bundle_pem, key_pem, new_root, pem
from control_plane.options import ClusterOptions, parse_options
from mesh.errors import Unavailable


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def write(folder: Path, ca: SigningCa, roots: tuple[Any, ...] = ()) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "ca-key.pem").write_bytes(key_pem(ca.key))
    (folder / "ca-key.pem").chmod(0o600)
    (folder / "ca-cert.pem").write_bytes(pem(ca.certificate))
    (folder / "root-cert.pem").write_bytes(bundle_pem(roots or ca.roots))


def test_files_are_read_again_when_they_change(tmp_path: Path) -> None:
    """Another issuer and several roots, as an operator rotates them; nothing new is no news."""
    first, second = new_root("corp", NOW), new_root("corp", NOW)
    folder, data = tmp_path / "ca", tmp_path / "data"
    write(folder, first)
    ca = FolderCa(data, folder, "cluster.local", lambda: NOW)
    assert ca.reload() is None
    write(folder, first, (first.root, second.root))
    changed = ca.reload()
    assert changed is not None
    assert changed.roots == (first.root, second.root)
    assert (data / "root-cert.pem").read_bytes() == changed.root_pem
    write(folder, second, (first.root, second.root))
    changed = ca.reload()
    assert changed is not None
    assert (changed.root, changed.roots) == (second.root, (first.root, second.root))
    (folder / "ca-cert.pem").touch()
    assert ca.reload() is None


def test_half_a_change_is_waited_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key without its certificate is said once, and signing goes on until the rest is there."""
    first, second = new_root("corp", NOW), new_root("corp", NOW)
    folder = tmp_path / "ca"
    write(folder, first)
    ca = FolderCa(tmp_path / "data", folder, "cluster.local", lambda: NOW)
    (folder / "ca-key.pem").write_bytes(key_pem(second.key))
    assert ca.reload() is None
    assert ca.reload() is None
    assert ca.ca.certificate == first.certificate
    assert caplog.text.count("is not the key of") == 1
    write(folder, second)
    changed = ca.reload()
    assert changed is not None
    assert changed.root == second.root


def test_the_own_root_may_be_replaced_but_never_vanishes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """--data: new files are taken; missing ones are not made anew under a running mesh."""
    ca = FolderCa(tmp_path, None, "cluster.local", lambda: NOW)
    old, new = ca.ca, new_root("cluster.local", NOW)
    (tmp_path / "root-key.pem").unlink()
    (tmp_path / "root-cert.pem").unlink()
    assert ca.reload() is None
    assert "is missing: restore it" in caplog.text
    assert not (tmp_path / "root-key.pem").exists()
    (tmp_path / "root-key.pem").write_bytes(private_pem(new.key))
    (tmp_path / "root-cert.pem").write_bytes(bundle_pem((old.root, new.root)))
    changed = ca.reload()
    assert changed is not None
    assert (changed.root, changed.roots) == (new.root, (old.root, new.root))


def test_the_servers_own_certificate_follows(tmp_path: Path) -> None:
    """After a change of the CA the next handshake shows a certificate of the new one."""
    tokens = Tokens(tmp_path)
    first, second = new_root("corp", now()), new_root("corp", now())
    folder = tmp_path / "ca"
    write(folder, first)

    def trusted(port: int, root: x509.Certificate) -> bool:
        context = ssl.create_default_context(cadata=pem(root).decode())
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection(("127.0.0.1", port), timeout=5)
        with raw:
            try:
                with context.wrap_socket(raw, server_hostname="istiod.istio-system.svc"):
                    return True
            except ssl.SSLCertVerificationError:
                return False

    async def run() -> None:
        plane = make_plane(tmp_path, tokens, "--ca-dir", str(folder))
        await plane.start()
        try:
            assert await asyncio.to_thread(trusted, plane.port, first.root)
            write(folder, second, (second.root, first.root))
            end = time.monotonic() + 5
            while plane.ca.root != second.root:
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            assert await asyncio.to_thread(trusted, plane.port, second.root)
            assert not await asyncio.to_thread(trusted, plane.port, first.root)
        finally:
            await plane.stop()

    asyncio.run(run())


def test_no_ca_yet_is_unavailable() -> None:
    """Until the first one is there, callers are told to come again."""
    current = CurrentCa(lambda _: None)
    assert not current.ready
    with pytest.raises(Unavailable):
        _ = current.ca


def test_options_of_a_cluster() -> None:
    """Names and namespaces from the pod; files do not go with it."""
    o = parse_options(["--kubernetes"], {"POD_NAMESPACE": "mesh", "POD_NAME": "cp-1"})
    assert o.where == ClusterOptions(None, "mesh", "cp-1", None, "", "IfNotPresent", ())
    assert o.root_namespace == "mesh"
    assert o.listen in (("::", 15012), ("0.0.0.0", 15012))
    assert o.proxy_accounts == {"mesh/ztunnel"}
    assert o.sans == ("istiod.mesh.svc", "istiod.mesh.svc.cluster.local", "istiod.mesh")
    o = parse_options(["--kubernetes", "--root-overlap", "0s"], {})
    assert isinstance(o.where, ClusterOptions)
    assert o.where.namespace == "istio-system"
    assert o.where.root_overlap == datetime.timedelta(0)
    o = parse_options(["--kubernetes", "--root-namespace", "root"], {"POD_NAMESPACE": "mesh"})
    assert (o.root_namespace, o.sans[0]) == ("root", "istiod.mesh.svc")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--kubernetes", "--objects", "o"], "--objects does not go with --kubernetes"),
        (["--objects", "o", "--data", "d"], "--token-key is needed"),
        ([], "--objects is needed (or --kubernetes)"),
    ],
)
def test_options_that_do_not_go_together(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is named."""
    with pytest.raises(SystemExit):
        parse_options(argv, {})
    assert message in capsys.readouterr().err


def test_waiting_for_an_api_server_ends_on_sigterm(tmp_path: Path) -> None:
    """A process that never got to read anything stops as well as any other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    config = tmp_path / "kubeconfig"
    config.write_text(
        f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
users: [{{name: u, user: {{token: t}}}}]
current-context: x
"""
    )
    argv = ["--kubernetes", "--kubeconfig", str(config), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "control_plane.app", *argv, "--metrics-listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while "what was last read stays" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in log
        assert time.monotonic() - began < 8
    finally:
        process.kill()
        process.wait()

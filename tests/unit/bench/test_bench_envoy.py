"""The sidecar pair is what it claims: mutual TLS 1.3 between two SPIFFE identities."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from bench import envoy


def test_each_side_has_a_spiffe_certificate_of_the_common_root(tmp_path: Path) -> None:
    """One URI SAN each, signed by the root both trust; the key is private."""
    made = envoy.make_identities(tmp_path, ["client", "server"])
    root = x509.load_pem_x509_certificate(made["client"].root.read_bytes())
    for name, identity in made.items():
        leaf = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
        leaf.verify_directly_issued_by(root)
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert san.get_values_for_type(x509.UniformResourceIdentifier) == [envoy.spiffe(name)]
        assert identity.key.stat().st_mode & 0o077 == 0


def test_every_server_and_port_has_its_own_local_listener() -> None:
    """The client can tell across from near and HTTP from iperf3 by the port it dials."""
    ports = {envoy.local_port(app, i) for app in envoy.TLS_PORTS for i in range(2)}
    assert len(ports) == 4


@pytest.mark.parametrize("side", ["client", "server"])
def test_envoy_accepts_the_configuration(tmp_path: Path, side: str) -> None:
    """Envoy's own validation reads it, certificates included."""
    made = envoy.make_identities(tmp_path, ["client", "server"])
    config = (
        envoy.client_config(made["client"], ["10.0.0.1", "10.0.0.2"])
        if side == "client"
        else envoy.server_config(made["server"])
    )
    path = tmp_path / "envoy.json"
    path.write_text(config)
    done = subprocess.run(
        [str(envoy.binary()), "--mode", "validate", "-c", str(path), "-l", "error"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_the_server_demands_a_certificate_and_both_speak_tls_1_3(tmp_path: Path) -> None:
    """Neither side would settle for less than what the mesh does."""
    made = envoy.make_identities(tmp_path, ["client", "server"])
    server = json.loads(envoy.server_config(made["server"]))
    for listener in server["static_resources"]["listeners"]:
        tls = listener["filter_chains"][0]["transport_socket"]["typed_config"]
        assert tls["require_client_certificate"] is True
        assert tls["common_tls_context"]["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"
    client = json.loads(envoy.client_config(made["client"], ["10.0.0.1"]))
    for cluster in client["static_resources"]["clusters"]:
        context = cluster["transport_socket"]["typed_config"]["common_tls_context"]
        matcher = context["validation_context"]["match_typed_subject_alt_names"][0]["matcher"]
        assert matcher == {"exact": envoy.spiffe("server")}

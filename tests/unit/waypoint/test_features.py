"""What GatewayClasses are told is what the conformance tests found."""

from __future__ import annotations

from pathlib import Path

from mesh.manifest import parse_value
from waypoint.config.features import CORE, EXTENDED

REPORT = Path(__file__).parents[3] / "docs" / "conformance" / "mesh.yaml"


def test_features_are_those_that_passed() -> None:
    report = parse_value(REPORT.read_text())
    assert isinstance(report, dict)
    profiles = {p["name"]: p for p in report["profiles"]}
    assert all(p["core"]["result"] == "success" for p in profiles.values())
    assert profiles.keys() == {"MESH-GRPC", "MESH-HTTP"}
    passed = {
        feature
        for p in profiles.values()
        if p.get("extended", {}).get("result") == "success"
        for feature in p["extended"]["supportedFeatures"]
    }
    assert set(EXTENDED) == passed
    assert set(CORE) == {"Mesh", "HTTPRoute", "GRPCRoute"}

"""The views of `ambit ztunnel` over a dump recorded from Istio's ztunnel."""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import ztunnel
from cli.dump import Dump, Filter, parse_untrusted
from mesh.errors import BadInput, ConfigError

RAW = (Path(__file__).parent / "data" / "ztunnel.json").read_bytes()
NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


def show(view: str, form: str = "short", at: dt.datetime = NOON, **wanted: Any) -> str:
    return ztunnel.render(view, {"": parse_untrusted(RAW)}, Filter(**wanted), form, at)


def cells(text: str) -> list[list[str]]:
    return [[c for c in line.split("   ") if c.strip()] for line in text.splitlines()]


def test_workloads_by_namespace_and_name_with_every_address() -> None:
    """The waypoint is named whether its address or its hostname is given."""
    assert [[c.strip() for c in row] for row in cells(show("workload"))] == [
        ["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"],
        ["other", "old-1", "10.244.2.7", "node2", "waypoint", "TCP"],
        ["shop", "front-1", "10.244.2.6", "node2", "None", "HBONE"],
        ["shop", "web-1", "10.244.1.5,fd00:10:244:1::5", "node1", "None", "HBONE"],
    ]


def test_services_with_vips_waypoint_and_healthy_endpoints() -> None:
    """VIPs come without their network."""
    rows = [[c.strip() for c in row] for row in cells(show("service"))]
    assert rows[0] == ["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"]
    assert ["shop", "web", "10.96.0.20,fd00:10:96::20", "waypoint", "1/1"] in rows
    assert ["other", "old", "10.96.0.21", "None", "0/0"] in rows


def test_policies_with_action_and_scope() -> None:
    """As they are enforced, not as they were written."""
    rows = [[c.strip() for c in row] for row in cells(show("policy"))]
    assert rows[1:] == [
        ["istio-system", "strict", "Deny", "Global"],
        ["shop", "only-front", "Allow", "WorkloadSelector"],
    ]


def test_certificates_show_the_chain_and_what_is_missing() -> None:
    """A certificate not there yet has a line too, so that it is missed."""
    rows = [[c.strip() for c in row] for row in cells(show("certificate"))]
    front, old, leaf, root = rows[1:]
    assert front[1:3] == ["NA", "Initializing"]
    assert old[1:4] == ["NA", "Unavailable", "false"]
    assert leaf[1:5] == [
        "Leaf",
        "Available",
        "true",
        f"{271676055104741785552467469040731750696653685944:x}",
    ]
    assert (root[1], root[4]) == ("Root", "4d")


def test_an_expired_certificate_is_not_valid() -> None:
    """Neither after its end nor before its beginning."""
    for at in (dt.datetime(2026, 6, 3, tzinfo=dt.UTC), dt.datetime(2026, 5, 1, tzinfo=dt.UTC)):
        leaf = next(line for line in show("certificate", at=at).splitlines() if "Leaf" in line)
        assert " false " in leaf


def test_connections_name_who_is_at_an_address() -> None:
    """Unknown addresses stay as they are; both families are found."""
    rows = [[c.strip() for c in row] for row in cells(show("connections"))]
    web = "web-1.shop"
    assert [
        web,
        "Inbound",
        "web-1.shop:8080",
        "front-1.shop:40000",
        "web.shop.svc.cluster.local",
        "HBONE",
    ] in rows
    assert [web, "Inbound", "web-1.shop:8080", "192.168.7.7:5555", "TCP"] in rows
    assert [
        web,
        "Outbound",
        "web-1.shop:41000",
        "old-1.other:8080",
        "old.other.svc.cluster.local:80",
        "TCP",
    ] in rows


def test_connections_raw_and_one_direction() -> None:
    """Addresses as they are, outbound only."""
    rows = [
        [c.strip() for c in row]
        for row in cells(show("connections", raw=True, direction="outbound"))
    ]
    assert rows[1:] == [
        [
            "web-1.shop",
            "Outbound",
            "[fd00:10:244:1::5]:41000",
            "10.244.2.7:8080",
            "10.96.0.21:80",
            "TCP",
        ]
    ]


def test_filters_leave_out_what_was_not_asked_for() -> None:
    """By namespace and by address, in every form of output."""
    assert "shop" not in show("workload", namespace="other")
    assert len(json.loads(show("workload", "json", address="fd00:10:244:1::5"))) == 1
    assert len(json.loads(show("service", "json", address="10.96.0.20"))) == 1
    assert yaml.safe_load(show("certificate", "yaml", namespace="none")) == []


def test_structured_output_is_the_dumps_own_objects() -> None:
    """Nothing renamed, nothing lost: what istioctl's users parse stays parseable."""
    original = {w["uid"]: w for w in json.loads(RAW)["workloads"]}
    shown = json.loads(show("workload", "json"))
    assert {w["uid"]: w for w in shown} == original
    assert yaml.safe_load(show("workload", "yaml")) == shown
    assert json.loads(show("all", "json")) == json.loads(RAW)


def test_two_nodes_share_workloads_but_not_certificates() -> None:
    """What every node knows is shown once; what belongs to a node says which."""
    dump = parse_untrusted(RAW)
    both: dict[str, Dump] = {"node1": dump, "node2": copy.deepcopy(dict(dump))}
    assert ztunnel.render("workload", both, Filter(), "short", NOON) == show("workload")
    certificates = ztunnel.render("certificate", both, Filter(), "short", NOON).splitlines()
    assert certificates[0].startswith("NODE    CERTIFICATE NAME")
    assert sum(line.startswith("node2 ") for line in certificates) == 4
    objects = json.loads(ztunnel.render("connections", both, Filter(), "json", NOON))
    assert {o["node"] for o in objects} == {"node1", "node2"}


def test_all_is_every_table() -> None:
    """One after the other, a blank line between."""
    text = show("all")
    for heading in ("POD NAME", "SERVICE VIP", "POLICY NAME", "CERTIFICATE NAME", "REMOTE TARGET"):
        assert heading in text


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"nonsense",
        b'{"workloads": 3}',
        b'{"workloads": [null]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_dump_is_refused(raw: bytes) -> None:
    """One clear error, whatever the file holds."""
    with pytest.raises(BadInput, match="not a ztunnel config dump"):
        parse_untrusted(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(data=st.data())
def test_a_spoilt_dump_is_refused_or_shown_but_never_crashes(data: st.DataObject) -> None:
    """Any part replaced by anything: a clear error, or every view still renders."""
    dump = json.loads(RAW)
    here: Any = dump
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(here[key], (dict, list)) or not here[key] or data.draw(st.booleans()):
            here[key] = data.draw(JSON)
            break
        here = here[key]
    try:
        read = parse_untrusted(json.dumps(dump).encode())
    except BadInput:
        return
    for form in ("short", "json", "yaml"):
        ztunnel.render("all", {"": read}, Filter(), form, NOON)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    ztunnel.register(parser.add_subparsers())
    return parser.parse_args(["ztunnel", *arguments])


def test_a_saved_dump_needs_no_mesh(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """-f reads the file and nothing else."""
    path = tmp_path / "dump.json"
    path.write_bytes(RAW)
    options = parsed("workloads", "-f", str(path), "-n", "shop")
    assert options.run(options) == 0
    assert capsys.readouterr().out.rstrip("\n") == show("workload", namespace="shop")


def test_a_file_that_is_not_there_is_named() -> None:
    """The error says which."""
    options = parsed("policy", "-f", "/nonexistent/dump.json")
    with pytest.raises(ConfigError, match=r"/nonexistent/dump\.json"):
        options.run(options)


def test_istios_names_of_filters_work_too() -> None:
    """Habits keep working."""
    assert parsed("workload", "--workload-namespace", "shop").namespace == "shop"


@pytest.mark.parametrize(
    ("level", "reset", "path"),
    [
        (None, False, "/logging"),
        ("debug", False, "/logging?level=debug"),
        ("access:debug,info", False, "/logging?level=access%3Ddebug%2Cinfo"),
        ("access=debug", True, "/logging?level=access%3Ddebug&reset="),
        (None, True, "/logging?reset="),
    ],
)
def test_log_levels_are_asked_for_as_ztunnel_wants_them(
    level: str | None, reset: bool, path: str
) -> None:
    """Istio's ztunnel takes SCOPE=LEVEL only; its help says SCOPE:LEVEL."""
    assert ztunnel.log_path(level, reset) == path

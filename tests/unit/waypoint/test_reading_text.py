"""Texts that can be read and yet not be sent to Envoy."""

from __future__ import annotations

from waypoint.config.reading import MAX_HEADER_VALUE, Fields, Report, fits_header


def test_half_a_surrogate_pair_is_no_text() -> None:
    """JSON can say it, protobuf cannot."""
    report = Report()
    f = Fields({"a": "x\ud800", "b": ["ok", "\udfff"], "c": {"\ud800": "x", "d": "e"}}, "o", report)
    assert f.text("a") == ""
    assert f.texts("b") == ("ok",)
    assert f.text_map("c") == {"d": "e"}
    assert all("is not valid Unicode" in text for text in report.invalid)
    assert len(report.invalid) == 3


def test_what_fits_a_header() -> None:
    """Bytes count, and a percent sign is sent as two of them."""
    assert fits_header("x" * MAX_HEADER_VALUE)
    assert not fits_header("x" * (MAX_HEADER_VALUE + 1))
    assert not fits_header("é" * (MAX_HEADER_VALUE // 2 + 1))
    assert fits_header("%" * (MAX_HEADER_VALUE // 2))
    assert not fits_header("%" * (MAX_HEADER_VALUE // 2 + 1))
    assert not any(fits_header(f"a{c}b") for c in "\r\n\0")

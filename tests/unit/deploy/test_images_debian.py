"""Which Debian packages a short list brings along."""

from __future__ import annotations

import pytest

from deploy.images.debian import Package, closure, package, stanzas
from deploy.images.errors import ImageError

INDEX = """\
Package: app
Version: 1:2.0-1
Pre-Depends: libc6 (>= 2.35)
Depends: mail-agent | postfix, libx1:any (= 2.0), debconf (>= 0.5) | debconf-2.0
SHA256: 00ff
Description: an app
 that goes on
 .
 over lines

Package: libx1
Version: 2.0
Depends: libc6

Package: libc6
Version: 2.36
Depends: libgcc

Package: libgcc
Version: 12
Depends: libc6

Package: zmail
Version: 1
Provides: mail-agent (= 1), other

Package: exim
Version: 4
Provides: mail-agent
"""


def names(*roots: str, without: tuple[str, ...] = ("debconf",)) -> list[str]:
    available = [package(s) for s in stanzas(INDEX)]
    return [p.name for p in closure(available, roots, without)]


def test_a_description_keeps_its_folded_lines() -> None:
    """Fields may go on over lines, and a blank line ends the package."""
    first = next(stanzas(INDEX))
    assert first["Description"] == "an app\nthat goes on\n.\nover lines"


def test_a_package_is_read_with_its_alternatives() -> None:
    """Versions and architectures of relations are left to apt, which offers one version."""
    assert package(next(stanzas(INDEX))) == Package(
        "app",
        "1:2.0-1",
        "00ff",
        (("libc6",), ("mail-agent", "postfix"), ("libx1",), ("debconf", "debconf-2.0")),
    )


def test_what_a_package_needs_comes_along() -> None:
    """Circles end, a virtual package takes its first provider, and all is sorted."""
    assert names("app") == ["app", "exim", "libc6", "libgcc", "libx1"]


def test_what_is_left_out_satisfies_whoever_wants_it() -> None:
    """And brings nothing along."""
    assert names("app", without=("debconf", "libc6", "mail-agent")) == ["app", "libx1"]


def test_an_alternative_that_is_there_is_enough() -> None:
    """No second package for the same need."""
    assert names("zmail", "app") == ["app", "libc6", "libgcc", "libx1", "zmail"]


@pytest.mark.parametrize("root", ["app", "nothing"])
def test_what_cannot_be_had_is_named_with_who_wants_it(root: str) -> None:
    """debconf is in no index here."""
    with pytest.raises(ImageError, match=r"(app needs debconf \| debconf-2.0|nothing): no such"):
        names(root, without=())


@pytest.mark.parametrize("text", ["Package: x", "Package: x\nVersion: 1\nDepends: (>= 1)"])
def test_a_broken_index_is_refused(text: str) -> None:
    """With one clear error."""
    with pytest.raises(ImageError):
        package(next(stanzas(text)))

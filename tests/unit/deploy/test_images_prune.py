"""What stays of a package."""

from __future__ import annotations

import pytest

from deploy.images import recipe
from deploy.images.prune import Pruner, merged


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("usr/share/doc/x", True),
        ("usr/share/doc/x/copyright", True),
        ("usr/share/doc/x/changelog.gz", False),
        ("usr/share/doc/x/y/copyright", False),
        ("usr/share/man", True),
        ("usr/lib/x", True),
    ],
)
def test_one_star_stays_within_a_name_and_two_cross_folders(path: str, kept: bool) -> None:
    """Keeping wins over dropping."""
    pruner = Pruner(["usr/share/**"], ["usr/share/doc/*", "usr/share/doc/*/copyright", "*/*/man"])
    assert pruner.keeps(path) is kept


def test_no_rules_keep_everything() -> None:
    """And dots in rules are dots."""
    assert Pruner([]).keeps("anything/at/all")
    assert Pruner(["a.b"]).keeps("axb")


def test_folders_that_became_links_are_followed() -> None:
    """Debian 12's packages still ship lib/; the image has lib -> usr/lib."""
    assert merged("./lib/x86_64-linux-gnu/libc.so.6") == "usr/lib/x86_64-linux-gnu/libc.so.6"
    assert merged("./lib64/ld.so") == "usr/lib64/ld.so"
    assert merged("./usr/lib/x") == "usr/lib/x"
    assert merged("./library/x") == "library/x"


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/apt",
        "usr/bin/dash",
        "usr/bin/dpkg",
        "usr/bin/perl",
        "usr/sbin/ldconfig",
        "usr/lib/python3.11/ensurepip/__init__.py",
        "usr/lib/python3.11/lib-dynload/_sqlite3.cpython-311-x86_64-linux-gnu.so",
        "usr/src/linux-headers-6.1.0-1-common/include/linux/mfd/core.h",
        "usr/src/linux-headers-6.1.0-1-common/Makefile",
    ],
)
def test_no_shell_no_packager_no_compiler_comes_with_a_package(path: str) -> None:
    """The real recipe."""
    assert not recipe.DEB.keeps(path)


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/python3.11",
        "usr/sbin/nft",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/python3.11/json/__init__.py",
        "usr/share/doc/libc6/copyright",
        "usr/src/linux-headers-6.1.0-1-common/include/uapi/linux/bpf.h",
        "usr/src/linux-headers-6.1.0-1-amd64/arch/x86/include/generated/asm/rwonce.h",
    ],
)
def test_what_the_commands_use_stays(path: str) -> None:
    """The real recipe."""
    assert recipe.DEB.keeps(path)


def test_sources_of_the_hooks_stay_and_those_of_others_go() -> None:
    """The project's own wheel is kept whole."""
    site = "usr/local/lib/python3.11/dist-packages"
    assert recipe.PROJECT.keeps(f"{site}/bpf/src/connect.c")
    assert not recipe.PROJECT.keeps(f"{site}/ambit-1.dist-info/RECORD")
    assert not recipe.WHEEL.keeps(f"{site}/yaml/_yaml.h")
    assert recipe.WHEEL.keeps(f"{site}/yaml-6.dist-info/METADATA")

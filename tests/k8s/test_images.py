"""The images as containers run them: nothing of this machine around, a root that is read-only."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

import pytest

from deploy.images import recipe, renew, source, unpack, wheels
from deploy.images.build import Builder
from deploy.images.recipe import Recipe

pytestmark = pytest.mark.k8s

_ENTER: Final = """
set -e
root=$1; user=$2; shift 2
mount --bind "$root" "$root"
for place in proc sys dev; do mount --rbind /$place "$root/$place"; done
mount -o remount,ro,bind "$root"
mount -t tmpfs tmpfs "$root/tmp"
exec chroot --userspec="$user" "$root" "$@"
"""
AGENT: Final = "ambit-node-agent"
WAYPOINT: Final = "ambit-waypoint"
COMMANDS: Final = tuple(source.about()["scripts"])


class Unpacked:
    """One image's files, and running something in them."""

    def __init__(self, one: Recipe, root: Path) -> None:
        self.one = one
        self.root = root

    def command(self, *command: str) -> list[str]:
        """What runs a command as a container of the image would."""
        inside = [str(self.root), self.one.user, *command]
        return ["unshare", "-m", "--propagation=private", "sh", "-c", _ENTER, "sh", *inside]

    def run(self, *command: str) -> str:
        """Both outputs of a command; fails with them when the command does."""
        done = subprocess.run(
            self.command(*command),
            env=dict(self.one.env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def builder() -> Builder:
    """Makes layers, most of them made before."""
    return renew.newest()


@pytest.fixture(scope="module")
def images(
    builder: Builder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Unpacked]]:
    """All, by name."""
    found = {}
    for one in recipe.IMAGES:
        root = tmp_path_factory.mktemp(one.name)
        root.chmod(0o755)  # as runtimes make it
        for name in one.layers:
            with tarfile.open(builder.layer(name).blob.file) as layer:
                layer.extractall(root)
        found[one.name] = Unpacked(one, root)
    yield found
    for image in found.values():
        shutil.rmtree(image.root)


@pytest.fixture(params=[one.name for one in recipe.IMAGES])
def image(request: pytest.FixtureRequest, images: dict[str, Unpacked]) -> Unpacked:
    """Each in turn."""
    return images[request.param]


def test_no_shell_no_packager_and_no_compiler_are_in_it(image: Unpacked) -> None:
    """Who breaks in finds Python and what the project brings."""
    programs = {p.name for p in image.root.glob("usr/*bin/*")} - set(COMMANDS)
    assert programs - {"nft", "envoy"} == {"python3", "python3.11"}
    assert ("nft" in programs) == (image.one.name == AGENT)
    assert ("envoy" in programs) == (image.one.name == WAYPOINT)


def test_nothing_is_set_uid_or_for_all_to_write(image: Unpacked) -> None:
    """But /tmp and /var/tmp, which are sticky."""
    for path in image.root.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o7777
            sticky = path.relative_to(image.root) in (Path("tmp"), Path("var/tmp"))
            assert mode == 0o1777 if sticky else not mode & 0o7022, path


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_starts(image: Unpacked, command: str) -> None:
    """As the image's user, with a root that is read-only."""
    assert "usage" in image.run(command, "--help")


def test_the_relay_is_compiled_and_used(image: Unpacked) -> None:
    """Times of files decide that; layers give all the same."""
    script = (
        "import mesh.compiled as c; c.choose(); import ztunnel.relay.loop as l;"
        "print(c.is_compiled(), l.__file__)"
    )
    said = image.run("python3", "-W", "error", "-c", script)
    assert said.startswith("True ")
    assert said.strip().endswith(".so")


def test_every_library_resolves_all_it_names(image: Unpacked) -> None:
    """ld.so binds every symbol at once, as it does for what Python loads."""
    script = """
import ctypes, pathlib, sys
failed = []
for folder in ("/usr/lib/python3.11", "/usr/local/lib/python3.11", "/usr/lib/x86_64-linux-gnu"):
    for path in sorted(pathlib.Path(folder).rglob("*.so*")):
        if path.is_symlink():
            continue
        try:
            ctypes.PyDLL(str(path))
        except OSError as e:
            failed.append(str(e))
if failed:
    sys.exit("\\n".join(failed))
"""
    image.run("python3", "-c", script)


def test_every_module_of_the_project_imports(image: Unpacked) -> None:
    """With what is left of the packages that it uses."""
    names = [
        str(path.relative_to(image.root / unpack.SITE).with_suffix("")).replace("/", ".")
        for package in source.packages()
        for path in (image.root / unpack.SITE / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert len(names) > 100
    image.run("python3", "-c", f"import importlib\nfor n in {names}: importlib.import_module(n)")


def test_certificates_of_public_authorities_are_found(image: Unpacked) -> None:
    """Without any setting."""
    script = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    assert int(image.run("python3", "-c", script)) > 50


def test_scanners_find_every_package(image: Unpacked, builder: Builder) -> None:
    """Debian's by their description, Python's by theirs, each at the version that is listed."""
    site = image.root / unpack.SITE
    found = {(wheels.normal(d.name), d.version) for d in distributions(path=[str(site)])}
    for layer in map(builder.layer, image.one.layers):
        for component in layer.components:
            if component.kind == "deb":
                text = (image.root / unpack.STATUS / component.name).read_text()
                assert f"\nVersion: {component.version}\n" in text
            elif component.kind == "pypi":
                found.remove((component.name, component.version))
    assert not found


def test_the_hooks_compile_with_the_image_s_own_headers(images: dict[str, Unpacked]) -> None:
    """No header, compiler or library of the node is used."""
    lines = images[AGENT].run("python3", "-m", "bpf", "features").splitlines()
    assert len(lines) >= 10
    assert all(line.split()[1] == "loads" for line in lines), lines


def test_the_agent_s_tools_run(images: dict[str, Unpacked]) -> None:
    """nft, and the CNI plugin that is put on the node."""
    assert "nftables" in images[AGENT].run("nft", "--version")
    assert "ambit-cni" in images[AGENT].run("/opt/ambit/bin/ambit-cni", "--help")


_PROBE: Final = """
import os, subprocess, time, urllib.error, urllib.request
process = subprocess.Popen(["/usr/bin/ambit-ztunnel"])
for _ in range(200):
    time.sleep(0.1)
    try:
        urllib.request.urlopen("http://127.0.0.1:15021/healthz/ready", timeout=5)
    except urllib.error.HTTPError as e:
        print("readiness:", e.code, e.read().decode())
        break
    except OSError:
        pass
process.terminate()
print("ended:", process.wait(40))
"""


def test_ztunnel_says_that_it_is_not_ready(images: dict[str, Unpacked]) -> None:
    """No control plane, no agent: it waits for both, answers its probe, and ends when asked to."""
    image = images["ambit"]
    settings = {
        "NODE_NAME": "n1",
        "XDS_ADDRESS": "https://127.0.0.1:1",
        "INPOD_UDS": "/tmp/ztunnel.sock",
        "TERMINATION_GRACE_PERIOD_SECONDS": "1",
    }
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    done = subprocess.run(
        [*alone, *image.command("python3", "-c", _PROBE)],
        env={**image.one.env, **settings},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "readiness: 503" in done.stdout, done
    assert "ended: 0" in done.stdout, done

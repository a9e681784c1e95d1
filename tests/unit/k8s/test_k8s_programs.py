"""Programs and images of a test cluster: what they are built from, and when anew."""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import tarfile
from pathlib import Path

import pytest

from tests.k8s.cluster import ClusterError, binaries, images
from tests.k8s.cluster.binaries import Program


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AMBIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A `go` that says its version, and writes its arguments as what it builds."""
    tool = tmp_path / "tools/go"
    tool.parent.mkdir()
    tool.write_text(
        "#!/bin/bash\n"
        '[ "$1" = version ] && { echo "go version go${GO:-1.26.8} linux/amd64"; exit; }\n'
        'while [ "$1" != -o ]; do shift; done; echo "$@" >"$2"; echo built >>"$COUNT"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    return tmp_path / "count"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Program:
    module = tmp_path / "modules/some"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module x\n")
    (module / "go.sum").touch()
    monkeypatch.setattr(binaries, "MODULES", tmp_path / "modules")
    return Program("tool", "some", "example.test/tool")


def test_a_program_is_built_once_and_again_when_its_module_changes(
    toolchain: Path, program: Program
) -> None:
    said: list[str] = []
    for _ in range(2):
        binaries.build([program], said.append)
    assert said == ["built tool (1/1) in 0 s"]
    assert binaries.path("tool").read_text().endswith("example.test/tool\n")
    (binaries.MODULES / "some/go.mod").write_text("module x\nrequire y v2\n")
    binaries.build([program], said.append)
    assert len(said) == toolchain.read_text().count("built") == 2


@pytest.mark.parametrize("version", ["1.25.9", "0.9"])
def test_an_older_go_is_refused(
    toolchain: Path, program: Program, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("GO", version)
    with pytest.raises(ClusterError, match=f"Go 1.26 or newer is needed, this is .*{version}"):
        binaries.build([program])


def test_without_go_it_is_said_which_is_needed(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"Go 1\.26 or newer is needed .*no go in PATH"):
        binaries.build([program])


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ClusterError, match=r"bin/kubectl is not there: .* build"):
        binaries.path("kubectl")


def test_stamps_are_the_versions_that_are_required() -> None:
    modules = binaries.MODULES
    wanted = {p.name: re.findall(r"=(v[\d.]+)\b", p.flags) for p in binaries.ALL}
    kubernetes = (modules / "kubernetes/go.mod").read_text()
    assert f"k8s.io/kubernetes {wanted['kubelet'][0]} " in kubernetes.replace("\n", " ")
    assert set(wanted["kubelet"]) == {wanted["kubelet"][0]}
    containerd = (modules / "containerd/go.mod").read_text()
    assert f"github.com/containerd/containerd/v2 {wanted['containerd'][0]}" in containerd


def test_every_program_s_module_is_there() -> None:
    folders = {p.name for p in binaries.MODULES.iterdir()}
    assert folders == {p.module for p in binaries.ALL}
    assert len({p.name for p in binaries.ALL}) == len(binaries.ALL)


def read(archive: Path) -> tuple[dict[str, object], dict[str, object], tarfile.TarFile]:
    """The manifest, the configuration and the only layer of an archive."""
    with tarfile.open(archive) as outer:

        def content(name: str) -> bytes:
            file = outer.extractfile(name)
            assert file is not None
            return file.read()

        (manifest,) = json.loads(content("manifest.json"))
        config = content(manifest["Config"])
        layer = content(manifest["Layers"][0])
    parsed = json.loads(config)
    assert manifest["Config"] == f"{hashlib.sha256(config).hexdigest()}.json"
    assert parsed["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    return manifest, parsed, tarfile.open(fileobj=io.BytesIO(layer))


def test_an_image_is_one_layer_with_debian_s_links(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!")
    program.chmod(0o755)
    output = tmp_path / "image.tar"
    files: dict[str, Path | bytes] = {"/bin/program": program, "/note": b"text"}
    images.write_image(output, ["a.test/x:1", "a.test/y:1"], ["/bin/program"], files)
    manifest, config, layer = read(output)
    assert manifest["RepoTags"] == ["a.test/x:1", "a.test/y:1"]
    assert config["config"] == {
        "Entrypoint": ["/bin/program"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    }
    assert layer.getmember("bin").linkname == "usr/bin"
    assert stat.S_IMODE(layer.getmember("usr/bin/program").mode) == 0o755
    assert stat.S_IMODE(layer.getmember("note").mode) == 0o644


def test_an_image_is_made_anew_when_what_it_is_made_of_changes() -> None:
    made: list[str] = []

    def make(text: str) -> Path:
        def write(output: Path) -> None:
            made.append(text)
            output.write_text(text)

        return images._archive("some", text, write)

    first = make("one")
    assert make("one") == first
    assert made == ["one"]
    second = make("two")
    assert second.read_text() == "two"
    assert [p.name for p in second.parent.iterdir()] == [second.name]

"""The image's file: what runtimes look for is in it, and nothing of when it was made."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deploy.images import oci, sbom
from deploy.images.errors import ImageError
from deploy.images.sbom import Component

EPOCH = 1_700_000_000
SETTINGS = oci.Settings("1337:1337", {"PATH": "/usr/bin", "LANG": "C.UTF-8"}, {"title": "t"})


def blob(folder: Path, name: str) -> oci.Blob:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"layer {name}")
    digest = f"sha256:{hashlib.sha256(f'layer {name}'.encode()).hexdigest()}"
    return oci.Blob(name, digest, f"sha256:{name * 64}", len(f"layer {name}"), folder / name)


def image(folder: Path) -> oci.Image:
    layers = [blob(folder, "a"), blob(folder, "b")]
    return oci.image("some.hub/ambit:1.0", layers, SETTINGS, EPOCH)


def members(what: oci.Image) -> dict[str, bytes]:
    out = io.BytesIO()
    oci.write(what, out, EPOCH)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        files = {m.name: tar.extractfile(m) for m in tar.getmembers()}
        return {name: file.read() for name, file in files.items() if file}


def path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def test_an_oci_reader_finds_its_way(tmp_path: Path) -> None:
    """From the index over the manifest to config and layers, by digest and size."""
    files = members(image(tmp_path))
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "some.hub/ambit:1.0"
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "1.0"
    manifest = json.loads(files[path(entry["digest"])])
    for part in (entry, manifest["config"], *manifest["layers"]):
        data = files[path(part["digest"])]
        assert len(data) == part["size"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == part["digest"]


def test_an_old_docker_finds_the_same_blobs(tmp_path: Path) -> None:
    """manifest.json names files in the archive."""
    files = members(image(tmp_path))
    (entry,) = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == ["some.hub/ambit:1.0"]
    assert [files[name] for name in entry["Layers"]] == [b"layer a", b"layer b"]
    config: dict[str, Any] = json.loads(files[entry["Config"]])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"]
    assert config["config"]["User"] == "1337:1337"
    assert config["config"]["Env"] == ["PATH=/usr/bin", "LANG=C.UTF-8"]
    assert "Entrypoint" not in config["config"]
    assert config["created"] == "2023-11-14T22:13:20Z"


def test_the_same_layers_make_the_same_image(tmp_path: Path) -> None:
    """To the byte, from whatever folder."""
    one, two = image(tmp_path / "1"), image(tmp_path / "2")
    assert one.digest == two.digest
    assert members(one) == members(two)


def test_a_damaged_layer_is_not_shipped(tmp_path: Path) -> None:
    """A cache that lost bits is noticed."""
    what = image(tmp_path)
    (tmp_path / "b").write_text("layer B")
    with pytest.raises(ImageError, match="damaged"):
        members(what)


def test_the_bill_of_materials_names_every_package_once(tmp_path: Path) -> None:
    """As SPDX, with names that scanners look up."""
    parts = [
        Component("pypi", "pyyaml", "6.0", "1" * 64),
        Component("deb", "libstdc++6", "1:2+deb12u1", "2" * 64),
        Component("golang", "golang.org/x/sys", "v0.1.0"),
    ]
    bill = json.loads(sbom.spdx(image(tmp_path), parts, EPOCH))
    purls = [p["externalRefs"][0]["referenceLocator"] for p in bill["packages"][1:]]
    assert purls == [
        "pkg:deb/debian/libstdc%2B%2B6@1%3A2%2Bdeb12u1?arch=amd64&distro=debian-12",
        "pkg:golang/golang.org/x/sys@v0.1.0",
        "pkg:pypi/pyyaml@6.0",
    ]
    ids = [p["SPDXID"] for p in bill["packages"]]
    assert len(set(ids)) == 4
    assert {r["relatedSpdxElement"] for r in bill["relationships"]} == set(ids)

"""Layers into an image, and the image into one file that every runtime loads. Pure but for reading
layers and writing the file.

The file is an OCI image layout (containerd, podman, skopeo, newer Docker) that has Docker's older
manifest.json as well, both naming the same blobs.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from deploy.images.errors import ImageError
from deploy.images.tarball import Sink, open_tar

_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True)
class Blob:
    """A packed layer: its digest ("sha256:..."), the digest of its tar, its size, its file."""

    name: str
    digest: str
    diff_id: str
    size: int
    file: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """How a container of the image runs, and what the image says of itself."""

    user: str
    env: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """config and manifest: their JSON; digest: the manifest's, by which registries know it."""

    reference: str
    layers: tuple[Blob, ...]
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        """What runtimes and registries call this very image."""
        return _digest(self.manifest)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def timestamp(seconds: int) -> str:
    """RFC 3339, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def image(reference: str, layers: Sequence[Blob], settings: Settings, epoch: int) -> Image:
    """Describe an image made at `epoch` (seconds)."""
    created = timestamp(epoch)
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": created,
            "config": {
                "User": settings.user,
                "Env": [f"{k}={v}" for k, v in settings.env.items()],
                "WorkingDir": "/",
                "Labels": dict(settings.labels),
            },
            "rootfs": {"type": "layers", "diff_ids": [b.diff_id for b in layers]},
            "history": [{"created": created, "created_by": b.name} for b in layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": _digest(config), "size": len(config)},
            "layers": [{"mediaType": _LAYER, "digest": b.digest, "size": b.size} for b in layers],
        }
    )
    return Image(reference, tuple(layers), config, manifest)


def write(what: Image, out: Sink, epoch: int) -> None:
    """Write the image's file; raises ImageError when a layer is not what its digest says."""
    tag = what.reference.rpartition(":")[2]
    names = {
        "io.containerd.image.name": what.reference,
        "org.opencontainers.image.ref.name": tag,
    }
    entry = {"mediaType": _MANIFEST, "digest": what.digest, "size": len(what.manifest)}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry | {"annotations": names}]}
    docker = {
        "Config": _path(_digest(what.config)),
        "RepoTags": [what.reference],
        "Layers": [_path(b.digest) for b in what.layers],
    }
    with open_tar(out) as tar:
        small = {
            "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
            "index.json": _json(index),
            "manifest.json": _json([docker]),
            _path(_digest(what.config)): what.config,
            _path(what.digest): what.manifest,
        }
        for name, data in small.items():
            tar.addfile(_info(name, len(data), epoch), io.BytesIO(data))
        for digest, blob in {b.digest: b for b in what.layers}.items():
            with blob.file.open("rb") as file:
                if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != digest:
                    raise ImageError(f"{blob.file} is damaged: remove it and build again")
                file.seek(0)
                tar.addfile(_info(_path(digest), blob.size, epoch), file)


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _info(name: str, size: int, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, epoch, 0o644
    return info

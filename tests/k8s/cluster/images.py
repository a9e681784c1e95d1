"""Images for tests: archives of static programs, and a box with a shell, curl and Python."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.k8s.cluster import binaries, certs, config
from tests.k8s.cluster.errors import ClusterError
from tests.k8s.cluster.layout import cache
from tests.k8s.cluster.locks import exclusive
from tests.k8s.cluster.processes import run

BOX: Final = "ambit.test/box:1"
FORTIO: Final = "ambit.test/fortio:1"
_BOX_PROGRAMS: Final = ("bash", "sh", "cat", "sleep", "ls", "env", "curl", "python3.11", "ip", "ss")
_BOX_PACKAGES: Final = ("bash", "coreutils", "curl", "iproute2", "libc6", "libpython3.11-stdlib")
_TREES: Final = ("/usr/lib/python3.11",)
_PAUSE_C: Final = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
_IMAGE: Final = re.compile(r"image:\s*(\S*/gateway-api/(echo-\w+):\S+)")


def pause() -> Path:
    """What holds a pod's namespaces."""

    def make(output: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "pause")
            words = ["gcc", "-Os", "-static", "-x", "c", "-o", str(program), "-"]
            done = subprocess.run(words, input=_PAUSE_C.encode(), capture_output=True, check=False)
            if done.returncode:
                raise ClusterError(f"pause does not compile: {done.stderr.decode()[-300:]}")
            write_image(output, [config.PAUSE], ["/pause"], {"/pause": program})

    return _archive("pause", _PAUSE_C, make)


def box() -> Path:
    """This machine's own shell, curl and Python with the libraries they need."""

    def make(output: Path) -> None:
        programs = [Path("/usr/bin", p) for p in _BOX_PROGRAMS]
        files = {str(p): p.resolve() for p in [*programs, *_libraries(programs)] if p.exists()}
        for tree in map(Path, _TREES):
            found = (p for p in tree.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
            files |= {str(p): p.resolve() for p in found if p.suffix != ".a"}
        modules = [p for p in files.values() if p.suffix == ".so"]
        files |= {str(p): p.resolve() for p in _libraries(modules)}
        files |= {"/usr/bin/python3": Path("/usr/bin/python3.11")}
        write_image(output, [BOX], ["/usr/bin/sleep", "infinity"], files)

    words = ["dpkg-query", "-W", "-f=${Package} ${Version}\n", *_BOX_PACKAGES]
    return _archive("box", run(words), make)


def fortio() -> Path:
    """Server and load generator."""
    program = binaries.path("fortio")

    def make(output: Path) -> None:
        write_image(output, [FORTIO], ["/usr/bin/fortio", "server"], {"/usr/bin/fortio": program})

    return _archive("fortio", binaries.pin("fortio"), make)


def conformance() -> list[Path]:
    """The images that the Gateway API conformance suite's manifests name."""
    suite = binaries.module_file("conformance", "sigs.k8s.io/gateway-api/conformance", ".")
    tags: dict[str, set[str]] = {"echo-basic": set(), "echo-advanced": set()}
    for manifest in suite.rglob("*.yaml"):
        for tag, name in _IMAGE.findall(manifest.read_text()):
            tags[name].add(tag)

    def basic(output: Path) -> None:
        program = {"/echo-basic": binaries.path("echo-basic")}
        write_image(output, sorted(tags["echo-basic"]), ["/echo-basic"], program)

    def advanced(output: Path) -> None:
        key, cert = certs.self_signed("echo")
        files: dict[str, Path | bytes] = {
            "/usr/local/bin/client": binaries.path("echo-client"),
            "/usr/local/bin/server": binaries.path("echo-server"),
            "/cert.crt": cert,
            "/cert.key": key,
        }
        write_image(output, sorted(tags["echo-advanced"]), ["/usr/local/bin/server"], files)

    named = str(sorted((name, sorted(found)) for name, found in tags.items()))
    pins = binaries.pin("echo-client") + binaries.pin("echo-server")
    return [
        _archive("echo-basic", binaries.pin("echo-basic") + named, basic),
        _archive("echo-advanced", pins + named, advanced),
    ]


def _archive(name: str, made_of: str, make: Callable[[Path], None]) -> Path:
    """The archive of what `made_of` tells apart, made when it is not there; older ones go."""
    code = Path(__file__).read_text()
    digest = hashlib.sha256(f"{made_of}\0{code}".encode()).hexdigest()[:12]
    output = cache() / "img" / f"{name}-{digest}.tar"
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(output.parent / f".{name}.lock", lambda _: None):
            if not output.exists():
                unfinished = output.with_suffix(".new")
                make(unfinished)
                for old in output.parent.glob(f"{name}-[0-9a-f]*.tar"):
                    old.unlink()
                unfinished.rename(output)
    return output


def _libraries(programs: Iterable[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for program in programs:
        done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            path = next((word for word in line.split() if word.startswith("/")), "")
            if path:
                found[Path(path)] = None
    return list(found)


def write_image(
    output: Path, tags: Sequence[str], entrypoint: Sequence[str], files: Mapping[str, Path | bytes]
) -> None:
    """Write a docker archive of one layer; files: path in the image to path or content here."""
    layer = _layer(files)
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    image = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": list(entrypoint),
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
    ).encode()
    name = f"{hashlib.sha256(image).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": list(tags), "Layers": ["layer.tar"]}]
    with tarfile.open(output, "w") as archive:
        _add(archive, name, image)
        _add(archive, "layer.tar", layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _layer(files: Mapping[str, Path | bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as layer:
        for folder, mode in (
            ("tmp", 0o1777),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/lib", 0o755),
        ):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            layer.addfile(entry)
        for link in ("bin", "sbin", "lib", "lib64"):  # as Debian has them
            entry = tarfile.TarInfo(link)
            target = "usr/bin" if link == "sbin" else f"usr/{link}"
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            layer.addfile(entry)
        for path, source in sorted(files.items()):
            usr = path if not path.startswith(("/lib", "/bin")) else f"/usr{path}"
            data = source if isinstance(source, bytes) else source.read_bytes()
            mode = 0o644 if isinstance(source, bytes) else source.stat().st_mode & 0o755
            _add(layer, usr.lstrip("/"), data, mode)
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))

"""An image that lacks something is refused when it is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_images_elf import library

from deploy.images import contents
from deploy.images.contents import LIBRARIES, Contents
from deploy.images.errors import ImageError
from deploy.images.unpack import SITE


def put(root: Path, path: str, data: bytes | str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data if isinstance(data, bytes) else data.encode())


def test_a_folder_s_needs_are_noted(tmp_path: Path) -> None:
    """Libraries of ELF files, imports of the project's modules; what a file brings itself is not
    wanted from elsewhere."""
    put(tmp_path, "usr/bin/tool", library(["libc.so.6", "libx.so.1"]))
    put(tmp_path, f"{SITE}/other/_o.so", library(["libown.so"], "$ORIGIN/../other.libs"))
    put(tmp_path, f"{SITE}/other.libs/libown.so", library([]))
    put(tmp_path, f"{SITE}/other/__init__.py", "import not_ours")
    put(
        tmp_path, f"{SITE}/mesh/a.py", "import os.path, yaml\nfrom mesh.b import c\nfrom . import d"
    )
    (tmp_path / "lib").symlink_to("usr/lib")
    found = contents.read(tmp_path, ["mesh"])
    assert "lib" in found.paths
    assert found.wants == {"libc.so.6": "usr/bin/tool", "libx.so.1": "usr/bin/tool"}
    assert set(found.imports) == {"os.path", "yaml", "mesh.b"}


def image(*paths: str) -> Contents:
    return Contents(paths)


NEEDS = Contents(
    (), {"libc.so.6": "usr/bin/tool"}, {"yaml": "a.py", "json.tool": "b.py", "sys": "c.py"}
)
LIBC = f"{LIBRARIES}/libc.so.6"
YAML = f"{SITE}/yaml/__init__.py"
JSON = "usr/lib/python3.11/json/tool.py"


def test_layers_are_whole_together() -> None:
    """Modules may be packages, files, or inside the interpreter."""
    contents.check([image(LIBC), image(YAML, JSON), NEEDS], ["sys"])


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ((YAML, JSON), r"libc.so.6 \(needed by usr/bin/tool\)"),
        ((LIBC, JSON), r"module yaml \(imported by a.py\)"),
        ((LIBC, YAML, "usr/lib/python3.11/json/__init__.py"), r"module json.tool"),
        ((), r"libc.so.6.*yaml.*json.tool"),
    ],
)
def test_what_is_missing_is_named_with_who_needs_it(there: tuple[str, ...], missing: str) -> None:
    """And where to change that."""
    with pytest.raises(ImageError, match=f"{missing}.*recipe.py"):
        contents.check([image(*there), NEEDS], ["sys"])


def test_an_image_may_do_without_a_module_on_purpose() -> None:
    """The control plane's has no bcc."""
    contents.check([image(LIBC, JSON), NEEDS], ["sys"], {"yaml"})


def test_compiled_modules_are_modules() -> None:
    """Only the part before the first dot is the name."""
    so = f"{SITE}/yaml/_yaml.cpython-311-x86_64-linux-gnu.so"
    contents.check([image(so), Contents((), {}, {"yaml._yaml": "a.py"})], [])

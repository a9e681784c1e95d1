"""What the recipe leaves out is not used by the project."""

from __future__ import annotations

import ast
from pathlib import Path

from deploy.images import recipe, source

GENERATED = ("kubernetes.client", "kubernetes.client.api", "kubernetes.client.models")


def modules() -> list[Path]:
    return [
        source.ROOT / name
        for name in source.files()
        if name.endswith(".py") and name.partition("/")[0] in source.packages()
    ]


def test_no_generated_part_of_the_kubernetes_client_is_used() -> None:
    """It is not in the images, and is found by name only when it is first used."""
    used = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                whole = node.module == "kubernetes" and "client" in {a.name for a in node.names}
                if whole or (node.module or "").startswith("kubernetes.aio"):
                    used.append(str(path))
                if node.module in GENERATED and any(a.name[0].isupper() for a in node.names):
                    used.append(str(path))
            elif isinstance(node, ast.Import):
                used += [str(path) for a in node.names if a.name.startswith("kubernetes")]
    assert not used, "import what is used from its own module, such as kubernetes.client.rest"


def test_images_share_their_lower_layers() -> None:
    """In the same order, so that a node stores them once."""
    small, *others = recipe.IMAGES
    for large in others:
        assert [name for name in large.layers if name in small.layers] == list(small.layers)


def test_every_layer_has_a_source() -> None:
    """Debian packages, or one of the four that the builder makes otherwise."""
    named = {name for one in recipe.IMAGES for name in one.layers}
    assert named == {*recipe.ROOTS, "python", "envoy", "project", "cni"}


def test_the_commands_users_are_numbers() -> None:
    """Kubernetes cannot tell that a name is not root's (runAsNonRoot)."""
    assert [one.user for one in recipe.IMAGES] == ["1337:1337", "0:0", "1337:1337"]


def test_the_tests_run_the_envoy_that_is_shipped() -> None:
    """One version, in the image and in the extra that tests use."""
    assert set(recipe.ENVOY) <= set(source.about()["optional-dependencies"]["dev"])

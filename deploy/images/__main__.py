"""`python -m deploy.images build | lock | list`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.images import layers, recipe, renew, source
from deploy.images.build import Builder, Built, Wanted, build
from deploy.images.errors import ImageError
from mesh import __version__

_MB = 1e6


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.images", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    make = verbs.add_parser("build", help="make the images' files")
    names = [one.name for one in recipe.IMAGES]
    make.add_argument("--image", action="append", choices=names, help="only this one (again: more)")
    make.add_argument("--hub", default=recipe.HUB, help="before the image's name (%(default)s)")
    make.add_argument("--tag", default=__version__, help="after it (%(default)s)")
    make.add_argument("--out", type=Path, default=source.ROOT / "dist" / "images", help="folder")
    make.add_argument(
        "--or-newest",
        action="store_true",
        help="where the archive has dropped a pinned Debian package, build with the newest ones",
    )
    verbs.add_parser("lock", help="pin the newest packages")
    verbs.add_parser("list", help="show what the images consist of")
    return parser


def _show(built: Built) -> str:
    lines = [f"{built.image.reference}  {built.image.digest}"]
    for layer in built.layers:
        sizes = f"{layer.blob.size / _MB:7.1f} MB packed {layer.content / _MB:7.1f} MB unpacked"
        lines.append(f"  {layer.blob.name:<8} {sizes}  {layer.blob.digest[:19]}")
    total = sum(layer.blob.size for layer in built.layers) / _MB
    content = sum(layer.content for layer in built.layers) / _MB
    lines.append(f"  {'':<8} {total:7.1f} MB packed {content:7.1f} MB unpacked")
    lines.append(f"  {built.archive}")
    return "\n".join(lines) + "\n"


def _components(one: recipe.Recipe, builder: Builder) -> str:
    lines = [f"{one.name}: {one.title}"]
    for layer in map(builder.layer, one.layers):
        sizes = f"{layer.blob.size / _MB:.1f} MB packed, {layer.content / _MB:.1f} MB unpacked"
        lines.append(f"  {layer.blob.name}: {sizes}, {len(layer.contents.paths)} files")
        lines += [f"    {c.kind:<6} {c.name} {c.version}" for c in layer.components]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run one verb; returns the exit code."""
    options = _parser().parse_args()
    try:
        if options.verb == "lock":
            renew.renew()
            return 0
        or_newest = options.verb == "build" and options.or_newest
        builder = renew.newest() if or_newest else Builder()
        if options.verb == "list":
            sys.stdout.write("".join(_components(one, builder) for one in recipe.IMAGES))
            return 0
        chosen = [r for r in recipe.IMAGES if not options.image or r.name in options.image]
        for one in chosen:
            wanted = Wanted(options.hub, options.tag, options.out)
            sys.stdout.write(_show(build(one, builder, wanted)))
        layers.sweep()
    except ImageError as e:
        sys.stderr.write(f"deploy.images: {e}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

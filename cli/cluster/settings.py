"""What an operator may set: options shared by the commands that render the chart."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli.chart.load import Chart, Object, Release, Rendered
from cli.chart.text import read_documents, read_mapping
from cli.chart.values import Values, lay, parse_set
from cli.cluster.objects import INSTALLER
from mesh.errors import ConfigError

_DEFAULT_PROFILE: Final = "default"
_MAX_FILES: Final = 200


@dataclass(frozen=True, slots=True)
class Settings:
    """`given` are the operator's own values, `values` all of them, checked."""

    profile: str
    given: Values
    values: Values

    @property
    def namespace(self) -> str:
        """Where the mesh goes."""
        return str(self.values["namespace"])


def add_chart_options(parser: argparse.ArgumentParser) -> None:
    """Add --profile, --set, --set-string and -f."""
    group = parser.add_argument_group("what to install")
    group.add_argument(
        "--profile", metavar="NAME", help=f"demo, default or minimal [{_DEFAULT_PROFILE}]"
    )
    group.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a value of the chart, as controlPlane.replicas=3, or profile=demo; repeatable",
    )
    group.add_argument(
        "--set-string",
        dest="string_sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="the same, and 1 or true stay text",
    )
    group.add_argument(
        "-f",
        "--values",
        dest="files",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="YAML file with values of the chart; may be repeated, the last one counts",
    )


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add --kubeconfig and --context."""
    group = parser.add_argument_group("which cluster")
    group.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="default: KUBECONFIG, then ~/.kube/config, then the pod's own account",
    )
    group.add_argument("--context", metavar="NAME", help="a context of that file")


def read_settings(options: argparse.Namespace, chart: Chart) -> Settings:
    """Put the layers together; raises ConfigError naming what cannot work."""
    given: Values = {}
    for file in options.files:
        given = lay(given, read_mapping(str(file), _read(file)))
    given = parse_set(options.sets, given)
    given = parse_set(options.string_sets, given, as_text=True)
    named = given.pop("profile", None)
    if named is not None and options.profile not in (None, named):
        raise ConfigError(f"--profile {options.profile} and --set profile={named}: give one")
    profile = options.profile or named or _DEFAULT_PROFILE
    values = chart.values([chart.profile(str(profile)), given])
    return Settings(str(profile), given, values)


def render(chart: Chart, values: Values, api_versions: Any) -> Rendered:
    """Render the chart as `ambit install` does."""
    release = Release(namespace=str(values["namespace"]), service=INSTALLER)
    return chart.render(values, release, api_versions)


def read_manifests(path: Path) -> list[Object]:
    """Read the objects of a YAML file, or of all YAML files of a folder."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        if not files or len(files) > _MAX_FILES:
            raise ConfigError(f"{path}: has {len(files)} YAML files, 1 to {_MAX_FILES} are needed")
    else:
        files = [path]
    found = []
    for file in files:
        for obj in read_documents(str(file), _read(file)):
            if obj.get("kind") == "Kustomization":
                continue
            if not (obj.get("apiVersion") and obj.get("kind") and obj.get("metadata")):
                raise ConfigError(f"{file}: has a document that is no object")
            found.append(obj)
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file}: {getattr(e, 'strerror', None) or e}") from e

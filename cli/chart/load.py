"""The chart's files, and what they render to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cli.chart.parse import parse
from cli.chart.run import Runner
from cli.chart.schema import check
from cli.chart.text import read_documents, read_mapping
from cli.chart.tree import Body
from cli.chart.values import Values, lay, merge
from mesh.errors import ConfigError

Object = dict[str, Any]

_NOTES: Final = "NOTES.txt"
# In a wheel the chart lies beside this file; in a checkout it lies where Helm users look for it.
_PLACES: Final = (
    Path(__file__).parent / "ambit",
    Path(__file__).parents[2] / "deploy" / "chart" / "ambit",
)


@dataclass(frozen=True, slots=True)
class Release:
    """What Helm calls a release; `service` becomes app.kubernetes.io/managed-by."""

    name: str = "ambit"
    namespace: str = "istio-system"
    service: str = "ambit-install"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a chart says for some values. `values` are those it was rendered with."""

    objects: tuple[Object, ...]
    notes: str
    values: Values


class Chart:
    """A chart that has been read. Rendering it does no I/O."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """Take the chart's files by their path below its folder; raises ConfigError."""
        self._files = files
        self.metadata = read_mapping("Chart.yaml", self._file("Chart.yaml"))
        self.defaults: Values = read_mapping("values.yaml", self._file("values.yaml"))
        self.schema: dict[str, Any] = json.loads(self._file("values.schema.json"))
        self._bodies: dict[str, Body] = {}
        self._templates: dict[str, Body] = {}
        for path in sorted(files):
            if not path.startswith("templates/"):
                continue
            body, defined = parse(path, files[path])
            self._templates.update(defined)
            if not Path(path).name.startswith("_"):
                self._bodies[path] = body

    @property
    def version(self) -> str:
        """The version of the chart."""
        return str(self.metadata["version"])

    def profiles(self) -> list[str]:
        """Names of the profiles, sorted."""
        return sorted(Path(p).stem for p in self._files if p.startswith("profiles/"))

    def profile(self, name: str) -> Values:
        """Read a profile's values; raises ConfigError naming those there are."""
        if name not in self.profiles():
            raise ConfigError(f"no profile {name!r}; there are: {', '.join(self.profiles())}")
        path = f"profiles/{name}.yaml"
        return read_mapping(path, self._files[path])

    def crds(self) -> list[Object]:
        """The CustomResourceDefinitions, which Helm and we install only where they are absent."""
        return [
            document
            for path in sorted(self._files)
            if path.startswith("crds/")
            for document in read_documents(path, self._files[path])
        ]

    def values(self, layers: Iterable[Mapping[str, Any]]) -> Values:
        """Lay layers over each other and over the defaults, and check the result."""
        over: Values = {}
        for layer in layers:
            over = lay(over, layer)
        values = merge(self.defaults, over)
        check(values, self.schema)
        return values

    def render(self, values: Values, release: Release, api_versions: Iterable[str]) -> Rendered:
        """Render all templates; raises ConfigError naming file and line."""
        served = frozenset(api_versions)
        dot = {
            "Values": values,
            "Release": {
                "Name": release.name,
                "Namespace": release.namespace,
                "Service": release.service,
            },
            "Chart": {
                "Name": self.metadata["name"],
                "Version": self.version,
                "AppVersion": str(self.metadata["appVersion"]),
            },
            "Capabilities": {"APIVersions": {"Has": served.__contains__}},
        }
        runner = Runner(self._templates)
        objects: list[Object] = []
        notes = ""
        for path, body in self._bodies.items():
            text = runner.run(body, dot)
            if path.endswith(_NOTES):
                notes = text.strip("\n")
            else:
                objects += _checked(path, read_documents(f"{path} as rendered", text))
        return Rendered(tuple(objects), notes, values)

    def _file(self, path: str) -> str:
        try:
            return self._files[path]
        except KeyError:
            raise ConfigError(f"the chart has no {path}") from None


def _checked(path: str, objects: list[Object]) -> list[Object]:
    for obj in objects:
        named = (obj.get("metadata") or {}).get("name")
        if not (named and obj.get("apiVersion") and obj.get("kind")):
            raise ConfigError(f"{path}: rendered something that is no object: {obj!r:.80}")
    return objects


def load(folder: Path | None = None) -> Chart:
    """Read the chart that belongs to this program, or another one."""
    if folder is None:
        folder = next((p for p in _PLACES if (p / "Chart.yaml").is_file()), _PLACES[-1])
    try:
        files = {
            str(p.relative_to(folder)): p.read_text(encoding="utf-8")
            for p in folder.rglob("*")
            if p.is_file() and not p.name.startswith(".")
        }
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"chart {folder}: {e}") from e
    if "Chart.yaml" not in files:
        raise ConfigError(f"chart {folder}: it is not there (no Chart.yaml)")
    return Chart(files)

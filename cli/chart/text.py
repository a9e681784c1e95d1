"""Values as YAML and back, so that every YAML reader sees the same values."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from mesh.errors import ConfigError

# What may stand without quotes: no reader, of YAML 1.1 or 1.2, takes these for anything else.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*")
_RESERVED: Final = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_MAX_DOCUMENT: Final = 4 << 20  # bytes; an API server takes 3 MiB


# The C forms are ten times as fast; a PyYAML without them works, too.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_BaseDumper):  # type: ignore[misc]
    """Quotes text that some reader would take for a number or a boolean."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(_BaseLoader):  # type: ignore[misc]
    """Leaves dates text, as an API server's reader does."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    if "\n" in value and all(c.isprintable() or c == "\n" for c in value):
        style: str | None = "|"
    elif _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        style = None
    else:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def to_yaml(value: Any, sort: bool = True) -> str:
    """Render a value as block YAML without a last newline."""
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=sort,
        default_flow_style=False,
        allow_unicode=True,
        width=1 << 30,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def to_documents(objects: list[dict[str, Any]]) -> str:
    """Render objects as a stream of documents, as kubectl takes them."""
    return "".join(f"---\n{to_yaml(obj, sort=False)}\n" for obj in objects)


def read_documents(where: str, text: str) -> list[dict[str, Any]]:
    """Read a stream of objects; empty documents are left out. Raises ConfigError."""
    if len(text) > _MAX_DOCUMENT:
        raise ConfigError(f"{where}: longer than {_MAX_DOCUMENT >> 20} MiB")
    try:
        found = [d for d in yaml.load_all(text, _Loader) if d is not None]
    except yaml.YAMLError as e:
        raise ConfigError(f"{where}: {_flat(e)}") from e
    except (RecursionError, ValueError) as e:  # brackets without end; !!int with no number
        raise ConfigError(f"{where}: cannot be read: {e}") from e
    for document in found:
        if not isinstance(document, dict):
            raise ConfigError(f"{where}: a document is not a mapping but {document!r:.60}")
    return found


def read_mapping(where: str, text: str) -> dict[str, Any]:
    """Read one mapping, {} from nothing. Raises ConfigError."""
    found = read_documents(where, text)
    if len(found) > 1:
        raise ConfigError(f"{where}: has {len(found)} documents, one is needed")
    return found[0] if found else {}


def _flat(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())

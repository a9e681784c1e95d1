"""The node's CNI configuration with our plugin in it, and without it again. Pure.

Runtimes take the file whose name sorts first among *.conf, *.conflist and *.json. In a .conflist
our entry is appended to `plugins`; a .conf, which is one plugin, becomes a .conflist of two. What
we do not know is kept as it is, in its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.errors import BadInput

TYPE: Final = "ambit-cni"
MAX_FILE: Final = 1 << 20  # bytes
_SUFFIXES: Final = (".conf", ".conflist", ".json")
_OLDEST: Final = "0.3.0"  # of the specification: before it there are no chains


@dataclass(frozen=True, slots=True)
class Entry:
    """What our plugin is told (deploy/cni/conf.go); paths are the node's own."""

    socket: str
    kubeconfig: str
    namespace: str
    daemon_set: str
    exempt: tuple[str, ...]
    pod_logs: str
    log_file: str

    def object(self) -> dict[str, Any]:
        """Give the entry as it stands in the list."""
        return {
            "type": TYPE,
            "socket": self.socket,
            "kubeconfig": self.kubeconfig,
            "meshNamespace": self.namespace,
            "daemonSet": self.daemon_set,
            "exemptNamespaces": list(self.exempt),
            "podLogs": self.pod_logs,
            "logFile": self.log_file,
        }


def candidates(names: Iterable[str]) -> list[str]:
    """Give the names a runtime would look at, in its order."""
    return sorted(name for name in names if name.endswith(_SUFFIXES) and not name.startswith("."))


def parse_untrusted(data: bytes) -> dict[str, Any]:
    """Read a configuration, list or single; BadInput when a runtime could not use it."""
    if len(data) > MAX_FILE:
        raise BadInput(f"larger than {MAX_FILE} bytes")
    try:
        conf = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not JSON: {error}") from error
    if not isinstance(conf, dict) or not isinstance(conf.get("name"), str):
        raise BadInput("not a JSON object with a name")
    if "plugins" in conf:
        plugins = conf["plugins"]
        if not isinstance(plugins, list) or not plugins:
            raise BadInput("plugins: a list of at least one is needed")
        if not all(isinstance(p, dict) and isinstance(p.get("type"), str) for p in plugins):
            raise BadInput("plugins: each is an object with a type")
    elif not isinstance(conf.get("type"), str):
        raise BadInput("neither plugins nor a type")
    return conf


def is_list(conf: Mapping[str, Any]) -> bool:
    """Whether it is a list of plugins, as against one plugin."""
    return "plugins" in conf


def has_ours(conf: Mapping[str, Any]) -> bool:
    """Whether our plugin is in it."""
    return any(p["type"] == TYPE for p in conf.get("plugins", ()))


def insert(conf: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """Give the configuration as a list with our entry in it, once and up to date.

    An entry that is there keeps its place: another that wants to be last would else fight for it.
    """
    ours = entry.object()
    if is_list(conf):
        listed = dict(conf)
        plugins = list(conf["plugins"])
    else:
        plugin = {k: v for k, v in conf.items() if k not in ("cniVersion", "name")}
        listed = {k: conf[k] for k in ("cniVersion", "name") if k in conf}
        plugins = [plugin]
    places = [i for i, p in enumerate(plugins) if p["type"] == TYPE]
    if places:
        kept = [p for i, p in enumerate(plugins) if i not in places[1:]]
        kept[places[0]] = ours
    else:
        kept = [*plugins, ours]
    listed["plugins"] = kept
    version = listed.get("cniVersion")
    if not isinstance(version, str) or _numbers(version) < _numbers(_OLDEST):
        # Without a version the runtime takes the oldest, in which a plugin hears of no other.
        listed["cniVersion"] = "0.3.1"
    return listed


def remove(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Give the configuration without our entry; BadInput when nothing would be left."""
    kept = [p for p in conf.get("plugins", ()) if p["type"] != TYPE]
    if not kept:
        raise BadInput("it has no plugin but ours")
    return {**conf, "plugins": kept}


def encode(conf: Mapping[str, Any]) -> bytes:
    """Write it."""
    return json.dumps(conf, indent=2).encode() + b"\n"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())

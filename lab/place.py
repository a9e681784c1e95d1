"""Where a process of the lab runs, as the launcher's command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab.host import PATH
from lab.layout import NETNS, Layout
from lab.volumes import FILES

Object = dict[str, Any]

PROJECT: Final = Path(__file__).resolve().parent.parent
_LAUNCHER: Final = Path(__file__).resolve().parent / "launch.py"
_BIN: Final = Path(sys.executable).parent
_KEPT: Final = ("LANG", "LC_ALL", "TERM", "TZ")  # of the caller's environment


@dataclass(frozen=True, slots=True)
class Place:
    """Namespace, control group, files of /etc, environment."""

    cgroup: Path
    netns: Path | None = None
    mounts: Mapping[str, Path] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    def argv(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        log: Path | None = None,
        detached: bool = False,
    ) -> list[str]:
        """Build what to execute so as to become `command` there.

        `detached`: in a session of its own.
        """
        spec = {
            "netns": str(self.netns) if self.netns else None,
            "cgroup": str(self.cgroup),
            "mounts": {target: str(source) for target, source in self.mounts.items()},
            "cwd": cwd or str(PROJECT),
            "env": {**base_env(), **self.env, **(env or {})},
            "log": str(log) if log else None,
            "session": detached,
        }
        return [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(spec), *command]


def base_env() -> dict[str, str]:
    """Give what every process of a lab starts with."""
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    return {
        **kept,
        "PATH": f"{_BIN}:{PATH}",
        "HOME": os.environ.get("HOME", "/root"),
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",  # a pod's log is read while it runs
    }


def pod_place(layout: Layout, root: Path, pod: Object, host_ip: str, pod_ip: str) -> Place:
    """Say where a pod's processes run; `root` is the lab's control group."""
    meta, spec = pod["metadata"], pod["spec"]
    namespace = meta.get("namespace", "default")
    node = spec["nodeName"]
    netns = layout.pod_netns(namespace, meta["name"])
    if spec.get("hostNetwork"):
        netns = layout.node_netns(node)
    env = {
        "POD_NAME": meta["name"],
        "POD_NAMESPACE": namespace,
        "POD_IP": pod_ip,
        "NODE_NAME": node,
        "HOST_IP": host_ip,
        FILES: str(layout.pod_files(meta["uid"])),
    }
    files = etc_files(layout, meta["uid"])
    return Place(root / node / "pods" / meta["uid"], NETNS / netns, files, env)


def etc_files(layout: Layout, who: str) -> dict[str, Path]:
    """Name the stand-ins for /etc/resolv.conf and /etc/hosts of a pod (its uid) or node."""
    folder = layout.etc / who
    return {"/etc/resolv.conf": folder / "resolv.conf", "/etc/hosts": folder / "hosts"}


def write_etc(files: Mapping[str, Path], resolv: str, hosts: str) -> None:
    """Write the stand-ins."""
    for target, text in (("/etc/resolv.conf", resolv), ("/etc/hosts", hosts)):
        files[target].parent.mkdir(parents=True, exist_ok=True)
        files[target].write_text(text)

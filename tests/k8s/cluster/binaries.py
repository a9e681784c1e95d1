"""The programs of a cluster, built from Go modules once and kept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.k8s.cluster.errors import ClusterError
from tests.k8s.cluster.layout import cache
from tests.k8s.cluster.locks import exclusive

MODULES: Final = Path(__file__).parent / "modules"
GO: Final = (1, 26)
_VERSION: Final = "v1.37.2"


def _kubernetes_flags() -> str:
    stamps = {
        "gitVersion": _VERSION,
        "gitMajor": "1",
        "gitMinor": "37",
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "2026-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {p}.{k}={v}" for p in packages for k, v in stamps.items())


@dataclass(frozen=True, slots=True)
class Program:
    """One binary: the module whose go.mod pins it, its package, and how it is built."""

    name: str
    module: str
    package: str
    flags: str = ""
    tags: str = ""
    test: bool = False


_KUBERNETES = tuple(
    Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", _kubernetes_flags())
    for name in (
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubectl",
        "kube-proxy",
        "kubelet",
    )
)
_CONTAINERD = tuple(
    Program(
        name,
        "containerd",
        f"github.com/containerd/containerd/v2/cmd/{name}",
        "-X github.com/containerd/containerd/v2/version.Version=v2.3.0",
        "no_btrfs,no_zfs,no_devmapper,no_aufs",
    )
    for name in ("containerd", "containerd-shim-runc-v2", "ctr")
)
_CONFORMANCE = "sigs.k8s.io/gateway-api/conformance"
_ECHO = "istio.io/istio/pkg/test/echo/cmd"
CLUSTER: Final = (
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    *_KUBERNETES,
    Program("coredns", "coredns", "github.com/coredns/coredns"),
    *_CONTAINERD,
)
TOOLS: Final = (
    Program("helm", "helm", "helm.sh/helm/v3/cmd/helm"),
    Program("echo-client", "echo", f"{_ECHO}/client"),
    Program("echo-server", "echo", f"{_ECHO}/server"),
    Program("echo-basic", "conformance", f"{_CONFORMANCE}/echo-basic"),
    Program("gwapi-conformance.test", "conformance", _CONFORMANCE, test=True),
    Program("fortio", "fortio", "fortio.org/fortio"),
)
ALL: Final = (*CLUSTER, *TOOLS)


def folder() -> Path:
    """Where the binaries are."""
    return cache() / "bin"


def path(name: str) -> Path:
    """One binary; raises ClusterError when it was not built."""
    found = folder() / name
    if not found.exists():
        raise ClusterError(f"{found} is not there: python -m tests.k8s.cluster build")
    return found


def build(programs: Iterable[Program] = ALL, say: Callable[[str], None] = print) -> None:
    """Build what is absent or pinned otherwise by now."""
    if all(map(_is_current, chosen := list(programs))):
        return
    _check_go()
    folder().mkdir(parents=True, exist_ok=True)
    with exclusive(folder() / ".lock", say):
        todo = [p for p in chosen if not _is_current(p)]  # another may have built some by now
        for number, program in enumerate(todo, start=1):
            started = time.monotonic()
            _build(program)
            seconds = time.monotonic() - started
            say(f"built {program.name} ({number}/{len(todo)}) in {seconds:.0f} s")


def pin(name: str) -> str:
    """What tells one build of a program from another."""
    return _pin(next(p for p in ALL if p.name == name))


def module_file(module: str, required: str, file: str) -> Path:
    """A file or folder of a module that one of ours requires, from Go's module cache."""
    ask = ("list", "-m", "-f", "{{.Dir}}", required)
    where = _go(MODULES / module, *ask).strip()
    if not where:  # its archive was not needed so far
        _go(MODULES / module, "mod", "download", required)
        where = _go(MODULES / module, *ask).strip()
    return Path(where) / file


def _pin(program: Program) -> str:
    """What the binary depends on, as text."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((MODULES / program.module / name).read_bytes())
    digest.update(f"{program.package} {program.flags} {program.tags}".encode())
    return digest.hexdigest()


def _is_current(program: Program) -> bool:
    stamp = folder() / f".{program.name}.pin"
    built = folder() / program.name
    return built.exists() and stamp.exists() and stamp.read_text() == _pin(program)


def _check_go() -> None:
    need = ".".join(map(str, GO))
    tool = shutil.which("go")
    if tool is None:
        raise ClusterError(
            f"Go {need} or newer is needed to build the cluster's parts: no go in PATH"
        )
    found = subprocess.run([tool, "version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"go(\d+)\.(\d+)", found)
    if match is None or (int(match[1]), int(match[2])) < GO:
        raise ClusterError(f"Go {need} or newer is needed, this is {found.strip()}")


def _build(program: Program) -> None:
    output = folder() / program.name
    verb = ["test", "-c"] if program.test else ["build"]
    if program.tags:
        verb += ["-tags", program.tags]
    unfinished = output.with_name(f".{program.name}.new")
    words = [*verb, "-trimpath", "-ldflags", f"-s -w {program.flags}", "-o", str(unfinished)]
    _go(MODULES / program.module, *words, program.package)
    unfinished.rename(output)
    (folder() / f".{program.name}.pin").write_text(_pin(program))


def _go(module: Path, *words: str) -> str:
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-p=2 -mod=readonly -buildvcs=false"}
    done = subprocess.run(
        ["nice", "-n", "10", "go", *words],
        cwd=module,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"go {' '.join(words)[:120]}: {done.stderr.strip()[-800:]}")
    return done.stdout

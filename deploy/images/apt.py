"""Debian packages through apt, with lists and settings of our own.

What is installed on the builder plays no part: apt sees an empty machine. The mirrors are the
builder's, as far as they carry the release; Debian's own key must have signed what they give.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from deploy.images import cache
from deploy.images.errors import Dropped, ImageError
from deploy.images.locks import RENEW, Pin
from deploy.images.shell import run, say

SUITES: Final = ("bookworm", "bookworm-updates", "bookworm-security")
ARCHITECTURE: Final = "amd64"
_KEY: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TARGETS: Final = "$(CREATED_BY)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)"


class Apt:
    """apt with its state below one folder; `update` first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = folder / "apt.conf"

    def _run(self, what: str, *command: str, cwd: Path | None = None) -> str:
        return run([command[0], "-c", self._settings, *command[1:]], what, cwd=cwd)

    def update(self) -> None:
        """Fetch the lists of the release."""
        (self._folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self._folder / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        (self._folder / "sources.list").write_text(_sources())
        self._settings.write_text(_settings(self._folder))
        self._run("package lists", "apt-get", "update", "--error-on=any")

    def available(self) -> str:
        """The newest version of every package, as one control file."""
        return self._run("package lists", "apt-cache", "dumpavail")

    def download(self, pins: list[Pin], into: Path) -> None:
        """Fetch the pinned versions; raises Dropped when the archive has not kept one."""
        wanted = [f"{p.name}={p.version}" for p in pins]
        try:
            self._run("packages", "apt-get", "download", "-q", *wanted, cwd=into)
        except ImageError as e:
            if "was not found" not in str(e):
                raise
            lines = [x for x in str(e).splitlines() if "was not found" in x]
            raise Dropped(
                "the archive no longer has a pinned version (it keeps only the newest):\n"
                + "\n".join(lines)
                + f"\n{RENEW}"
            ) from e


def _sources() -> str:
    if not _KEY.exists():
        raise ImageError(f"{_KEY} is missing: install debian-archive-keyring")
    targets = run(["apt-get", "indextargets", "--format", _TARGETS], "apt's sources")
    lines = set()
    for line in targets.splitlines():
        sort, suite, component, mirror = line.split("|")
        if sort == "Packages" and suite in SUITES and component == "main":
            lines.add(f"deb [arch={ARCHITECTURE} signed-by={_KEY}] {mirror} {suite} {component}\n")
    if missing := [s for s in SUITES if not any(f" {s} " in x for x in lines)]:
        raise ImageError(
            f"apt's sources on this machine lack {', '.join(missing)} (main): add Debian 12's"
            " sources to /etc/apt (see sources.list(5)); nothing of them gets installed"
        )
    return "".join(sorted(lines))


def _settings(folder: Path) -> str:
    return f"""\
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "{ARCHITECTURE}";
APT::Architectures {{ "{ARCHITECTURE}"; }};
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


def fetch(pins: tuple[Pin, ...]) -> dict[Pin, Path]:
    """Where each pinned .deb is, downloading what the cache lacks; hashes checked."""
    debs = cache.kind("debs")
    places = {p: debs / f"{p.name}_{p.sha256[:16]}.deb" for p in pins}
    missing = [p for p, path in places.items() if not cache.used(path)]
    if missing:
        say(f"downloading {len(missing)} Debian packages")
        with cache.scratch() as work:
            apt = Apt(work / "apt")
            apt.update()
            into = work / "debs"
            into.mkdir()
            apt.download(missing, into)
            by_hash = {cache.sha256(path): path for path in into.iterdir()}
            for pin in missing:
                if pin.sha256 not in by_hash:
                    raise ImageError(
                        f"{pin.name} {pin.version} is not the file that was pinned: the archive"
                        f" changed it, or the lock is wrong; {RENEW}"
                    )
                cache.keep(by_hash[pin.sha256], places[pin])
    return places

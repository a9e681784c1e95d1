"""Compile and load, in a child that exits: bcc's memory (150 MB) goes with it.

`python -m bpf.loader` reads a job from standard input and answers one JSON object on standard
output. What it loads stays pinned. Nothing else in Ambit imports bcc.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bpf import kernel_headers, layout, libbpf, sources
from mesh.errors import Unsupported

TIMEOUT = 120.0  # seconds; a loaded machine compiles in 2-5
WAY_OUT = (
    "pods are steered by in-pod nftables instead (`--redirect nftables` makes that permanent);"
    " `python -m bpf features` tells what this kernel loads"
)


@dataclass(frozen=True, slots=True)
class Job:
    """maps: where maps are pinned (and reused). programs: where programs are pinned, or None to
    only try. keep_going: try the rest after a failure."""

    maps: Path
    programs: Path | None
    keep_going: bool = False


def run(job: Job) -> dict[str, Any]:
    """Do a job in a child; {"layouts": .., "counters": .., "hooks": {name: error or ""}}.

    Raises Unsupported when bcc or the headers are missing, or the child broke.
    """
    payload = {
        "maps": str(job.maps),
        "programs": str(job.programs) if job.programs else None,
        "keep_going": job.keep_going,
        "headers": str(kernel_headers.find()),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bpf.loader"],
            input=json.dumps(payload),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": str(sources.HERE.parent)},
        )
    except subprocess.TimeoutExpired as e:
        raise Unsupported(f"compiling the hooks took over {TIMEOUT:.0f} s; {WAY_OUT}") from e
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError) as e:
        cause = _last_lines(done.stderr) or f"exit code {done.returncode}"
        raise Unsupported(f"the hooks do not compile here: {cause}; {WAY_OUT}") from e
    if "error" in answer:
        raise Unsupported(f"{answer['error']}; {WAY_OUT}")
    return answer


def _last_lines(text: str, n: int = 3) -> str:
    return " | ".join([x.strip() for x in text.splitlines() if x.strip()][-n:])[-600:]


# ---- in the child ----------------------------------------------------------------------------


def disabled() -> set[str]:
    """Hooks to treat as failing to load: lets a test, or an operator, walk the fallback."""
    return {x for x in os.environ.get("AMBIT_DISABLE_HOOKS", "").split(",") if x}


def load_one(bpf: Any, hook: sources.Hook, programs: Path | None) -> str:
    """Load (and pin) one hook; "" or the cause."""
    if hook.name in disabled():
        return "disabled by AMBIT_DISABLE_HOOKS"
    with _stderr() as said:
        try:
            function = bpf.load_func(
                hook.function.encode(), hook.program_type, attach_type=hook.attach_type
            )
            if programs:
                libbpf.obj_pin(function.fd, programs / hook.name)
        except Exception as e:  # bcc raises bare Exception
            said.seek(0)
            words = "".join(x for x in said if not x.startswith("processed "))
            return f"{e}; the verifier's last words: {_last_lines(words, 4)}"
    return ""


@contextlib.contextmanager
def _stderr() -> Iterator[IO[str]]:
    """What bcc and the verifier write to fd 2 by themselves, as a file."""
    before = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(before, 2)
            os.close(before)


def _layouts(bpf: Any) -> dict[str, Any]:
    names = {
        "pods": "pod",
        "stats": "pod_stats",
        "original": "endpoint",
        "config": "config",
    }
    found = {struct: layout.describe(bpf[table.encode()].Leaf) for table, struct in names.items()}
    found["ip"] = layout.describe(bpf[b"by_address"].Key)
    return found


def child(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compile, load, describe."""
    os.environ["BCC_KERNEL_SOURCE"] = job["headers"]
    try:
        from bcc import BPF
    except ImportError as e:
        return {
            "error": f"bcc does not import ({e}): install python3-bpfcc for {sys.executable}"
            " (`make setup` does)"
        }
    maps = Path(job["maps"])
    maps.mkdir(parents=True, exist_ok=True)
    programs = Path(job["programs"]) if job["programs"] else None
    if programs:
        programs.mkdir(parents=True, exist_ok=True)
    flags = [f'-DPIN_DIR="{maps}"', "-Wno-everything", *(f"-D{d}" for d in sources.defines())]
    bpf = BPF(text=sources.text(), cflags=flags, debug=0)
    hooks: dict[str, str] = {}
    for hook in sources.HOOKS:
        hooks[hook.name] = load_one(bpf, hook, programs)
        if hooks[hook.name] and not job["keep_going"]:
            break
    return {"layouts": _layouts(bpf), "hooks": hooks, "counters": sources.counters()}


def main() -> None:
    """Entry of the child."""
    job = json.load(sys.stdin)
    # bcc and the verifier write to fd 2 by themselves; the parent shows its end if this fails.
    sys.stdout.write("\n" + json.dumps(child(job)) + "\n")


if __name__ == "__main__":
    main()

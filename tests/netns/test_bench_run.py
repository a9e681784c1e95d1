"""The benchmark as it is typed: contenders proved, one last line, nothing left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lab import cleanup

# Another benchmark on the machine is waited for.
pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

SHORT = ("--pairs", "1", "--seconds", "1")


@pytest.fixture
def no_lab_left() -> Iterator[None]:
    yield
    assert not {"bench", "bench-zt", "bench-follow"} & set(cleanup.known())


def bench(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench", *arguments]


@pytest.mark.usefixtures("no_lab_left")
def test_a_row_ends_with_its_ratios() -> None:
    """All three contenders take their path, and the last line is the one that is asked for."""
    done = subprocess.run(
        bench("across-rps1", *SHORT), capture_output=True, text=True, timeout=380, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "every contender takes its path" in done.stdout
    last = done.stdout.rstrip("\n").splitlines()[-1]
    assert re.fullmatch(r"across-rps1 ambit/direct \d+\.\d+ ambit/envoy \d+\.\d+", last)


@pytest.mark.usefixtures("no_lab_left")
def test_an_interrupted_run_leaves_nothing() -> None:
    """Ctrl-C in the middle of a round: the code a shell expects, and no lab."""
    with subprocess.Popen(
        bench("across-rps16", "--only", "direct,envoy"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "takes its path" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


@pytest.mark.usefixtures("no_lab_left")
def test_following_a_change_in_a_small_mesh() -> None:
    """Every change is seen, a change of a route is one response, and the last line says the p99."""
    small = ("--services", "4", "--waypoints", "2", "--samples", "3")
    done = subprocess.run(
        bench("follow", *small), capture_output=True, text=True, timeout=380, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "responses sent: rds 1.00; resources in them: rds 1.00;" in done.stdout
    for kind in ("HTTPRoute", "AuthorizationPolicy", "DestinationRule"):
        assert re.search(rf"^{kind}.* p99 ", done.stdout, re.MULTILINE), done.stdout
    assert re.fullmatch(r"follow p99 \d+ ms", done.stdout.rstrip("\n").splitlines()[-1])

"""The demo shows what it promises, and checks each of its steps itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_both_acts_come_to_their_end() -> None:
    command = [sys.executable, "-m", "cli.main", "demo", "--name", "t-demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("all TLS on 15008", "while it is shifted", "closed", "the right token: 200"):
        assert said in done.stdout

"""The codec's tests once more, on its plain Python form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh import compiled

HERE = Path(__file__).parent


@pytest.mark.timeout(300)
def test_the_plain_python_form_passes_the_same_tests() -> None:
    """What the compiled form promises, the sources promise too."""
    if not compiled.is_compiled():
        return  # this very run is the plain one
    files = [str(HERE / f"test_{n}.py") for n in ("h2_interop", "h2_limits", "hbone")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, "AMBIT_PURE": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]

"""Fail on files over 500 lines and functions over 60: past that, look for the second concept.

Usage: check_sizes.py [ROOT]; prints one line per offender and exits 1 when there is one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

MAX_FILE = 500
MAX_FUNCTION = 60


def offenders(path: Path) -> list[str]:
    """Name what is too long in one file."""
    text = path.read_text()
    lines = text.count("\n")
    found = [f"{path}: {lines} lines (at most {MAX_FILE})"] if lines > MAX_FILE else []
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                found.append(
                    f"{path}:{node.lineno}: {node.name} has {length} lines (at most {MAX_FUNCTION})"
                )
    return found


def main() -> int:
    """Check every Python file git knows, generated ones aside."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    found = [o for n in names if "_pb2" not in n for o in offenders(root / n)]
    for line in found:
        sys.stderr.write(line + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Python code in a process of its own, for what would disturb that of the tests."""

from __future__ import annotations

import os
import subprocess
import sys


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """Run code in a fresh interpreter and return all that it and the library print."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout

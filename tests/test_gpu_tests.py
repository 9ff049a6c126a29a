"""The tests on a GPU, on a machine that has none: they are skipped, and say so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python here, where a GPU that there may be cannot be seen."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_run_in_which_all_was_skipped_ends_well_and_says_so() -> None:
    done = run("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu/test_buffers.py")
    assert done.returncode == 0, done.stdout
    (count,) = re.findall(r"nothing could run here: all (\d+) were skipped", done.stdout)
    assert int(count) > 10
    assert re.search(rf"^{count} skipped: .*(driver|GPU)", done.stdout, re.MULTILINE)
    assert f"{count} skipped in" in done.stdout


def test_other_runs_say_nothing_of_them() -> None:
    done = run("-m", "pytest", "-p", "no:cacheprovider", "tests/gpu/test_buffers.py")
    assert "deselected" in done.stdout
    assert "tests on a GPU" not in done.stdout


def test_they_are_collected_without_a_library_of_the_gpu() -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); import tests.gpu.running; "
        "print([name for name in ('cuda', 'tensorrt', 'tensorrt_rtx', 'pynvml', 'torch') "
        "if name in sys.modules])"
    )
    done = run("-c", code)
    assert done.stdout == "[]\n", done.stderr

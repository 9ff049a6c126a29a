"""Build libmutoscope for the tests: once, in a folder that the next run finds again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[3]
NATIVE = ROOT / "runtime" / "native"
# A folder that was configured by somebody else: it is built, and nothing else is changed.
BUILD_VARIABLE = "MUTOSCOPE_NATIVE_BUILD"
LIBRARY_NAME = "libmutoscope.so"
# What cmake says of what the system must bring, with the name of it.
_MISSING = re.compile(
    r"(?:could not find|not providing|no \w+ could be found).{0,400}?"
    r"(onnxruntime|nlohmann_json|CMAKE_C(?:XX)?_COMPILER)",
    re.IGNORECASE | re.DOTALL,
)


def build_library() -> Path:
    """Return the path of the library, built from the sources as they are now.

    The test is skipped where the machine lacks a tool or a header; in CI, which installs them all,
    it fails.
    """
    given = os.environ.get(BUILD_VARIABLE)
    folder = Path(given).resolve() if given else ROOT / "build" / "native-pytest"
    if shutil.which("cmake") is None:
        _stop("cmake is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not given:
            _configure(folder)
        built = _run("cmake", "--build", str(folder), "--target", "mutoscope")
        assert built.returncode == 0, built.stdout
    return folder / LIBRARY_NAME


def _configure(folder: Path) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    names = ("ONNXRUNTIME_ROOT", "ONNXRUNTIME_INCLUDE_DIR", "ONNXRUNTIME_LIBRARY")
    places = [f"-D{name}={os.environ[name]}" for name in names if name in os.environ]
    programs = [f"-DMUTOSCOPE_{name}=OFF" for name in ("CLI", "EXAMPLES", "TESTS")]
    done = _run(
        *("cmake", "-S", str(NATIVE), "-B", str(folder), *generator, *places, *programs),
        *("-DCMAKE_BUILD_TYPE=Release", f"-DPython3_EXECUTABLE={sys.executable}"),
    )
    if done.returncode == 0:
        return
    missing = _MISSING.search(done.stdout)
    if missing is not None:
        _stop(f"cmake does not find {missing[1]}: scripts/install_native_dependencies.sh")
    pytest.fail(done.stdout)


def _stop(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"libmutoscope cannot be built: {reason}")
    pytest.skip(f"libmutoscope cannot be built: {reason}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

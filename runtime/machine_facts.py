"""What a machine says of itself: processor, memory, versions, and what its programs answer.

Files are read below `root`, which is "/" outside of tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mutoscope.engines.errors import join_lines

ROOT = Path("/")
# What decides how fast matrices are multiplied, as /proc/cpuinfo calls it. "asimddp" is Arm's dot
# product of 8-bit integers.
INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
)
_SECONDS_TO_ANSWER = 5.0


def read_text(path: Path) -> str:
    """Return a small file's text without the zero byte at the end; "" if it cannot be read.

    What a kernel shows as files may be absent, or for others to read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\0")
    except OSError:
        return ""


def read_processor(root: Path = ROOT) -> tuple[str, tuple[str, ...]]:
    """Return the processor's name, "" if it is not known, and which of INSTRUCTIONS it has."""
    fields = _read_fields(root / "proc/cpuinfo")
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return fields.get("model name", ""), tuple(name for name in INSTRUCTIONS if name in flags)


def read_memory(root: Path = ROOT) -> dict[str, int]:
    """Return the bytes of /proc/meminfo by name: MemTotal, MemAvailable, SwapTotal, ..."""
    fields = _read_fields(root / "proc/meminfo")
    sizes = {name: value.partition(" ")[0] for name, value in fields.items()}
    return {name: int(size) * 1024 for name, size in sizes.items() if size.isdecimal()}


def count_memory() -> int | None:
    """Return the bytes of memory, or None where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def find_package(name: str) -> str | None:
    """Return the version of an installed Python package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def ask(*command: str) -> str | None:
    """Return what a program says, or None if it is not there, fails or takes too long."""
    answer, problem = run_program(*command)
    return None if problem else answer


def run_program(*command: str) -> tuple[str, str]:
    """Return what a program printed, and why that is no answer: "" if it is one."""
    name = command[0]
    if shutil.which(name) is None:
        return "", f"{name} is not there"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS_TO_ANSWER,
        )
    except subprocess.TimeoutExpired:
        return "", f"{name} did not answer within {_SECONDS_TO_ANSWER:g} s"
    except OSError as err:
        return "", f"{name} does not start: {err.strerror or err}"
    if done.returncode != 0:
        said = join_lines(done.stderr or done.stdout) or "nothing"
        return done.stdout.strip(), f"{name} ended with code {done.returncode} and said: {said}"
    return done.stdout.strip(), ""


def _read_fields(path: Path) -> dict[str, str]:
    """The first value of each "name: value" line."""
    fields: dict[str, str] = {}
    for line in read_text(path).splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields

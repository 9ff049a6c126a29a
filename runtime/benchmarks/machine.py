"""What the figures of a benchmark depend on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "mutoscope",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "diffusers",
    "transformers",
)
# What decides how fast matrices are multiplied, as /proc/cpuinfo calls it.
INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)
_SOURCE = Path(__file__).resolve().parent.parent.parent


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, system and versions, as JSON can hold them.

    What cannot be known here is left out: the processor's name and instructions outside of Linux,
    a GPU without nvidia-smi, the commit of an installed package.
    """
    known = {
        **_read_cpuinfo(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": _count_memory(),
        "gpu": _ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _find_version(name) for name in PACKAGES},
        "commit": _find_commit(),
    }
    return {name: value for name, value in known.items() if value}


def format_machine(machine: dict[str, Any]) -> str:
    """Return a machine as one line for people."""
    processor = machine.get("processor") or machine["machine"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in machine else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES if name in machine)
    return f"{processor}, {machine['cores']} cores{memory}; Python {machine['python']}, {versions}"


def _read_cpuinfo() -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "processor": fields.get("model name"),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
    }


def _count_memory() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_commit() -> str | None:
    """The commit that runs, if this is a working copy; "-dirty" if files differ from it."""
    if not (_SOURCE / ".git").exists():
        return None
    return _ask("git", "-C", str(_SOURCE), "describe", "--always", "--abbrev=40", "--dirty")


def _ask(*command: str) -> str | None:
    """What a program says, or None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None

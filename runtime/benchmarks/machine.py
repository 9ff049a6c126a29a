"""What the figures of a benchmark depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from mutoscope.runtime.machine_facts import ask, count_memory, find_package, read_processor

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
_SOURCE = Path(__file__).resolve().parent.parent.parent


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, system and versions, as JSON can hold them.

    What cannot be known here is left out: the processor's name and instructions outside of Linux,
    a GPU without nvidia-smi, the commit of an installed package.
    """
    processor, instructions = read_processor()
    known = {
        "processor": processor,
        "instructions": list(instructions),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": count_memory(),
        "gpu": ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: find_package(name) for name in PACKAGES},
        "commit": _find_commit(),
    }
    return {name: value for name, value in known.items() if value}


def format_machine(machine: dict[str, Any]) -> str:
    """Return a machine as one line for people."""
    processor = machine.get("processor") or machine["machine"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in machine else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES if name in machine)
    return f"{processor}, {machine['cores']} cores{memory}; Python {machine['python']}, {versions}"


def _find_commit() -> str | None:
    """The commit that runs, if this is a working copy; "-dirty" if files differ from it."""
    if not (_SOURCE / ".git").exists():
        return None
    return ask("git", "-C", str(_SOURCE), "describe", "--always", "--abbrev=40", "--dirty")

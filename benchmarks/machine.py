"""What the figures of a benchmark depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import psutil

PACKAGES = ("numpy", "onnxruntime", "torch", "diffusers")


def describe_machine() -> dict[str, Any]:
    """Return the processor, the memory and the versions, as JSON can hold them."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }

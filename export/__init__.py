"""Export: a trained checkpoint becomes a bundle. The only part that needs PyTorch.

`import mutoscope.export` is cheap; torch and diffusers are loaded when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mutoscope.export.bundle_export import (
        ComponentReport,
        ExportProgress,
        ExportReport,
        export_checkpoint,
    )
    from mutoscope.export.errors import CheckpointError, ExportError, ExportParityError
    from mutoscope.export.loras.files import LoraFile
    from mutoscope.export.opening import CheckpointOptions
    from mutoscope.export.schedule import trace_schedule
    from mutoscope.export.variant_export import add_float16
    from mutoscope.export.verification import compare_with_checkpoint

_MODULES = {
    "CheckpointError": "mutoscope.export.errors",
    "CheckpointOptions": "mutoscope.export.opening",
    "ComponentReport": "mutoscope.export.bundle_export",
    "ExportError": "mutoscope.export.errors",
    "ExportParityError": "mutoscope.export.errors",
    "ExportProgress": "mutoscope.export.bundle_export",
    "ExportReport": "mutoscope.export.bundle_export",
    "LoraFile": "mutoscope.export.loras.files",
    "add_float16": "mutoscope.export.variant_export",
    "compare_with_checkpoint": "mutoscope.export.verification",
    "export_checkpoint": "mutoscope.export.bundle_export",
    "trace_schedule": "mutoscope.export.schedule",
}

__all__ = [
    "CheckpointError",
    "CheckpointOptions",
    "ComponentReport",
    "ExportError",
    "ExportParityError",
    "ExportProgress",
    "ExportReport",
    "LoraFile",
    "add_float16",
    "compare_with_checkpoint",
    "export_checkpoint",
    "trace_schedule",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

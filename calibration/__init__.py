"""Calibration: int8 variants of a bundle, and the figures that say what a type costs in quality.

`import mutoscope.calibration` is cheap; onnx is loaded when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mutoscope.calibration.calibrate import (
        CalibrationOptions,
        CalibrationReport,
        calibrate_bundle,
    )
    from mutoscope.calibration.errors import CalibrationError, TuningError
    from mutoscope.calibration.table import CalibrationTable
    from mutoscope.calibration.tuning import TuningOptions, TuningReport, tune_bundle

_MODULES = {
    "CalibrationError": "mutoscope.calibration.errors",
    "CalibrationOptions": "mutoscope.calibration.calibrate",
    "CalibrationReport": "mutoscope.calibration.calibrate",
    "CalibrationTable": "mutoscope.calibration.table",
    "TuningError": "mutoscope.calibration.errors",
    "TuningOptions": "mutoscope.calibration.tuning",
    "TuningReport": "mutoscope.calibration.tuning",
    "calibrate_bundle": "mutoscope.calibration.calibrate",
    "tune_bundle": "mutoscope.calibration.tuning",
}

__all__ = [
    "CalibrationError",
    "CalibrationOptions",
    "CalibrationReport",
    "CalibrationTable",
    "TuningError",
    "TuningOptions",
    "TuningReport",
    "calibrate_bundle",
    "tune_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The errors of the calibration.

MutoscopeError
├── CalibrationError    a component cannot be calibrated, or a calibration table does not fit it
└── TuningError         no plan can be found for a schedule
"""

from mutoscope.runtime.errors import MutoscopeError


class CalibrationError(MutoscopeError):
    """A component cannot be calibrated, or a calibration table does not fit it."""


class TuningError(MutoscopeError):
    """No plan can be found for a schedule."""

"""The errors of the calibration.

MutoscopeError
└── CalibrationError    a component cannot be calibrated, or a calibration table does not fit it
"""

from mutoscope.runtime.errors import MutoscopeError


class CalibrationError(MutoscopeError):
    """A component cannot be calibrated, or a calibration table does not fit it."""

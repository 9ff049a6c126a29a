"""How close two results are: one definition of each figure for the whole of Mutoscope."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Equal results have no finite PSNR; JSON has no infinity; float32 cannot come nearer than this.
MAXIMUM_PSNR_DB: Final = 200.0


def psnr_db(reference: NDArray[Any], result: NDArray[Any]) -> float:
    """Return the peak signal-to-noise ratio in decibels, at most `MAXIMUM_PSNR_DB`.

    The peak is 255 for uint8, else the range (maximum minus minimum) of the reference; of a
    constant reference, its magnitude.

    Args:
        reference: The right values, any shape.
        result: The values to judge, of the same shape.
    """
    expected, found = _as_float64(reference, result)
    mean_square = float(np.mean((expected - found) ** 2)) if expected.size else 0.0
    if mean_square == 0.0:
        return MAXIMUM_PSNR_DB
    if not math.isfinite(mean_square):
        return -MAXIMUM_PSNR_DB
    if reference.dtype == np.uint8:
        peak = 255.0
    else:
        peak = float(np.ptp(expected)) or float(np.abs(expected).max())
    if peak == 0.0:
        return -MAXIMUM_PSNR_DB
    value = 20.0 * math.log10(peak) - 10.0 * math.log10(mean_square)
    return max(-MAXIMUM_PSNR_DB, min(value, MAXIMUM_PSNR_DB))


def max_abs_error(reference: NDArray[Any], result: NDArray[Any]) -> float:
    """Return the largest absolute difference, in the unit of the values; inf if one is NaN."""
    expected, found = _as_float64(reference, result)
    error = float(np.abs(expected - found).max()) if expected.size else 0.0
    return error if math.isfinite(error) else math.inf


def relative_error(reference: NDArray[Any], result: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of the reference; inf if one is NaN.

    Of a reference of zeros: 0 if the result is the same, else inf.
    """
    expected, found = _as_float64(reference, result)
    difference = float(np.linalg.norm(expected - found))
    if difference == 0.0:
        return 0.0
    size = float(np.linalg.norm(expected))
    value = difference / size if size else math.inf
    return value if math.isfinite(value) else math.inf


def cosine_similarity(reference: NDArray[Any], result: NDArray[Any]) -> float:
    """Return the cosine of the angle between the two results, each taken as one vector.

    1 where both are zero; 0 where one is zero or not finite.
    """
    expected, found = _as_float64(reference, result)
    lengths = float(np.linalg.norm(expected)) * float(np.linalg.norm(found))
    if lengths == 0.0:
        return 1.0 if np.array_equal(expected, found) else 0.0
    value = float(expected.ravel() @ found.ravel()) / lengths
    return max(-1.0, min(value, 1.0)) if math.isfinite(value) else 0.0


def _as_float64(
    reference: NDArray[Any], result: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != result.shape:
        raise ValueError(f"result has shape {result.shape}; the reference has {reference.shape}")
    return reference.astype(np.float64), result.astype(np.float64)

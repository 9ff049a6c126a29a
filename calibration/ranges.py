"""The range of a value that its quantized form covers: the compromise of clipping and rounding.

All methods look at all points at once. Each range holds 0, which a quantized value must be able to
represent exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observers import NUM_BINS, ValueStatistics

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

# The part of the samples that is inside, in percent; half of the rest is cut off at either end.
PERCENTILE: Final = 99.99
# The range of what was always 0. Any would do for that; this one clips little if it is not always.
ZERO_RANGE: Final = (0.0, 1.0)

# As in onnxruntime: a histogram is compared with one of so many bins.
_QUANTIZED_BINS: Final = 128
# Bins of the histograms that are compared; more of them cost time, and make the counts noisy.
_ENTROPY_BINS: Final = 512
# What onnxruntime puts in the place of a count of 0.
_EPSILON: Final = 1e-4

_LEVELS: Final = 255
# What the search multiplies an end of a range by: down to a hundredth first, then in finer steps.
_COARSE: Final = 2.0 ** (-np.arange(14) / 2)
_MEDIUM: Final = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.4])
_FINE: Final = np.array([0.925, 0.95, 0.975, 1.025, 1.05, 1.075])


def find_ranges(method: str, statistics: ValueStatistics) -> F64:
    """Return the range of each point by one of METHODS, float64 [P, 2], the lower end first.

    Args:
        method: "minmax" takes all values in; "percentile" all but a ten-thousandth; "entropy" keeps
            the distribution most like what it was; "mse" makes the mean squared error least that 8
            bits with a zero point leave.
        statistics: Of P points.

    Raises:
        CalibrationError: The method is unknown.

    Source: onnxruntime.quantization.calibrate for minmax, percentile and entropy, which equal it on
    the same histograms (tests/calibration/test_ranges.py).
    """
    if method not in METHODS:
        raise CalibrationError(f"method {method!r} is unknown: use {', '.join(METHODS)}")
    exact = _include_zero(_find_minmax(statistics))
    found = _include_zero(_METHODS[method](statistics))
    # No value outside was ever seen, though the bin at an end may reach farther.
    found = np.stack(
        [np.maximum(found[:, 0], exact[:, 0]), np.minimum(found[:, 1], exact[:, 1])], axis=1
    )
    for other in (exact, np.array(ZERO_RANGE)):
        found = np.where(found[:, :1] < found[:, 1:], found, other)
    return found


def _include_zero(ranges: F64) -> F64:
    return np.stack([np.minimum(ranges[:, 0], 0.0), np.maximum(ranges[:, 1], 0.0)], axis=1)


def _find_minmax(statistics: ValueStatistics) -> F64:
    return np.stack([statistics.minimum, statistics.maximum], axis=1)


def _find_percentile(statistics: ValueStatistics) -> F64:
    """Cut bins off at both ends, no more of them than the percentile allows."""
    counts = statistics.counts
    cumulative = np.cumsum(counts / counts.sum(axis=1, keepdims=True), axis=1)
    cut = (100.0 - PERCENTILE) / 200.0
    places = np.stack(
        [(cumulative < cut).sum(axis=1), (cumulative < 1.0 - cut).sum(axis=1)], axis=1
    )
    width = 2.0 * statistics.radius / counts.shape[1]
    return places * width[:, None] - statistics.radius[:, None]


def _find_entropy(statistics: ValueStatistics) -> F64:
    """Compare ranges around 0 by the Kullback-Leibler divergence of what is left of the values."""
    factor = NUM_BINS // _ENTROPY_BINS
    counts = statistics.counts.reshape(-1, _ENTROPY_BINS, factor).sum(axis=2)
    middle, half = _ENTROPY_BINS // 2, _QUANTIZED_BINS // 2
    best: F64 = np.full(len(counts), np.inf)
    ends: I64 = np.zeros((len(counts), 2), dtype=np.int64)
    for bins in range(half, middle + 1):
        start, end = middle - bins, min(middle + bins + 1, _ENTROPY_BINS)
        divergence = _diverge(counts, start, end)
        better = (divergence < best) | (bins == half)
        best[better], ends[better] = divergence[better], (start, end)
    width = 2.0 * statistics.radius / _ENTROPY_BINS
    return ends * width[:, None] - statistics.radius[:, None]


def _diverge(counts: I64, start: int, end: int) -> F64:
    """The divergence of histograms clipped to some bins from the same in fewer bins, float64 [P].

    Source: onnxruntime's get_entropy_threshold, of which it keeps the rounding and that the bins
    beyond the last whole group count as empty.
    """
    inside = counts[:, start:end]
    clipped = inside.copy()
    clipped[:, 0] += counts[:, :start].sum(axis=1)
    clipped[:, -1] += counts[:, end:].sum(axis=1)
    merged = inside.shape[1] // _QUANTIZED_BINS
    whole = _QUANTIZED_BINS * merged
    groups = inside[:, :whole].reshape(len(counts), _QUANTIZED_BINS, merged).sum(axis=2)
    groups[:, -1] += inside[:, whole:].sum(axis=1)
    used = (clipped[:, :whole] != 0).reshape(groups.shape[0], _QUANTIZED_BINS, merged).sum(axis=2)
    spread = np.zeros_like(clipped)
    spread[:, :whole] = np.repeat(groups // np.maximum(used, 1) * (used > 0), merged, axis=1)
    expected, actual = _smooth(clipped), _smooth(spread)
    divergence: F64 = (expected * np.log(expected / actual)).sum(axis=1)
    return np.where(spread.any(axis=1), divergence, np.inf)


def _smooth(counts: I64) -> F64:
    """Histograms as distributions without zeros."""
    zero = counts == 0
    num_zeros = zero.sum(axis=1, keepdims=True)
    taken = _EPSILON * num_zeros / np.maximum(counts.shape[1] - num_zeros, 1)
    smooth: F64 = np.where(zero, _EPSILON, counts - taken)
    return smooth / smooth.sum(axis=1, keepdims=True)


def _find_mse(statistics: ValueStatistics) -> F64:
    """Search both ends of the range, together and then each by itself."""
    widest = _include_zero(_find_minmax(statistics))
    # The search is in units of the radius, so that all points share the middles of the bins.
    unit = np.where(statistics.radius > 0.0, statistics.radius, 1.0)[:, None]
    widest = widest / unit
    best = widest.copy()
    error = _measure_error(statistics.counts, best)
    both, low, high = np.array([True, True]), np.array([True, False]), np.array([False, True])
    for factors, ends in (
        (_COARSE, (both,)),
        (_MEDIUM, (low, high)),
        (_FINE, (low, high, low, high)),
    ):
        for end in ends:
            origin = best.copy()
            for factor in factors:
                ranges = np.where(end, origin * factor, origin)
                ranges = np.clip(ranges, widest[:, :1], widest[:, 1:])
                new = _measure_error(statistics.counts, ranges)
                better = new < error
                best[better], error[better] = ranges[better], new[better]
    return best * unit


def _measure_error(counts: I64, ranges: F64) -> F64:
    """The sum of squared errors that 8 bits leave of the samples, float64 [P]."""
    values = (np.arange(NUM_BINS) + 0.5) * (2.0 / NUM_BINS) - 1.0
    scale = np.maximum((ranges[:, 1:] - ranges[:, :1]) / _LEVELS, np.finfo(np.float64).tiny)
    zero_point = np.rint(-ranges[:, :1] / scale)
    levels = np.clip(np.rint(values / scale) + zero_point, 0.0, _LEVELS)
    levels -= zero_point
    levels *= scale
    levels -= values
    return np.einsum("pb,pb,pb->p", levels, levels, counts)


_METHODS: Final[dict[str, Callable[[ValueStatistics], F64]]] = {
    "minmax": _find_minmax,
    "percentile": _find_percentile,
    "entropy": _find_entropy,
    "mse": _find_mse,
}
METHODS: Final = tuple(_METHODS)

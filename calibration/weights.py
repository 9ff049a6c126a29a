"""Weights and biases as whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# Symmetric, so that -128 has no counterpart and is not used.
_LARGEST = 127
# A channel of zeros needs a scale too, and one that float16 holds.
_SMALLEST_SCALE = 2.0**-20


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as int8 with a scale for each channel of the output.

    Attributes:
        values: int8, [out, in, ...] of a convolution, else [in, out]; from -127 to 127.
        scales: float32 or float16 [out]; values times scales are the weight.
        axis: Of the output's channels in `values`.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.floating]
    axis: int

    def dequantize(self) -> F32:
        """Return what the weight is now, float32."""
        return self.values * _along(self.scales.astype(np.float32), self.values.ndim, self.axis)


def quantize_weight(
    weight: F32, axis: int, dtype: np.dtype[np.floating], least_scale: float | F32 = 0.0
) -> QuantizedWeight:
    """Return a weight as int8, symmetric, with a scale for each output channel.

    Args:
        weight: float32.
        axis: Of the output's channels.
        dtype: Of the scales: what the layer computes in.
        least_scale: No scale is smaller than this, for each channel or for all; for a bias that
            must fit in units of it.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    least = np.maximum(least_scale, _SMALLEST_SCALE)
    scales = np.maximum(np.abs(weight).max(axis=others) / _LARGEST, least).astype(dtype)
    divisors = _along(scales.astype(np.float32), weight.ndim, axis)
    values = np.clip(np.rint(weight / divisors), -_LARGEST, _LARGEST).astype(np.int8)
    return QuantizedWeight(values, scales, axis)


def quantize_bias(bias: F32, input_scale: float, weight: QuantizedWeight) -> NDArray[np.int32]:
    """Return a bias in units of input scale times weight scale, int32 [out]."""
    units = np.float64(input_scale) * weight.scales.astype(np.float64)
    limits = np.iinfo(np.int32)
    return np.clip(np.rint(bias / units), limits.min, limits.max).astype(np.int32)


def _along(scales: F32, rank: int, axis: int) -> F32:
    """Scales in a shape that multiplies a weight channel by channel."""
    shape = [1] * rank
    shape[axis] = -1
    return scales.reshape(shape)

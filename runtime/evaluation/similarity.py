"""Structural similarity of two clips."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from mutoscope.runtime.evaluation.scene import F64, U8

WINDOW: Final = 11
SIGMA: Final = 1.5
K1: Final = 0.01
K2: Final = 0.03


def measure_ssim(reference: U8, frames: U8) -> float:
    """Return the mean SSIM over frames, channels and windows that lie inside the frame, -1 to 1.

    Args:
        reference: uint8 [F, H, W, 3] RGB, at least 11 high and wide.
        frames: The same shape.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity", equation 13, with its Gaussian window of 11 pixels and sigma 1.5.
    """
    values = [_compare(*pair) for pair in zip(reference, frames, strict=True)]
    return float(np.mean(values))


def _compare(expected: U8, found: U8) -> float:
    """Return the mean SSIM of two frames."""
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    x, y = expected.astype(np.float64), found.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean())


def _blur(values: F64) -> F64:
    """Return the weighted mean of each window that lies inside the frame."""
    edge = WINDOW // 2
    blurred = cv2.GaussianBlur(values, (WINDOW, WINDOW), SIGMA)
    return blurred[edge:-edge, edge:-edge].astype(np.float64, copy=False)

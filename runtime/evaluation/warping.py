"""Warping error: what of the next frame the motion between the two does not explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import cv2
import numpy as np

from mutoscope.runtime.evaluation.scene import F32, F64, U8, Mask

SMALLEST_SIDE: Final = 16
"""Pixels; the patches of the optical flow have 8."""
OCCLUSION_RATIO: Final = 0.01
OCCLUSION_OFFSET: Final = 0.5
BOUNDARY_RATIO: Final = 0.01
BOUNDARY_OFFSET: Final = 0.002

Flow: TypeAlias = F32
"""Motion in pixels (x, y), float32 [H, W, 2]."""


@dataclass(frozen=True)
class Warping:
    """Warping error of neighbouring frames.

    Attributes:
        errors: Mean squared error, of values in [0, 1], float64 [F - 1]; nan if nothing is visible
            in both frames.
        visible_share: Share of the frame that was judged, float64 [F - 1].
    """

    errors: F64
    visible_share: F64


def measure_warping(frames: U8) -> Warping:
    """Return the mean squared difference of each frame and the next one warped back to it.

    The mean is over the channels and over the pixels that are visible in both frames and not on the
    edge of something that moves. The flow is that of the clip itself.

    Args:
        frames: uint8 [F, H, W, 3] RGB, at least `SMALLEST_SIDE` high and wide.

    Source: E_warp of Lai et al. 2018, "Learning Blind Video Temporal Consistency"
    (arXiv:1808.00449), section 4.2, with the mask of Ruder et al. 2016, "Artistic Style Transfer
    for Videos" (arXiv:1604.08610), section 4; flow by Kroeger et al. 2016, "Fast Optical Flow using
    Dense Inverse Search" (arXiv:1603.03590) in place of FlowNet2.
    """
    optical_flow = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
    # The preset stops at half the resolution: on small frames, corners then move too late.
    optical_flow.setFinestScale(0)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    errors, shares = [], []
    for index in range(len(frames) - 1):
        forward: Flow = optical_flow.calc(gray[index], gray[index + 1], None)  # type: ignore[call-overload]
        backward: Flow = optical_flow.calc(gray[index + 1], gray[index], None)  # type: ignore[call-overload]
        visible = find_visible(forward, backward)
        shares.append(float(visible.mean()))
        error = _compare(frames[index], frames[index + 1], forward)[visible]
        errors.append(float(error.mean()) if error.size else np.nan)
    return Warping(np.array(errors), np.array(shares))


def warp(values: F32, flow: Flow) -> F32:
    """Return what lies where the flow points, bilinear, as a new array of the shape of `values`."""
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    moved = cv2.remap(
        values,
        columns + flow[..., 0],
        rows + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return moved.astype(np.float32, copy=False)


def find_visible(forward: Flow, backward: Flow) -> Mask:
    """Return which pixels are in both frames and on no edge of the motion, bool [H, W]."""
    returned = warp(backward, forward)
    lengths = _square(forward) + _square(returned)
    occluded = _square(forward + returned) > OCCLUSION_RATIO * lengths + OCCLUSION_OFFSET
    down, right = np.gradient(forward, axis=(0, 1))
    steepness = _square(np.asarray(down)) + _square(np.asarray(right))
    boundary = steepness > BOUNDARY_RATIO * _square(forward) + BOUNDARY_OFFSET
    visible: Mask = ~(occluded | boundary)
    return visible


def _square(flow: Flow) -> F32:
    """Return the squared length of each vector, float32 [H, W]."""
    squared: F32 = np.square(flow).sum(axis=-1)
    return squared


def _compare(frame: U8, following: U8, flow: Flow) -> F32:
    """Return the squared error of each pixel, mean over channels, float32 [H, W]."""
    expected, source = (part.astype(np.float32) / np.float32(255) for part in (frame, following))
    error: F32 = np.square(warp(source, flow) - expected).mean(axis=-1)
    return error

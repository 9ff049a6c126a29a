"""Flicker: how much the background that stands still changes from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from mutoscope.runtime.evaluation.scene import F64, U8, Scene, dilate

EDGE_RADIUS: Final = 2
"""Pixels around what moves that are left out: its soft edge, and what a codec spreads from it."""
SMALLEST_BACKGROUND: Final = 0.1
"""Share of the frame below which there is no background to judge."""


@dataclass(frozen=True)
class Flicker:
    """Change of the background between neighbouring frames.

    Attributes:
        levels: Mean absolute change, levels of 255, float64 [F - 1]; nan without background.
        background_share: Share of the frame that was judged, float64 [F - 1].
    """

    levels: F64
    background_share: F64


def measure_flicker(frames: U8, scene: Scene) -> Flicker:
    """Return the mean of |frame[t + 1] - frame[t]| over background pixels and channels.

    Background is what is no further than `OBJECT_DISTANCE` from the scene's background in both
    frames, and more than `EDGE_RADIUS` pixels away from any pixel that is further.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
        scene: As `make_scene` returns it.

    Source: the mean absolute difference of frames that VBench (Huang et al. 2024,
    arXiv:2311.17982) calls temporal flickering, restricted to the background so that motion does
    not count.
    """
    still = [~dilate(mask, EDGE_RADIUS) for mask in scene.moving]
    levels, shares = [], []
    for index in range(len(frames) - 1):
        judged = still[index] & still[index + 1]
        shares.append(float(judged.mean()))
        if shares[-1] < SMALLEST_BACKGROUND:
            levels.append(np.nan)
            continue
        before, after = (frames[t][judged].astype(np.int16) for t in (index, index + 1))
        levels.append(float(np.abs(after - before).mean()))
    return Flicker(np.array(levels), np.array(shares))

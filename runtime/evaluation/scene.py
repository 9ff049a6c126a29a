"""Tell a clip's background from what moves in front of it, for a camera that stands still."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
U8: TypeAlias = NDArray[np.uint8]

OBJECT_DISTANCE: Final = 40.0
"""RGB distance in levels of 255 from the background above which a pixel is not background."""
PLAIN_DISTANCE: Final = 16.0
"""RGB distance from one colour within which a background counts as plain."""
PLAIN_SHARE: Final = 0.5
"""Share of the border that must show that colour; the rest may be a pillar."""
SHOWN_SHARE: Final = 0.1
"""Share of a region, over all frames, that shows the plain background where an object passed."""
BORDER_SHARE: Final = 1 / 16
"""Width of the border that tells the colour of a plain background, as a share of the side."""


@dataclass(frozen=True)
class Scene:
    """What stands still in a clip, and what does not.

    Attributes:
        background: The background, float32 [H, W, 3], levels of 255.
        offsets: How much brighter each frame's background is, float32 [F, 3], levels of 255.
        distances: RGB distance of each pixel from the background of its frame, float32 [F, H, W].
        structure: What stands still on a plain background (a pillar), bool [H, W].
    """

    background: F32
    offsets: F32
    distances: F32
    structure: Mask

    @property
    def moving(self) -> Mask:
        """Which pixels do not show the background, bool [F, H, W]."""
        moving: Mask = self.distances > OBJECT_DISTANCE
        return moving


def make_scene(frames: U8) -> Scene:
    """Return the background of a clip and each pixel's distance from it.

    The background is the median over time. An object that covers a place for half of the clip is in
    that median: where most of its border is one colour, a region of another one is filled with it
    if the clip shows it there, or if the region touches no border of the frame. The background of
    one frame is that of the clip and one offset per channel, so that light that changes does not
    turn the whole frame into an object.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
    """
    background = np.median(frames, axis=0).astype(np.float32)
    structure = _fill_objects(frames, background)
    offsets = _measure_offsets(frames, background)
    distances = np.stack(
        [
            measure_distance(frame, background + offset)
            for frame, offset in zip(frames, offsets, strict=True)
        ]
    )
    return Scene(background, offsets, distances, structure)


def measure_distance(frame: NDArray[np.uint8] | F32, colours: F32) -> F32:
    """Return the RGB distance of pixels [..., 3] from colours, in levels of 255, float32 [...]."""
    distance: F32 = np.sqrt(np.square(frame - colours).sum(axis=-1))
    return distance


def _measure_offsets(frames: U8, background: F32) -> F32:
    """Return the median difference of each frame from the background, float32 [F, 3]."""
    return np.stack([np.median(frame - background, axis=(0, 1)) for frame in frames])


def _fill_objects(frames: U8, background: F32) -> Mask:
    """Take objects out of a plain background, in place; return what stands still on it."""
    height, width = background.shape[:2]
    structure = np.zeros((height, width), np.bool_)
    border = background[_make_border(height, width)]  # [N, 3]
    plain = np.median(border, axis=0)
    if (measure_distance(border, plain) <= PLAIN_DISTANCE).mean() < PLAIN_SHARE:
        return structure
    unlike = measure_distance(background, plain) > OBJECT_DISTANCE
    shown = np.zeros((height, width), np.float32)
    offsets = _measure_offsets(frames, background)
    for frame, offset in zip(frames, offsets, strict=True):
        shown += measure_distance(frame, plain + offset) <= OBJECT_DISTANCE
    count, labels = cv2.connectedComponents(unlike.astype(np.uint8), connectivity=4)
    for label in range(1, count):
        region = labels == label
        uncovered = float(shown[region].mean()) / len(frames) > SHOWN_SHARE
        if uncovered or not touches_border(region):
            background[region] = plain
        else:
            structure |= region
    return structure


def _make_border(height: int, width: int) -> Mask:
    """Return which pixels are near the border of the frame, bool [H, W]."""
    rows, columns = (max(1, round(BORDER_SHARE * side)) for side in (height, width))
    border = np.ones((height, width), np.bool_)
    border[rows:-rows, columns:-columns] = False
    return border


def touches_border(mask: Mask) -> bool:
    """Return whether a mask [H, W] reaches the border of the frame."""
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def dilate(mask: Mask, radius: int) -> Mask:
    """Return a mask [H, W] grown by `radius` pixels in all directions, a new array."""
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(np.bool_)

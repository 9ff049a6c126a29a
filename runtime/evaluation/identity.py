"""Identity drift: whether the main object keeps its colour, area and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from mutoscope.runtime.evaluation.scene import (
    F32,
    F64,
    U8,
    Mask,
    Scene,
    dilate,
    touches_border,
)

SMALLEST_AREA: Final = 0.007
"""Share of the frame; less is no object."""
WHOLE_SHARE: Final = 0.9
"""Share of its largest area that an object beside a pillar shows at least when it is whole."""
HALF: Final = 0.5
"""Coverage above which a pixel is the object's."""
FIRST_PART: Final = 0.25
"""Share of the frames that show the object whole, from the first on, that is the reference."""
OUTLINE_SIZE: Final = 48
"""Side of the square that outlines are compared in, pixels."""
OUTLINE_SCALE: Final = 24.0
"""Side of a square as large as the object, there."""


@dataclass(frozen=True)
class ObjectTrack:
    """The main object over time; nan in frames that do not show it (or, for outlines, not whole).

    Attributes:
        centres: x and y, float64 [F, 2], pixels.
        areas: float64 [F], pixels; a pixel at its edge counts by what it shows of the object.
        colours: CIE Lab, float64 [F, 3].
        outlines: Coverage, centred and scaled to one area, float32 [F, H, W] (`OUTLINE_SIZE`).
        seen: Whether the frame shows it, bool [F].
        whole: Whether nothing cuts it: neither the border of the frame nor what stands still.
    """

    centres: F64
    areas: F64
    colours: F64
    outlines: F32
    seen: Mask
    whole: Mask


@dataclass(frozen=True)
class Drift:
    """How far the object goes from what it was in the first part of the clip.

    Attributes:
        colour: Mean distance of its colour, CIE 1976 delta E.
        colour_max: The largest.
        area: Mean relative change of its area.
        shape: Mean of 1 - intersection over union, after centring and scaling to one area.
        num_frames_seen: Frames that show it.
        num_frames_whole: Frames that show it whole: those that were judged.
    """

    colour: float
    colour_max: float
    area: float
    shape: float
    num_frames_seen: int
    num_frames_whole: int


@dataclass(frozen=True)
class Steps:
    """Change of the object between neighbouring frames, float64 [F - 1]; nan where one hides it.

    Attributes:
        colour: CIE 1976 delta E.
        area: Relative change: |log(area[t + 1] / area[t])|.
        shape: 1 - intersection over union, after centring and scaling to one area.
        motion: Distance of its motion from the mean of the pairs before and after, pixels: 0 for
            one that moves evenly, the length of the jump for one that jumps.
    """

    colour: F64
    area: F64
    shape: F64
    motion: F64


def track_object(frames: U8, scene: Scene) -> ObjectTrack:
    """Return the main object of each frame: the largest patch that is not background.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
        scene: As `make_scene` returns it.
    """
    num_frames, height, width, _ = frames.shape
    track = ObjectTrack(
        np.full((num_frames, 2), np.nan),
        np.full(num_frames, np.nan),
        np.full((num_frames, 3), np.nan),
        np.full((num_frames, OUTLINE_SIZE, OUTLINE_SIZE), np.nan, np.float32),
        np.zeros(num_frames, np.bool_),
        np.zeros(num_frames, np.bool_),
    )
    touching = np.zeros(num_frames, np.bool_)
    for index, moving in enumerate(scene.moving):
        coverage = _find_coverage(moving, scene.distances[index])
        area, mask = float(coverage.sum()), coverage > HALF
        if area < SMALLEST_AREA * height * width:
            continue
        centre = np.array(
            [coverage.sum(axis=0) @ np.arange(width), coverage.sum(axis=1) @ np.arange(height)]
        )
        track.seen[index], track.centres[index], track.areas[index] = True, centre / area, area
        track.colours[index] = _read_colour(frames[index], coverage)
        track.outlines[index] = make_outline(coverage, track.centres[index], area)
        track.whole[index] = not touches_border(mask)
        touching[index] = (dilate(mask, 1) & scene.structure).any()
    if track.seen.any():
        track.whole[touching & ~(track.areas >= WHOLE_SHARE * np.nanmax(track.areas))] = False
    track.outlines[~track.whole] = np.nan
    return track


def measure_drift(track: ObjectTrack) -> Drift | None:
    """Return how far the object drifts; None if fewer than two frames show it whole.

    The reference is the median (of outlines, the mean) over the first quarter of the frames that
    show it whole; the figures are means over the rest of those frames. Frames that hide it do not
    count, so that it must come back as it was.
    """
    whole = np.flatnonzero(track.whole)
    if len(whole) < 2:
        return None
    count = max(1, int(FIRST_PART * len(whole)))
    first, later = whole[:count], whole[count:]
    colour = np.median(track.colours[first], axis=0)
    colour_drift = np.linalg.norm(track.colours[later] - colour, axis=1)
    area_drift = np.abs(track.areas[later] / np.median(track.areas[first]) - 1.0)
    outline = track.outlines[first].mean(axis=0)
    shape_drift = [compare_outlines(outline, found) for found in track.outlines[later]]
    return Drift(
        float(colour_drift.mean()),
        float(colour_drift.max()),
        float(area_drift.mean()),
        float(np.mean(shape_drift)),
        int(track.seen.sum()),
        len(whole),
    )


def measure_steps(track: ObjectTrack) -> Steps:
    """Return how the object changes between neighbouring frames."""
    pairs = range(len(track.areas) - 1)
    motion = np.diff(track.centres, axis=0)
    area = np.abs(np.diff(np.log(track.areas)))
    area[~(track.whole[:-1] & track.whole[1:])] = np.nan
    return Steps(
        np.linalg.norm(np.diff(track.colours, axis=0), axis=1),
        area,
        np.array([compare_outlines(*track.outlines[pair : pair + 2]) for pair in pairs]),
        np.array([_measure_jump(motion, pair) for pair in pairs]),
    )


def make_outline(coverage: F32, centre: F64, area: float) -> F32:
    """Return an object [H, W] moved to the middle of a square and scaled to one area.

    Args:
        coverage: How much of each pixel shows the object, 0 to 1.
        centre: x and y of its centre, pixels.
        area: Sum of the coverage.

    Returns:
        Coverage, float32 [OUTLINE_SIZE, OUTLINE_SIZE].
    """
    scale = OUTLINE_SCALE / np.sqrt(area)
    middle = (OUTLINE_SIZE - 1) / 2
    matrix = np.array(
        [[scale, 0.0, middle - scale * centre[0]], [0.0, scale, middle - scale * centre[1]]]
    )
    size = (OUTLINE_SIZE, OUTLINE_SIZE)
    outline = cv2.warpAffine(coverage, matrix, size, flags=cv2.INTER_LINEAR)
    return outline.astype(np.float32, copy=False)


def compare_outlines(first: F32, second: F32) -> float:
    """Return 1 - intersection over union of two coverages, 0 for equal ones; nan if one is nan."""
    return float(1.0 - np.minimum(first, second).sum() / np.maximum(first, second).sum())


def _find_coverage(moving: Mask, distances: F32) -> F32:
    """Return how much of each pixel shows the largest patch of what moves, 0 to 1, [H, W].

    A pixel at the edge mixes object and background: it shows as much of the object as it is away
    from the background, relative to the object's inside.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(moving.astype(np.uint8))
    if count < 2:
        return np.zeros_like(distances)
    patch = labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    inside = float(np.median(distances[patch]))
    return np.where(dilate(patch, 1), np.minimum(distances / inside, 1.0), 0.0).astype(np.float32)


def _read_colour(frame: U8, coverage: F32) -> F64:
    """Return the median colour of the object's pixels in CIE Lab (D65), float64 [3]."""
    pixels = frame[coverage > HALF].astype(np.float32) / np.float32(255)
    median = np.median(pixels, axis=0).astype(np.float32)
    return cv2.cvtColor(median[None, None], cv2.COLOR_RGB2Lab)[0, 0].astype(np.float64)


def _measure_jump(motion: F64, pair: int) -> float:
    """Return how far one motion is from the mean of those beside it, pixels."""
    around = np.array([motion[index] for index in (pair - 1, pair + 1) if 0 <= index < len(motion)])
    around = around[np.isfinite(around).all(axis=1)] if len(around) else np.empty((0, 2))
    if not len(around):
        return float("nan")
    return float(np.linalg.norm(motion[pair] - around.mean(axis=0)))

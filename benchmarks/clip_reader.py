"""Reads from a clip's pixels what it shows: colour, shape, motion, background and pillar.

Plain geometry on numpy arrays, with no learned part: the background is what the frame's sides show,
the object is what is coloured unlike background and pillar, its shape is told by the symmetry of
its outline, its motion by the path of its centre and by its area. The thresholds come from drawn
clips, never from generated ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.clips import (
    BACKGROUNDS,
    COLOURS,
    PILLAR_COLOUR,
    PILLAR_SPAN,
    SHAPES,
    measure_distance,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
U8 = NDArray[np.uint8]

OBJECT_DISTANCE: Final = 70.0
"""RGB distance from the background at which a pixel may belong to the object."""
SMALLEST_OBJECT: Final = 30
"""Pixels; less is no object."""
PILLAR_FRACTION: Final = 0.7
"""Fraction of the pillar's inner pixels that must show its colour, in the median frame."""
AREA_PER_SQUARED_RADIUS: Final[dict[str, float]] = {
    "circle": np.pi,
    "square": 3.24,
    "triangle": 2.03,
    "star": 2.384,
}
FOLDED_SHAPES: Final = ("triangle", "square", "star")
FOLDED_SHAPES_ORDERS: Final = (3, 4, 5)
SMALLEST_SHARE: Final = 0.4
"""Share of a drawn shape's symmetry that a soft one must keep; a circle has none."""
SMALLEST_OVERLAP: Final = 0.5
"""Intersection over union below which the patch is none of the shapes."""
GROWTH_RATIO: Final = 1.8
"""Ratio of the last area to the first at which a clip grows; drawn clips have 4 and more."""
SMALLEST_TRAVEL: Final = 8.0
"""Pixels; a centre that stays within this does not move."""
ORBIT_SPAN: Final = 12.0
"""Pixels that an orbit must span on both axes."""
ORBIT_ANGLE: Final = 4.2
"""Radians that an orbit must turn about its middle; a full turn of 16 frames has 5.9."""
STRAIGHTNESS: Final = 0.55
"""Net travel over path length: a line has 1, a bounce under 0.3."""


@dataclass(frozen=True)
class ClipReading:
    """What a clip shows, in the words of the captions; "none" where nothing can be read."""

    colour: str
    shape: str
    motion: str
    background: str
    pillar: bool
    reappears: bool
    """Behind a pillar: the object is seen on both sides, with the same colour and shape on each."""


@dataclass(frozen=True)
class Track:
    """The object over time: one entry for each frame, area 0 and centre nan where it is hidden."""

    x: F64
    y: F64
    area: F64


def read_clip(frames: U8) -> ClipReading:
    """Return what a clip shows.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
    """
    background = read_background(frames)
    pillar = has_pillar(frames)
    masks = find_object(frames, background, pillar=pillar)
    track = track_object(masks)
    whole = find_whole_frames(masks, pillar=pillar)
    colour = read_colour(frames, masks, whole)
    shape = read_shape(masks, whole)
    motion = read_motion(track, pillar=pillar)
    reappears = pillar and check_reappearance(frames, masks, whole, track)
    return ClipReading(colour, shape, motion, background, pillar, reappears)


def read_frames(frames: U8) -> list[tuple[str, str]]:
    """Return the colour and the shape that each frame shows, of the frames that show it whole.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
    """
    pillar = has_pillar(frames)
    masks = find_object(frames, read_background(frames), pillar=pillar)
    words = []
    for index in np.flatnonzero(find_whole_frames(masks, pillar=pillar)):
        chosen = np.arange(len(frames)) == index
        words.append((read_colour(frames, masks, chosen), read_shape(masks, chosen)))
    return words


def name_nearest(pixel: F64, palette: dict[str, tuple[int, int, int]]) -> str:
    """Return the name of the palette's colour nearest to an RGB triple in [0, 255]."""
    distances = {name: float(np.linalg.norm(pixel - np.array(c))) for name, c in palette.items()}
    return min(distances, key=lambda name: distances[name])


def read_background(frames: U8) -> str:
    """Return the background: the nearest to the median of the pixels beside the pillar's place."""
    left, right = int(PILLAR_SPAN[0]) - 2, int(PILLAR_SPAN[1]) + 2
    sides = np.concatenate([frames[:, :, :left], frames[:, :, right:]], axis=2)
    return name_nearest(np.median(sides.reshape(-1, 3), axis=0), BACKGROUNDS)


def has_pillar(frames: U8) -> bool:
    """Return whether the pillar stands in the middle."""
    inner = frames[:, :, int(PILLAR_SPAN[0]) + 3 : int(PILLAR_SPAN[1]) - 3]
    away = measure_away(inner, PILLAR_COLOUR)
    return bool(np.median((away < 60.0).mean(axis=(1, 2))) > PILLAR_FRACTION)


def find_object(frames: U8, background: str, *, pillar: bool) -> Mask:
    """Return which pixels belong to the object, bool [F, H, W]: the largest patch of each frame."""
    away = measure_away(frames, BACKGROUNDS[background])
    nearest = np.min([measure_away(frames, colour) for colour in COLOURS.values()], axis=0)
    # An edge pixel is a mixture: it counts as object where it is nearer to a colour than to the
    # background, which puts the edge at half coverage.
    masks: Mask = (away > OBJECT_DISTANCE) & (nearest < away)
    if pillar:
        masks[:, :, int(PILLAR_SPAN[0]) - 1 : int(PILLAR_SPAN[1]) + 1] = False
    return keep_largest_patches(masks)


def measure_away(frames: U8, colour: tuple[int, int, int]) -> F32:
    """Return the RGB distance of each pixel from a colour, float32 [F, H, W]."""
    away: F32 = np.sqrt(
        np.square(frames.astype(np.float32) - np.array(colour, np.float32)).sum(axis=-1)
    )
    return away


def keep_largest_patches(masks: Mask) -> Mask:
    """Return the largest 4-connected patch of each mask [F, H, W] as a new array.

    Labels start as pixel numbers, and each pixel takes the largest of its neighbourhood until
    nothing changes; labels run along rows and columns at once, so a few rounds are enough.
    """
    numbers = np.arange(1, masks[0].size + 1).reshape(masks[0].shape)
    labels = np.where(masks, numbers, 0)
    before = np.zeros_like(labels)
    while not np.array_equal(before, labels):
        before = labels
        for axis in (1, 2):
            for flip in (slice(None), slice(None, None, -1)):
                labels = _spread(labels, masks, axis, flip)
    kept = np.zeros_like(masks)
    for frame, mask in enumerate(masks):
        if mask.any():
            values, counts = np.unique(labels[frame][mask], return_counts=True)
            kept[frame] = labels[frame] == values[np.argmax(counts)]
    return kept


def _spread(labels: NDArray[np.int64], masks: Mask, axis: int, flip: slice) -> NDArray[np.int64]:
    """Carry the largest label along one axis, in one direction, without leaving the masks."""
    moved = np.moveaxis(labels, axis, 0)[flip].copy()
    inside = np.moveaxis(masks, axis, 0)[flip]
    for line in range(1, len(moved)):
        carried = np.maximum(moved[line], moved[line - 1])
        moved[line] = np.where(inside[line] & inside[line - 1], carried, moved[line])
    return np.moveaxis(moved[flip], 0, axis)


def track_object(masks: Mask) -> Track:
    """Return the object's centre and area in each frame, in pixels."""
    area = masks.sum(axis=(1, 2)).astype(np.float64)
    seen = area >= SMALLEST_OBJECT
    rows, columns = np.arange(masks.shape[1]), np.arange(masks.shape[2])
    divisor = np.where(seen, area, np.nan)
    x = (masks.sum(axis=1) * columns).sum(axis=1) / divisor
    y = (masks.sum(axis=2) * rows).sum(axis=1) / divisor
    return Track(x, y, np.where(seen, area, 0.0))


def find_whole_frames(masks: Mask, *, pillar: bool) -> Mask:
    """Return in which frames the object is seen whole, bool [F]; if in none, where it is seen.

    Whole means that it touches no border; with a pillar, that it shows nearly its largest area.
    """
    area = masks.sum(axis=(1, 2))
    if pillar:
        cut = area < 0.85 * area.max()
    else:
        cut = masks[:, 0].any(1) | masks[:, -1].any(1)
        cut |= masks[:, :, 0].any(1) | masks[:, :, -1].any(1)
    seen = area >= SMALLEST_OBJECT
    whole: Mask = ~cut & seen
    return whole if whole.any() else seen


def read_colour(frames: U8, masks: Mask, chosen: Mask) -> str:
    """Return the colour nearest to the median pixel of the object in the chosen frames."""
    pixels = frames[chosen][masks[chosen]]
    if len(pixels) == 0:
        return "none"
    return name_nearest(np.median(pixels.astype(np.float64), axis=0), COLOURS)


def read_shape(masks: Mask, chosen: Mask) -> str:
    """Return the shape of the object, over the chosen frames.

    The share of three-, four- and five-fold symmetry tells triangle, square and star from a circle,
    even when corners are soft; the overlap with the shape's outline tells whether it is one at all.
    """
    if not chosen.any():
        return "none"
    areas = masks[chosen].sum(axis=(1, 2))
    folds = np.average([measure_folds(mask) for mask in masks[chosen]], axis=0, weights=areas)
    shares = folds / ideal_folds()
    best = int(np.argmax(shares))
    shape = FOLDED_SHAPES[best] if shares[best] > SMALLEST_SHARE else "circle"
    overlaps = np.average([measure_overlaps(mask) for mask in masks[chosen]], axis=0, weights=areas)
    return shape if overlaps[SHAPES.index(shape)] >= SMALLEST_OVERLAP else "none"


def measure_folds(mask: Mask) -> F64:
    """Return how strongly a mask [H, W] shows each symmetry of FOLDED_SHAPES, upright, float64 [3].

    That is the mean of cos(n * angle) over its pixels, the angle from straight up around the
    mask's centre, each pixel weighing its squared distance from there.
    """
    rows, columns = np.nonzero(mask)
    dy, dx = rows - rows.mean(), columns - columns.mean()
    weight = dx**2 + dy**2
    angle = np.arctan2(dx, -dy)
    folds = [(weight * np.cos(n * angle)).sum() / weight.sum() for n in FOLDED_SHAPES_ORDERS]
    return np.array(folds)


@cache
def ideal_folds() -> F64:
    """Return what `measure_folds` gives for each of FOLDED_SHAPES drawn without flaw."""
    grid = np.arange(-40, 41, dtype=np.float32)
    dx, dy = np.meshgrid(grid, grid)
    radius = np.full((1, 1), 20.0, np.float32)
    return np.array(
        [
            measure_folds(measure_distance(shape, dx, dy, radius) < 0)[index]
            for index, shape in enumerate(FOLDED_SHAPES)
        ]
    )


def measure_overlaps(mask: Mask) -> list[float]:
    """Return, for each shape, the overlap (0 to 1) of a mask [H, W] with that shape.

    The shape is placed on the mask's centre and given its area.
    """
    rows, columns = np.nonzero(mask)
    dy = (np.arange(mask.shape[0]) - rows.mean())[:, None].astype(np.float32)
    dx = (np.arange(mask.shape[1]) - columns.mean())[None, :].astype(np.float32)
    dx, dy = np.broadcast_arrays(dx, dy)
    overlaps = []
    for shape in SHAPES:
        radius = np.float32(np.sqrt(mask.sum() / AREA_PER_SQUARED_RADIUS[shape]))
        drawn = measure_distance(shape, dx, dy, np.full((1, 1), radius)) < 0
        overlaps.append(float((drawn & mask).sum() / (drawn | mask).sum()))
    return overlaps


def read_motion(track: Track, *, pillar: bool) -> str:
    """Return the motion that the object's centre and area make, "none" for anything else."""
    seen = track.area > 0
    if seen.sum() < len(seen) // 2:
        return "none"
    x, y, area = track.x[seen], track.y[seen], track.area[seen]
    growth = float(area[-3:].mean() / area[:3].mean())
    if not pillar and growth > GROWTH_RATIO:
        return "grows"
    if not pillar and growth < 1.0 / GROWTH_RATIO:
        return "shrinks"
    span_x, span_y = float(np.ptp(x)), float(np.ptp(y))
    if max(span_x, span_y) < SMALLEST_TRAVEL:
        return "none"
    if min(span_x, span_y) > ORBIT_SPAN and measure_turn(x, y) > ORBIT_ANGLE:
        return "orbits"
    along, words = (x, ("left", "right")) if span_x > span_y else (y, ("up", "down"))
    net = float(along[-1] - along[0])
    if abs(net) >= STRAIGHTNESS * float(np.abs(np.diff(along)).sum()):
        return f"moves {words[int(net > 0)]}"
    return "bounces" if span_y > span_x else "none"


def measure_turn(x: F64, y: F64) -> float:
    """Return by how much a path turns about the middle of its extent, in radians, unsigned."""
    angle = np.arctan2(y - (y.min() + y.max()) / 2, x - (x.min() + x.max()) / 2)
    return float(abs(np.unwrap(angle)[-1] - angle[0]))


def check_reappearance(frames: U8, masks: Mask, whole: Mask, track: Track) -> bool:
    """Return whether the object shows the same colour and shape on both sides of the pillar."""
    readings = []
    for side in (track.x < PILLAR_SPAN[0], track.x > PILLAR_SPAN[1]):
        chosen = whole & side
        if not chosen.any():
            return False
        readings.append((read_colour(frames, masks, chosen), read_shape(masks, chosen)))
    return readings[0] == readings[1] and "none" not in readings[0]

"""Draws the moving-shapes clips and writes their captions.

A clip is one coloured shape that moves in one way over a plain background, drawn from signed
distance functions with antialiased edges. 128 of the 576 combinations of colour, shape, motion and
background are held out: nothing in training ever sees them, and the benchmark asks for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

SIZE: Final = 64
"""Height and width of a frame, in pixels."""
NUM_FRAMES: Final = 16
FRAME_RATE: Final = 8.0
"""Frames per second."""

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (230, 30, 30),
    "green": (30, 180, 50),
    "blue": (40, 60, 230),
    "yellow": (245, 220, 30),
    "cyan": (30, 210, 220),
    "magenta": (220, 40, 210),
}
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
}
USUAL_BACKGROUND: Final = " on a gray background"
"""What a caption means that names no background."""
PILLAR_COLOUR: Final = (125, 75, 25)
"""A brown at least 114 away (RGB distance) from each colour and background."""
PILLAR_SPAN: Final = (23.0, 41.0)
"""Left and right edge of the pillar, in pixels; it reaches from top to bottom."""
SHAPE_REACH: Final[dict[str, float]] = {"circle": 1.0, "square": 0.9, "triangle": 1.25, "star": 1.3}
"""How far a shape reaches from its centre, as a multiple of its radius (areas are alike)."""
DIRECTIONS: Final[dict[str, tuple[int, int]]] = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
SHAPES: Final = tuple(SHAPE_REACH)
MOTIONS: Final = (*DIRECTIONS, "bounces", "grows", "shrinks", "orbits")
PILLAR_MOTIONS: Final = ("moves left", "moves right")

HELD_OUT_COUNT: Final = 128
HELD_OUT_SEED: Final = 20
PILLAR_FRACTION: Final = 0.35
"""Fraction of the sideways clips that pass behind the pillar."""


@dataclass(frozen=True)
class ClipAttributes:
    """What a clip shows; everything else about it (place, size, speed) is random."""

    colour: str
    shape: str
    motion: str
    background: str
    pillar: bool = False

    def caption(self) -> str:
        """Return the full caption, the form that the benchmark uses as prompt."""
        pillar = " behind a pillar" if self.pillar else ""
        return (
            f"a {self.colour} {self.shape} {self.motion}{pillar} on a {self.background} background"
        )

    def still_caption(self) -> str:
        """Return the caption of one frame of the clip, which shows no motion."""
        pillar = " and a pillar" if self.pillar else ""
        return f"a {self.colour} {self.shape}{pillar} on a {self.background} background"


@dataclass(frozen=True)
class ClipPath:
    """Where the shape is: `x`, `y` (centre) and `radius`, each float32 [F], in pixels."""

    x: F32
    y: F32
    radius: F32


@cache
def list_held_out_attributes() -> tuple[ClipAttributes, ...]:
    """Return the 128 held-out combinations, the same ones on every call.

    Each pair of shape and motion gives four, with colours and backgrounds spread evenly.
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    used = dict.fromkeys([*COLOURS, *BACKGROUNDS], 0)
    pairs = list(product(COLOURS, BACKGROUNDS))
    held_out: list[ClipAttributes] = []
    shapes_and_motions = list(product(SHAPES, MOTIONS))
    for index in rng.permutation(len(shapes_and_motions)):
        shape, motion = shapes_and_motions[index]
        free = [pairs[i] for i in rng.permutation(len(pairs))]
        for _ in range(HELD_OUT_COUNT // len(shapes_and_motions)):
            colour, background = min(free, key=lambda p: 2 * used[p[0]] + used[p[1]])
            free.remove((colour, background))
            used[colour] += 1
            used[background] += 1
            held_out.append(ClipAttributes(colour, shape, motion, background))
    return tuple(held_out)


@cache
def list_training_attributes() -> tuple[ClipAttributes, ...]:
    """Return the 448 combinations that training may see, without the pillar."""
    held_out = set(list_held_out_attributes())
    combinations = product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
    every = (ClipAttributes(*combination) for combination in combinations)
    return tuple(attributes for attributes in every if attributes not in held_out)


def draw_attributes(rng: np.random.Generator, count: int) -> list[ClipAttributes]:
    """Draw `count` training combinations, some of the sideways ones behind the pillar."""
    allowed = list_training_attributes()
    drawn = []
    for index in rng.integers(len(allowed), size=count):
        base = allowed[index]
        pillar = base.motion in PILLAR_MOTIONS and rng.random() < PILLAR_FRACTION
        drawn.append(ClipAttributes(base.colour, base.shape, base.motion, base.background, pillar))
    return drawn


def draw_caption(rng: np.random.Generator, attributes: ClipAttributes, *, still: bool) -> str:
    """Return a caption: mostly full, sometimes without colour, motion or the usual background.

    Another background is always named: captions that leave open which it is teach a denoiser to
    leave it open too, frame by frame, and its clips flicker.

    Args:
        rng: Source of the choice.
        attributes: What the clip shows.
        still: The caption is for a single frame, so it names no motion.
    """
    choice = rng.random()
    full = attributes.still_caption() if still else attributes.caption()
    if choice < 0.07:
        return full.replace(f" {attributes.colour}", "", 1)
    if choice < 0.1:
        return attributes.still_caption()
    if choice < 0.5:
        return full.removesuffix(USUAL_BACKGROUND)
    return full


def name_background(caption: str) -> str:
    """Return a caption with its background: the usual one where it names none; "" stays ""."""
    return caption + USUAL_BACKGROUND if caption and " on a " not in caption else caption


def draw_path(rng: np.random.Generator, attributes: ClipAttributes) -> ClipPath:
    """Draw where the shape goes: start, size and speed are random, the motion is not."""
    time = np.linspace(0.0, 1.0, NUM_FRAMES)
    reach = SHAPE_REACH[attributes.shape]
    if attributes.pillar:
        path = _draw_pillar_path(rng, time, attributes.motion, reach)
    elif attributes.motion in DIRECTIONS:
        path = _draw_straight_path(rng, time, DIRECTIONS[attributes.motion], reach)
    elif attributes.motion == "bounces":
        path = _draw_bounce_path(rng, time, reach)
    elif attributes.motion == "orbits":
        path = _draw_orbit_path(rng)
    else:
        path = _draw_growth_path(rng, time, reach, shrinks=attributes.motion == "shrinks")
    x, y, radius = (np.broadcast_to(part, time.shape).astype(np.float32) for part in path)
    return ClipPath(x, y, radius)


Path3 = tuple[NDArray[np.float64] | float, NDArray[np.float64] | float, NDArray[np.float64] | float]


def _draw_straight_path(
    rng: np.random.Generator, time: NDArray[np.float64], direction: tuple[int, int], reach: float
) -> Path3:
    """Cross the frame on a line, over at least 24 pixels."""
    radius = rng.uniform(9.0, 12.5)
    low = reach * radius + 1.0
    span = SIZE - 2 * low
    travel = rng.uniform(max(24.0, 0.8 * span), span)
    start = low + rng.uniform(0.0, span - travel)
    along = start + travel * (time if sum(direction) > 0 else 1.0 - time)
    across = rng.uniform(low, SIZE - low)
    return (along, across, radius) if direction[0] else (across, along, radius)


def _draw_pillar_path(
    rng: np.random.Generator, time: NDArray[np.float64], motion: str, reach: float
) -> Path3:
    """Start beside the pillar, pass behind it and come out on the other side."""
    radius = rng.uniform(8.5, 9.5)
    first, last = rng.uniform(9.5, 11.5, size=2)
    x = first + (SIZE - last - first) * (time if motion == "moves right" else 1.0 - time)
    low = reach * radius + 1.0
    return x, rng.uniform(low, SIZE - low), radius


def _draw_bounce_path(rng: np.random.Generator, time: NDArray[np.float64], reach: float) -> Path3:
    """Fall from the top and come back up, twice."""
    radius = rng.uniform(9.0, 12.0)
    low = reach * radius + 1.0
    span = SIZE - 2 * low
    height = rng.uniform(max(24.0, 0.85 * span), span)
    floor = SIZE - low - rng.uniform(0.0, span - height)
    phase = rng.uniform(-0.05, 0.05)
    y = floor - height * np.abs(np.cos(2 * np.pi * (time + phase)))
    return rng.uniform(low, SIZE - low), y, radius


def _draw_orbit_path(rng: np.random.Generator) -> Path3:
    """Go once around the middle, clockwise, from any angle."""
    x, y = rng.uniform(SIZE / 2 - 2, SIZE / 2 + 2, size=2)
    distance = rng.uniform(14.0, 17.0)
    angle = rng.uniform(0.0, 2 * np.pi) + 2 * np.pi * np.arange(NUM_FRAMES) / NUM_FRAMES
    return x + distance * np.cos(angle), y + distance * np.sin(angle), rng.uniform(8.5, 10.0)


def _draw_growth_path(
    rng: np.random.Generator, time: NDArray[np.float64], reach: float, *, shrinks: bool
) -> Path3:
    """Stay in place and grow at least twofold in radius (or shrink)."""
    small, large = rng.uniform(6.0, 7.5), rng.uniform(15.0, 17.0)
    low = reach * large + 1.0
    x, y = rng.uniform(low, SIZE - low, size=2)
    return x, y, small + (large - small) * (1.0 - time if shrinks else time)


def draw_frames(attributes: list[ClipAttributes], x: F32, y: F32, radius: F32) -> U8:
    """Draw one frame for each entry and return a new array, uint8 [N, H, W, 3] RGB.

    Args:
        attributes: What each frame shows, N entries.
        x: Centre of each shape, float32 [N], pixels.
        y: The same, from the top.
        radius: Radius of each shape, float32 [N], pixels; areas of the shapes are alike.
    """
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    dx = grid[None, None, :] - x[:, None, None]
    dy = grid[None, :, None] - y[:, None, None]
    coverage = np.empty((len(attributes), SIZE, SIZE), np.float32)
    for shape in SHAPES:
        chosen = np.array([a.shape == shape for a in attributes])
        if chosen.any():
            distance = measure_distance(shape, dx[chosen], dy[chosen], radius[chosen, None, None])
            coverage[chosen] = np.clip(0.5 - distance, 0.0, 1.0)
    background = np.array([BACKGROUNDS[a.background] for a in attributes], np.float32)
    colour = np.array([COLOURS[a.colour] for a in attributes], np.float32)
    frames = (
        background[:, None, None, :] + coverage[..., None] * (colour - background)[:, None, None]
    )
    left, right = PILLAR_SPAN
    columns = slice(int(left), int(right))
    behind = np.array([a.pillar for a in attributes])
    frames[behind, :, columns] = PILLAR_COLOUR
    return np.rint(frames).astype(np.uint8)


def measure_distance(shape: str, dx: F32, dy: F32, radius: F32) -> F32:
    """Return the signed distance to a shape's edge, in pixels, negative inside.

    Distances are exact along the edges and lower bounds around corners, which is what a one-pixel
    antialiased edge needs. Shapes stand upright: one corner of triangle and star points up.

    Source: folding the angle into one wedge, as in I. Quilez, "2D distance functions".
    """
    if shape == "circle":
        from_centre: F32 = np.hypot(dx, dy)
        return from_centre - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - SHAPE_REACH["square"] * radius
    corners = 3 if shape == "triangle" else 5
    outer = SHAPE_REACH[shape] * radius
    distance: F32 = np.hypot(dx, dy)
    wedge = 2 * math.pi / corners
    angle: F32 = np.abs(np.mod(np.arctan2(dx, -dy) + wedge / 2, wedge) - wedge / 2)
    if shape == "triangle":
        return distance * np.cos(math.pi / 3 - angle) - outer / 2
    px, py = distance * np.cos(angle), distance * np.sin(angle)
    inner = 0.48 * outer
    corner_x, corner_y = inner * math.cos(wedge / 2), inner * math.sin(wedge / 2)
    edge_x, edge_y = corner_x - outer, corner_y
    signed: F32 = ((px - outer) * edge_y - py * edge_x) / np.hypot(edge_x, edge_y)
    return signed


def draw_clips(rng: np.random.Generator, attributes: list[ClipAttributes]) -> U8:
    """Draw one clip for each entry and return a new array, uint8 [N, F, H, W, 3] RGB."""
    paths = [draw_path(rng, entry) for entry in attributes]
    repeated = [entry for entry in attributes for _ in range(NUM_FRAMES)]
    x, y, radius = (
        np.concatenate([getattr(path, name) for path in paths]) for name in ("x", "y", "radius")
    )
    frames = draw_frames(repeated, x, y, radius)
    return frames.reshape(len(attributes), NUM_FRAMES, SIZE, SIZE, 3)

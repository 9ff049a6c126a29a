"""Clips whose defects are known: drawn ones, and what is done to them."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.clips import ClipAttributes, draw_frames, draw_path

U8 = NDArray[np.uint8]
NUM_FRAMES = 16


def name_clip(
    colour: str = "red",
    shape: str = "circle",
    motion: str = "moves left",
    background: str = "gray",
    *,
    pillar: bool = False,
) -> ClipAttributes:
    return ClipAttributes(colour, shape, motion, background, pillar)


def draw(
    attributes: ClipAttributes,
    later: ClipAttributes | None = None,
    *,
    scale: float = 1.0,
    jump: float = 0.0,
    first: int = NUM_FRAMES // 2,
    seed: int = 5,
) -> U8:
    """Draw a clip that is something else from frame `first` on: `later`, larger, or elsewhere."""
    path = draw_path(np.random.default_rng(seed), attributes)
    x, radius = path.x.copy(), path.radius.copy()
    x[first:] += jump
    radius[first:] *= scale
    changed = attributes if later is None else later
    shown = [attributes] * first + [changed] * (NUM_FRAMES - first)
    return draw_frames(shown, x, path.y, radius)


def draw_mixed(attributes: ClipAttributes, colour: str, share: float) -> U8:
    """Draw a clip whose object becomes another colour, by a share, in its second half."""
    pure = draw(attributes).astype(np.float64)
    other = draw(attributes, replace(attributes, colour=colour))
    return np.rint(pure + share * (other - pure)).astype(np.uint8)


def alternate(frames: U8, levels: int) -> U8:
    """Make every second frame brighter."""
    brighter = levels * (np.arange(len(frames)) % 2)
    return np.clip(frames.astype(int) + brighter[:, None, None, None], 0, 255).astype(np.uint8)


def brighten_from(frames: U8, levels: int, firsts: list[int]) -> U8:
    """Make the clip brighter, and darker again, from each of some frames on."""
    parts = np.searchsorted(firsts, np.arange(len(frames)), side="right") % 2
    return np.clip(frames.astype(int) + levels * parts[:, None, None, None], 0, 255).astype(
        np.uint8
    )


def make_texture(height: int, width: int, seed: int = 1) -> NDArray[np.float64]:
    """A smooth picture with detail everywhere, [H, W, 3], 40 to 210."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.zeros((height, width, 3))
    for _ in range(12):
        fx, fy, phase = rng.uniform(-0.6, 0.6, 3) * (1, 1, 10)
        waves += np.sin(fx * columns + fy * rows + phase)[..., None] * rng.uniform(0.3, 1.0, 3)
    waves -= waves.min()
    return 40 + 170 * waves / waves.max()


def make_pan(step: float, num_frames: int = 8) -> U8:
    """A picture that moves to the left by whole or half pixels, twice as fine in itself."""
    picture = make_texture(64, 64 + int(step * num_frames) + 1)
    offsets = [int(step * frame) for frame in range(num_frames)]
    return np.stack([np.rint(picture[:, o : o + 64]) for o in offsets]).astype(np.uint8)


def draw_on_texture(num_frames: int = NUM_FRAMES) -> U8:
    """A red disc that crosses a picture."""
    picture = make_texture(64, 64)
    rows, columns = np.mgrid[:64, :64]
    frames = []
    for frame in range(num_frames):
        disc = (columns - 10 - 3 * frame) ** 2 + (rows - 30) ** 2 < 81
        frames.append(np.where(disc[..., None], (255, 0, 0), picture))
    return np.rint(frames).astype(np.uint8)

"""Temporal consistency of moving-shapes clips, over many prompts.

The measures of `mutoscope evaluate`, and two that only these clips allow: whether every frame shows
the colour and the shape that the clip shows, in the words of the captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.clip_reader import read_clip, read_frames
from mutoscope.runtime.evaluation.consistency import average_figures, measure_consistency
from training.clips import ClipAttributes

U8 = NDArray[np.uint8]

SIZED_MOTIONS: Final = ("grows", "shrinks")
"""Motions that are a change of area."""


def score_consistency(
    wanted: Sequence[ClipAttributes], clips: Sequence[U8]
) -> dict[str, float | None]:
    """Return the mean of each measure over clips; None where none can be measured.

    `area_drift` is over the clips that were not asked to grow or shrink. `keeps_colour` and
    `keeps_shape` are the shares of frames whose word is that of their clip.

    Args:
        wanted: What each clip was asked to show.
        clips: uint8 [F, H, W, 3] RGB, as many.
    """
    figures = []
    for attributes, frames in zip(wanted, clips, strict=True):
        measured = measure_consistency(frames).list_figures() | measure_kept_words(frames)
        if attributes.motion in SIZED_MOTIONS:
            measured["area_drift"] = None
        figures.append(measured)
    return average_figures(figures)


def measure_kept_words(frames: U8) -> dict[str, float | None]:
    """Return the shares of the frames that show the clip's own colour and shape, 0 to 1.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
    """
    words, reading = read_frames(frames), read_clip(frames)
    if not words:
        return {"keeps_colour": None, "keeps_shape": None}
    return {
        "keeps_colour": float(np.mean([colour == reading.colour for colour, _ in words])),
        "keeps_shape": float(np.mean([shape == reading.shape for _, shape in words])),
    }

"""A picture of clips: their frames, and below them flicker and warping error of each pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from mutoscope.runtime.errors import OutputError
from mutoscope.runtime.evaluation.report import Evaluation
from mutoscope.runtime.evaluation.scene import F64, U8
from mutoscope.runtime.outputs import check_replaceable, check_writable, new_file

WIDTH: Final = 1280
"""Width of the picture, pixels."""
LARGEST_CELL: Final = 96
"""Width of a frame in a short clip, pixels."""
CHART_HEIGHT: Final = 56
TEXT_HEIGHT: Final = 14
MARGIN: Final = 8
_TEXT, _JOIN, _PAPER = (40, 40, 40), (200, 40, 40), (255, 255, 255)
# Measure: what it is called, how its largest value is written, and its colour.
_CHARTS: Final = {
    "flicker": ("flicker, levels of 255, up to {:.2f}", (70, 110, 180)),
    "warping_error": ("warping error, up to {:.2e}", (190, 120, 40)),
}


def check_plot_output(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Return `path` if a picture can be written there; for use before the work.

    Raises:
        OutputError: It is no .png, exists, or its folder is absent or not writable.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise OutputError(f"{path} has an unknown ending for a plot: use .png")
    check_writable(target)
    if target.is_dir():
        raise OutputError(f"{path} is a folder: use another name")
    check_replaceable(target, force=force, is_ours=lambda name: False)
    return target


def save_plot(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Write the picture of `draw_plot`, whole or not at all; raises `OutputError`."""
    image = draw_plot(evaluations)
    with new_file(path) as temporary:
        image.save(temporary, format="PNG")


def draw_plot(evaluations: Sequence[Evaluation]) -> Image.Image:
    """Return a strip of frames for each clip with a bar for each pair of frames below it.

    The bars of all clips have one scale. A line marks each join.

    Args:
        evaluations: Of clips whose `strip` was drawn (`draw_strip`).
    """
    tops = {name: _find_largest(evaluations, name) for name in _CHARTS}
    parts = [_draw_clip(evaluation, tops) for evaluation in evaluations]
    picture = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), _PAPER)
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    return picture


def _find_largest(evaluations: Sequence[Evaluation], name: str) -> float:
    """Return the largest value of a measure over all clips; 0 if there is none."""
    values = np.concatenate([evaluation.consistency.pairs[name] for evaluation in evaluations])
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else 0.0


def _draw_clip(evaluation: Evaluation, tops: dict[str, float]) -> Image.Image:
    """Draw one clip: its name, its frames and its charts."""
    strip, step = evaluation.strip, _choose_step(evaluation.num_frames)
    assert strip is not None  # a clip that is to be in a plot is measured with one
    charts_top = TEXT_HEIGHT + strip.height + MARGIN
    height = charts_top + len(_CHARTS) * (CHART_HEIGHT + TEXT_HEIGHT + MARGIN) + MARGIN
    picture = Image.new("RGB", (WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 0), evaluation.path, fill=_TEXT)
    picture.paste(strip, (MARGIN, TEXT_HEIGHT))
    top = charts_top
    for name, (label, colour) in _CHARTS.items():
        draw.text((MARGIN, top), label.format(tops[name]), fill=_TEXT)
        top += TEXT_HEIGHT
        _draw_bars(draw, evaluation.consistency.pairs[name], tops[name], step, top, colour)
        top += CHART_HEIGHT + MARGIN
    for frame in evaluation.joins:
        x = MARGIN + frame * step
        draw.line((x, TEXT_HEIGHT, x, top - MARGIN), fill=_JOIN)
    return picture


def draw_strip(frames: U8) -> Image.Image:
    """Return the frames side by side; of a long clip, as many as are wide enough to be seen.

    Args:
        frames: uint8 [F, H, W, 3] RGB.
    """
    num_frames, height, width, _ = frames.shape
    step = _choose_step(num_frames)
    stride = max(1, round(LARGEST_CELL / 2 / step))
    cell = max(1, int(step * stride))
    cell_height = max(1, round(cell * height / width))
    strip = Image.new("RGB", (round(step * num_frames), cell_height), _PAPER)
    for index in range(0, num_frames, stride):
        image = Image.fromarray(frames[index]).resize((cell, cell_height), Image.Resampling.BOX)
        strip.paste(image, (round(index * step), 0))
    return strip


def _choose_step(num_frames: int) -> float:
    """Return how many pixels of the picture's width a frame has."""
    return min(LARGEST_CELL, (WIDTH - 2 * MARGIN) / num_frames)


def _draw_bars(
    draw: ImageDraw.ImageDraw,
    values: F64,
    largest: float,
    step: float,
    top: int,
    colour: tuple[int, int, int],
) -> None:
    """Draw a bar for each pair, where its second frame begins."""
    bottom = top + CHART_HEIGHT
    draw.line((MARGIN, bottom, MARGIN + step * (len(values) + 1), bottom), fill=_TEXT)
    for index, value in enumerate(values):
        if np.isfinite(value) and value > 0:
            x = MARGIN + (index + 1) * step
            height = CHART_HEIGHT * float(value) / largest
            draw.rectangle((x - step / 3, bottom - height, x + step / 3, bottom), fill=colour)

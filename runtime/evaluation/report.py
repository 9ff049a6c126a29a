"""The measures of several clips as tables and as a JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from mutoscope.runtime.evaluation.consistency import (
    Consistency,
    Similarity,
    average_figures,
    average_similarity,
)
from mutoscope.runtime.evaluation.joins import JoinRatio, average_ratios

_NONE: Final = "-"
_MEAN: Final = "mean"
# Column: the key of the figure, and how it is written.
_COLUMNS: Final = {
    "flicker": ("flicker", "{:.2f}"),
    "warping error": ("warping_error", "{:.2e}"),
    "colour drift": ("colour_drift", "{:.1f}"),
    "area drift": ("area_drift", "{:.1%}"),
    "shape drift": ("shape_drift", "{:.1%}"),
    "PSNR, dB": ("psnr_db", "{:.1f}"),
    "SSIM": ("ssim", "{:.3f}"),
}


@dataclass(frozen=True)
class Evaluation:
    """One clip, its measures, and what was asked of it.

    Attributes:
        path: The clip's name.
        num_frames: Of it.
        height: Of its frames, pixels.
        width: Of its frames, pixels.
        consistency: Its measures.
        joins: The first frame of each part but the first; empty if none were named.
        join_ratios: Each measure at joins against elsewhere; empty if none were named.
        similarity: How close it is to the reference, if there is one.
        strip: Its frames side by side, for a plot; None if there will be none.
    """

    path: str
    num_frames: int
    height: int
    width: int
    consistency: Consistency
    joins: Sequence[int] = ()
    join_ratios: dict[str, JoinRatio] = dataclasses.field(default_factory=dict)
    similarity: Similarity | None = None
    strip: Image.Image | None = None

    def describe(self, *, pairs: bool) -> dict[str, Any]:
        """Return a JSON object; with `pairs`, also the measures of each pair of frames."""
        described: dict[str, Any] = {
            "path": self.path,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            **self.consistency.describe(),
        }
        if self.similarity is not None:
            described |= dataclasses.asdict(self.similarity)
        if self.joins:
            ratios = {name: dataclasses.asdict(ratio) for name, ratio in self.join_ratios.items()}
            described["joins"] = {"frames": list(self.joins), **ratios}
        if pairs:
            described["pairs"] = self.consistency.describe_pairs()
        return described

    def list_figures(self) -> dict[str, float | None]:
        """Return the figures of the table by their keys."""
        figures = self.consistency.list_figures()
        if self.similarity is not None:
            figures |= dataclasses.asdict(self.similarity)
        return figures


def average(evaluations: Sequence[Evaluation]) -> dict[str, float | None]:
    """Return each figure of several clips together, as `average_figures`, `average_similarity`."""
    figures = average_figures([evaluation.consistency.list_figures() for evaluation in evaluations])
    compared = [e.similarity for e in evaluations if e.similarity is not None]
    if compared:
        figures |= dataclasses.asdict(average_similarity(compared))
    return figures


def average_joins(evaluations: Sequence[Evaluation]) -> dict[str, JoinRatio]:
    """Return the mean of each measure at joins against that elsewhere, over the clips."""
    listed = [evaluation.join_ratios for evaluation in evaluations]
    return {name: average_ratios([ratios[name] for ratios in listed]) for name in listed[0]}


def describe_evaluations(evaluations: Sequence[Evaluation], *, pairs: bool) -> dict[str, Any]:
    """Return a JSON object: each clip and the means; with `pairs`, also each pair of frames."""
    mean: dict[str, Any] | None = None
    if evaluations:
        ratios = average_joins(evaluations)
        mean = {**average(evaluations)}
        if ratios:
            mean["joins"] = {name: dataclasses.asdict(ratio) for name, ratio in ratios.items()}
    return {
        "clips": [evaluation.describe(pairs=pairs) for evaluation in evaluations],
        "mean": mean,
    }


def format_evaluations(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Yield the lines of a table with a row for each clip and, for several, their mean."""
    means = average(evaluations)
    columns = {title: column for title, column in _COLUMNS.items() if column[0] in means}
    named = [(evaluation.path, evaluation.list_figures()) for evaluation in evaluations]
    counts = [str(evaluation.num_frames) for evaluation in evaluations]
    if len(named) > 1:
        named.append((_MEAN, means))
        counts.append("")
    lines = [["clip", "frames", *columns]]
    for (path, figures), count in zip(named, counts, strict=True):
        cells = [_format(figures[key], pattern) for key, pattern in columns.values()]
        lines.append([path, count, *cells])
    yield from _format_table(lines)


def format_joins(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Yield a table of each measure at joins as a multiple of that elsewhere."""
    rows = [(evaluation.path, evaluation.join_ratios) for evaluation in evaluations]
    if len(rows) > 1:
        rows.append((_MEAN, average_joins(evaluations)))
    lines = [["at joins / elsewhere", *(name.replace("_", " ") for name in rows[0][1])]]
    for path, ratios in rows:
        lines.append([path, *(_format(ratio.ratio, "{:.2f}") for ratio in ratios.values())])
    yield from _format_table(lines)


def _format(value: float | None, pattern: str) -> str:
    return _NONE if value is None else pattern.format(value)


def _format_table(lines: list[list[str]]) -> Iterator[str]:
    """Yield a Markdown table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for first, *rest in (lines[0], rule, *lines[1:]):
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield f"| {' | '.join([first.ljust(widths[0]), *cells])} |"

"""Joins of a long clip: what changes there, against what changes elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.evaluation.scene import F64
from mutoscope.runtime.windows import list_windows


@dataclass(frozen=True)
class JoinRatio:
    """One measure at joins and elsewhere.

    Attributes:
        at_joins: Mean over the pairs of frames at joins; None if nothing can be measured there.
        elsewhere: Mean over all other pairs.
        ratio: The first over the second; None if that is 0 or not known.
        num_pairs_at_joins: Pairs that the first mean is over: those that can be measured.
        num_pairs_elsewhere: Pairs that the second is over.
    """

    at_joins: float | None
    elsewhere: float | None
    ratio: float | None
    num_pairs_at_joins: int
    num_pairs_elsewhere: int


def list_window_joins(num_frames: int, context_length: int, context_stride: int) -> list[int]:
    """Return the frames that context windows start with, without the first.

    For models whose VAE does not compress time: there, frames of latents are frames.

    Raises:
        ParameterError: There are no such windows, or only one.
    """
    if not 1 <= context_length < num_frames:
        raise ParameterError(
            f"context_length is {context_length}; it must be from 1 to {num_frames - 1} for a clip "
            f"of {num_frames} frames to have a join: use {num_frames // 2}"
        )
    if not 1 <= context_stride <= context_length:
        raise ParameterError(
            f"context_stride is {context_stride}; it must be from 1 to {context_length}, the "
            f"context_length: use {max(1, context_length // 2)}"
        )
    windows = list_windows(num_frames, context_length, context_stride)
    return [window.start for window in windows[1:]]


def check_joins(joins: Sequence[int], num_frames: int) -> None:
    """Raise `ParameterError` unless each join is a frame that has one before it."""
    for frame in joins:
        if not 1 <= frame < num_frames:
            raise ParameterError(
                f"joins has {frame}; a join is the first frame of a part, counted from 0, from 1 "
                f"to {num_frames - 1} in this clip: use {num_frames // 2}"
            )
    if len(set(joins)) >= num_frames - 1:
        raise ParameterError(
            "joins names every frame; some pair must be left to compare with: name fewer"
        )


def compare_joins(values: F64, joins: Sequence[int]) -> JoinRatio:
    """Return a measure at joins against elsewhere.

    Args:
        values: One for each pair of frames, float64 [F - 1]; nan where there is none.
        joins: The second frame of each pair that is a join.
    """
    at = np.zeros(len(values), np.bool_)
    at[[frame - 1 for frame in joins]] = True
    counts = (int(np.isfinite(values[part]).sum()) for part in (at, ~at))
    return _make_ratio(mean_or_none(values[at]), mean_or_none(values[~at]), *counts)


def average_ratios(ratios: Sequence[JoinRatio]) -> JoinRatio:
    """Return the mean at joins over several clips against the mean elsewhere.

    That is steadier than the mean of their ratios: a clip where nothing changes counts little. All
    clips count alike, and the numbers of pairs are those of all.
    """
    at_joins, elsewhere = (
        mean_or_none(np.array([getattr(ratio, name) for ratio in ratios], dtype=np.float64))
        for name in ("at_joins", "elsewhere")
    )
    return _make_ratio(
        at_joins,
        elsewhere,
        sum(ratio.num_pairs_at_joins for ratio in ratios),
        sum(ratio.num_pairs_elsewhere for ratio in ratios),
    )


def mean_or_none(values: F64) -> float | None:
    """Return the mean of the values that are not nan; None if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _make_ratio(
    at_joins: float | None,
    elsewhere: float | None,
    num_pairs_at_joins: int,
    num_pairs_elsewhere: int,
) -> JoinRatio:
    ratio = None if at_joins is None or not elsewhere else at_joins / elsewhere
    return JoinRatio(at_joins, elsewhere, ratio, num_pairs_at_joins, num_pairs_elsewhere)

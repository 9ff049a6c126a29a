"""All measures of one clip: one definition for the command and for the benchmarks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.evaluation.flicker import measure_flicker
from mutoscope.runtime.evaluation.identity import (
    Drift,
    measure_drift,
    measure_steps,
    track_object,
)
from mutoscope.runtime.evaluation.joins import JoinRatio, check_joins, compare_joins, mean_or_none
from mutoscope.runtime.evaluation.scene import F64, U8, make_scene
from mutoscope.runtime.evaluation.similarity import measure_ssim
from mutoscope.runtime.evaluation.warping import SMALLEST_SIDE, measure_warping
from mutoscope.runtime.metrics import psnr_db


@dataclass(frozen=True)
class Consistency:
    """Temporal consistency of one clip; None where nothing can be measured.

    Attributes:
        flicker: Mean absolute change of the background between neighbouring frames, levels of 255.
        warping_error: Mean squared error of the warped next frame, of values in [0, 1].
        background_share: Share of the frame that counts as background for flicker.
        visible_share: Share of the frame that the optical flow explains, for the warping error.
        drift: How far the main object goes from what it was; None without an object.
        pairs: Each measure for each pair of neighbouring frames, float64 [F - 1], nan where there
            is none: flicker, warping_error, and the object's colour_step, area_step, shape_step and
            motion_jump.
    """

    flicker: float | None
    warping_error: float | None
    background_share: float
    visible_share: float
    drift: Drift | None
    pairs: dict[str, F64]

    def list_figures(self) -> dict[str, float | None]:
        """Return one figure for each measure, None where nothing can be measured."""
        drift = self.drift
        return {
            "flicker": self.flicker,
            "warping_error": self.warping_error,
            "colour_drift": drift.colour if drift else None,
            "area_drift": drift.area if drift else None,
            "shape_drift": drift.shape if drift else None,
        }

    def describe(self) -> dict[str, Any]:
        """Return a JSON object, without the pairs."""
        return {
            "flicker": self.flicker,
            "warping_error": self.warping_error,
            "background_share": self.background_share,
            "visible_share": self.visible_share,
            "drift": None if self.drift is None else dataclasses.asdict(self.drift),
        }

    def describe_pairs(self) -> dict[str, list[float | None]]:
        """Return the measures of each pair of frames as a JSON object, None for nan."""
        return {
            name: [float(value) if np.isfinite(value) else None for value in values]
            for name, values in self.pairs.items()
        }

    def compare_joins(self, joins: Sequence[int]) -> dict[str, JoinRatio]:
        """Return each measure at joins against elsewhere.

        Args:
            joins: The first frame of each part but the first, counted from 0.

        Raises:
            ParameterError: A join is not in the clip, or there is nothing to compare with.
        """
        check_joins(joins, 1 + len(self.pairs["flicker"]))
        return {name: compare_joins(values, joins) for name, values in self.pairs.items()}


@dataclass(frozen=True)
class Similarity:
    """How close a clip is to another one: `psnr_db` in decibels, `ssim` from -1 to 1."""

    psnr_db: float
    ssim: float


def measure_consistency(frames: U8) -> Consistency:
    """Return the temporal consistency of a clip.

    Args:
        frames: uint8 [F, H, W, 3] RGB, at least 2 frames of 16 x 16 pixels.

    Raises:
        ParameterError: There are fewer.
    """
    check_clip(frames)
    scene = make_scene(frames)
    flicker = measure_flicker(frames, scene)
    warping = measure_warping(frames)
    track = track_object(frames, scene)
    steps = measure_steps(track)
    return Consistency(
        mean_or_none(flicker.levels),
        mean_or_none(warping.errors),
        float(flicker.background_share.mean()),
        float(warping.visible_share.mean()),
        measure_drift(track),
        {
            "flicker": flicker.levels,
            "warping_error": warping.errors,
            "colour_step": steps.colour,
            "area_step": steps.area,
            "shape_step": steps.shape,
            "motion_jump": steps.motion,
        },
    )


def average_figures(figures: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each figure over the clips that have it; None where none has.

    Args:
        figures: One mapping for each clip, at least one, all with the same keys.
    """
    return {
        name: mean_or_none(np.array([clip[name] for clip in figures], dtype=np.float64))
        for name in figures[0]
    }


def measure_similarity(reference: U8, frames: U8) -> Similarity:
    """Return how close a clip is to a reference of the same size.

    Raises:
        ParameterError: They differ in size, or are smaller than 16 x 16.
    """
    check_clip(frames)
    if reference.shape != frames.shape:
        expected, found = (
            f"{clip.shape[0]} frames of {clip.shape[1]} x {clip.shape[2]}"
            for clip in (reference, frames)
        )
        raise ParameterError(
            f"the clip has {found} and the reference {expected}: compare clips of one size"
        )
    return Similarity(psnr_db(reference, frames), measure_ssim(reference, frames))


def average_similarity(found: Sequence[Similarity]) -> Similarity:
    """Return the similarity of several clips together, at least one.

    The PSNR is that of the mean squared error of all. A mean of decibels would be ruled by the
    clips that are equal to their reference, whatever number stands for those.
    """
    errors = [10.0 ** (-similarity.psnr_db / 10.0) for similarity in found]
    ssim = float(np.mean([similarity.ssim for similarity in found]))
    return Similarity(-10.0 * math.log10(float(np.mean(errors))), ssim)


def check_clip(frames: U8) -> None:
    """Raise `ParameterError` unless there are 2 frames of 16 x 16 pixels, or more and larger."""
    num_frames, height, width, _ = frames.shape
    if num_frames < 2:
        raise ParameterError(
            "the clip has 1 frame; what changes over time needs at least 2: use a longer clip"
        )
    if min(height, width) < SMALLEST_SIDE:
        raise ParameterError(
            f"the clip has frames of {height} x {width}; optical flow needs at least "
            f"{SMALLEST_SIDE} x {SMALLEST_SIDE}: use a larger clip"
        )

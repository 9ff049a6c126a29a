"""One generation with both runtimes, and how close the results are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.decoding import DecodeProgress
from mutoscope.runtime.native import Library, NativePipeline, NativeProgress, NativeVideo
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.sampler import StepInfo
from mutoscope.runtime.video import Video
from tests.runtime.native.native_bundles import SPARED_BYTES

# Both draw the same noise bit by bit, run the same graphs by the same onnxruntime, and do what is
# between them in the same order.
FRAMES_TOLERANCE = 0
LATENTS_TOLERANCE = 0.0
# Of the largest latent, where a picture is blurred and normalised: float32 in another order.
PICTURE_LATENTS_TOLERANCE = 1e-5
# That, or the norms of a frame in tiles, whose moments are float32 in Python and float64 in C, can
# move a value across the middle between two levels.
ROUNDING_FRAMES_TOLERANCE = 1


@dataclass(frozen=True)
class Pair:
    """What both runtimes made.

    Attributes:
        native: The video of libmutoscope.
        python: The video of Python.
        native_latents: The latents after each step, as the progress callback was shown them.
        python_latents: The same of on_step.
        native_runs: How many runs of the decoder it took.
        python_runs: The same in Python.
    """

    native: NativeVideo
    python: Video
    native_latents: list[NDArray[np.float32]]
    python_latents: list[NDArray[np.float32]]
    native_runs: int
    python_runs: int

    @property
    def latents_difference(self) -> float:
        """How far the last latents are apart, as a part of the largest of them."""
        found, expected = self.native_latents[-1], self.python_latents[-1]
        assert found.shape == expected.shape
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    @property
    def frames_difference(self) -> int:
        """How far the frames are apart, in levels of 255."""
        found, expected = self.native.frames, self.python.frames
        assert found.shape == expected.shape
        return int(np.abs(found.astype(int) - expected.astype(int)).max())


def generate_with_both(
    library: Library,
    bundle: Path,
    *,
    options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Pair:
    """Return one generation with both runtimes.

    Args:
        library: libmutoscope.
        bundle: The bundle.
        options: What both pipelines are opened with, beside one thread; a limit on memory is that
            of Python, and libmutoscope gets one that leaves as much to the decoder.
        arguments: Arguments of both.
    """
    opened: dict[str, Any] = {"num_threads": 1, **(options or {})}
    native_opened = dict(opened)
    if "memory_limit_bytes" in opened:
        native_opened["memory_limit_bytes"] -= SPARED_BYTES
    native_latents: list[NDArray[np.float32]] = []
    python_latents: list[NDArray[np.float32]] = []
    native_runs: list[int] = []
    python_runs: list[int] = []

    def on_progress(progress: NativeProgress) -> None:
        if progress.latents is not None:
            native_latents.append(progress.latents)
        if progress.stage == "decoding":
            native_runs.append(progress.num_in_all)

    def on_step(info: StepInfo) -> None:
        python_latents.append(info.latents.copy())

    def on_decode(progress: DecodeProgress) -> None:
        python_runs.append(progress.num_runs)

    with NativePipeline.open(bundle, library=library, **native_opened) as native:
        native_video = native.generate(on_progress=on_progress, **arguments)
    with VideoPipeline.open(bundle, **opened) as python:
        python_video = python.generate(on_step=on_step, on_decode=on_decode, **arguments)
    return Pair(
        native_video,
        python_video,
        native_latents,
        python_latents,
        len(native_runs),
        len(python_runs),
    )


def check_parity(pair: Pair, *, has_picture: bool = False, in_tiles: bool = False) -> None:
    """Both made the same, within the tolerances, and something was made at all."""
    latents_tolerance = PICTURE_LATENTS_TOLERANCE if has_picture else LATENTS_TOLERANCE
    is_rounded = has_picture or in_tiles
    frames_tolerance = ROUNDING_FRAMES_TOLERANCE if is_rounded else FRAMES_TOLERANCE
    assert len(pair.native_latents) == len(pair.python_latents)
    assert pair.native_runs == pair.python_runs
    assert pair.latents_difference <= latents_tolerance
    assert pair.frames_difference <= frames_tolerance
    assert pair.native.frames.std() > 0
    assert pair.native.seed == pair.python.seed
    assert pair.native.frame_rate == pair.python.frame_rate

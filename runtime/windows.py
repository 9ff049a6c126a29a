"""Clips longer than the denoiser takes: overlapping context windows over time.

In each row the denoiser sees one window of frames after the other, and the model output of a frame
is the weighted mean of what the windows say that have it. What the windows see at the start is not
fresh noise all along the clip, but that of the first window, shuffled.

Source: Qiu et al., FreeNoise (arXiv:2310.15169); weights and noise as "pyramid" and
"shuffle_context" of diffusers' enable_free_noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import LATENTS, LatentsRecord, Manifest, is_denoiser
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.row_plan import find_carried
from mutoscope.runtime.sampler import F32
from mutoscope.runtime.schedule import ScheduleRow

# Called as predict(sample, row, frames) with the frames of a window.
PredictWindow: TypeAlias = Callable[[F32, ScheduleRow, slice], F32]
_FRAMES_AXIS = "num_frames"


def count_latent_frames(record: LatentsRecord, num_frames: int) -> int:
    """Return how many frames of latents decode to so many frames."""
    return (num_frames - 1) // record.vae_scale_factor_temporal + 1


def choose_windows(
    manifest: Manifest, num_frames: int, context_length: int | None, context_stride: int | None
) -> tuple[int, int] | None:
    """Return the context length and stride of a clip, in frames of latents; None for no windows.

    There are windows if the caller asks for them, or if the clip is longer than the bundle allows
    at once.

    Args:
        manifest: The bundle's.
        num_frames: Of the clip.
        context_length: None for the longest that the bundle allows.
        context_stride: None for half the context length.

    Raises:
        ParameterError: A value is not allowed; the message names one that is.
    """
    limit, given = manifest.limits.num_frames, {"context_length": context_length}
    given = {k: v for k, v in {**given, "context_stride": context_stride}.items() if v is not None}
    is_long = limit.maximum is not None and num_frames > limit.maximum
    if not is_long and not given:
        limit.check("num_frames", num_frames)
        return None
    fixed = _find_input_of_all_frames(manifest)
    if fixed is not None:
        name, value = next(iter(given.items()), ("num_frames", num_frames))
        way_out = f"leave {name} out" if given else f"use {limit.maximum}"
        raise ParameterError(
            f"{name} is {value}; there can be no windows, since this bundle's denoiser takes "
            f"{fixed} of all frames: {way_out}"
        )
    dataclasses.replace(limit, maximum=None).check("num_frames", num_frames)
    whole = count_latent_frames(manifest.latents, num_frames)
    longest = count_latent_frames(manifest.latents, limit.maximum) if limit.maximum else whole
    length = min(longest, whole) if context_length is None else context_length
    if not 1 <= length <= min(longest, whole):
        most = "of the clip" if whole < longest else "that this bundle allows"
        raise ParameterError(
            f"context_length is {length}; it must lie within 1 and {min(longest, whole)}, the "
            f"frames of latents {most}: use {min(longest, whole)}"
        )
    stride = max(1, length // 2) if context_stride is None else context_stride
    if not 1 <= stride <= length:
        raise ParameterError(
            f"context_stride is {stride}; it must lie within 1 and the context_length, {length}: "
            f"use {max(1, length // 2)}"
        )
    return length, stride


def can_have_windows(manifest: Manifest) -> bool:
    """Return whether clips may be longer than `limits` says, in context windows."""
    return _find_input_of_all_frames(manifest) is None


def _find_input_of_all_frames(manifest: Manifest) -> str | None:
    """An input of a denoiser that cannot be cut into windows."""
    cut = (LATENTS, *find_carried(manifest))
    for name, record in manifest.components.items():
        for input_name, tensor in record.inputs.items() if is_denoiser(name) else ():
            if tensor.source not in cut and _FRAMES_AXIS in (tensor.source, *tensor.shape):
                return input_name
    return None


def list_windows(num_frames: int, context_length: int, context_stride: int) -> list[slice]:
    """Return the frames of each window, in the order in which they run.

    Args:
        num_frames: Frames of the latents, at least context_length.
        context_length: Frames in a window.
        context_stride: From the start of a window to that of the next, up to context_length. The
            last one ends with the clip, so it may start earlier.
    """
    last = num_frames - context_length
    starts = list(range(0, last + 1, context_stride))
    if starts[-1] != last:
        starts.append(last)
    return [slice(start, start + context_length) for start in starts]


def make_window_weights(context_length: int) -> F32:
    """Return the weight of each frame of a window, float32 [F]: 1, 2, ... 2, 1."""
    rising = np.arange(1, context_length + 1, dtype=np.float32)
    return np.minimum(rising, rising[::-1])


class WindowedDenoiser:
    """What predicts windows, as `denoise` calls it for the whole clip.

    All arrays are made once, at the start.
    """

    def __init__(
        self, predict: PredictWindow, latents_shape: tuple[int, ...], windows: list[slice]
    ) -> None:
        """Make the arrays.

        Args:
            predict: Returns the model output of one window, which may be the same array each time.
            latents_shape: [1, C, F, h, w] of the clip.
            windows: The frames of each window, all of one length; together all of the clip.
        """
        self._predict, self._windows = predict, windows
        batch, channels, num_frames, height, width = latents_shape
        length = windows[0].stop - windows[0].start
        self._weights = make_window_weights(length).reshape(1, 1, length, 1, 1)
        self._weight_sum = np.zeros((1, 1, num_frames, 1, 1), dtype=np.float32)
        for frames in windows:
            self._weight_sum[:, :, frames] += self._weights
        self._weighted = np.empty((batch, channels, length, height, width), dtype=np.float32)
        self._model_output = np.empty(latents_shape, dtype=np.float32)

    def __call__(self, sample: F32, row: ScheduleRow) -> F32:
        """Return the model output, float32 [1, C, F, h, w], which the next call overwrites.

        Args:
            sample: The latents of the clip as the model sees them, float32 [1, C, F, h, w].
            row: The row of the schedule table.

        Raises:
            EngineError: A graph cannot be loaded or run.
        """
        model_output = self._model_output
        model_output.fill(0)
        for frames in self._windows:
            output = self._predict(sample[:, :, frames], row, frames)
            np.multiply(output, self._weights, out=self._weighted)
            model_output[:, :, frames] += self._weighted
        model_output /= self._weight_sum
        return model_output


def shuffle_start_noise(
    noise: F32, context_length: int, context_stride: int, generator: NoiseGenerator
) -> None:
    """Let the frames behind the first window have the noise of earlier ones, in place.

    Each stride of frames gets that of the one a window before it, in an order of its own.

    Args:
        noise: Start noise of the clip, float32 [1, C, F, h, w].
        context_length: Frames in a window.
        context_stride: From the start of a window to that of the next.
        generator: Draws the orders.
    """
    num_frames = noise.shape[2]
    for first in range(context_length, num_frames, context_stride):
        order = generator.permutation(context_stride)[: num_frames - first]
        noise[:, :, first : first + len(order)] = noise[:, :, first - context_length + order]

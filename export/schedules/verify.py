"""Compare a schedule table with the scheduler it was traced from, on random tensors.

This is what finds schedulers that are not linear, whatever the reason: clipped or thresholded
samples, values that depend on the data, random numbers from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mutoscope.export.schedules.runner import SchedulerRunner
from mutoscope.runtime.sampler import denoise
from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable

# A scheduler computes in float32. With few steps from a large sigma (4096 at zero terminal SNR) it
# subtracts numbers of that size and is itself off by up to 5e-4; what is not linear differs by 0.1
# and more.
LINEARITY_TOLERANCE: Final = 5e-3
# A clip at 1 shows from the second on; the last is for wide clips (clip_sample_range 1000).
MAGNITUDES: Final = (0.1, 30.0, 1e5)
# Two in the batch and several axes, since thresholds are quantiles over one sample of the batch.
SHAPE: Final = (2, 3, 2, 4, 4)

F32 = NDArray[np.float32]


def measure_deviation(make_runner: Callable[[], SchedulerRunner], table: ScheduleTable) -> float:
    """Return the largest difference between scheduler and table, relative to the values.

    All samples that the model sees are compared, and the result, at several magnitudes.
    """
    return max(_measure(make_runner(), table, magnitude) for magnitude in MAGNITUDES)


def _measure(runner: SchedulerRunner, table: ScheduleTable, magnitude: float) -> float:
    random = np.random.default_rng(0)
    num_rows = len(table.rows)
    latents = (magnitude * random.standard_normal(SHAPE)).astype(np.float32)
    outputs = (magnitude * random.standard_normal((num_rows, *SHAPE))).astype(np.float32)
    noises: list[F32] = []

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        noises.append(random.standard_normal(shape).astype(np.float32))
        return torch.from_numpy(noises[-1]).to(dtype)

    expected: list[F32] = []
    with runner.noise_from(draw):
        sample = torch.from_numpy(latents) * runner.init_noise_sigma
        for index in range(num_rows):
            scaled = runner.scale_model_input(index, sample)
            expected.append(scaled.float().numpy().copy())
            sample = runner.step(index, torch.from_numpy(outputs[index].copy()), sample)
    expected.append(sample.float().numpy())

    found: list[F32] = []
    remaining = iter(noises)

    def predict(sample: F32, _row: ScheduleRow) -> F32:
        found.append(sample.copy())
        model_output: F32 = outputs[len(found) - 1]
        return model_output

    if len(noises) != sum(row.noise_draws for row in table.rows):
        return float("inf")
    found.append(denoise(latents, table, predict, noise=lambda _index: next(remaining)))
    return max(map(_relative_difference, found, expected))


def _relative_difference(found: F32, expected: F32) -> float:
    """Largest difference over the largest value; infinite where a value is not finite."""
    if not np.isfinite(expected).all():
        return float("inf")
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(found - expected).max()) / scale

"""The sampler: one loop over the rows of a schedule table.

It knows neither schedulers nor models. `predict` is the denoiser with everything that belongs to it
(guidance, conditions, engine); the table is data that the export traced from a scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import CancelledError, ParameterError
from mutoscope.runtime.schedule import MODEL_OUTPUT, NOISE, ScheduleTable, ScheduleUpdate, Source

F32: TypeAlias = NDArray[np.float32]

# 128 KiB of float32: the blocks that a row touches stay in the second-level cache. A quarter of the
# time of whole arrays was saved at [1, 4, 16, 64, 64], and it hardly matters within 64 to 256 KiB.
BLOCK_ELEMENTS = 32768


@dataclass(frozen=True)
class StepInfo:
    """What on_step sees after a row.

    Attributes:
        step_index: Row just done, from 0.
        num_steps: Rows in all, that is, denoiser calls.
        timestep: The timestep of the row.
        latents: The latents now, float32, read-only; copy them to keep them.
    """

    step_index: int
    num_steps: int
    timestep: float
    latents: F32


Predict: TypeAlias = Callable[[F32, float], F32]
DrawNoise: TypeAlias = Callable[[int], F32]
OnStep: TypeAlias = Callable[[StepInfo], "bool | None"]


def denoise(
    latents: F32,
    table: ScheduleTable,
    predict: Predict,
    *,
    noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> F32:
    """Run the schedule table over the denoiser and return the clean latents.

    Args:
        latents: Start noise, float32 [B, C, F, H, W] or any other shape, unit variance; not
            changed.
        table: The schedule table.
        predict: Called as predict(sample, timestep) once for each row; returns the model output,
            float32 and shaped like the latents. `sample` is a buffer that the next row overwrites;
            predict may write to it.
        noise: Called as noise(step_index); returns standard normal noise, float32 and shaped like
            the latents. It is called after predict, as often as the row says, so that the random
            stream runs as in diffusers. Only tables with draws_noise need it.
        on_step: Called after each row. Returns False to stop, True or None to go on.

    Returns:
        A new float32 array, shaped like the latents.

    Raises:
        CancelledError: on_step asked to stop.
        ParameterError: The latents, a model output or a noise has the wrong type or shape, or the
            table draws noise and `noise` is None.

    Source: every row is linear in latents, model outputs and noise; equals the scheduler of
    diffusers that the table was traced from (tests/export/test_schedule_parity.py).
    """
    _check_array("latents", latents, np.shape(latents))
    if table.draws_noise and noise is None:
        raise ParameterError(
            f"noise is None; {table.scheduler} draws noise in its steps: pass "
            "noise=lambda step_index: generator.normal(latents.shape)"
        )
    registers = np.zeros((table.num_registers, latents.size), dtype=np.float32)
    np.multiply(latents.reshape(-1), np.float32(table.init_noise_sigma), out=registers[0])
    scratch = np.empty(min(BLOCK_ELEMENTS, latents.size), dtype=np.float32)
    sample = np.empty_like(registers[0])
    current = registers[0].reshape(latents.shape)
    shown = current.view()
    shown.flags.writeable = False
    sources: dict[Source, F32] = dict(enumerate(registers))

    for step_index, row in enumerate(table.rows):
        np.multiply(registers[0], np.float32(row.input_scale), out=sample)
        model_output = predict(sample.reshape(latents.shape), row.timestep)
        sources[MODEL_OUTPUT] = _check_array("model_output", model_output, latents.shape)
        if noise is not None:
            for _ in range(row.noise_draws):
                sources[NOISE] = _check_array("noise", noise(step_index), latents.shape)
        for update in row.updates:
            _run_update(update, sources, scratch)
        if on_step is not None:
            info = StepInfo(step_index, len(table.rows), row.timestep, shown)
            if on_step(info) is False:
                raise CancelledError(f"cancelled after step {step_index + 1} of {len(table.rows)}")
    return np.array(current)


def _run_update(update: ScheduleUpdate, sources: dict[Source, F32], scratch: F32) -> None:
    """Assign one register, block by block; the target may be among the sources."""
    target = sources[update.into]
    if not update.terms:
        target.fill(0)
        return
    # Read first where it is a source, since the first product overwrites it.
    terms = sorted(update.terms, key=lambda term: term[0] != update.into)
    first, *others = [(sources[source], np.float32(coefficient)) for source, coefficient in terms]
    for start in range(0, target.size, BLOCK_ELEMENTS):
        part = slice(start, start + BLOCK_ELEMENTS)
        block = target[part]
        product = scratch[: block.size]
        np.multiply(first[0][part], first[1], out=block)
        for operand, coefficient in others:
            np.multiply(operand[part], coefficient, out=product)
            np.add(block, product, out=block)


def _check_array(name: str, array: F32, shape: tuple[int, ...]) -> F32:
    """The array as one float32 row, without a copy where its layout allows it."""
    dtype = getattr(array, "dtype", type(array).__name__)
    if dtype != np.float32:
        raise ParameterError(f"{name} is {dtype}; it must be float32: use astype(np.float32)")
    if array.shape != shape:
        raise ParameterError(f"{name} has shape {array.shape}; it must be {shape}, as the latents")
    return array.reshape(-1)

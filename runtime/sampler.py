"""The sampler: one loop over the rows of a schedule table.

It knows neither schedulers nor models. `predict` is the denoisers with everything that belongs to
them (guidance, conditions, engines); the table is data that the export traced from a scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mutoscope.runtime.errors import CancelledError, ParameterError
from mutoscope.runtime.schedule import (
    MODEL_OUTPUT,
    NOISE,
    ScheduleRow,
    ScheduleTable,
    ScheduleUpdate,
    Source,
)

F32: TypeAlias = NDArray[np.float32]

# 128 KiB of float32: the blocks that a row touches stay in the second-level cache. A third of the
# time of whole arrays was saved at [1, 4, 16, 64, 64], and it hardly matters within 64 to 256 KiB.
BLOCK_ELEMENTS = 32768


class _Estimate:
    """The estimate of a row, computed if somebody asks while the row's arrays are there."""

    def __init__(self, pair: tuple[float, float] | None, latents: F32, model_output: F32) -> None:
        self._pair = pair
        self._sources: tuple[F32, F32] | None = (latents, model_output)

    def compute(self, shape: tuple[int, ...]) -> F32 | None:
        """A new array; None if the row has no coefficients for it."""
        if self._pair is None:
            return None
        if self._sources is None:
            raise ParameterError(
                "denoised was asked for after on_step had returned, when its row was gone: read "
                "info.denoised inside on_step"
            )
        latents, model_output = self._sources
        result = np.multiply(latents, np.float32(self._pair[0]))
        result += np.multiply(model_output, np.float32(self._pair[1]))
        result.flags.writeable = False
        return result.reshape(shape)

    def close(self) -> None:
        """Forget the arrays, which the next row overwrites."""
        self._sources = None


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
    _estimate: _Estimate | None = field(default=None, repr=False, compare=False)

    @cached_property
    def denoised(self) -> F32 | None:
        """What the model took the clean latents to be in this row, float32, shaped as latents.

        An array of its own that may be kept, read-only. It is computed when it is first read,
        which must be before on_step returns, and costs nothing otherwise. None if the row of the
        schedule table has no coefficients for it.

        Raises:
            ParameterError: It is first read after on_step returned.
        """
        return None if self._estimate is None else self._estimate.compute(self.latents.shape)


Predict: TypeAlias = Callable[[F32, ScheduleRow], F32]
DrawNoise: TypeAlias = Callable[[int], F32]
OnStep: TypeAlias = Callable[[StepInfo], "bool | None"]
# The array that an update writes, and those that it sums with their coefficients.
_BoundUpdate: TypeAlias = tuple[F32, list[tuple[F32, np.float32]]]


def denoise(
    latents: F32,
    table: ScheduleTable,
    predict: Predict,
    *,
    noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> F32:
    """Run the schedule table over the denoiser and return the clean latents.

    Nothing of the size of the latents is allocated in the loop.

    Args:
        latents: Start noise, float32 [B, C, F, H, W] or any other shape, unit variance; not
            changed.
        table: The schedule table.
        predict: Called as predict(sample, row) once for each row; returns the model output, float32
            and shaped like the latents; it may be the same array each time. `sample` is a buffer
            that is overwritten once predict has returned; predict may write to it.
        noise: Called as noise(step_index); returns standard normal noise, float32 and shaped like
            the latents; it may be the same array each time. It is called after predict, as often
            as the row says, so that the random stream runs as in diffusers. Only tables with
            draws_noise need it.
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
    if noise is None:
        _check_draws_none(table)
    sources = _make_registers(latents, table)
    # Holds the sample and then, so that on_step can have an estimate from the old, new latents.
    spare = np.empty_like(sources[0])
    scratch = np.empty(min(BLOCK_ELEMENTS, latents.size), dtype=np.float32)

    for step_index, row in enumerate(table.rows):
        before = sources[0]
        np.multiply(before, np.float32(row.input_scale), out=spare)
        model_output = predict(spare.reshape(latents.shape), row)
        output = _check_array("model_output", model_output, latents.shape)
        # A model output that lies in the sample would be overwritten while it is read.
        sources[MODEL_OUTPUT] = output.copy() if np.may_share_memory(output, spare) else output
        if noise is not None:
            for _ in range(row.noise_draws):
                sources[NOISE] = _check_array("noise", noise(step_index), latents.shape)
        keeps_before = on_step is not None and row.denoised is not None
        new_latents = spare if keeps_before else before
        _run_updates(_bind_updates(row.updates, sources, new_latents), scratch)
        if on_step is not None:
            estimate = _Estimate(row.denoised, before, sources[MODEL_OUTPUT])
            shown = sources[0].reshape(latents.shape)
            _report_step(on_step, table, step_index, shown, estimate)
        if sources[0] is spare:
            spare = before
    return np.array(sources[0].reshape(latents.shape))


def _make_registers(latents: F32, table: ScheduleTable) -> dict[Source, F32]:
    """The registers at the start: the scaled latents, and zeros."""
    registers = np.zeros((table.num_registers, latents.size), dtype=np.float32)
    np.multiply(latents.reshape(-1), np.float32(table.init_noise_sigma), out=registers[0])
    return dict(enumerate(registers))


def _report_step(
    on_step: OnStep, table: ScheduleTable, step_index: int, latents: F32, estimate: _Estimate
) -> None:
    """Call on_step after a row; raises `CancelledError` if it says so."""
    latents.flags.writeable = False
    num_steps = len(table.rows)
    go_on = on_step(
        StepInfo(step_index, num_steps, table.rows[step_index].timestep, latents, estimate)
    )
    estimate.close()
    if go_on is False:
        raise CancelledError(f"cancelled after step {step_index + 1} of {num_steps}")


def _bind_updates(
    updates: Sequence[ScheduleUpdate], sources: dict[Source, F32], new_latents: F32
) -> list[_BoundUpdate]:
    """The arrays of each update; register 0 moves to `new_latents` when it is first written."""
    bound = []
    for update in updates:
        # Read first where it is a source, since the first product overwrites it.
        terms = sorted(update.terms, key=lambda term: term[0] != update.into)
        operands = [(sources[source], np.float32(coefficient)) for source, coefficient in terms]
        if update.into == 0:
            sources[0] = new_latents
        bound.append((sources[update.into], operands))
    return bound


def _run_updates(updates: list[_BoundUpdate], scratch: F32) -> None:
    """Run the updates of a row in place, all of them on one block after the other."""
    size = updates[0][0].size if updates else 0
    for start in range(0, size, BLOCK_ELEMENTS):
        part = slice(start, start + BLOCK_ELEMENTS)
        product = scratch[: size - start]
        for target, operands in updates:
            block = target[part]
            if not operands:
                block.fill(0)
                continue
            (first, coefficient), *others = operands
            if first is not target or coefficient != 1:
                np.multiply(first[part], coefficient, out=block)
            for operand, coefficient in others:
                np.multiply(operand[part], coefficient, out=product)
                np.add(block, product, out=block)


def _check_draws_none(table: ScheduleTable) -> None:
    """Raise `ParameterError` if a table needs noise."""
    if table.draws_noise:
        raise ParameterError(
            f"noise is None; {table.scheduler} draws noise in its steps: pass "
            "noise=lambda step_index: generator.normal(latents.shape)"
        )


def _check_array(name: str, array: F32, shape: tuple[int, ...]) -> F32:
    """The array as one float32 row, without a copy where its layout allows it."""
    dtype = getattr(array, "dtype", type(array).__name__)
    if dtype != np.float32:
        raise ParameterError(f"{name} is {dtype}; it must be float32: use astype(np.float32)")
    if array.shape != shape:
        raise ParameterError(f"{name} has shape {array.shape}; it must be {shape}, as the latents")
    return array.reshape(-1)

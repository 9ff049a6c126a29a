"""Trace schedule tables from the schedulers of diffusers.

A scheduler is a linear machine: each of its steps makes the new sample, and whatever it keeps, out
of the sample, the model output, the noise, and what it kept before, by coefficients that depend on
the step alone. So one run on unit vectors gives all coefficients, whichever solver it is; no solver
is written a second time. docs/decisions/0001-schedule-tables-carry-registers.md tells why the
tables have registers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import diffusers

from mutoscope.export.json_values import make_json_value
from mutoscope.export.schedules.denoised import Pair, trace_denoised
from mutoscope.export.schedules.registers import allocate_registers
from mutoscope.export.schedules.runner import SchedulerRunner
from mutoscope.export.schedules.simplify import simplify
from mutoscope.export.schedules.tracer import trace_program
from mutoscope.export.schedules.verify import LINEARITY_TOLERANCE, measure_deviation
from mutoscope.runtime.errors import ParameterError, ScheduleError
from mutoscope.runtime.schedule import ScheduleTable

# Options of diffusers' schedulers that make a step depend on the values of its tensors.
NONLINEAR_OPTIONS = ("clip_sample", "clip_denoised", "thresholding", "use_clipped_model_output")


def trace_schedule(
    scheduler: Any,
    num_inference_steps: int,
    *,
    step_kwargs: Mapping[str, Any] | None = None,
    **set_timesteps_kwargs: Any,
) -> ScheduleTable:
    """Return the schedule table of a scheduler at a step count, checked against the scheduler.

    Args:
        scheduler: A scheduler of diffusers, or one that is called like them. Not changed.
        num_inference_steps: Steps as the user counts them.
        step_kwargs: For each call of scheduler.step, for example {"eta": 0.5}. Without it the
            scheduler's own defaults hold; note that the pipelines of diffusers pass eta=0.0 to
            every scheduler that takes one, and TCDScheduler's own default is 0.3.
        **set_timesteps_kwargs: For scheduler.set_timesteps, for example mu=1.15. With sigmas or
            timesteps, num_inference_steps must be their number.

    Raises:
        ParameterError: A keyword argument that the scheduler does not take, or a wrong step count.
        ScheduleError: The scheduler refuses the step count, or is not linear.

    Source: tests/export/test_schedule_parity.py compares with diffusers.
    """
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise ParameterError(f"num_inference_steps is {num_inference_steps!r}; it must be an int")
    if num_inference_steps < 1:
        raise ParameterError(f"num_inference_steps is {num_inference_steps}; it must be at least 1")
    step_kwargs = step_kwargs or {}

    def make_runner() -> SchedulerRunner:
        return SchedulerRunner(scheduler, num_inference_steps, set_timesteps_kwargs, step_kwargs)

    runner = make_runner()
    rows = trace_program(runner)
    simplify(rows, runner.init_noise_sigma)
    num_registers, table_rows = allocate_registers(rows)
    table = ScheduleTable(
        scheduler=runner.name,
        num_inference_steps=num_inference_steps,
        prediction_type=_find_prediction_type(scheduler),
        init_noise_sigma=runner.init_noise_sigma,
        num_registers=num_registers,
        rows=table_rows,
        provenance={
            "diffusers": diffusers.__version__,
            "config": _plain_config(scheduler),
            "step_kwargs": dict(step_kwargs),
            "set_timesteps_kwargs": make_json_value(dict(set_timesteps_kwargs)),
        },
    )
    deviation = measure_deviation(make_runner, table)
    # Written so that a deviation that is no number fails too.
    if not deviation <= LINEARITY_TOLERANCE:
        raise ScheduleError(_explain_nonlinear(scheduler, step_kwargs, deviation))
    # In a run of its own, so that it cannot touch the coefficients of the sampling.
    return _add_estimates(table, trace_denoised(make_runner(), table.prediction_type))


def _add_estimates(table: ScheduleTable, estimates: list[Pair | None]) -> ScheduleTable:
    """The table with the coefficients of an estimate in each row."""
    rows = tuple(
        dataclasses.replace(row, denoised=pair)
        for row, pair in zip(table.rows, estimates, strict=True)
    )
    return dataclasses.replace(table, rows=rows)


def _explain_nonlinear(scheduler: Any, step_kwargs: Mapping[str, Any], deviation: float) -> str:
    """One line: what is not linear, and the way out."""
    name = type(scheduler).__name__
    options = {**_plain_config(scheduler), **step_kwargs}
    suspects = [option for option in NONLINEAR_OPTIONS if options.get(option)]
    if not suspects:
        return (
            f"{name} differs from its linear trace by {deviation:.1g} of the values, so it is not "
            "a linear schedule: use another scheduler, for example DDIMScheduler"
        )
    because = ", ".join(f"{option}={options[option]}" for option in suspects)
    cure = ", ".join(f"{option}=False" for option in suspects)
    return f"{name} clips samples ({because}), so it is not a linear schedule: export with {cure}"


def _find_prediction_type(scheduler: Any) -> str:
    """The prediction type of the configuration; flow matching schedulers know only one."""
    default = "flow_prediction" if "FlowMatch" in type(scheduler).__name__ else "epsilon"
    return str(_plain_config(scheduler).get("prediction_type", default))


def _plain_config(scheduler: Any) -> dict[str, Any]:
    """The scheduler's configuration, as JSON can hold it."""
    config = make_json_value(dict(getattr(scheduler, "config", {})))
    return {key: value for key, value in config.items() if not key.startswith("_")}

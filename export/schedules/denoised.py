"""Find in each step what the model takes the clean latents to be: a * latents + b * model output.

Most schedulers compute it themselves on their way; there it is read off unit vectors, like all
other coefficients. For the rest it follows from how much signal and noise the latents hold at that
step, and from what the model predicts. It is for looking at (`--preview`); no sampling uses it.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch

from mutoscope.export.schedules.runner import SchedulerRunner

# The last axis enumerates: the latents, the model output, and all that an estimate may not hold.
SHAPE: Final = torch.Size((1, 1, 1, 1, 4))
LATENTS_LANE, MODEL_OUTPUT_LANE, NOISE_LANE, STATE_LANE = range(4)
# Solvers whose `convert_model_output` returns the noise instead of the clean sample.
NOISE_SOLVERS: Final = ("deis", "dpmsolver", "noise_prediction", "sde-dpmsolver")
FLOAT32_MAXIMUM: Final = float(np.finfo(np.float32).max)

Pair = tuple[float, float]


def trace_denoised(runner: SchedulerRunner, prediction_type: str) -> list[Pair | None]:
    """Return (a, b) for each row, None where the scheduler does not tell.

    Args:
        runner: A fresh one, at its first step; it is at its last step afterwards.
        prediction_type: What the model predicts.

    Raises:
        ScheduleError: A step fails.

    Source: `pred_original_sample` and `convert_model_output` of the schedulers of diffusers
    (tests/export/test_schedule_parity.py compares with both).
    """
    return [_trace_row(runner, index, prediction_type) for index in range(len(runner.timesteps))]


def _trace_row(runner: SchedulerRunner, index: int, prediction_type: str) -> Pair | None:
    """Run one step."""
    for path, _ in list(runner.find_state(SHAPE)):
        runner.replace_state(path, _unit(STATE_LANE))
    sample = _unit(LATENTS_LANE)
    runner.scale_model_input(index, sample)
    with runner.noise_from(lambda _shape, dtype: _unit(NOISE_LANE).to(dtype)):
        estimate, converted = runner.estimate(index, _unit(MODEL_OUTPUT_LANE), sample)
    if estimate is None and _converts_to_clean(runner.scheduler):
        estimate = converted
    if estimate is not None:
        pair, *others = torch.split(estimate.to(torch.float64).flatten(), 2)
        # Euler with churn adds noise before it estimates; what the model saw had none of it.
        if not any(bool(other.any()) for other in others):
            return _check(*pair.tolist())
    return _derive(runner, index, prediction_type)


def _converts_to_clean(scheduler: Any) -> bool:
    """Whether `convert_model_output` returns the clean sample, not the noise."""
    algorithm = getattr(scheduler, "config", {}).get("algorithm_type")
    return algorithm not in NOISE_SOLVERS and getattr(scheduler, "predict_x0", True)


def _derive(runner: SchedulerRunner, index: int, prediction_type: str) -> Pair | None:
    """From the amounts of signal and noise: latents = alpha * clean + sigma * noise."""
    levels = _find_levels(runner, index)
    if levels is None:
        return None
    alpha, sigma = levels
    size = math.hypot(alpha, sigma)
    if prediction_type in ("sample", "original_sample"):
        return 0.0, 1.0
    if prediction_type == "epsilon" and alpha:
        return _check(1 / alpha, -sigma / alpha)
    if prediction_type == "v_prediction" and size:
        return _check(alpha / size**2, -sigma / size)
    if prediction_type == "flow_prediction":
        return _check(1.0, -sigma)
    return None


def _find_levels(runner: SchedulerRunner, index: int) -> Pair | None:
    """Alpha and sigma of the latents that the model saw in the step just taken."""
    scheduler = runner.scheduler
    if hasattr(scheduler, "precondition_outputs"):  # EDM: its model predicts something else
        return None
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        # The scheduler may start at a later sigma, where two timesteps are rounded to one.
        taken = getattr(scheduler, "step_index", None)
        sigma = sigmas[index if taken is None else taken - 1]
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma)
            return float(alpha), float(sigma)
        is_flow = "FlowMatch" in runner.name
        return (1 - float(sigma), float(sigma)) if is_flow else (1.0, float(sigma))
    if hasattr(scheduler, "alphas_cumprod"):
        signal = float(scheduler.alphas_cumprod[int(runner.timesteps[index])])
        return math.sqrt(signal), math.sqrt(1 - signal)
    return None


def _check(latents: float, model_output: float) -> Pair | None:
    """The pair, unless float32 cannot hold it: where there is no signal, noise tells nothing."""
    pair = (latents, model_output)
    return pair if all(abs(value) <= FLOAT32_MAXIMUM for value in pair) else None


def _unit(lane: int) -> torch.Tensor:
    """The unit vector of a lane, float64."""
    tensor = torch.zeros(SHAPE, dtype=torch.float64)
    tensor[..., lane] = 1.0
    return tensor

"""The estimates of the clean latents in schedule tables, against diffusers and the truth."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mutoscope.export.schedule import trace_schedule
from mutoscope.export.schedules.runner import ESTIMATE_NAMES
from mutoscope.runtime.sampler import F32, StepInfo, denoise
from mutoscope.runtime.schedule import ScheduleTable
from tests.export.test_schedule_parity import CASES, SHAPE, Case, case, predict, predict_row

# diffusers hands torch tensors to numpy in a way that numpy 2 warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    # Of the first DPM-Solver, which estimates the noise.
    pytest.mark.filterwarnings("ignore:.*algorithm_types dpmsolver:FutureWarning"),
]

# diffusers computes its estimates in float32; 4e-7 of the largest value was the most seen.
TOLERANCE = 5e-6
# Signal is lost where noise outweighs it: this many roundings of the noisy sample in the estimate.
LOSSY_ROUNDINGS = 8
# LCM mixes in a little of the sample itself, so that its map is the identity without noise.
LCM_BOUNDARY = 1e-3
NUM_INFERENCE_STEPS = 6

# Those that return their estimate. Euler with churn makes its own of a sample with more noise in it
# than the model saw, so that one is compared with the truth below.
RETURNING = [
    *("ddim", "ddim-eta", "ddim-sample", "ddim-zero-snr", "ddpm", "ddpm-v-large", "lcm", "lcm-v"),
    *("euler", "euler-leading", "euler-v-karras", "euler-zero-snr", "svd", "heun"),
    *("euler-ancestral", "euler-ancestral-v", "heun-v-karras", "kdpm2", "kdpm2-v"),
    *("kdpm2-ancestral", "edm-euler", "cogvideox-ddim", "cogvideox-dpm"),
]
CONVERTING = [
    *("dpm-1", "dpm-2", "dpm-2-karras", "dpm-2-zero-snr", "dpm-2-sample", "dpm-2-flow", "dpm-3"),
    *("dpm-sde-2", "dpm-single-2", "dpm-single-3", "unipc-2", "unipc-2-karras-v", "unipc-2-flow"),
    *("unipc-3", "edm-dpm-2", "sa-solver"),
]
DPM = "DPMSolverMultistepScheduler"
# These give only the noise, or nothing, so that their estimates are worked out.
WORKED_OUT = {
    "deis-2": CASES["deis-2"],
    "deis-2-v": case("DEISMultistepScheduler", prediction_type="v_prediction"),
    "deis-2-sample": case("DEISMultistepScheduler", prediction_type="sample"),
    "dpm-noise": case(DPM, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
    "dpm-noise-v-zero-snr": case(
        DPM,
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ),
    "unipc-noise": case("UniPCMultistepScheduler", predict_x0=False, final_sigmas_type="sigma_min"),
    "sa-solver-noise": case("SASolverScheduler", algorithm_type="noise_prediction"),
    "tcd": CASES["tcd"],
    "pndm": CASES["pndm"],
    "pndm-v": case("PNDMScheduler", skip_prk_steps=True, prediction_type="v_prediction"),
    "pndm-prk": CASES["pndm-prk"],
    "euler-churn": CASES["euler-churn"],
    "flow-euler": CASES["flow-euler"],
    "flow-euler-stochastic": CASES["flow-euler-stochastic"],
    "flow-heun": CASES["flow-heun"],
    "flow-lcm": CASES["flow-lcm"],
}
# Which learn of the noise through add_noise in the same way, and are compared with the truth too.
TRUE = {
    **WORKED_OUT,
    **{
        name: CASES[name]
        for name in (
            *("ddim", "ddim-sample", "ddim-zero-snr", "ddpm-v-large", "euler", "euler-zero-snr"),
            *("euler-v-karras", "svd", "dpm-2", "dpm-2-zero-snr", "dpm-2-flow", "unipc-2-flow"),
            *("lcm", "lcm-v", "heun", "lms"),
        )
    },
}


def combine(pair: tuple[float, float] | None, latents: F32, model_output: F32) -> F32:
    assert pair is not None
    result: F32 = pair[0] * latents + pair[1] * model_output
    return result


def run_steps(one: Case) -> list[tuple[F32, F32, Any, Any]]:
    """Latents, model output, what step returned and what was converted, for each step."""
    scheduler = one.make()
    scheduler.set_timesteps(NUM_INFERENCE_STEPS, **one.set_timesteps_kwargs)
    converted: list[Any] = []
    convert = getattr(scheduler, "convert_model_output", None)
    if convert is not None:

        def record(*args: Any, **kwargs: Any) -> Any:
            converted.append(convert(*args, **kwargs))
            return converted[-1]

        scheduler.convert_model_output = record
    generator = torch.Generator("cpu").manual_seed(7)
    latents = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    parameters = inspect.signature(scheduler.step).parameters
    kwargs = dict(one.step_kwargs)
    if "generator" in parameters:
        kwargs["generator"] = generator
    found: list[tuple[F32, F32, Any, Any]] = []
    for index, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.scale_model_input(latents, timestep)
        output = torch.from_numpy(predict(sample.float().numpy(), float(timestep)))
        if "old_pred_original_sample" in parameters:
            kwargs["old_pred_original_sample"] = (
                found[-1][2].pred_original_sample if found else None
            )
            kwargs["timestep_back"] = scheduler.timesteps[index - 1] if index else None
        result = scheduler.step(
            model_output=output.clone(), timestep=timestep, sample=latents, **kwargs
        )
        if isinstance(result, tuple):  # CogVideoX's DPM, whatever return_dict says
            result = SimpleNamespace(prev_sample=result[0], pred_original_sample=result[1])
        last = converted[-1] if converted else None
        found.append((latents.float().numpy(), output.numpy(), result, last))
        latents = result.prev_sample.float()
    return found


def check_rows(one: Case, estimates: list[tuple[F32, F32, Any]]) -> None:
    table = one.trace(NUM_INFERENCE_STEPS)
    assert len(table.rows) == len(estimates)
    for row, (latents, output, expected) in zip(table.rows, estimates, strict=True):
        expected = expected.float().numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        rounding = float(np.finfo(np.float32).eps) * float(np.abs(latents).max())
        difference = np.abs(combine(row.denoised, latents, output) - expected).max()
        assert difference <= max(TOLERANCE * scale, LOSSY_ROUNDINGS * rounding)


@pytest.mark.parametrize("name", RETURNING)
def test_an_estimate_is_what_the_step_of_the_scheduler_returns(name: str) -> None:
    steps = run_steps(CASES[name])
    results = [
        next(getattr(result, key) for key in ESTIMATE_NAMES if hasattr(result, key))
        for _, _, result, _ in steps
    ]
    check_rows(
        CASES[name], [(*step[:2], found) for step, found in zip(steps, results, strict=True)]
    )


@pytest.mark.parametrize("name", CONVERTING)
def test_an_estimate_is_what_the_scheduler_converts_the_model_output_to(name: str) -> None:
    steps = run_steps(CASES[name])
    check_rows(CASES[name], [(latents, output, last) for latents, output, _, last in steps])


def make_truth(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """Alpha and sigma at a timestep, as the scheduler's own add_noise has them."""
    one, zero = torch.ones(1, dtype=torch.float32), torch.zeros(1, dtype=torch.float32)
    at = timestep.reshape(1)
    add = getattr(scheduler, "add_noise", None)
    if add is not None:
        return float(add(one, zero, at)), float(add(zero, one, at))
    if hasattr(scheduler, "scale_noise"):
        return float(scheduler.scale_noise(one, at, zero)), float(
            scheduler.scale_noise(zero, at, one)
        )
    raise AssertionError(f"{type(scheduler).__name__} adds no noise")


def make_output(prediction_type: str, alpha: float, sigma: float, clean: F32, noise: F32) -> F32:
    """What a model that knows the truth returns."""
    outputs = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": (alpha * noise - sigma * clean) / np.hypot(alpha, sigma),
        "flow_prediction": noise - clean,
    }
    return np.asarray(outputs[prediction_type], dtype=np.float64)


@pytest.mark.parametrize("name", TRUE)
def test_an_estimate_is_the_truth_if_the_model_knows_it(name: str) -> None:
    one = TRUE[name]
    table = one.trace(NUM_INFERENCE_STEPS)
    scheduler = one.make()
    scheduler.set_timesteps(NUM_INFERENCE_STEPS, **one.set_timesteps_kwargs)
    random = np.random.default_rng(0)
    clean, noise = random.standard_normal((2, *SHAPE))
    tolerance = LCM_BOUNDARY if table.scheduler == "LCMScheduler" else TOLERANCE
    for row, timestep in zip(table.rows, scheduler.timesteps, strict=True):
        alpha, sigma = make_truth(scheduler, timestep)
        latents = alpha * clean + sigma * noise
        output = make_output(table.prediction_type, alpha, sigma, clean, noise)
        # Alpha and sigma are float32 in the scheduler: so much of the noise stays in the estimate.
        rounding = float(np.finfo(np.float32).eps) * max(1.0, sigma / max(alpha, 1e-12))
        pair = row.denoised
        assert pair is not None
        difference = float(np.abs(combine(pair, latents, output) - clean).max())
        assert difference <= max(tolerance, LOSSY_ROUNDINGS * rounding)


def sample_with_estimates(table: ScheduleTable) -> tuple[F32, list[F32]]:
    seen: list[F32] = []

    def on_step(info: StepInfo) -> None:
        assert info.denoised is not None
        seen.append(info.denoised)

    latents = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    return denoise(latents, table, predict_row, on_step=on_step), seen


@pytest.mark.parametrize("name", ["ddim", "ddim-sample", "euler", "dpm-2", "flow-euler", "svd"])
def test_the_last_estimate_is_the_result(name: str) -> None:
    table = CASES[name].trace(NUM_INFERENCE_STEPS)
    clean, seen = sample_with_estimates(table)
    assert len(seen) == len(table.rows)
    np.testing.assert_allclose(seen[-1], clean, rtol=0, atol=TOLERANCE * np.abs(clean).max())
    # and the first is another, so that there is something to see
    assert float(np.abs(seen[0] - clean).max()) > 0.01 * float(np.abs(clean).max())


def test_a_preconditioned_model_has_no_estimate_where_its_scheduler_adds_noise() -> None:
    churn = case("EDMEulerScheduler", step_kwargs={"s_churn": 2.0})
    assert not churn.trace(4).has_denoised
    assert CASES["edm-euler"].trace(4).has_denoised


def test_a_scheduler_that_tells_nothing_has_no_estimates() -> None:
    table = CASES["ipndm"].trace(4)
    assert not table.has_denoised
    assert all("denoised" not in row for row in table.to_json()["rows"])


def test_estimates_leave_no_trace_in_the_scheduler() -> None:
    scheduler = CASES["dpm-2"].make()
    before = set(vars(scheduler))
    trace_schedule(scheduler, 3)
    assert set(vars(scheduler)) == before

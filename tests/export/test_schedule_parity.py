"""Schedule tables against the schedulers of diffusers that they were traced from.

Both sides run a whole sampling with the same made-up denoiser, each from its own random numbers:
diffusers from a torch generator, the table from NoiseGenerator. So the order of the draws is
compared too.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mutoscope.export.schedule import trace_schedule
from mutoscope.runtime.errors import MutoscopeError, ParameterError, ScheduleError
from mutoscope.runtime.noise import NoiseGenerator
from mutoscope.runtime.sampler import F32, denoise
from mutoscope.runtime.schedule import ScheduleRow, ScheduleTable

# diffusers hands torch tensors to numpy in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

# Both sides compute in float32, in another order: 5e-6 was the most seen (flow matching Heun).
TOLERANCE = 1e-5
# From a large sigma (4096 at zero terminal SNR, 700 for SVD) in few steps, diffusers itself loses
# digits: it takes the difference of two samples of that size. So this many roundings of sigma.
LOSSY_ROUNDINGS = 3
STEP_COUNTS = (1, 4, 8, 25)
# A count that is no multiple of 16, so that both kinds of large draws occur.
SHAPE = (1, 4, 2, 3, 5)
SEED = 2024

BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
# The most that any scheduler here needs; DDIM and Euler need one register and two terms.
MAX_TERMS = 14
MAX_REGISTERS = 6
needs_scipy = pytest.mark.skipif(
    importlib.util.find_spec("scipy") is None, reason="diffusers asks scipy for this one"
)


@dataclass(frozen=True)
class Case:
    """One scheduler in one configuration."""

    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)
    step_kwargs: dict[str, Any] = field(default_factory=dict)
    set_timesteps_kwargs: dict[str, Any] = field(default_factory=dict)
    step_counts: tuple[int, ...] = STEP_COUNTS
    max_terms: int = MAX_TERMS
    max_registers: int = MAX_REGISTERS
    scipy: bool = False

    def make(self) -> Any:
        return getattr(diffusers, self.scheduler).from_config(self.config)

    def trace(self, num_inference_steps: int) -> ScheduleTable:
        return trace_schedule(
            self.make(),
            num_inference_steps,
            step_kwargs=self.step_kwargs,
            **self.set_timesteps_kwargs,
        )


def case(scheduler: str, *limits: int, **options: Any) -> Case:
    """A case; options that are no field of Case configure the scheduler on top of BETAS."""
    names = [name for name in options if name in Case.__dataclass_fields__]
    fields = {name: options.pop(name) for name in names}
    takes_betas = "beta_start" in inspect.signature(getattr(diffusers, scheduler)).parameters
    clips = "clip_sample" in inspect.signature(getattr(diffusers, scheduler)).parameters
    config = {**(BETAS if takes_betas else {}), **({"clip_sample": False} if clips else {})}
    bounds: dict[str, Any] = dict(zip(("max_terms", "max_registers"), limits, strict=False))
    return Case(scheduler, {**config, **options}, **bounds, **fields)


DPM = "DPMSolverMultistepScheduler"
SINGLE = "DPMSolverSinglestepScheduler"
UNIPC = "UniPCMultistepScheduler"
SDE = "sde-dpmsolver++"
V = "v_prediction"
FLOW: dict[str, Any] = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}
ZERO_SNR: dict[str, Any] = {
    "prediction_type": V,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}

CASES = {
    "ddim": case("DDIMScheduler", 2, 1),
    "ddim-offset": case("DDIMScheduler", 2, 1, steps_offset=1, set_alpha_to_one=False),
    "ddim-eta": case("DDIMScheduler", 3, 1, step_kwargs={"eta": 0.7}),
    "ddim-sample": case("DDIMScheduler", 2, 1, prediction_type="sample"),
    "ddim-zero-snr": case("DDIMScheduler", 2, 1, **ZERO_SNR),
    "ddim-linspace": case("DDIMScheduler", 2, 1, timestep_spacing="linspace"),
    "ddpm": case("DDPMScheduler", 3, 1),
    "ddpm-v-large": case("DDPMScheduler", 3, 1, prediction_type=V, variance_type="fixed_large"),
    "ddpm-log": case("DDPMScheduler", 3, 1, variance_type="fixed_small_log"),
    "euler": case("EulerDiscreteScheduler", 2, 1),
    "euler-leading": case(
        "EulerDiscreteScheduler", 2, 1, timestep_spacing="leading", steps_offset=1
    ),
    "euler-v-karras": case(
        "EulerDiscreteScheduler", 2, 1, prediction_type=V, use_karras_sigmas=True
    ),
    "euler-exponential": case("EulerDiscreteScheduler", 2, 1, use_exponential_sigmas=True),
    "euler-beta": case("EulerDiscreteScheduler", 2, 1, use_beta_sigmas=True, scipy=True),
    "euler-zero-snr": case("EulerDiscreteScheduler", 2, 1, **ZERO_SNR),
    "euler-churn": case("EulerDiscreteScheduler", 3, 1, step_kwargs={"s_churn": 2.0}),
    "svd": case(
        "EulerDiscreteScheduler",
        2,
        1,
        prediction_type=V,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
    ),
    "euler-ancestral": case("EulerAncestralDiscreteScheduler", 3, 1),
    "euler-ancestral-v": case("EulerAncestralDiscreteScheduler", 3, 1, **ZERO_SNR),
    "dpm-1": case(DPM, 2, 1, solver_order=1),
    "dpm-2": case(DPM, 5, 3),
    "dpm-2-karras": case(DPM, 5, 3, use_karras_sigmas=True),
    "dpm-2-lu": case(DPM, 5, 3, use_lu_lambdas=True, prediction_type=V),
    "dpm-2-exponential": case(DPM, 5, 3, use_exponential_sigmas=True),
    "dpm-2-beta": case(DPM, 5, 3, use_beta_sigmas=True, scipy=True),
    "dpm-2-heun": case(DPM, 5, 3, solver_type="heun", timestep_spacing="trailing"),
    "dpm-2-zero-snr": case(DPM, 5, 3, **ZERO_SNR),
    "dpm-2-sample": case(DPM, 5, 3, prediction_type="sample", timestep_spacing="leading"),
    "dpm-2-flow": case(DPM, 5, 3, **FLOW),
    "dpm-2-euler-at-final": case(DPM, 5, 3, euler_at_final=True),
    "dpm-3": case(DPM, 6, 4, solver_order=3),
    "dpm-sde-2": case(DPM, 6, 3, algorithm_type=SDE),
    "dpm-sde-3": case(DPM, 7, 4, algorithm_type=SDE, solver_order=3),
    "dpm-single-1": case(SINGLE, 2, 1, solver_order=1),
    "dpm-single-2": case(SINGLE, 5, 3),
    "dpm-single-3": case(SINGLE, 5, 3, solver_order=3, use_karras_sigmas=True),
    "dpm-single-sde": case(SINGLE, 6, 3, algorithm_type=SDE),
    "unipc-1": case(UNIPC, 6, 3, solver_order=1),
    "unipc-2": case(UNIPC, 8, 4),
    "unipc-2-bh1": case(UNIPC, 9, 4, solver_type="bh1", final_sigmas_type="sigma_min"),
    "unipc-2-karras-v": case(UNIPC, 9, 4, use_karras_sigmas=True, prediction_type=V),
    "unipc-2-flow": case(UNIPC, 8, 4, **FLOW),
    "unipc-2-no-corrector": case(UNIPC, 9, 4, disable_corrector=[0, 1]),
    "unipc-3": case(UNIPC, 12, 6, solver_order=3),
    "unipc-3-bh1": case(UNIPC, solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min"),
    "unipc-3-flow": case(UNIPC, 12, 6, solver_order=3, **FLOW),
    "unipc-of-dpm": case(UNIPC, 17, 7, solver_p=diffusers.DPMSolverMultistepScheduler(**BETAS)),
    "deis-2": case("DEISMultistepScheduler", 5, 3),
    "deis-3": case("DEISMultistepScheduler", 6, 4, solver_order=3),
    "lcm": case("LCMScheduler", 3, 1),
    "lcm-v": case("LCMScheduler", 3, 1, prediction_type=V),
    "tcd": case("TCDScheduler", 3, 1),
    "tcd-eta-0": case("TCDScheduler", 3, 1, step_kwargs={"eta": 0.0}),
    "pndm": case("PNDMScheduler", 6, 4, skip_prk_steps=True),
    "pndm-leading": case("PNDMScheduler", 6, 4, skip_prk_steps=True, steps_offset=1),
    "pndm-prk": case("PNDMScheduler", 6, 6, step_counts=(4, 8, 25)),
    "heun": case("HeunDiscreteScheduler", 4, 3),
    "heun-v-karras": case("HeunDiscreteScheduler", 4, 3, prediction_type=V, use_karras_sigmas=True),
    "kdpm2": case("KDPM2DiscreteScheduler", 3, 2),
    "kdpm2-v": case("KDPM2DiscreteScheduler", 3, 2, prediction_type=V, use_karras_sigmas=True),
    "kdpm2-ancestral": case("KDPM2AncestralDiscreteScheduler", 4, 2),
    "edm-euler": case("EDMEulerScheduler", 2, 1),
    "edm-dpm-2": case("EDMDPMSolverMultistepScheduler", 5, 3),
    "edm-dpm-3": case("EDMDPMSolverMultistepScheduler", 6, 4, solver_order=3),
    "edm-dpm-sde": case("EDMDPMSolverMultistepScheduler", 6, 3, algorithm_type=SDE),
    "sa-solver": case("SASolverScheduler"),
    "sa-solver-3-4": case("SASolverScheduler", predictor_order=3, corrector_order=4),
    "ipndm": case("IPNDMScheduler", 7, 5),
    "lms": case("LMSDiscreteScheduler", 6, 4, scipy=True),
    "flow-euler": case("FlowMatchEulerDiscreteScheduler", 2, 1, shift=3.0),
    "flow-euler-dynamic": case(
        "FlowMatchEulerDiscreteScheduler",
        2,
        1,
        use_dynamic_shifting=True,
        set_timesteps_kwargs={"mu": 1.15},
    ),
    "flow-euler-sigmas": case(
        "FlowMatchEulerDiscreteScheduler",
        2,
        1,
        set_timesteps_kwargs={"sigmas": [1.0, 0.8, 0.5, 0.2]},
        step_counts=(4,),
    ),
    "flow-euler-stochastic": case(
        "FlowMatchEulerDiscreteScheduler", 3, 1, stochastic_sampling=True
    ),
    "flow-heun": case("FlowMatchHeunDiscreteScheduler", 4, 3),
    "flow-lcm": case("FlowMatchLCMScheduler", 3, 1),
    "cogvideox-ddim": case("CogVideoXDDIMScheduler", 2, 1, **ZERO_SNR),
    "cogvideox-dpm": case("CogVideoXDPMScheduler", 6, 3, **ZERO_SNR),
}


def list_runs() -> Iterator[Any]:
    for name, one in CASES.items():
        marks = [needs_scipy] if one.scipy else []
        for steps in one.step_counts:
            yield pytest.param(name, steps, id=f"{name}-{steps}", marks=marks)


def predict(sample: F32, timestep: float) -> F32:
    """A made-up denoiser: bounded, not linear, depends on everything."""
    weights = np.linspace(0.5, 1.5, sample.size, dtype=np.float32).reshape(sample.shape)
    result: F32 = np.tanh(weights * sample) + np.float32(0.1 * np.sin(timestep))
    return result


def predict_row(sample: F32, row: ScheduleRow) -> F32:
    """The same denoiser as the sampler calls it."""
    return predict(sample, row.timestep)


def run_diffusers(one: Case, num_inference_steps: int) -> tuple[F32, list[float]]:
    """Sample as the pipelines of diffusers do; returns the latents and the timesteps."""
    scheduler = one.make()
    count = {} if "sigmas" in one.set_timesteps_kwargs else {"n": num_inference_steps}
    scheduler.set_timesteps(*count.values(), **one.set_timesteps_kwargs)
    generator = torch.Generator("cpu").manual_seed(SEED)
    latents = torch.randn(SHAPE, generator=generator)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    parameters = inspect.signature(scheduler.step).parameters
    kwargs = dict(one.step_kwargs, return_dict=False)
    if "generator" in parameters:
        kwargs["generator"] = generator
    old_estimate = None
    for index, timestep in enumerate(scheduler.timesteps):
        sample = latents
        if hasattr(scheduler, "scale_model_input"):
            sample = scheduler.scale_model_input(latents, timestep)
        output = torch.from_numpy(predict(sample.float().numpy(), float(timestep)))
        if "old_pred_original_sample" in parameters:
            back = scheduler.timesteps[index - 1] if index else None
            latents, old_estimate = scheduler.step(
                output, old_estimate, timestep, back, latents, **kwargs
            )
            latents = latents.float()
        else:
            latents = scheduler.step(output, timestep, latents, **kwargs)[0]
    return latents.float().numpy(), [float(timestep) for timestep in scheduler.timesteps]


def run_table(table: ScheduleTable) -> F32:
    generator = NoiseGenerator(SEED)
    return denoise(
        generator.normal(SHAPE), table, predict_row, noise=lambda _index: generator.normal(SHAPE)
    )


def relative_error(found: F32, expected: F32) -> float:
    """Of the largest value; 0 if both are all zero, as IPNDM's are in one step."""
    difference = float(np.abs(found - expected).max())
    return difference / float(np.abs(expected).max()) if difference else 0.0


def find_tolerance(table: ScheduleTable) -> float:
    rounding = float(np.finfo(np.float32).eps) * table.init_noise_sigma
    return max(TOLERANCE, LOSSY_ROUNDINGS * rounding)


@pytest.mark.parametrize(("name", "num_inference_steps"), list(list_runs()))
def test_a_table_gives_the_latents_of_its_scheduler(name: str, num_inference_steps: int) -> None:
    one = CASES[name]
    table = one.trace(num_inference_steps)
    expected, timesteps = run_diffusers(one, num_inference_steps)
    found = run_table(ScheduleTable.from_json(json.loads(json.dumps(table.to_json()))))
    assert table.timesteps.tolist() == np.array(timesteps, dtype=np.float32).tolist()
    assert relative_error(found, expected) <= find_tolerance(table)
    assert table.max_terms_per_row <= one.max_terms
    assert table.num_registers <= one.max_registers
    assert table.num_inference_steps == num_inference_steps


def test_heun_has_a_row_for_each_denoiser_call() -> None:
    assert len(CASES["heun"].trace(8).rows) == 15


def test_cogvideox_dpm_draws_noise_that_it_throws_away() -> None:
    table = CASES["cogvideox-dpm"].trace(4)
    assert [row.noise_draws for row in table.rows] == [1, 2, 2, 1]


@pytest.mark.parametrize("name", ["unipc-2", "pndm", "kdpm2-ancestral", "cogvideox-dpm"])
def test_tracing_leaves_no_trace_in_the_scheduler(name: str) -> None:
    scheduler = CASES[name].make()
    before = {key: copy.deepcopy(value) for key, value in vars(scheduler).items()}
    module = inspect.getmodule(type(scheduler))
    original = getattr(module, "randn_tensor", None)
    trace_schedule(scheduler, 5)
    after = vars(scheduler)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert repr(value) == repr(after[key])
    assert getattr(module, "randn_tensor", None) is original


def test_a_scheduler_that_was_used_gives_the_table_of_a_new_one() -> None:
    one = CASES["unipc-2"]
    used = one.make()
    used.set_timesteps(7)
    sample = torch.randn(1, 4, 2, 2, 2)
    for timestep in used.timesteps:
        sample = used.step(0.1 * sample, timestep, sample, return_dict=False)[0]
    assert trace_schedule(used, 5) == one.trace(5)


VARIED_SCHEDULERS = [
    *("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler", "PNDMScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "DEISMultistepScheduler", "SASolverScheduler", DPM, SINGLE, UNIPC),
]
STEP_COUNT = st.integers(1, 50)
SPACING = st.sampled_from(["leading", "linspace", "trailing"])
PREDICTION = st.sampled_from(["epsilon", "v_prediction"])


@settings(max_examples=50, deadline=None)
@given(
    scheduler=st.sampled_from(VARIED_SCHEDULERS),
    num_inference_steps=STEP_COUNT,
    spacing=SPACING,
    prediction=PREDICTION,
    karras=st.booleans(),
    zero_snr=st.booleans(),
    order=st.integers(1, 3),
)
def test_any_configuration_is_traced_or_refused(
    scheduler: str,
    num_inference_steps: int,
    spacing: str,
    prediction: str,
    karras: bool,
    zero_snr: bool,
    order: int,
) -> None:
    parameters = inspect.signature(getattr(diffusers, scheduler)).parameters
    wanted = {
        "timestep_spacing": spacing,
        "prediction_type": prediction,
        "use_karras_sigmas": karras,
        "rescale_betas_zero_snr": zero_snr,
        "solver_order": order,
    }
    one = case(scheduler, **{key: wanted[key] for key in wanted if key in parameters})
    try:
        table = one.trace(num_inference_steps)
    except ScheduleError as err:
        # Only what diffusers cannot run either: its result is no number, or it fails too.
        if not any(reason in str(err) for reason in ("divides by zero", "refuses", "fails in")):
            raise
        return
    expected, _ = run_diffusers(one, num_inference_steps)
    assert relative_error(run_table(table), expected) <= find_tolerance(table)
    assert table.max_terms_per_row <= MAX_TERMS
    assert table.num_registers <= MAX_REGISTERS


@pytest.mark.parametrize(
    ("scheduler", "config", "message"),
    [
        (
            "DDIMScheduler",
            {"clip_sample": True},
            r"DDIMScheduler clips samples \(clip_sample=True\), so it is not a linear schedule: "
            "export with clip_sample=False",
        ),
        ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 1000.0}, "clip_sample=True"),
        ("DDPMScheduler", {"clip_sample": True}, "DDPMScheduler clips samples"),
        ("LCMScheduler", {"clip_sample": True}, "LCMScheduler clips samples"),
        ("HeunDiscreteScheduler", {"clip_sample": True}, "export with clip_sample=False"),
        (DPM, {"thresholding": True}, "export with thresholding=False"),
        (UNIPC, {"thresholding": True, "sample_max_value": 9.0}, "thresholding=True"),
        ("CMStochasticIterativeScheduler", {}, "export with clip_denoised=False"),
    ],
)
def test_a_scheduler_that_is_not_linear_is_refused_with_the_way_out(
    scheduler: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message) as caught:
        trace_schedule(getattr(diffusers, scheduler).from_config(config), 4)
    assert "\n" not in str(caught.value)


class SquaringScheduler(diffusers.DDIMScheduler):
    """Not linear, and no option of its configuration says so."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **_: Any) -> Any:
        return (sample + 0.1 * model_output * model_output,)


class OffsetScheduler(diffusers.DDIMScheduler):
    """Linear but for a constant."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **_: Any) -> Any:
        return (sample + model_output + 0.5,)


class SecretNoiseScheduler(diffusers.DDIMScheduler):
    """Draws random numbers by other means than randn_tensor."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **_: Any) -> Any:
        return (sample + model_output + torch.randn_like(sample),)


class TwoNoisesScheduler(diffusers.EulerAncestralDiscreteScheduler):
    """Uses two draws in one step."""

    def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
        once = super().step(model_output, timestep, sample, **kwargs)[0]
        self._step_index -= 1
        return (once + super().step(model_output, timestep, sample, **kwargs)[0],)


@pytest.mark.parametrize("scheduler", [SquaringScheduler, OffsetScheduler, SecretNoiseScheduler])
def test_what_no_option_tells_is_found_by_running_it(scheduler: Any) -> None:
    with pytest.raises(ScheduleError, match=r"differs from its linear trace .* use another"):
        trace_schedule(scheduler(clip_sample=False), 4)


def test_two_noises_in_one_step_are_refused() -> None:
    with pytest.raises(ScheduleError, match="uses several draws of noise in step 1"):
        trace_schedule(TwoNoisesScheduler(), 4)


def test_a_step_count_that_the_scheduler_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(ScheduleError, match="DDIMScheduler refuses 2000 steps"):
        trace_schedule(CASES["ddim"].make(), 2000)


def test_a_scheduler_that_gives_no_numbers_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"divides by zero in step 4 of 4 .*final_sigmas_type"):
        trace_schedule(case(UNIPC, solver_type="bh1").make(), 4)


def test_what_is_no_scheduler_is_refused() -> None:
    with pytest.raises(ScheduleError, match="dict has no set_timesteps and no step"):
        trace_schedule({}, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0; it must be at least 1"),
        ({"num_inference_steps": 2.0}, "num_inference_steps is 2.0; it must be an int"),
        ({"mu": 1.0}, r"DDIMScheduler.set_timesteps takes no 'mu'; it takes num_inference_steps"),
        ({"step_kwargs": {"s_churn": 1.0}}, r"DDIMScheduler.step takes no 's_churn'; it takes"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    arguments = {"num_inference_steps": 4, **kwargs}
    with pytest.raises(ParameterError, match=message):
        trace_schedule(CASES["ddim"].make(), **arguments)


def test_sigmas_must_be_as_many_as_steps() -> None:
    scheduler = CASES["flow-euler"].make()
    with pytest.raises(ParameterError, match="sigmas has 3 values and num_inference_steps is 4"):
        trace_schedule(scheduler, 4, sigmas=[1.0, 0.6, 0.2])


def test_every_refusal_is_an_error_of_ours() -> None:
    with pytest.raises(MutoscopeError):
        trace_schedule(CASES["pndm-prk"].make(), 1)


def test_the_table_says_where_it_came_from() -> None:
    table = trace_schedule(CASES["tcd"].make(), 4, step_kwargs={"eta": 0.5})
    assert table.scheduler == "TCDScheduler"
    assert table.prediction_type == "epsilon"
    assert table.provenance["diffusers"] == diffusers.__version__
    assert table.provenance["config"]["beta_start"] == BETAS["beta_start"]
    assert table.provenance["step_kwargs"] == {"eta": 0.5}
    json.dumps(table.to_json(), allow_nan=False)

"""Presets make the schedulers that the models' own instructions make."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler

from mutoscope.export import trace_schedule
from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.presets import PRESETS, apply_preset, find_preset
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.sampler import denoise

# The schedulers that image models come with.
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
}  # fmt: skip
OWN = {
    "pndm": PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True, set_alpha_to_one=False),
    "ddim": DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, set_alpha_to_one=False),
    "euler": EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading"),
}
# The sampler sums in float32 and from noise of unit variance, diffusers here in float64.
RELATIVE_TOLERANCE = 1e-5


def make_as_documented(name: str, own: Any) -> Any:
    """Return the scheduler as the instructions of the model make it."""
    if name == "lcm":  # diffusers' documentation of AnimateDiff, "Using AnimateLCM"
        return LCMScheduler.from_config(own.config, beta_schedule="linear")
    return EulerDiscreteScheduler.from_config(  # the model card of AnimateDiff-Lightning
        own.config, timestep_spacing="trailing", beta_schedule="linear"
    )


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_makes_the_documented_scheduler(name: str, own: str) -> None:
    before = dict(OWN[own].config)
    made, documented = apply_preset(PRESETS[name], OWN[own]), make_as_documented(name, OWN[own])
    assert type(made) is type(documented)
    assert dict(made.config) == dict(documented.config)
    assert made.config.beta_schedule == "linear"
    assert made.config.beta_start == STABLE_DIFFUSION["beta_start"]
    assert dict(OWN[own].config) == before


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_a_table_for_each_of_its_step_counts(name: str) -> None:
    preset = PRESETS[name]
    scheduler = apply_preset(preset, OWN["ddim"])
    for count in preset.step_counts:
        with quiet_libraries():
            table = trace_schedule(scheduler, count)
        assert (table.num_inference_steps, len(table.rows)) == (count, count)
        documented = make_as_documented(name, OWN["ddim"])
        with quiet_libraries():
            documented.set_timesteps(count)
        timesteps = [row.timestep for row in table.rows]
        assert timesteps == documented.timesteps.tolist()
        if name != "lcm":  # "trailing" begins at the noisiest step of all
            assert timesteps[0] == 999


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_lightning_table_computes_what_its_scheduler_computes(steps: int) -> None:
    preset = PRESETS[f"lightning-{steps}"]
    documented = make_as_documented(preset.name, OWN["pndm"])
    with quiet_libraries():
        table = trace_schedule(apply_preset(preset, OWN["pndm"]), steps)
        documented.set_timesteps(steps)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 2, 3, 3, generator=generator, dtype=torch.float64)
    outputs = torch.randn(steps, 1, 4, 2, 3, 3, generator=generator, dtype=torch.float64)
    sample = noise * documented.init_noise_sigma
    for output, timestep in zip(outputs, documented.timesteps, strict=True):
        documented.scale_model_input(sample, timestep)
        sample = documented.step(output, timestep, sample).prev_sample
    expected = sample.numpy()
    remaining = list(outputs.numpy().astype(np.float32))
    found = denoise(noise.numpy().astype(np.float32), table, lambda *_: remaining.pop(0))
    assert np.abs(found - expected).max() <= RELATIVE_TOLERANCE * np.abs(expected).max()


def test_defaults_are_those_of_the_documentation() -> None:
    for steps in (1, 2, 4, 8):
        preset = find_preset(f"lightning-{steps}")
        assert (preset.guidance_scale, preset.num_inference_steps) == (1.0, steps)
    lcm = find_preset("LCM")
    assert (lcm.guidance_scale, lcm.num_inference_steps) == (1.5, 6)
    for preset in PRESETS.values():
        assert preset.num_inference_steps in preset.step_counts
        assert hasattr(diffusers, preset.scheduler)


def test_an_unknown_preset_is_one_line() -> None:
    with pytest.raises(
        ParameterError,
        match=r"^preset 'turbo' is unknown: use one of lightning-1, lightning-2, .*-8, lcm$",
    ):
        find_preset("turbo")

"""What tests of tuning share: its smallest form, on the bundle with reused features."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from statistics import median

import pytest

from mutoscope.calibration import plan_costs, plan_finding
from mutoscope.calibration.plan_trials import PlanTrials
from mutoscope.calibration.samples import SamplingOptions, make_samples
from mutoscope.calibration.tuned_schedule import find_schedule
from mutoscope.calibration.tuning import TuningOptions
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.pipeline import VideoPipeline

TUNED, NUM_STEPS, PLAN = "ddim", 8, "plan"
PROMPTS = ["a red circle", "a blue circle moves left"]
# Of a pass of the denoiser and of one with reused features: measured ones are noise for graphs that
# are so small.
SECONDS_WHOLE, SECONDS_SHALLOW = 1.0, 0.3
ONE_THREAD = EngineOptions(num_threads=1)
# The report has hundredths.
ROUNDED_DB = 0.0051


def make_up_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reused features save always the same."""
    for module in (plan_costs, plan_finding):
        monkeypatch.setattr(
            module, "measure_passes", lambda records: (SECONDS_WHOLE, SECONDS_SHALLOW)
        )


def make_options(prompts, **changes):
    """Options of a tuning with little work."""
    options = TuningOptions(
        scheduler=TUNED,
        num_inference_steps=NUM_STEPS,
        num_samples=2,
        prompts=prompts,
        name=PLAN,
        # The denoiser of this bundle mixes what is in a batch.
        times_guidance_passes=False,
        engine=ONE_THREAD,
    )
    return dataclasses.replace(options, **changes)


def open_trials(bundle, scheduler=TUNED, num_inference_steps=NUM_STEPS):
    """Trials of a schedule, with two guided samples, for a `with`."""
    schedule = find_schedule(
        bundle, scheduler, num_inference_steps, reuses_features=True, drops_guidance=True
    )
    sampling = SamplingOptions(num_inference_steps, scheduler)
    samples = make_samples(bundle, PROMPTS, [], 2, 0, sampling)
    return closing(PlanTrials(bundle, schedule, samples, ONE_THREAD, None))


def generate(bundle, sample, scheduler, num_inference_steps, variant=None):
    """The clip of a sample, as a user makes it."""
    with VideoPipeline(bundle, variant=variant, num_threads=1) as pipeline:
        return pipeline.generate(
            sample.prompt,
            seed=sample.seed,
            scheduler=scheduler,
            num_inference_steps=num_inference_steps,
        )


def measure_anew(bundle, samples, plan, variant=None):
    """Median and minimum PSNR of a plan's clips against those of the schedule as it is."""
    values = [
        psnr_db(
            generate(bundle, sample, TUNED, NUM_STEPS, variant).frames,
            generate(bundle, sample, plan, NUM_STEPS, variant).frames,
        )
        for sample in samples
    ]
    return median(values), min(values)


def make_all_guided(samples):
    """Samples as a tuning makes them."""
    scale = samples[0].guidance_scale
    return [dataclasses.replace(sample, guidance_scale=scale) for sample in samples]

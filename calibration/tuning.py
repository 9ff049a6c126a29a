"""Tune a schedule: find the rows that may reuse features or go without guidance, and add the plan.

The plan is one more schedule of the bundle. What it may cost is said as the PSNR of its clips
against those of the schedule as it is, of the same variant.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from mutoscope.calibration.guidance_timing import GuidanceTiming
from mutoscope.calibration.plan_finding import FoundPlan, OnProgress, PlanFinder
from mutoscope.calibration.plan_trials import PlanTrials, TunedSchedule
from mutoscope.calibration.preparation import check_writable, load_prompts
from mutoscope.calibration.samples import CalibrationSample, SamplingOptions, make_samples
from mutoscope.calibration.tuned_schedule import (
    add_plan,
    check_variant,
    choose_name,
    find_schedule,
)
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.guidance import GuidancePasses, check_guidance_passes


@dataclass(frozen=True)
class TuningOptions:
    """What is tuned, and how.

    Attributes:
        scheduler: A scheduler of the bundle; None takes what a generation with so many steps takes.
        num_inference_steps: A number of steps that it has a table for; None takes 25, or what a
            generation with this scheduler takes.
        min_psnr_db: What the frames of the median clip must reach against the unchanged schedule.
        num_samples: Clips to judge by.
        prompts: A text file, one prompt on each line; None takes the bundle's or built-in ones.
        images: What clips start from, for a bundle that takes an image.
        seed: Of the samples.
        name: What the plan is called among the schedulers of the bundle; None takes the
            scheduler's with "-reuse" or, where nothing is reused, "-interval" behind it.
        reuses_features: Whether rows may reuse features.
        drops_guidance: Whether rows may go without guidance.
        times_guidance_passes: Whether to measure which way of guidance is faster, and to make it
            the bundle's default.
        variant: What the graphs compute in; None takes the bundle's default.
        engine: What runs them.
        force: Whether to replace a plan of this name.
    """

    scheduler: str | None = None
    num_inference_steps: int | None = None
    min_psnr_db: float = 30.0
    num_samples: int = 4
    prompts: Path | None = None
    images: tuple[Path, ...] = ()
    seed: int = 0
    name: str | None = None
    reuses_features: bool = True
    drops_guidance: bool = True
    times_guidance_passes: bool = True
    variant: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    force: bool = False


@dataclass(frozen=True)
class TuningReport:
    """What a tuning found.

    Attributes:
        name: Of the plan, among the schedulers of the bundle.
        scheduler: What it is a plan for.
        variant: What the denoiser computed in.
        chose_variant: Whether that was asked for.
        median_psnr_db: Of the frames of the samples, against the schedule as it was.
        minimum_psnr_db: Of the worst of them.
        reused_rows: The rows that reuse features, from 0.
        unguided_rows: The rows that go without guidance.
        seconds_before: Of a whole clip of the schedule as it was, but for the text encoder, median.
        seconds_after: Of one of the plan, in turn with those.
        seconds_denoiser: Of a pass of the denoiser, median.
        seconds_shallow: Of a pass of what reuses features; 0 where there is none.
        guidance_timing: How long both ways of guidance take; None where that was not measured.
        guidance_passes: The bundle's default from now on.
        num_clips: Clips that were made, parts of clips included.
        seconds_total: That it took.
    """

    bundle: Path
    name: str
    scheduler: str
    num_inference_steps: int
    num_rows: int
    variant: str
    chose_variant: bool
    min_psnr_db: float
    num_samples: int
    median_psnr_db: float
    minimum_psnr_db: float
    reused_rows: tuple[int, ...]
    unguided_rows: tuple[int, ...]
    seconds_before: float
    seconds_after: float
    seconds_denoiser: float
    seconds_shallow: float
    guidance_timing: GuidanceTiming | None
    guidance_passes: GuidancePasses
    num_clips: float
    seconds_total: float


def tune_bundle(
    bundle: Bundle, options: TuningOptions | None = None, on_progress: OnProgress | None = None
) -> TuningReport:
    """Find a plan for a schedule of a bundle and add it as one more schedule.

    Args:
        bundle: It is whole or unchanged at any time.
        options: What to do; None takes the defaults.
        on_progress: Called as the work goes on, with what is being done, how much of it is done,
            and of how much; returns False to cancel.

    Raises:
        BundleError: A file of the bundle is damaged.
        CalibrationError: The prompts or images cannot be used.
        CancelledError: on_progress asked to stop.
        EngineError: A graph does not run.
        OutputError: The bundle cannot be written, or has a plan of this name.
        ParameterError: An option is not allowed.
        TuningError: The schedule cannot be tuned, or no change of it reaches the PSNR.
    """
    started, options = time.perf_counter(), options or TuningOptions()
    if not math.isfinite(options.min_psnr_db):
        raise ParameterError(f"min_psnr_db is {options.min_psnr_db}; it must be a number: use 30")
    schedule = find_schedule(
        bundle,
        options.scheduler,
        options.num_inference_steps,
        reuses_features=options.reuses_features,
        drops_guidance=options.drops_guidance,
    )
    check_variant(bundle, schedule, options.variant)
    name = choose_name(bundle, schedule, options.name, force=options.force)
    check_writable(bundle)
    samples = _make_samples(bundle, schedule, options)
    opened = PlanTrials(bundle, schedule, samples, options.engine, options.variant)
    with closing(opened) as trials:
        found = PlanFinder(trials, options.min_psnr_db, on_progress).find(
            check_guidance_passes(
                bundle.find_component(schedule.denoiser), bundle.manifest.defaults.guidance_passes
            ),
            times_guidance_passes=options.times_guidance_passes,
        )
    report = _make_report(bundle, options, name, found, trials, time.perf_counter() - started)
    provenance = _describe_plan(report, samples, options.seed)
    add_plan(bundle, schedule, found.plan, name, provenance, found.guidance_passes)
    return report


def _make_report(
    bundle: Bundle,
    options: TuningOptions,
    name: str,
    found: FoundPlan,
    trials: PlanTrials,
    seconds_total: float,
) -> TuningReport:
    schedule = trials.schedule
    record = bundle.find_component(schedule.denoiser)
    return TuningReport(
        bundle=bundle.path,
        name=name,
        scheduler=schedule.scheduler,
        num_inference_steps=schedule.table.num_inference_steps,
        num_rows=schedule.num_rows,
        variant=record.choose_variant(options.variant),
        chose_variant=options.variant is not None,
        min_psnr_db=options.min_psnr_db,
        num_samples=len(trials.samples),
        median_psnr_db=round(median(found.psnrs), 2),
        minimum_psnr_db=round(min(found.psnrs), 2),
        reused_rows=tuple(i for i, choice in enumerate(found.plan) if choice.reuses),
        unguided_rows=tuple(i for i, choice in enumerate(found.plan) if not choice.guided),
        seconds_before=found.seconds_before,
        seconds_after=found.seconds_after,
        seconds_denoiser=found.seconds_denoiser,
        seconds_shallow=found.seconds_shallow,
        guidance_timing=found.guidance_timing,
        guidance_passes=found.guidance_passes,
        num_clips=round(trials.num_clips, 1),
        seconds_total=seconds_total,
    )


def _make_samples(
    bundle: Bundle, schedule: TunedSchedule, options: TuningOptions
) -> tuple[CalibrationSample, ...]:
    """What clips are made of, all of them with guidance if the schedule takes it."""
    sampling = SamplingOptions(schedule.table.num_inference_steps, schedule.scheduler)
    prompts = load_prompts(bundle, options.prompts)
    samples = make_samples(
        bundle, prompts, options.images, options.num_samples, options.seed, sampling
    )
    scale = samples[0].guidance_scale
    return tuple(replace(sample, guidance_scale=scale) for sample in samples)


def _describe_plan(
    report: TuningReport, samples: tuple[CalibrationSample, ...], seed: int
) -> dict[str, Any]:
    """What the table says of the plan, for people."""
    identities = json.dumps([sample.identify() for sample in samples], sort_keys=True)
    names = (
        "scheduler",
        "variant",
        "min_psnr_db",
        "median_psnr_db",
        "minimum_psnr_db",
        "seconds_before",
        "seconds_after",
        "num_samples",
    )
    return {
        **{name: getattr(report, name) for name in names},
        "seed": seed,
        "samples_sha256": hashlib.sha256(identities.encode()).hexdigest(),
    }

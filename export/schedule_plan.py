"""Plan a bundle's schedules: which schedulers, at which step counts, for which denoiser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mutoscope.calibration.reuse_graphs import name_reuse
from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.defaults import DEFAULTS_NAME, FewStepSettings
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.few_step import FEW_STEP_UNET, FewStep
from mutoscope.export.presets import Preset
from mutoscope.export.scheduler_tables import (
    DEFAULT_STEP_COUNTS,
    PlannedSchedule,
    check_step_counts,
    make_scheduler,
    make_schedulers,
)
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import DefaultsRecord

FEW_STEP_SCHEDULE = "few-step"
# As `mutoscope tune` names its plans.
FEW_STEP_REUSE_SCHEDULE = "few-step-reuse"


def plan_schedules(
    checkpoint: Checkpoint,
    family: FamilyExport,
    *,
    schedulers: Iterable[str] = (),
    num_inference_steps: Iterable[int] | None = None,
    few_step_scheduler: str | None = None,
    few_step_counts: Iterable[int] | None = None,
    reuses_features: bool = True,
) -> tuple[dict[str, PlannedSchedule], DefaultsRecord]:
    """Return the schedules of a bundle by name, and the defaults of which they have a table.

    Args:
        checkpoint: The checkpoint.
        family: As its family reads it.
        schedulers: As for `export_checkpoint`, like all that follow.
        num_inference_steps: For all schedulers but that of the second denoiser.
        few_step_scheduler: For the second denoiser, where a LoRA makes it.
        few_step_counts: The same; the default is the largest.
        reuses_features: Whether the bundle has the shallow parts of its denoisers.

    Raises:
        CheckpointError: The checkpoint names a scheduler that is unknown or does not fit.
        ParameterError: The user names such a one, a step count is none, or there is no second
            denoiser that a LoRA makes.
    """
    step_counts = check_step_counts(
        default_step_counts(checkpoint.preset)
        if num_inference_steps is None
        else num_inference_steps
    )
    planned = {
        name: PlannedSchedule(scheduler, step_counts)
        for name, scheduler in make_schedulers(family.scheduler, schedulers).items()
    }
    defaults = fit_default_steps(family.defaults, step_counts)
    few_step = checkpoint.few_step
    for name, value in (
        ("few_step_scheduler", few_step_scheduler),
        ("few_step_counts", few_step_counts),
    ):
        if value is not None and (few_step is None or few_step.lora is None):
            raise ParameterError(f"{name} is given without few_step_lora: give both, or neither")
    if few_step is None:
        return planned, defaults
    settings = _choose_settings(few_step.settings, few_step_scheduler, few_step_counts)
    few_step_plan = _plan_few_step(family, few_step, settings, reuses_features=reuses_features)
    # First, as the first schedule that has a number of steps is what runs where none is named.
    return {**few_step_plan, **planned}, replace(
        defaults,
        scheduler=list(few_step_plan)[-1],
        num_inference_steps=settings.default_num_inference_steps,
    )


def _plan_few_step(
    family: FamilyExport, few_step: FewStep, settings: FewStepSettings, *, reuses_features: bool
) -> dict[str, PlannedSchedule]:
    """Return the schedules of the second denoiser by name; the last is to be the default."""
    whole = PlannedSchedule(
        _make_few_step_scheduler(few_step, family.scheduler, settings.scheduler),
        settings.num_inference_steps,
        denoiser=FEW_STEP_UNET,
        guidance=False,
    )
    planned = {FEW_STEP_SCHEDULE: whole}
    if reuses_features and settings.reused_rows:
        planned[FEW_STEP_REUSE_SCHEDULE] = replace(
            whole,
            step_counts=(settings.default_num_inference_steps,),
            reused_rows=settings.reused_rows,
            reused=name_reuse(FEW_STEP_UNET),
        )
    return planned


def default_step_counts(preset: Preset | None) -> tuple[int, ...]:
    """Return the step counts of a bundle where the caller says nothing."""
    return DEFAULT_STEP_COUNTS if preset is None else preset.step_counts


def fit_default_steps(defaults: DefaultsRecord, step_counts: Sequence[int]) -> DefaultsRecord:
    """Return defaults whose number of steps is one that the bundle has: the nearest."""
    wanted = defaults.num_inference_steps
    nearest = min(step_counts, key=lambda count: (abs(count - wanted), count))
    return replace(defaults, num_inference_steps=nearest)


def _choose_settings(
    settings: FewStepSettings, scheduler: str | None, step_counts: Iterable[int] | None
) -> FewStepSettings:
    """Return settings with what the user says in their place."""
    if scheduler is not None:
        settings = replace(settings, scheduler=scheduler)
    if step_counts is not None:
        counts = check_step_counts(step_counts)
        settings = replace(
            settings, num_inference_steps=counts, default_num_inference_steps=counts[-1]
        )
    return settings


def _make_few_step_scheduler(few_step: FewStep, own: Any, name: str) -> Any:
    """Return the scheduler of a name, with the configuration of the checkpoint's own."""
    try:
        return make_scheduler(own, name)[1]
    except ParameterError as err:
        if few_step.lora is not None:  # the user chose it
            raise
        raise CheckpointError(f"{DEFAULTS_NAME}: few_step: {err}") from err

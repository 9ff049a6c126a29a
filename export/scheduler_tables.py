"""Choose the schedulers of a bundle and write their schedule tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers

from mutoscope.export.library_noise import quiet_libraries
from mutoscope.export.schedule import trace_schedule
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.schedule import ScheduleTable

KARRAS = {"use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
# The names that people use for solvers: class in diffusers, and settings that make it that solver.
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", KARRAS),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", SDE),
    "dpm++2m-sde-karras": ("DPMSolverMultistepScheduler", SDE | KARRAS),
    "dpm++2s": ("DPMSolverSinglestepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", KARRAS),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
# diffusers does not list these among the compatible ones, though they take the same configuration.
ALSO_COMPATIBLE = ("LCMScheduler", "TCDScheduler")
# Settings that say what the model was trained to predict, and under which noise. A scheduler that
# ignores one of them would run, and make a worse video without a word.
DEFINING_SETTINGS = {
    "prediction_type": "epsilon",
    "timestep_type": "discrete",
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
    "beta_schedule": None,
    "beta_start": None,
    "beta_end": None,
    "num_train_timesteps": None,
}
DEFAULT_STEP_COUNTS = tuple(range(1, 51))


@dataclass(frozen=True)
class PlannedSchedule:
    """The tables that a bundle is to have of one scheduler.

    Attributes:
        scheduler: Of diffusers.
        step_counts: A table for each.
        denoiser: The component that runs all rows; None for the bundle's first denoiser.
        guidance: Whether guidance may work in them.
        reused_rows: The rows, from 0, that `reused` runs.
        reused: The shallow part of the denoiser.
    """

    scheduler: Any
    step_counts: tuple[int, ...]
    denoiser: str | None = None
    guidance: bool = True
    reused_rows: tuple[int, ...] = ()
    reused: str | None = None


def make_schedulers(own: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return the schedulers by their short names, the checkpoint's own first.

    Args:
        own: The checkpoint's scheduler.
        names: Others to add, by class name or alias; made from the configuration of `own`.

    Raises:
        ParameterError: A name is unknown, or the scheduler does not fit the checkpoint.
    """
    schedulers = {name_scheduler(type(own).__name__): own}
    for given in names:
        name, scheduler = make_scheduler(own, given)
        schedulers.setdefault(name, scheduler)
    return schedulers


def make_scheduler(own: Any, given: str) -> tuple[str, Any]:
    """Return a scheduler with the configuration of another, and its short name.

    Args:
        own: The checkpoint's scheduler.
        given: A class name of diffusers or an alias.

    Raises:
        ParameterError: The name is unknown, or the scheduler does not fit the checkpoint.
    """
    class_name, settings = ALIASES.get(given.lower(), (given, {}))
    name = given.lower() if given.lower() in ALIASES else name_scheduler(class_name)
    scheduler_class = getattr(diffusers, class_name, None)
    if scheduler_class is None or not class_name.endswith("Scheduler"):
        raise ParameterError(
            f"scheduler {given!r} is unknown: use a class name of diffusers or one of "
            f"{', '.join(ALIASES)}"
        )
    _check_compatible(own, scheduler_class)
    overrides = {**_make_overrides(own, scheduler_class), **settings}
    with quiet_libraries():
        return name, scheduler_class.from_config(own.config, **overrides)


def write_schedule_tables(
    planned: Mapping[str, PlannedSchedule], bundle: Path
) -> dict[str, dict[str, str]]:
    """Trace every scheduler at each of its step counts; return the manifest's `schedules`.

    Raises:
        ScheduleError: A scheduler is not linear, or cannot run this number of steps.
    """
    (bundle / "schedules").mkdir(parents=True, exist_ok=True)
    schedules: dict[str, dict[str, str]] = {}
    for name, schedule in planned.items():
        tables = schedules.setdefault(name, {})
        for count in schedule.step_counts:
            tables[str(count)] = f"schedules/{name}_{count}.json"
            _make_table(schedule, count).save(bundle / tables[str(count)])
    return schedules


def _make_table(schedule: PlannedSchedule, step_count: int) -> ScheduleTable:
    scheduler = schedule.scheduler
    with quiet_libraries():
        table = trace_schedule(scheduler, step_count, step_kwargs=_make_step_kwargs(scheduler))
    rows = tuple(
        replace(
            row,
            guidance=schedule.guidance,
            denoiser=schedule.reused if index in schedule.reused_rows else row.denoiser,
        )
        for index, row in enumerate(table.rows)
    )
    return replace(table, denoiser=schedule.denoiser, rows=rows)


def name_scheduler(class_name: str) -> str:
    """Return the short name of a scheduler: its plain alias, or words made of its class name.

    "ddim" for "DDIMScheduler", "edm-euler" for "EDMEulerScheduler".
    """
    for alias, (known, settings) in ALIASES.items():
        if known == class_name and not settings:
            return alias
    words = re.findall(r"[A-Z]+\d*(?![a-z])|[A-Z][a-z]*\d*", class_name.removesuffix("Scheduler"))
    return "-".join(words).lower()


def check_step_counts(step_counts: Iterable[int]) -> tuple[int, ...]:
    """Return the counts in order, each once; raises `ParameterError` for one that is no count."""
    counts = sorted(set(step_counts))
    if not counts:
        raise ParameterError("num_inference_steps is empty: give at least one count, such as 25")
    for count in (counts[0], counts[-1]):
        if not 1 <= count <= 1000:
            raise ParameterError(
                f"num_inference_steps is {count}; it must be from 1 to 1000: use 25"
            )
    return tuple(counts)


def _make_overrides(own: Any, scheduler_class: Any) -> dict[str, Any]:
    """Return settings that the new scheduler has and `own` has not, where the default is wrong.

    diffusers clips by default in DDIM and DDPM, for models of pixels; one whose own scheduler knows
    no clipping was never meant to be clipped.
    """
    parameters = inspect.signature(scheduler_class.__init__).parameters
    if "clip_sample" in parameters and "clip_sample" not in own.config:
        return {"clip_sample": False}
    return {}


def _check_compatible(own: Any, scheduler_class: Any) -> None:
    """Raise `ParameterError` if the class would misread the configuration of `own`."""
    own_name, name = type(own).__name__, scheduler_class.__name__
    if "dummy" in scheduler_class.__module__:  # a stand-in for what needs another package
        packages = ", ".join(scheduler_class._backends)
        raise ParameterError(f"scheduler {name} needs {packages}: pip install {packages}")
    with quiet_libraries():
        compatible = {found.__name__ for found in own.compatibles}
    if name not in compatible and name not in ALSO_COMPATIBLE:
        raise ParameterError(
            f"scheduler {name} does not fit a checkpoint with {own_name}: use one of "
            f"{', '.join(sorted(compatible))}"
        )
    understood = inspect.signature(scheduler_class.__init__).parameters
    for setting, usual in DEFINING_SETTINGS.items():
        value = own.config.get(setting, usual)
        if setting not in understood and value != usual:
            raise ParameterError(
                f"scheduler {name} has no setting {setting}, which is {value!r} in the "
                f"checkpoint's {own_name}: use another scheduler"
            )


def _make_step_kwargs(scheduler: Any) -> dict[str, float]:
    """Return what the pipelines of diffusers pass to every step: no added noise, where asked."""
    return {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}

"""Which schedule table a generation runs, of those that the bundle has."""

from __future__ import annotations

import math

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.row_plan import find_denoiser

# The most steps that are taken where the caller names a scheduler and no number of steps.
USUAL_NUM_INFERENCE_STEPS = 25


def choose_schedule(
    bundle: Bundle, scheduler: str | None, num_inference_steps: int | None
) -> tuple[str, int]:
    """Return the scheduler, by its name in the manifest, and the number of steps.

    Without a scheduler it is the default one, or, where that has no table of these steps, the first
    of the manifest that has; where none has, the error names the one that comes nearest. Without a
    number of steps it is the default one. That is meant for the denoiser which the bundle's default
    schedule runs: a scheduler that was asked for, and has no table of these steps which runs the
    same, takes the most that it has up to 25, else its fewest.

    Args:
        bundle: The bundle.
        scheduler: A name that `Bundle.find_scheduler` knows; None if the caller does not care.
        num_inference_steps: None if the caller does not care.

    Raises:
        BundleError: A file that had to be read for it is damaged.
        ParameterError: There is no such table; the message names one.
        ScheduleError: What is in such a file is not a valid table.
    """
    if scheduler is None:
        if num_inference_steps is None:
            num_inference_steps = bundle.manifest.defaults.num_inference_steps
        name = _choose_scheduler(bundle, num_inference_steps)
    else:
        name = bundle.find_scheduler(scheduler)
        if num_inference_steps is None:
            num_inference_steps = _choose_steps(bundle, name)
    bundle.find_schedule(name, num_inference_steps)
    return name, num_inference_steps


def _choose_scheduler(bundle: Bundle, num_inference_steps: int) -> str:
    """The first scheduler, after the default one, whose tables come nearest to these steps."""
    schedules = bundle.manifest.schedules
    distances = {
        name: min((abs(int(count) - num_inference_steps) for count in tables), default=math.inf)
        for name, tables in schedules.items()
    }
    return min((bundle.manifest.defaults.scheduler, *schedules), key=distances.__getitem__)


def _choose_steps(bundle: Bundle, scheduler: str) -> int:
    """The number of steps of a scheduler that was asked for without one."""
    default = bundle.manifest.defaults.num_inference_steps
    counts = [int(count) for count in bundle.manifest.schedules[scheduler]]
    usual = [count for count in counts if count <= USUAL_NUM_INFERENCE_STEPS]
    most = max(usual, default=min(counts, default=default))
    if default in counts and default != most and _runs_default_denoiser(bundle, scheduler, default):
        return default
    return most


def _runs_default_denoiser(bundle: Bundle, scheduler: str, num_inference_steps: int) -> bool:
    """Whether a scheduler's table of the default steps has the denoiser of the default schedule."""
    default = _choose_scheduler(bundle, num_inference_steps)
    if scheduler == default:
        return True
    asked, other = (
        find_denoiser(bundle.manifest, bundle.load_schedule(name, num_inference_steps))
        for name in (scheduler, default)
    )
    return asked == other

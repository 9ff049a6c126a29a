"""Which schedule table a generation runs, of those that the bundle has."""

from __future__ import annotations

from mutoscope.runtime.bundle import Bundle

# The most steps that are taken where the caller names a scheduler and no number of steps.
USUAL_NUM_INFERENCE_STEPS = 25


def choose_schedule(
    bundle: Bundle, scheduler: str | None, num_inference_steps: int | None
) -> tuple[str, int]:
    """Return the scheduler, by its name in the manifest, and the number of steps.

    Without a scheduler it is the default one, or, where that has no table of these steps, the first
    of the manifest that has. Without a number of steps it is the default one, or, where the
    scheduler that was asked for has no such table, the most that it has up to 25, else its fewest.

    Args:
        bundle: The bundle.
        scheduler: A name that `Bundle.find_scheduler` knows; None if the caller does not care.
        num_inference_steps: None if the caller does not care.

    Raises:
        ParameterError: There is no such table; the message names one.
    """
    schedules, defaults = bundle.manifest.schedules, bundle.manifest.defaults
    if scheduler is not None:
        name = bundle.find_scheduler(scheduler)
        if num_inference_steps is None:
            num_inference_steps = _choose_steps(
                [int(count) for count in schedules[name]], defaults.num_inference_steps
            )
    else:
        if num_inference_steps is None:
            num_inference_steps = defaults.num_inference_steps
        names = (defaults.scheduler, *schedules)
        having = (name for name in names if str(num_inference_steps) in schedules[name])
        name = next(having, defaults.scheduler)
    bundle.find_schedule(name, num_inference_steps)
    return name, num_inference_steps


def _choose_steps(counts: list[int], default: int) -> int:
    """The number of steps of a scheduler that has these tables."""
    if default in counts:
        return default
    usual = [count for count in counts if count <= USUAL_NUM_INFERENCE_STEPS]
    return max(usual, default=min(counts))

"""Which schedule samples are made with, where no scheduler is named."""

from __future__ import annotations

from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.schedule_choice import choose_schedule


def find_whole_scheduler(bundle: Bundle, num_inference_steps: int | None) -> str | None:
    """Return the scheduler to sample with where none is named; None leaves it to the bundle.

    Where rows of the bundle's choice reuse features, it is the first that runs the same denoiser
    whole in all rows, so that nothing of it goes unseen.

    Args:
        bundle: The bundle.
        num_inference_steps: What was asked for.

    Raises:
        BundleError: A table is damaged.
        ParameterError: There is no such table.
    """
    name, steps = choose_schedule(bundle, None, num_inference_steps)
    table = bundle.load_schedule(name, steps)
    if not table.mixes_denoisers:
        return None
    for other, tables in bundle.manifest.schedules.items():
        if str(steps) in tables:
            found = bundle.load_schedule(other, steps)
            if found.denoiser == table.denoiser and not found.mixes_denoisers:
                return other
    return None

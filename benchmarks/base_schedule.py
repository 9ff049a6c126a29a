"""The schedule that the benchmarks of the whole model run, where a bundle has few-step ones too."""

from __future__ import annotations

from mutoscope.runtime.bundle import Bundle


def find_base_scheduler(bundle: Bundle) -> str:
    """Return the scheduler of the checkpoint itself, which every export writes first."""
    return next(iter(bundle.manifest.schedules))

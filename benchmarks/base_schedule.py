"""The schedule that the benchmarks of the whole model run, where a bundle has few-step ones too."""

from __future__ import annotations

from mutoscope.runtime.bundle import Bundle


def find_base_scheduler(bundle: Bundle) -> str:
    """Return the scheduler of the checkpoint itself: the first that names no other denoiser."""
    for name, tables in bundle.manifest.schedules.items():
        if bundle.load_schedule(name, int(next(iter(tables)))).denoiser is None:
            return name
    raise ValueError(f"{bundle.path} has no schedule for its first denoiser: export it again")

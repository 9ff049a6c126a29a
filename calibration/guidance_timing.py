"""Which way of guidance is faster here: two passes of the denoiser, or one batch of both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from mutoscope.engines.engine import Engine, Tensors
from mutoscope.runtime.benchmarks.memory import PeakMemory, watch_memory
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.guidance import GuidancePasses, make_batch
from mutoscope.runtime.manifest import ComponentRecord

# By how much a batch must be faster, since it takes more memory and timings vary.
WORTHWHILE = 1.05
_NUM_ROUNDS = 5


@dataclass(frozen=True)
class GuidanceTiming:
    """How long both ways take for one row.

    Attributes:
        seconds_separate: Of two passes, one after the other.
        seconds_batched: Of one batch.
        extra_bytes: By how much the batch raised the memory of the process; None where that is not
            measured.
    """

    seconds_separate: float
    seconds_batched: float
    extra_bytes: int | None

    @property
    def faster(self) -> GuidancePasses:
        """The way to take: "batched" if it is faster by more than 5 %."""
        is_faster = self.seconds_separate > WORTHWHILE * self.seconds_batched
        return "batched" if is_faster else "separate"


def time_guidance_passes(
    engine: Engine,
    record: ComponentRecord,
    feeds: list[Tensors],
    on_round: Callable[[int, int], None],
) -> GuidanceTiming | None:
    """Return how long both ways take, medians of runs in turn; None if there is but one way.

    Args:
        engine: The denoiser.
        record: It in the manifest.
        feeds: What it gets in each pass of a row.
        on_round: Called with the number of rounds that are done, and of all.

    Raises:
        EngineError: The denoiser does not run.
    """
    if len(feeds) != 2:
        return None
    try:
        batch = make_batch(record, *feeds)
    except ParameterError:  # the denoiser, or these conditions, allow none
        return None
    ways = {"separate": feeds, "batched": [batch]}
    # An engine keeps the memory of its largest run, so that only the first ones tell them apart.
    peaks = [_measure_peak(engine, runs) for runs in ways.values()]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for done in range(_NUM_ROUNDS):
        on_round(done, _NUM_ROUNDS)
        for way, runs in ways.items():
            started = time.perf_counter()
            for run in runs:
                engine.run(run)
            seconds[way].append(time.perf_counter() - started)
    on_round(_NUM_ROUNDS, _NUM_ROUNDS)
    separate, batched = peaks
    extra = None if separate is None or batched is None else max(0, batched - separate)
    return GuidanceTiming(median(seconds["separate"]), median(seconds["batched"]), extra)


def _measure_peak(engine: Engine, runs: list[Tensors]) -> int | None:
    """The most memory that the process has of its own while an engine runs, in bytes."""
    peak = PeakMemory()
    with watch_memory(os.getpid(), peak):
        for run in runs:
            engine.run(run)
    return peak.peak_anonymous_bytes

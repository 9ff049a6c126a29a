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

# By how much a batch must be faster, since timings vary, and how much more memory the process may
# have for it: both passes at once are to pay on machines with little of it too.
WORTHWHILE, MOST_MEMORY = 1.05, 1.25
_NUM_ROUNDS = 5


@dataclass(frozen=True)
class GuidanceTiming:
    """How long both ways take for one row.

    Attributes:
        seconds_separate: Of two passes, one after the other.
        seconds_batched: Of one batch.
        peak_separate_bytes: The most memory of the process in two passes; None where that is not
            measured, as for `peak_batched_bytes`.
        peak_batched_bytes: The most in one batch.
    """

    seconds_separate: float
    seconds_batched: float
    peak_separate_bytes: int | None = None
    peak_batched_bytes: int | None = None

    @property
    def extra_bytes(self) -> int | None:
        """By how much the batch raised the memory; None where that is not measured."""
        if self.peak_separate_bytes is None or self.peak_batched_bytes is None:
            return None
        return max(0, self.peak_batched_bytes - self.peak_separate_bytes)

    @property
    def is_faster(self) -> bool:
        """Whether the batch is faster by more than 5 %."""
        return self.seconds_separate > WORTHWHILE * self.seconds_batched

    @property
    def is_large(self) -> bool:
        """Whether the batch raised the memory by more than a quarter."""
        if self.peak_separate_bytes is None or self.peak_batched_bytes is None:
            return False
        return self.peak_batched_bytes > MOST_MEMORY * self.peak_separate_bytes

    @property
    def better(self) -> GuidancePasses:
        """The way to take: "batched" if it is faster and not large."""
        return "batched" if self.is_faster and not self.is_large else "separate"


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
    return GuidanceTiming(median(seconds["separate"]), median(seconds["batched"]), *peaks)


def _measure_peak(engine: Engine, runs: list[Tensors]) -> int | None:
    """The most memory that the process has of its own while an engine runs, in bytes."""
    peak = PeakMemory()
    with watch_memory(os.getpid(), peak):
        for run in runs:
            engine.run(run)
    return peak.peak_anonymous_bytes

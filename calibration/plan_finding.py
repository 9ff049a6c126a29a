"""The steps of a tuning: clips of the schedule, single rows, plans, and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from mutoscope.calibration.errors import TuningError
from mutoscope.calibration.guidance_timing import GuidanceTiming, time_guidance_passes
from mutoscope.calibration.plan_costs import RowWeights, choose_probe, make_costs, measure_passes
from mutoscope.calibration.plan_search import Plan, PlanCosts, find_cheapest
from mutoscope.calibration.plan_trials import OnRow, PlanTrials
from mutoscope.runtime.errors import CancelledError
from mutoscope.runtime.guidance import GuidancePasses
from mutoscope.runtime.sampler import StepInfo

# What is being done, how much of it is done, of how much. False cancels.
OnProgress: TypeAlias = Callable[[str, int, int], "bool | None"]

# How many rows old reused features may be: older ones would save a few percent more.
MAX_AGE = 4
# Rows that are changed alone.
NUM_PROBES = 8
# Changes of single rows that are tried after the bisection.
NUM_REPAIRS = 6
# Clips of the schedule and of the plan, in turn; the medians count.
NUM_TIMED = 3


@dataclass(frozen=True)
class FoundPlan:
    """A plan that holds.

    Attributes:
        plan: It.
        psnrs: Of the frames of each sample against the unchanged schedule, with `guidance_passes`.
        guidance_timing: How long both ways of guidance take; None where that was not measured.
        guidance_passes: How rows with guidance are to run.
        seconds_before: Of a whole clip of the unchanged schedule, median.
        seconds_after: Of one of the plan, in turn with those.
        seconds_denoiser: Of a pass of the denoiser, median.
        seconds_shallow: Of a pass of what reuses features; 0 where there is none.
    """

    plan: Plan
    psnrs: tuple[float, ...]
    guidance_timing: GuidanceTiming | None
    guidance_passes: GuidancePasses
    seconds_before: float
    seconds_after: float
    seconds_denoiser: float
    seconds_shallow: float


class PlanFinder:
    """Finds the plan of a schedule, and says what it gains."""

    def __init__(
        self, trials: PlanTrials, min_psnr_db: float, on_progress: OnProgress | None
    ) -> None:
        """Prepare; nothing is run yet.

        Args:
            trials: What makes the clips.
            min_psnr_db: What the frames of the median clip must reach.
            on_progress: Told how the work goes on; returns False to cancel.
        """
        self._trials, self._min_psnr_db = trials, min_psnr_db
        self._on_progress = on_progress
        # Of each plan that was tried, the PSNR of each sample.
        self._psnrs: dict[Plan, tuple[float, ...]] = {}

    def find(
        self, guidance_passes: GuidancePasses, *, times_guidance_passes: bool = False
    ) -> FoundPlan:
        """Return the cheapest plan that holds, as far as it was found.

        Args:
            guidance_passes: How rows with guidance run now.
            times_guidance_passes: Whether to measure how they are to run, where there are two ways.

        Raises:
            CancelledError: on_progress asked to stop.
            EngineError: A graph cannot be run.
            TuningError: There is none that changes anything, or the latents are not finite.
        """
        self._make_clips()
        timing = self._time_guidance() if times_guidance_passes else None
        plan = self._search()
        wanted = guidance_passes if timing is None else timing.better
        psnrs = self._psnrs[plan] if wanted == "separate" else self._judge(plan, wanted)
        if median(psnrs) < self._min_psnr_db:
            if timing is None:
                raise TuningError(
                    f"a plan for {self._trials.schedule.scheduler} has {median(psnrs):.1f} dB with "
                    f"guidance_passes {wanted!r}, which is this bundle's default, and "
                    f"{median(self._psnrs[plan]):.1f} dB without: leave --no-guidance-passes out"
                )
            wanted, psnrs = "separate", self._psnrs[plan]
        before, after = self._time_clips(plan, wanted)
        records = [clip.rows for clip in self._trials.unchanged.values()]
        return FoundPlan(plan, psnrs, timing, wanted, before, after, *measure_passes(records))

    def _make_clips(self) -> None:
        """Make the clips of the schedule as it is."""
        count = len(self._trials.samples)
        for index in range(count):
            on_row = self._follow(f"clips of {self._trials.schedule.scheduler}", index, count)
            self._trials.make_unchanged(index, MAX_AGE, on_row)

    def _time_guidance(self) -> GuidanceTiming | None:
        """How long both ways of guidance take; None if there is but one."""

        def on_round(done: int, total: int) -> None:
            if self._tell("timing guidance", done, total) is False:
                raise CancelledError("cancelled while guidance was timed")

        name = self._trials.schedule.denoiser
        feeds = next(iter(self._trials.unchanged.values())).rows.feeds
        return time_guidance_passes(
            self._trials.engines[name], self._trials.find_record(name), feeds, on_round
        )

    def _search(self) -> Plan:
        """The cheapest plan that holds with separate passes, whose errors are known."""
        schedule = self._trials.schedule
        costs = self._measure_costs()
        frontier = costs.list_frontier()
        most = len(frontier).bit_length() + NUM_REPAIRS

        def holds(plan: Plan) -> bool:
            return median(self._try_plan(plan, most)) >= self._min_psnr_db

        plan = find_cheapest(costs, frontier, holds, num_repairs=NUM_REPAIRS)
        total = most * len(self._trials.samples) * schedule.num_rows
        self._tell("trying plans", total, total)
        if plan == schedule.unchanged:
            best = max(map(median, self._psnrs.values()), default=None)
            tried = "" if best is None else f" (the best plan that was tried has {best:.1f} dB)"
            raise TuningError(
                f"no row of {schedule.scheduler} can be changed at {self._min_psnr_db:g} dB"
                f"{tried}: ask for less with --min-psnr-db"
            )
        return plan

    def _judge(self, plan: Plan, guidance_passes: GuidancePasses) -> tuple[float, ...]:
        """The PSNR of each sample as a generation with this default makes it."""
        count, label = len(self._trials.samples), f"the plan in {guidance_passes} passes"
        return tuple(
            self._trials.make_whole_clip(
                index, plan, guidance_passes, self._follow(label, index, count)
            ).psnr_db
            for index in range(count)
        )

    def _time_clips(self, plan: Plan, guidance_passes: GuidancePasses) -> tuple[float, float]:
        """The seconds of a whole clip before and after, medians of clips in turn."""
        plans = (self._trials.schedule.unchanged, plan)
        seconds: list[list[float]] = [[] for _ in plans]
        for count in range(NUM_TIMED * len(plans)):
            index = count % len(plans)
            on_row = self._follow("timing clips", count, NUM_TIMED * len(plans))
            clip = self._trials.make_whole_clip(0, plans[index], guidance_passes, on_row)
            seconds[index].append(clip.seconds)
        before, after = map(median, seconds)
        return before, after

    def _measure_costs(self) -> PlanCosts:
        """What the search is told, after a few rows were changed alone."""
        schedule, num_samples = self._trials.schedule, len(self._trials.samples)
        weights = RowWeights(schedule.table)
        last, most = schedule.num_rows - 1, min(NUM_PROBES, schedule.num_rows)
        for count in range(most):
            row, index = round(count * last / max(most - 1, 1)), count % num_samples
            errors = self._trials.unchanged[index].rows.errors[row]
            probe = choose_probe(errors, schedule, row)
            if probe is not None:
                plan, error = probe
                on_row = self._follow("changing single rows", count, most)
                weights.add(row, error, self._trials.measure(index, plan, on_row).latents_error)
        records = [clip.rows for clip in self._trials.unchanged.values()]
        return make_costs(records, weights.compute(), drops_guidance=schedule.drops_guidance)

    def _try_plan(self, plan: Plan, most: int) -> tuple[float, ...]:
        """The PSNR of each sample."""
        samples = len(self._trials.samples)
        if plan not in self._psnrs:
            done = len(self._psnrs) * samples
            self._psnrs[plan] = tuple(
                self._trials.measure(
                    index, plan, self._follow("trying plans", done + index, most * samples)
                ).psnr_db
                for index in range(samples)
            )
        return self._psnrs[plan]

    def _tell(self, label: str, done: int, total: int) -> bool | None:
        return None if self._on_progress is None else self._on_progress(label, done, total)

    def _follow(self, label: str, clip: int, num_clips: int) -> OnRow:
        """What tells of the rows of a clip, which is one of several, from 0."""

        def on_row(info: StepInfo) -> bool | None:
            done = clip * info.num_steps + info.step_index + 1
            return self._tell(label, done, num_clips * info.num_steps)

        return on_row

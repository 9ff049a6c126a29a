"""Clips of a schedule as it is, clips of plans for it, and how far they are apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from mutoscope.calibration.errors import TuningError
from mutoscope.calibration.plan_search import UNCHANGED, Plan
from mutoscope.calibration.reference_clips import U8
from mutoscope.calibration.row_recording import (
    RecordingDenoiser,
    ReplayingDenoiser,
    RowRecord,
    ShallowDenoiser,
)
from mutoscope.calibration.samples import CalibrationSample
from mutoscope.engines.engine import Engine
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.guidance import GuidancePasses
from mutoscope.runtime.manifest import ComponentRecord
from mutoscope.runtime.metrics import psnr_db
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.sampler import F32, OnStep, StepInfo
from mutoscope.runtime.schedule import ScheduleTable
from mutoscope.runtime.settings import Settings, make_settings
from mutoscope.runtime.video import Video

# Told of each row that is done; returns False to cancel.
OnRow: TypeAlias = Callable[[StepInfo], "bool | None"]


@dataclass(frozen=True)
class TunedSchedule:
    """A schedule, and what may be changed in it.

    Attributes:
        scheduler: Its name in the bundle.
        table: As it is.
        denoiser: The component that runs it.
        shallow: The component that takes features of the denoiser; None if no row may reuse any.
        drops_guidance: Whether rows may go without guidance.
    """

    scheduler: str
    table: ScheduleTable
    denoiser: str
    shallow: str | None
    drops_guidance: bool

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return len(self.table.rows)

    @property
    def unchanged(self) -> Plan:
        """The plan that changes nothing."""
        return (UNCHANGED,) * self.num_rows

    def apply(self, plan: Plan) -> ScheduleTable:
        """Return the table with a plan in its rows."""
        rows = (
            replace(
                row,
                denoiser=self.shallow if choice.reuses else row.denoiser,
                guidance=row.guidance and choice.guided,
            )
            for row, choice in zip(self.table.rows, plan, strict=True)
        )
        return replace(self.table, rows=tuple(rows))


@dataclass(frozen=True)
class UnchangedClip:
    """A clip of the schedule as it is, and what was seen of its rows."""

    frames: U8 = field(repr=False)
    latents: F32 = field(repr=False)
    rows: RowRecord = field(repr=False)


@dataclass(frozen=True)
class ClipDistance:
    """How far the clip of a plan is from the unchanged one.

    Attributes:
        psnr_db: Of the frames.
        latents_error: Of the clean latents (L2).
    """

    psnr_db: float
    latents_error: float


@dataclass(frozen=True)
class WholeClip:
    """A clip of a plan, of which no row was replayed.

    Attributes:
        seconds: From the prompt to the frames. What the text encoder made of the prompt is kept
            from the clips before.
        psnr_db: Of the frames, against those of the unchanged clip.
    """

    seconds: float
    psnr_db: float


@dataclass(frozen=True)
class _TrialBundle(Bundle):
    """A bundle in which a table may be another one: that which is being tried."""

    tried: dict[str, ScheduleTable] = field(default_factory=dict)

    def load_schedule(self, scheduler: str, num_inference_steps: int) -> ScheduleTable:
        """Return the table that is being tried, else that of the bundle."""
        table = self.tried.get(self.find_schedule(scheduler, num_inference_steps))
        return table or super().load_schedule(scheduler, num_inference_steps)


class PlanTrials:
    """Makes clips of one schedule and of plans for it.

        with closing(PlanTrials(bundle, schedule, samples, EngineOptions(), None)) as trials:
            trials.make_unchanged(0, max_age=4)
            trials.measure(0, plan).psnr_db

    The denoisers are loaded once, and rows before the first that a plan changes are not run again.
    """

    def __init__(
        self,
        bundle: Bundle,
        schedule: TunedSchedule,
        samples: Sequence[CalibrationSample],
        options: EngineOptions,
        variant: str | None,
    ) -> None:
        """Load the denoisers; nothing is run yet. Raises as `VideoPipeline.generate` does."""
        self.schedule, self.samples = schedule, tuple(samples)
        self.unchanged: dict[int, UnchangedClip] = {}
        self.num_clips = 0.0
        tried = _TrialBundle(bundle.path, bundle.manifest)
        self._tables, self._bundle = tried.tried, tried
        with ExitStack() as stack:
            self._pipeline = stack.enter_context(
                VideoPipeline(
                    tried, engine=options.engine, num_threads=options.num_threads, variant=variant
                )
            )
            self.engines = {
                name: stack.enter_context(closing(_open(bundle, name, options, variant)))
                for name in (schedule.denoiser, schedule.shallow)
                if name is not None
            }
            for name, engine in self.engines.items():
                self._pipeline.replace_engine(name, ForwardingEngine(engine))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Free the model."""
        self._stack.close()

    @property
    def _denoiser(self) -> Engine:
        return self.engines[self.schedule.denoiser]

    def make_unchanged(self, index: int, max_age: int, on_row: OnRow | None = None) -> None:
        """Make a clip of the schedule as it is, and try beside each row what plans would do there.

        Args:
            index: Of the sample.
            max_age: How many rows old reused features may be.
            on_row: Called after each row.

        Raises:
            CancelledError: on_row asked to stop.
            EngineError: A graph cannot be run.
            TuningError: The latents are not finite.
        """
        sample = self.samples[index]
        guidance = self.make_settings(sample).frame_guidance
        recorder = RecordingDenoiser(self._denoiser, self._make_shallow(), max_age)

        def end_row(info: StepInfo) -> bool | None:
            recorder.end_row(guidance)
            return None if on_row is None else on_row(info)

        self._pipeline.replace_engine(self.schedule.denoiser, recorder)
        video = self._generate(sample, self.schedule.table, on_step=end_row)
        latents = _read_latents(video)
        if not np.isfinite(latents).all():
            raise TuningError(
                "the latents are NaN or infinite: a plan can only be found where the model works; "
                f"try other prompts, or verify the bundle (sample {sample.describe()})"
            )
        self.num_clips += 1
        self.unchanged[index] = UnchangedClip(video.frames, latents, recorder.record)

    def measure(self, index: int, plan: Plan, on_row: OnRow | None = None) -> ClipDistance:
        """Make the clip of a plan and compare it with the unchanged one.

        Args:
            index: Of the sample.
            plan: For the rows of the schedule.
            on_row: Called after each row.

        Raises:
            CancelledError: on_row asked to stop.
            EngineError: A graph cannot be run.
        """
        unchanged, num_rows = self.unchanged[index], self.schedule.num_rows
        first = next((row for row, choice in enumerate(plan) if choice != UNCHANGED), num_rows)
        # Features that the first changed row reuses are made by the one before it.
        num_replayed = first - 1 if first < num_rows and plan[first].reuses else first
        replayer = ReplayingDenoiser(self._denoiser, unchanged.rows, num_replayed)

        def end_row(info: StepInfo) -> bool | None:
            replayer.end_row()
            return None if on_row is None else on_row(info)

        self._pipeline.replace_engine(self.schedule.denoiser, replayer)
        video = self._generate(self.samples[index], self.schedule.apply(plan), on_step=end_row)
        self.num_clips += 1 - num_replayed / num_rows
        error = np.linalg.norm(_read_latents(video).astype(np.float64) - unchanged.latents)
        return ClipDistance(psnr_db(unchanged.frames, video.frames), float(error))

    def make_whole_clip(
        self,
        index: int,
        plan: Plan,
        guidance_passes: GuidancePasses,
        on_row: OnRow | None = None,
    ) -> WholeClip:
        """Make the clip of a plan as a generation makes it, after make_unchanged.

        Args:
            index: Of the sample.
            plan: For the rows of the schedule.
            guidance_passes: How rows with guidance run.
            on_row: Called after each row.

        Raises:
            CancelledError: on_row asked to stop.
            EngineError: A graph cannot be run.
        """
        self._pipeline.replace_engine(self.schedule.denoiser, ForwardingEngine(self._denoiser))
        table, sample = self.schedule.apply(plan), self.samples[index]
        started = time.perf_counter()
        video = self._generate(sample, table, guidance_passes=guidance_passes, on_step=on_row)
        seconds = time.perf_counter() - started
        self.num_clips += 1
        return WholeClip(seconds, psnr_db(self.unchanged[index].frames, video.frames))

    def make_settings(self, sample: CalibrationSample) -> Settings:
        """Return the settings of a sample's clips."""
        return make_settings(self._bundle, **self._make_arguments(sample, self.schedule.table))

    def find_record(self, name: str) -> ComponentRecord:
        """Return a component of the bundle as the manifest has it."""
        return self._bundle.find_component(name)

    def _make_arguments(self, sample: CalibrationSample, table: ScheduleTable) -> dict[str, Any]:
        return {
            "scheduler": self.schedule.scheduler,
            "num_inference_steps": table.num_inference_steps,
            "seed": sample.seed,
            # A table whose rows have no guidance takes no scale.
            "guidance_scale": sample.guidance_scale if table.takes_guidance else None,
        }

    def _make_shallow(self) -> ShallowDenoiser | None:
        name = self.schedule.shallow
        if name is None:
            return None
        whole = self.find_record(self.schedule.denoiser)
        return ShallowDenoiser(self.engines[name], self.find_record(name), whole)

    def _generate(
        self,
        sample: CalibrationSample,
        table: ScheduleTable,
        *,
        guidance_passes: GuidancePasses = "separate",
        on_step: OnStep | None = None,
    ) -> Video:
        path = self._bundle.find_schedule(self.schedule.scheduler, table.num_inference_steps)
        self._tables[path] = table
        return self._pipeline.generate(
            sample.prompt,
            image=sample.image,
            guidance_passes=guidance_passes,
            on_step=on_step,
            **self._make_arguments(sample, table),
        )


def _open(bundle: Bundle, name: str, options: EngineOptions, variant: str | None) -> Engine:
    """The engine of a component, as a pipeline opens it."""
    chosen = bundle.find_component(name).choose_variant(variant)
    return open_engine(bundle.load_graph(name, chosen, for_cpu=options.uses_cpu_graphs), options)


def _read_latents(video: Video) -> F32:
    assert video.latents is not None  # of a clip that was generated
    return video.latents

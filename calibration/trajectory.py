"""How far a candidate's clips are from those of the float model, with the same seeds.

An error of one step is carried into all that follow, where it may grow or shrink. So it is the clip
at the end of the whole trajectory that decides between candidates; the error of one pass is what is
quick to measure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mutoscope.calibration.collection import make_state_key
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.reference_clips import (
    DenoiserPass,
    Place,
    RecordingEngine,
    ReferenceClip,
    ReferenceClips,
)
from mutoscope.calibration.samples import (
    FLOAT,
    CalibrationSample,
    SamplingOptions,
    generate_sample,
    open_float_pipeline,
)
from mutoscope.calibration.sampling_progress import OnProgress, report_step
from mutoscope.engines.engine import Engine
from mutoscope.engines.forwarding_engine import ForwardingEngine
from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.metrics import psnr_db, relative_error
from mutoscope.runtime.sampler import F32, OnStep, StepInfo
from mutoscope.runtime.video import Video

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ClipError:
    """How far a clip is from that of the float model.

    Attributes:
        sample: What both were made of.
        psnr_db: Of the frames.
        step_errors: The relative error (L2) of the latents after each step, float64 [N].
    """

    sample: CalibrationSample
    psnr_db: float
    step_errors: F64 = field(repr=False)

    @property
    def latents_error(self) -> float:
        """The relative error (L2) of the clean latents."""
        return float(self.step_errors[-1])


@dataclass(frozen=True)
class TrajectoryResult:
    """How far the clips of a candidate are from those of the float model."""

    clips: tuple[ClipError, ...]

    @property
    def median_psnr_db(self) -> float:
        """The median over the clips."""
        return median(clip.psnr_db for clip in self.clips)

    @property
    def mean_psnr_db(self) -> float:
        """The mean over the clips, in which a clip that came out badly counts."""
        return fmean(clip.psnr_db for clip in self.clips)

    @property
    def minimum_psnr_db(self) -> float:
        """That of the worst clip."""
        return min(clip.psnr_db for clip in self.clips)

    @property
    def median_latents_error(self) -> float:
        """The median over the clips."""
        return median(clip.latents_error for clip in self.clips)


class TrajectoryJudge:
    """Makes the same clips with the float model and with candidates, and compares them.

        with TrajectoryJudge(bundle, samples) as judge:
            judge.make_reference()
            judge.measure({"unet": candidate}).median_psnr_db

    What no candidate replaces runs in float32, and is loaded once for all measurements.
    """

    def __init__(
        self,
        bundle: Bundle,
        samples: Sequence[CalibrationSample],
        options: SamplingOptions | None = None,
        *,
        num_passes: int = 16,
        num_threads: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """Prepare; nothing is run yet.

        Args:
            bundle: The bundle.
            samples: The clips to make, at least one.
            options: Steps, scheduler and sizes; None takes the bundle's defaults.
            num_passes: How many passes of the float denoiser to record for `measure_one_pass`.
            num_threads: Threads for one operator; None takes one for each core.
            folder: Where the float model's clips are kept and found again later, such as
                `find_state_folder` of the same bundle and options; None keeps them until the end.

        Raises:
            CalibrationError: The bundle has no float32 graphs.
            ParameterError: An option is not allowed.
        """
        self.samples = tuple(samples)
        self._bundle, self._options = bundle, options or SamplingOptions()
        self._num_threads, self._key = num_threads, make_state_key(bundle, options)
        self._places = self._choose_places(num_passes)
        self._pipeline = open_float_pipeline(bundle, num_threads)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="mutoscope-")
            folder = Path(self._temporary.name)
        self._clips = ReferenceClips(folder)

    def __enter__(self) -> TrajectoryJudge:
        """Return the judge itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Free the float model and what was not to be kept; candidates stay open."""
        self._pipeline.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def denoiser(self) -> str:
        """The name of the component that denoises, where rows of the table name no other."""
        return self._options.find_denoiser(self._bundle)

    @cached_property
    def passes(self) -> tuple[DenoiserPass, ...]:
        """Recorded passes of the float denoiser: of all clips, all steps, and both of guidance."""
        clips = (self.load_clip(index) for index in range(len(self.samples)))
        return tuple(recorded for clip in clips for recorded in clip.passes)

    def make_reference(self, on_progress: OnProgress | None = None) -> None:
        """Make the clips of the float model that are not in the folder yet.

        Args:
            on_progress: Called after each step; returns False to cancel.

        Raises:
            BundleError: A file of the bundle is damaged.
            CancelledError: on_progress asked to stop; whole clips are kept.
            EngineError: A graph cannot be loaded or run.
            OutputError: A clip cannot be written to the folder.
        """
        indices = range(len(self.samples))
        missing = [index for index in indices if self._clips.find(self._identify(index)) is None]
        if not missing:
            return
        graph = self._bundle.load_graph(self.denoiser, FLOAT, for_cpu=True)
        with closing(open_engine(graph, EngineOptions(num_threads=self._num_threads))) as engine:
            recorder = RecordingEngine(engine)
            with self._replaced({self.denoiser: recorder}):
                for index in missing:
                    clip = self._make_clip(index, recorder, on_progress)
                    self._clips.keep(self._identify(index), clip)

    def check_finite(self) -> None:
        """Raise `CalibrationError` if nothing can be compared with a clip of the float model."""
        for index, sample in enumerate(self.samples):
            is_finite = np.isfinite(self.load_clip(index).step_latents)
            if not is_finite.all():
                step = 1 + int(np.argmin(is_finite.all(axis=tuple(range(1, is_finite.ndim)))))
                raise CalibrationError(
                    f"the latents are NaN or infinite after step {step}: a model can only be "
                    "calibrated where it works in float32; try other prompts, or verify the "
                    f"bundle (sample {sample.describe()})"
                )

    def load_clip(self, index: int) -> ReferenceClip:
        """Return what the float model made of a sample, after make_reference."""
        clip = self._clips.find(self._identify(index))
        if clip is None:
            raise CalibrationError("there are no clips of the float model: call make_reference")
        return clip

    def measure(
        self,
        engines: Mapping[str, Engine],
        on_progress: OnProgress | None = None,
    ) -> TrajectoryResult:
        """Make clips with candidates in the place of components, and compare them.

        Args:
            engines: The candidates, by component; they stay open.
            on_progress: Called after each step; returns False to cancel.

        Raises:
            CancelledError: on_progress asked to stop.
            EngineError: A candidate is not of the component's kind, or cannot be run.
        """
        clips = []
        with self._replaced(engines):
            for index, sample in enumerate(self.samples):
                reference, errors = self.load_clip(index), list[float]()
                on_step = self._compare_steps(index, reference.step_latents, errors, on_progress)
                video = self._generate(index, on_step)
                psnr = psnr_db(reference.frames, video.frames)
                clips.append(ClipError(sample, psnr, np.array(errors)))
        return TrajectoryResult(tuple(clips))

    def measure_one_pass(self, engine: Engine) -> F64:
        """Return the relative error (L2) of a denoiser in each of `passes`, float64 [P].

        Args:
            engine: The candidate; it stays open.

        Raises:
            EngineError: It is no denoiser of this bundle, or cannot be run.
        """
        return np.array(
            [
                relative_error(recorded.output, next(iter(engine.run(recorded.inputs).values())))
                for recorded in self.passes
            ]
        )

    def _choose_places(self, num_passes: int) -> list[list[Place]]:
        """Which passes of each clip to record: evenly over clips, steps, and passes of a step."""
        places: list[list[Place]] = [[] for _ in self.samples]
        rows, denoiser = self._options.load_table(self._bundle).rows, self.denoiser
        # In the others, another component runs.
        own = [i for i, row in enumerate(rows) if row.denoiser in (None, denoiser)]
        for count in range(num_passes):
            index = count % len(self.samples)
            settings = self._options.resolve(self._bundle, self.samples[index])
            step_index = own[int((count + 0.5) / num_passes * len(own))]
            both = (count + count // len(self.samples)) % 2
            is_guided = settings.uses_guidance and rows[step_index].guidance
            places[index].append((step_index, both if is_guided else 0))
        return places

    def _identify(self, index: int) -> dict[str, Any]:
        """All that a clip of the float model, and what is kept of it, depends on."""
        sample, places = self.samples[index].identify(), self._places[index]
        return {"model": self._key, "sample": sample, "places": places}

    def _make_clip(
        self, index: int, recorder: RecordingEngine, on_progress: OnProgress | None
    ) -> ReferenceClip:
        step_latents: list[F32] = []

        def on_step(info: StepInfo) -> bool | None:
            step_latents.append(info.latents[0].copy())
            recorder.end_step()
            return report_step(info, index, len(self.samples), on_progress)

        recorder.begin(self._places[index])
        video = self._generate(index, on_step)
        return ReferenceClip(video.frames, np.stack(step_latents), tuple(recorder.passes))

    def _compare_steps(
        self, index: int, step_latents: F32, errors: list[float], on_progress: OnProgress | None
    ) -> OnStep:
        """What adds the error of each step to `errors`."""

        def on_step(info: StepInfo) -> bool | None:
            errors.append(relative_error(step_latents[info.step_index], info.latents[0]))
            return report_step(info, index, len(self.samples), on_progress)

        return on_step

    def _generate(self, index: int, on_step: OnStep) -> Video:
        return generate_sample(self._pipeline, self.samples[index], self._options, on_step=on_step)

    @contextmanager
    def _replaced(self, engines: Mapping[str, Engine]) -> Iterator[None]:
        """Let components run on other engines, which stay open."""
        try:
            for name, engine in engines.items():
                self._pipeline.replace_engine(name, ForwardingEngine(engine))
            yield
        finally:
            for name in engines:
                self._pipeline.unload(name)

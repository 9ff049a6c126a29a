"""Calibrate a bundle: sample its float model, try int8, judge it, and add what is good."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from mutoscope.calibration.candidates import CandidateSearch, Graphs, OnProgress
from mutoscope.calibration.choice import Choice
from mutoscope.calibration.collection import collect, discard, find_state_folder
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observed_graph import make_observed_graph
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.calibration.preparation import check_writable, explain_plan, load_prompts
from mutoscope.calibration.presets import DEFAULT_PRESET, PRESETS, Preset
from mutoscope.calibration.ranges import METHODS
from mutoscope.calibration.samples import (
    FLOAT,
    CalibrationSample,
    SamplingOptions,
    make_samples,
)
from mutoscope.calibration.sampling_progress import SamplingProgress
from mutoscope.calibration.table import CalibrationTable, CollectionRecord, name_table
from mutoscope.calibration.trajectory import TrajectoryJudge
from mutoscope.calibration.variant import (
    FLOAT16,
    INT8,
    CalibratedRanges,
    add_variant,
    name_statistics,
)
from mutoscope.engines.options import EngineOptions
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.component_inputs import make_inputs
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import DECODERS, VAE_DECODER, is_denoiser
from mutoscope.runtime.settings import SEED_MAX


@dataclass(frozen=True)
class CalibrationOptions:
    """What a calibration does; None takes what the preset says.

    Attributes:
        components: Those to make int8; empty for the denoiser that the sampling runs, the VAE
            decoder and text encoders. What is cut out of a denoiser becomes int8 with it.
        preset: A key of PRESETS.
        method: One of METHODS, to try no other.
        min_psnr_db: What the median judged clip must reach.
        num_samples: Clips to collect ranges of.
        prompts: A text file, one prompt on each line; None takes the bundle's or built-in ones.
        images: What clips start from, for a bundle that takes an image.
        seed: Of the samples.
        sampling: Steps, scheduler and sizes of all clips.
        engine: By which layers and components are timed.
        force: Whether to replace an int8 variant, and a table that does not fit the graph.
    """

    components: tuple[str, ...] = ()
    preset: str = DEFAULT_PRESET
    method: str | None = None
    min_psnr_db: float | None = None
    num_samples: int | None = None
    prompts: Path | None = None
    images: tuple[Path, ...] = ()
    seed: int = 0
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    force: bool = False

    def resolve(self) -> Preset:
        """Return the preset with what was said beside it; raises `ParameterError`."""
        if self.preset not in PRESETS:
            raise ParameterError(f"preset is {self.preset!r}: use {', '.join(PRESETS)}")
        if self.method is not None and self.method not in METHODS:
            raise ParameterError(f"method is {self.method!r}: use {', '.join(METHODS)}")
        if self.min_psnr_db is not None and not math.isfinite(self.min_psnr_db):
            raise ParameterError(f"min_psnr_db is {self.min_psnr_db}; it must be a number: use 30")
        preset = PRESETS[self.preset]
        return replace(
            preset,
            methods=preset.methods if self.method is None else (self.method,),
            min_psnr_db=preset.min_psnr_db if self.min_psnr_db is None else self.min_psnr_db,
            num_samples=preset.num_samples if self.num_samples is None else self.num_samples,
        )


@dataclass(frozen=True)
class CalibratedComponent:
    """What a calibration made of one component.

    Attributes:
        choice: How it was chosen, with its figures.
        size_float_bytes: The graph and the weights that were there.
        size_int8_bytes: Those for processors in int8; 0 if the component stays in float.
        reused: Whether its ranges were in the bundle already.
    """

    choice: Choice
    size_float_bytes: int
    size_int8_bytes: int
    reused: bool


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration made.

    Attributes:
        scheduler: Of all clips, if it was asked for.
        together: Median and minimum PSNR of the judged clips with all int8 components at once; None
            if there are none.
    """

    bundle: Path
    preset: str
    min_psnr_db: float
    num_samples: int
    num_judged: int
    scheduler: str | None
    num_inference_steps: int
    components: dict[str, CalibratedComponent]
    together: tuple[float, float] | None


def calibrate_bundle(
    bundle: Bundle, options: CalibrationOptions | None = None, on_progress: OnProgress | None = None
) -> CalibrationReport:
    """Add an int8 variant to a bundle, of the components where it is faster and good enough.

    Args:
        bundle: With float32 graphs. It is whole or unchanged at any time.
        options: What to do; None takes the defaults.
        on_progress: Called as the work goes on, with what is being done, how much of it is done,
            and of how much.

    Raises:
        BundleError: A file of the bundle is damaged.
        CalibrationError: The bundle cannot be calibrated.
        EngineError: A graph does not run.
        OutputError: The bundle or the cache cannot be written.
        ParameterError: An option is not allowed.
    """
    options = options or CalibrationOptions()
    preset = options.resolve()
    components = _check_components(bundle, options)
    check_writable(bundle)
    samples, judged = _make_samples(bundle, options, preset)
    state, threads = find_state_folder(bundle, options.sampling), options.engine.num_threads
    run = _Calibration(bundle, options, components, samples, state, on_progress or _say_nothing)
    with TrajectoryJudge(
        bundle, judged, options.sampling, num_threads=threads, folder=state / "reference"
    ) as judge:
        ranges = run.find_tables()
        judge.make_reference(run.make_progress("clips in float32"))
        judge.check_finite()
        searches = run.make_searches(judge, ranges)
        choices = {
            name: search.search(
                preset.methods,
                tries_smoothing=preset.tries_smoothing,
                measures_layers=preset.measures_layers,
                min_psnr_db=preset.min_psnr_db,
            )
            for name, search in searches.items()
        }
        together = _judge_together(searches, choices, judge, run.make_progress("all together"))
        sizes = add_variant(bundle, searches, choices, ranges)
    discard(state)
    settings = options.sampling.make_settings(bundle)
    calibrated = {
        name: CalibratedComponent(choice, *sizes[name], name in ranges and ranges[name].reused)
        for name, choice in choices.items()
    }
    return CalibrationReport(
        bundle.path,
        options.preset,
        preset.min_psnr_db,
        preset.num_samples,
        preset.num_judged,
        options.sampling.scheduler and settings.scheduler,
        settings.num_inference_steps,
        calibrated,
        together,
    )


def _make_samples(
    bundle: Bundle, options: CalibrationOptions, preset: Preset
) -> tuple[tuple[CalibrationSample, ...], tuple[CalibrationSample, ...]]:
    """What ranges are collected of, and other samples to judge by."""
    prompts = load_prompts(bundle, options.prompts)
    other_seed = (options.seed + 1) % (SEED_MAX + 1)
    return (
        make_samples(
            bundle, prompts, options.images, preset.num_samples, options.seed, options.sampling
        ),
        make_samples(
            bundle, prompts, options.images, preset.num_judged, other_seed, options.sampling
        ),
    )


def _say_nothing(_label: str, _done: int, _total: int) -> None:
    """What is called where nobody wants to know."""


def _check_components(bundle: Bundle, options: CalibrationOptions) -> tuple[str, ...]:
    """The components to calibrate, in the bundle's order; raises as `calibrate_bundle`."""
    settings, table = options.sampling.make_settings(bundle), options.sampling.load_table(bundle)
    problem = explain_plan(settings.scheduler, table, "calibrate with")
    if problem is not None:
        raise CalibrationError(problem)
    denoiser = options.sampling.find_denoiser(bundle)
    for name in options.components:
        whole = bundle.find_component(name).weights_of
        if whole is not None:
            raise ParameterError(
                f"{name} becomes {INT8} with {whole}, a part of which it is: use {whole}"
            )
        if is_denoiser(name) and name != denoiser:
            others = _list_schedulers(bundle, name)
            hint = f"use --scheduler {others[0]}, or {denoiser}" if others else f"use {denoiser}"
            raise ParameterError(f"{name} makes none of these clips, {denoiser} does: {hint}")
        if name in DECODERS and name != VAE_DECODER:
            raise ParameterError(f"{name} stays in float: use {VAE_DECODER}")
    components = bundle.manifest.components
    wanted = options.components or tuple(name for name in components if _is_usual(name, denoiser))
    chosen = tuple(name for name in components if name in wanted)
    for name in chosen:
        if INT8 in components[name].variants and not options.force:
            raise CalibrationError(
                f"{name} has an {INT8} variant already: replace it with --force, or leave it out "
                "of --components"
            )
    return chosen


def _list_schedulers(bundle: Bundle, denoiser: str) -> list[str]:
    """The schedulers whose usual table runs a denoiser, without plans."""
    sampling = {name: SamplingOptions(scheduler=name) for name in bundle.manifest.schedules}
    return [
        name
        for name, options in sampling.items()
        if options.find_denoiser(bundle) == denoiser
        and explain_plan(name, options.load_table(bundle), "calibrate with") is None
    ]


def _judge_together(
    searches: Mapping[str, CandidateSearch],
    choices: Mapping[str, Choice],
    judge: TrajectoryJudge,
    on_progress: Callable[[SamplingProgress], None],
) -> tuple[float, float] | None:
    """PSNR of the judged clips with all int8 graphs at once: median and minimum."""
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(searches[name].open_chosen(choice))
            for name, choice in choices.items()
            if choice.kept_in_float is None
        }
        if not engines:
            return None
        result = judge.measure(engines, on_progress=on_progress)
    return round(result.median_psnr_db, 2), round(result.minimum_psnr_db, 2)


def _is_usual(name: str, denoiser: str) -> bool:
    return name in (denoiser, VAE_DECODER) or name.startswith("text_encoder")


def is_calibrated(name: str) -> bool:
    """Whether the ranges of a component are collected; others find them at run time.

    An encoder runs once for a clip, and token embeddings have outliers in few places.
    """
    return is_denoiser(name) or name in DECODERS


@dataclass(frozen=True)
class _Calibration:
    """What the steps of one calibration share."""

    bundle: Bundle
    options: CalibrationOptions
    components: tuple[str, ...]
    samples: tuple[CalibrationSample, ...]
    state: Path
    on_progress: OnProgress

    def make_progress(self, label: str) -> Callable[[SamplingProgress], None]:
        """What tells of the steps of samples as of one long work."""

        def report(at: SamplingProgress) -> None:
            self.on_progress(label, at.done, at.total)

        return report

    def find_tables(self) -> dict[str, CalibratedRanges]:
        """The ranges of components: those in the bundle where they fit, else collected now."""
        wanted = [name for name in self.components if is_calibrated(name)]
        found = {name: ranges for name in wanted if (ranges := self._load_ranges(name)) is not None}
        missing = [name for name in wanted if name not in found]
        if missing:
            graphs = {
                name: make_observed_graph(self.bundle.load_graph(name, FLOAT, for_cpu=True))
                for name in missing
            }
            sampling = self.options.sampling
            statistics = collect(
                self.bundle,
                graphs,
                self.samples,
                sampling,
                num_threads=self.options.engine.num_threads,
                state=self.state,
                on_progress=self.make_progress("collecting ranges"),
            )
            for name, collected in statistics.items():
                table = CalibrationTable.from_statistics(
                    collected, self._collection, self.bundle, name
                )
                found[name] = CalibratedRanges(table, collected, reused=False)
        return found

    @property
    def _collection(self) -> CollectionRecord:
        settings = self.options.sampling.resolve(self.bundle, self.samples[0])
        identities = json.dumps([sample.identify() for sample in self.samples], sort_keys=True)
        return CollectionRecord(
            num_samples=len(self.samples),
            scheduler=settings.scheduler,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=self.samples[0].guidance_scale,
            height=settings.height,
            width=settings.width,
            num_frames=settings.num_frames,
            prompts_sha256=hashlib.sha256(identities.encode()).hexdigest(),
        )

    def _load_ranges(self, name: str) -> CalibratedRanges | None:
        """What the bundle has of a component, if that was collected as it would be now."""
        files = self.bundle.manifest.files
        paths = (name_table(name), name_statistics(name))
        if not all(path in files for path in paths):
            return None
        try:
            table = CalibrationTable.load(self.bundle.load_file(paths[0]))
            table.check_fits(self.bundle)
            statistics = ComponentStatistics.load(self.bundle.load_file(paths[1]))
        except CalibrationError:
            if self.options.force:
                return None
            raise
        if table.collection != self._collection:
            return None
        return CalibratedRanges(table, statistics, reused=True)

    def make_searches(
        self, judge: TrajectoryJudge, tables: Mapping[str, CalibratedRanges]
    ) -> dict[str, CandidateSearch]:
        """What looks for the int8 form of each component."""
        settings = self.options.sampling.resolve(self.bundle, self.samples[0])
        feeds = make_inputs(self.bundle, settings, self.options.engine.num_threads)
        searches = {}
        for name in self.components:
            record, ranges = self.bundle.find_component(name), tables.get(name)
            plain = FLOAT16 if FLOAT16 in record.variants else FLOAT
            graphs = Graphs(
                processors=self.bundle.load_graph(name, FLOAT, for_cpu=True),
                plain=self.bundle.load_graph(name, plain),
                feeds=feeds[name],
            )
            searches[name] = CandidateSearch(
                name,
                graphs,
                judge,
                self.options.engine,
                table=None if ranges is None else ranges.table,
                statistics=None if ranges is None else ranges.statistics,
                on_progress=self.on_progress,
            )
        return searches

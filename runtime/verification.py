"""The checks of `mutoscope verify`: files, graphs, tables, and a tiny generation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mutoscope.engines.opening import open_engine
from mutoscope.engines.options import AUTO, TENSORRT_MODULES, EngineOptions
from mutoscope.runtime.baked_prompts import choose_text, load_baked_prompts
from mutoscope.runtime.built_engines import ENGINES_FOLDER, BuiltEngine, find_built
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.components import check_declaration
from mutoscope.runtime.engine_choice import GraphFinder
from mutoscope.runtime.engine_proof import EngineProver
from mutoscope.runtime.errors import BundleError, EngineError, MutoscopeError
from mutoscope.runtime.manifest import MANIFEST_NAME, TokenizerRecord
from mutoscope.runtime.pipeline import VideoPipeline
from mutoscope.runtime.row_plan import plan_rows
from mutoscope.runtime.settings import make_settings
from mutoscope.runtime.shape_ranges import ClipRange, ClipSize
from mutoscope.runtime.tokenizer import TextTokenizer

_PROMPT = "a"


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: What was checked.
        problem: What is wrong; None if nothing is.
        note: Something that is not wrong but worth knowing.
    """

    name: str
    problem: str | None = None
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None


def verify_bundle(
    bundle: Bundle, options: EngineOptions, variant: str | None = None
) -> Iterator[CheckResult]:
    """Check a bundle from its files to a generation; yields each result when it is known.

    Args:
        bundle: The bundle.
        options: What its graphs are loaded and run with.
        variant: The one that generates; all of them are loaded.

    Raises:
        ParameterError: No component has this variant.
    """
    bundle.check_variant(variant)
    yield from _check_files(bundle)
    yield _note_unlisted_files(bundle)
    yield _run_check("defaults are allowed", lambda: _check_defaults(bundle))
    for record in bundle.manifest.tokenizers.values():
        check_tokenizer = functools.partial(_check_tokenizer, bundle, record)
        yield _run_check(record.file.rpartition("/")[0] or record.file, check_tokenizer)
    if bundle.manifest.prompts is not None:
        yield _run_check(bundle.manifest.prompts, functools.partial(_check_baked_prompts, bundle))
    # What only runs what was built has no way to load a graph.
    graph_options = EngineOptions(memory=options.memory) if options.runs_plans else options
    for name, component in bundle.manifest.components.items():
        for known, graph in component.variants.items():
            check = functools.partial(_check_graph, bundle, name, graph, graph_options)
            yield _run_check(f"{name} ({known}) loads and is as declared", check)
        for known, graph in component.cpu_graphs.items() if graph_options.uses_cpu_graphs else ():
            check = functools.partial(_check_graph, bundle, name, graph, graph_options)
            yield _run_check(f"{name} ({known}, for CPUs) loads and is as declared", check)
    if options.runs_plans:
        yield from _check_engines(bundle, options, variant)
    for scheduler in bundle.manifest.schedules:
        check_tables = functools.partial(_check_tables, bundle, scheduler)
        yield _run_check(f"schedule tables of {scheduler}", check_tables)
    check_generation = functools.partial(_check_generation, bundle, options, variant)
    yield _run_check("a generation of the smallest size", check_generation)


def _run_check(name: str, check: Callable[[], str | None]) -> CheckResult:
    """The result of a check: raising is failing, returned text is a note."""
    try:
        return CheckResult(name, note=check())
    except MutoscopeError as err:
        return CheckResult(name, problem=str(err))


def _check_files(bundle: Bundle) -> Iterator[CheckResult]:
    """One result for each damaged file, and one for all that are whole."""
    whole = 0
    for name in bundle.manifest.files:
        result = _run_check(name, functools.partial(bundle.check_digest, name))
        if result.ok:
            whole += 1
        else:
            yield result
    yield CheckResult(f"sha256 of {whole} files")


def _note_unlisted_files(bundle: Bundle) -> CheckResult:
    found = (path for path in sorted(bundle.path.rglob("*")) if path.is_file())
    names = (path.relative_to(bundle.path).as_posix() for path in found)
    listed = {MANIFEST_NAME, *bundle.manifest.files}
    built = f"{ENGINES_FOLDER}/"
    unlisted = [name for name in names if name not in listed and not name.startswith(built)]
    note = f"not in {MANIFEST_NAME}, never read: {', '.join(unlisted)}" if unlisted else None
    return CheckResult("unlisted files", note=note)


def _check_defaults(bundle: Bundle) -> None:
    make_settings(bundle)


def _check_tokenizer(bundle: Bundle, record: TokenizerRecord) -> None:
    tokenizer = TextTokenizer(bundle.find_file(record.file), record)
    tokenizer.encode("prompt", _PROMPT)


def _check_baked_prompts(bundle: Bundle) -> str:
    baked = load_baked_prompts(bundle)
    assert baked is not None
    for text in baked.texts:
        baked.read(text)
    return f"{len(baked.texts)} prompts"


def _check_graph(bundle: Bundle, name: str, graph: str, options: EngineOptions) -> None:
    engine = open_engine(bundle.find_file(graph), options)
    try:
        check_declaration(bundle, name, engine)
    finally:
        engine.close()


def _check_engines(
    bundle: Bundle, options: EngineOptions, variant: str | None
) -> Iterator[CheckResult]:
    """Compare what was built for TensorRT with onnxruntime on the CPU, again if it was before."""
    prover = EngineProver(bundle, options)
    engines = TENSORRT_MODULES if options.engine == AUTO else (options.engine,)
    for name, component in bundle.manifest.components.items():
        for engine in engines:
            which = component.choose_variant(variant) if variant else None
            for built in find_built(bundle, name, which, engine):
                title = f"{name} ({built.variant}) for {built.folder.parent.name}"
                yield _run_check(title, functools.partial(_check_engine, prover, built))


def _check_engine(prover: EngineProver, built: BuiltEngine) -> str:
    if built.misfit:
        return f"not loaded here: {built.misfit}"
    proof = prover.prove(built)
    if not proof.is_passed:
        raise EngineError(
            f"{proof.psnr_db:.1f} dB against onnxruntime on the CPU, {proof.minimum_psnr_db:g} are "
            "needed: it will not be used"
        )
    return (
        f"{proof.psnr_db:.1f} dB against onnxruntime on the CPU, {1e3 * proof.seconds_run:.2f} ms "
        f"a run on {proof.device}"
    )


def _check_tables(bundle: Bundle, scheduler: str) -> str:
    counts = [int(count) for count in bundle.manifest.schedules[scheduler]]
    terms = 0
    for count in counts:
        table = bundle.load_schedule(scheduler, count)
        plan_rows(bundle.manifest, table, bundle.find_schedule(scheduler, count))
        terms = max(terms, table.max_terms_per_row)
    return f"{len(counts)} tables, up to {terms} terms in a row"


def _check_generation(bundle: Bundle, options: EngineOptions, variant: str | None) -> str:
    scheduler = bundle.manifest.defaults.scheduler
    num_inference_steps = min(int(count) for count in bundle.manifest.schedules[scheduler])
    denoiser = plan_rows(
        bundle.manifest, bundle.load_schedule(scheduler, num_inference_steps)
    ).default
    clips = _choose_clips(bundle, options, variant, denoiser)
    size = clips.minimum
    image = None
    if bundle.manifest.images:
        image = np.zeros((size.height, size.width, 3), dtype=np.uint8)
    with VideoPipeline(bundle, **dataclasses.asdict(options), variant=variant) as pipeline:
        video = pipeline.generate(
            choose_text(bundle),
            image=image,
            seed=0,
            num_inference_steps=num_inference_steps,
            height=size.height,
            width=size.width,
            num_frames=size.num_frames,
            guidance_passes="separate" if clips.batch == 1 else "batched",
        )
    wanted = (size.num_frames, size.height, size.width, 3)
    if video.frames.shape != wanted:
        raise BundleError(f"it made frames {list(video.frames.shape)} in place of {list(wanted)}")
    return f"{size}, {video.timings.seconds_total:.1f} s with {options.engine}"


def _choose_clips(
    bundle: Bundle, options: EngineOptions, variant: str | None, denoiser: str
) -> ClipRange:
    """The clips that can be generated: all, or those that the denoiser was built for."""
    limits = bundle.manifest.limits
    least = ClipSize(limits.width.minimum, limits.height.minimum, limits.num_frames.minimum)
    built = GraphFinder(bundle, options, variant).find_plan(denoiser)
    if built is not None and built.tensorrt is not None:
        return built.tensorrt.clips
    return ClipRange(least, least, least)

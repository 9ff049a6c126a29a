"""Export a checkpoint: every component, the tokenizer, the schedule tables and the manifest."""

from __future__ import annotations

import functools
import gc
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mutoscope.export.bundle_writer import check_output, make_file_records, open_bundle_folder
from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.cpu_graphs.rewriting import check_rewrites, make_cpu_graph
from mutoscope.export.decoder_memory import measure_decoder
from mutoscope.export.decoder_tiles import add_tiles
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.float16 import (
    check_float16_weights_range,
    convert_to_float16,
    refuse_float16_overflow,
)
from mutoscope.export.graph import make_graph, release_weights, save_graph
from mutoscope.export.mapped_weights import release_pages
from mutoscope.export.opening import CheckpointOptions, open_model
from mutoscope.export.parity import Reference, check_parity, make_references, measure_parity
from mutoscope.export.presets import Preset
from mutoscope.export.provenance import make_provenance
from mutoscope.export.scheduler_tables import (
    DEFAULT_STEP_COUNTS,
    check_step_counts,
    make_schedulers,
    write_schedule_tables,
)
from mutoscope.export.tokenizer import export_tokenizer
from mutoscope.export.weights import (
    check_float16_weights,
    choose_weight_type,
    store_weights_as_float16,
)
from mutoscope.runtime.manifest import (
    DECODERS,
    MANIFEST_NAME,
    ComponentRecord,
    DefaultsRecord,
    Manifest,
    ParityRecord,
    TokenizerRecord,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

GRAPH_NAME = "model.onnx"
CPU_GRAPH_NAME = "model_cpu.onnx"

Result = TypeVar("Result")


@dataclass(frozen=True)
class ExportProgress:
    """One message of a running export.

    Attributes:
        step: The step, from 1.
        num_steps: How many there are.
        name: What the step makes, such as "unet".
        seconds: None at the start of the step; how long it took at its end.
    """

    step: int
    num_steps: int
    name: str
    seconds: float | None = None


@dataclass(frozen=True)
class ComponentReport:
    """What the export of one component gave.

    Attributes:
        nodes: Of the plain graph.
        size_bytes: All files together.
        parity: Of the plain graph; the one for processors is within the same limits.
        cpu_rewrites: How many places each rewrite for processors changed.
    """

    nodes: int
    size_bytes: int
    seconds: float
    parity: tuple[ParityRecord, ...]
    cpu_rewrites: dict[str, int]


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        bundle: The folder.
        size_bytes: All of its files together.
    """

    bundle: Path
    manifest: Manifest
    components: dict[str, ComponentReport]
    size_bytes: int
    seconds: float


OnProgress = Callable[[ExportProgress], None]


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    schedulers: Iterable[str] = (),
    num_inference_steps: Iterable[int] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    weights: Literal["float32", "float16"] | None = None,
    cpu_rewrites: Iterable[str] | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
    **options: Unpack[CheckpointOptions],
) -> ExportReport:
    """Export a checkpoint to a bundle at `output` and return what was written.

    The bundle is whole or absent: after an error or Ctrl-C nothing is left behind.

    Args:
        checkpoint: A folder in diffusers layout, the id of one on the Hugging Face hub, or a single
            file.
        output: The bundle to write.
        name: The bundle's name, for people; that of the checkpoint if None.
        schedulers: More schedulers than the checkpoint's own, as diffusers class names or aliases.
        num_inference_steps: The step counts to make schedule tables for; None takes 1 to 50, or
            those of the preset. The bundle's default is the one nearest to the checkpoint's own.
        dtype: What the graphs compute in. In float16 ones, norms, softmax and the sinusoids of the
            timestep stay float32, and so do the graphs' inputs and outputs.
        weights: How weights are stored; as `dtype` if None. float16 weights of float32 graphs are
            refused where they would change a value.
        cpu_rewrites: What is rewritten in the graphs for processors, which lie beside the plain
            ones: names of `mutoscope.export.cpu_graphs.rewriting.REWRITES`; None takes all, and an
            empty one leaves those graphs out. There are none in float16.
        force: Replace a bundle that exists.
        on_progress: Called at the start and at the end of each step.
        **options: What goes with the checkpoint: motion adapter, LoRAs, another decoder, preset;
            see `CheckpointOptions`.

    Raises:
        CheckpointError: The checkpoint cannot be opened, or not by any family.
        ExportError: A component cannot be exported.
        ExportParityError: An exported component differs from the checkpoint.
        OutputError: `output` exists, or cannot be written.
        ParameterError: An unknown scheduler, step count, type or rewrite, or such as do not go
            together.
        ScheduleError: A scheduler cannot be made a table.
    """
    output = Path(output)
    started = time.perf_counter()
    check_output(output, force=force)
    stored = choose_weight_type(dtype, weights)
    rewrites = check_rewrites(cpu_rewrites)
    with open_model(checkpoint, output.resolve().parent, **options) as (opened, family):
        step_counts = check_step_counts(
            default_step_counts(opened.preset)
            if num_inference_steps is None
            else num_inference_steps
        )
        plan = _ExportPlan(
            opened,
            family,
            schedulers=make_schedulers(family.scheduler, schedulers),
            step_counts=step_counts,
            dtype=dtype,
            weights=stored,
            cpu_rewrites=rewrites,
            name=name or opened.name,
        )
        with open_bundle_folder(output, force=force) as bundle:
            manifest, reports = _export(plan, bundle, on_progress)
            size_bytes = _measure_folder(bundle)
    return ExportReport(output, manifest, reports, size_bytes, time.perf_counter() - started)


@dataclass(frozen=True)
class _ExportPlan:
    """All that an export was asked for, checked."""

    checkpoint: Checkpoint
    family: FamilyExport
    schedulers: dict[str, Any]
    step_counts: tuple[int, ...]
    dtype: str
    weights: str
    cpu_rewrites: tuple[str, ...]
    name: str


def _export(
    plan: _ExportPlan, bundle: Path, on_progress: OnProgress | None
) -> tuple[Manifest, dict[str, ComponentReport]]:
    """Write all files of the bundle into a folder; return its manifest and what was measured."""
    family = plan.family
    names = ["tokenizer"] if family.tokenizers else []
    names += ["schedules", *family.component_makers, MANIFEST_NAME]
    steps = _Steps(names, on_progress)
    tokenizers: dict[str, TokenizerRecord] = {}
    if family.tokenizers:
        tokenizers = steps.run("tokenizer", lambda: _export_tokenizers(family, bundle))
    schedules = steps.run(
        "schedules", lambda: write_schedule_tables(plan.schedulers, plan.step_counts, bundle)
    )
    components, reports = _export_components(plan, bundle, steps)
    manifest = steps.run(
        MANIFEST_NAME,
        lambda: _save_manifest(
            Manifest(
                name=plan.name,
                family=family.family,
                components=components,
                tokenizers=tokenizers,
                latents=family.latents,
                limits=family.limits,
                defaults=fit_default_steps(family.defaults, plan.step_counts),
                schedules=schedules,
                files=make_file_records(bundle),
                guidance=family.guidance,
                images=family.images,
                conditions=family.conditions,
                force_zeros_for_empty_prompt=family.force_zeros_for_empty_prompt,
                provenance=make_provenance(plan.checkpoint, family, plan.dtype, plan.weights),
            ),
            bundle,
        ),
    )
    return manifest, reports


def default_step_counts(preset: Preset | None) -> tuple[int, ...]:
    """Return the step counts of a bundle where the caller says nothing."""
    return DEFAULT_STEP_COUNTS if preset is None else preset.step_counts


def fit_default_steps(defaults: DefaultsRecord, step_counts: Sequence[int]) -> DefaultsRecord:
    """Return defaults whose number of steps is one that the bundle has: the nearest."""
    wanted = defaults.num_inference_steps
    nearest = min(step_counts, key=lambda count: (abs(count - wanted), count))
    return replace(defaults, num_inference_steps=nearest)


class _Steps:
    """Runs the steps of an export one after the other, timed and reported."""

    def __init__(self, names: list[str], on_progress: OnProgress | None) -> None:
        self.names = names
        self.on_progress = on_progress
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Return what `work` returns."""
        started = time.perf_counter()
        self._report(name, None)
        result = work()
        self.seconds[name] = time.perf_counter() - started
        self._report(name, self.seconds[name])
        return result

    def _report(self, name: str, seconds: float | None) -> None:
        if self.on_progress is not None:
            step = self.names.index(name) + 1
            self.on_progress(ExportProgress(step, len(self.names), name, seconds))


def _export_tokenizers(family: FamilyExport, bundle: Path) -> dict[str, TokenizerRecord]:
    """Write the tokenizers, in folders named as in the checkpoint; return their records."""
    return {
        source: export_tokenizer(
            tokenizer.folder,
            tokenizer.class_name,
            tokenizer.max_length,
            bundle,
            name=tokenizer.folder.name,
        )
        for source, tokenizer in family.tokenizers.items()
    }


def _export_components(
    plan: _ExportPlan, bundle: Path, steps: _Steps
) -> tuple[dict[str, ComponentRecord], dict[str, ComponentReport]]:
    """Write all components, one in memory at a time; return their records and reports."""
    components: dict[str, ComponentRecord] = {}
    reports: dict[str, ComponentReport] = {}
    for name, make_component in plan.family.component_makers.items():
        record, nodes, rewrites = steps.run(
            name, functools.partial(_export_component, make_component, bundle, plan)
        )
        components[name] = record
        reports[name] = ComponentReport(
            nodes, _measure_folder(bundle / name), steps.seconds[name], record.parity, rewrites
        )
    return components, reports


def _export_component(
    make_component: Callable[[], ComponentExport], bundle: Path, plan: _ExportPlan
) -> tuple[ComponentRecord, int, dict[str, int]]:
    """Write one component and compare it with the checkpoint.

    Returns:
        Its record, the number of nodes, and what was rewritten for processors.
    """
    component = make_component()
    dtype, weights = plan.dtype, plan.weights
    if component.float32_only:
        dtype = weights = "float32"
    smaller_weights = (dtype, weights) == ("float32", "float16")
    if smaller_weights:
        check_float16_weights(component)
    references = _prepare(component, dtype)
    release_pages(component.module)
    model = make_graph(component, dtype)
    if smaller_weights:
        store_weights_as_float16(model)
    path = PurePosixPath(component.name) / GRAPH_NAME
    nodes = save_graph(model, bundle / path)
    # A large module and a session do not fit into memory side by side.
    release_pages(component.module)
    release_weights(model, component.module)
    del model
    gc.collect()
    parity = measure_parity(component, bundle / path, references)
    check_parity(component, parity, dtype)
    rewrites: dict[str, int] = {}
    cpu_path = path.with_name(CPU_GRAPH_NAME)
    if dtype == "float32":
        rewrites = make_cpu_graph(bundle / path, bundle / cpu_path, plan.cpu_rewrites)
    if rewrites:
        check_parity(component, measure_parity(component, bundle / cpu_path, references), dtype)
    decoder = None
    if component.name in DECODERS:
        decoder = add_tiles(measure_decoder(bundle / path), bundle, str(path))
    record = ComponentRecord(
        variants={dtype: str(path)},
        default_variant=dtype,
        inputs=component.inputs,
        outputs=component.outputs,
        parity=parity,
        decoder=decoder,
        cpu_graphs={dtype: str(cpu_path)} if rewrites else {},
    )
    return record, nodes, rewrites


def _prepare(component: ComponentExport, dtype: str) -> tuple[Reference, ...]:
    """Return what the checkpoint computes in float32; then make the module compute in `dtype`."""
    if dtype == "float32":
        return make_references(component)
    check_float16_weights_range(component)
    with refuse_float16_overflow(component):
        references = make_references(component)
    convert_to_float16(component.module)
    return references


def _save_manifest(manifest: Manifest, bundle: Path) -> Manifest:
    """Write manifest.json and return what a reader makes of it."""
    path = bundle / MANIFEST_NAME
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return Manifest.load(path)


def _measure_folder(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Export a checkpoint: every component, the tokenizer, the schedule tables and the manifest."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mutoscope.export.calibration_prompts import export_calibration_prompts
from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.component_export import GraphPlan, export_component
from mutoscope.export.cpu_graphs.rewriting import check_rewrites
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.opening import CheckpointOptions, open_model
from mutoscope.export.presets import Preset
from mutoscope.export.provenance import make_provenance
from mutoscope.export.scheduler_tables import (
    DEFAULT_STEP_COUNTS,
    check_step_counts,
    make_schedulers,
    write_schedule_tables,
)
from mutoscope.export.tokenizer import export_tokenizer
from mutoscope.export.weights import choose_weight_type
from mutoscope.runtime.bundle_writer import (
    check_output,
    make_file_records,
    open_bundle_folder,
    save_manifest,
)
from mutoscope.runtime.errors import ParameterError
from mutoscope.runtime.manifest import (
    MANIFEST_NAME,
    ComponentRecord,
    DefaultsRecord,
    Manifest,
    ParityRecord,
    TokenizerRecord,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
        nodes: Of the plain graph of the default variant.
        size_bytes: All files together.
        parity: Of that graph; the others are within the limits of their type.
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
    dtype: str | Iterable[str] = "float32",
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
        dtype: What the graphs compute in: "float32", "float16" or, for both, "float32,float16" or
            a sequence; the first is what the bundle runs by default. In float16 ones, norms,
            softmax and the sinusoids of the timestep stay float32, and so do the graphs' inputs
            and outputs.
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
    dtypes = parse_dtypes(dtype)
    stored = {dtype: choose_weight_type(dtype, weights) for dtype in dtypes}
    graphs = GraphPlan(dtypes, stored.get("float32", "float32"), check_rewrites(cpu_rewrites))
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
            graphs=graphs,
            weights=", ".join(dict.fromkeys(stored.values())),
            name=name or opened.name,
        )
        with open_bundle_folder(output, force=force) as bundle:
            manifest, reports = _export(plan, bundle, on_progress)
            size_bytes = _measure_folder(bundle)
    return ExportReport(output, manifest, reports, size_bytes, time.perf_counter() - started)


@dataclass(frozen=True)
class _ExportPlan:
    """All that an export was asked for, checked; `weights` is for people."""

    checkpoint: Checkpoint
    family: FamilyExport
    schedulers: dict[str, Any]
    step_counts: tuple[int, ...]
    graphs: GraphPlan
    weights: str
    name: str


def _export(
    plan: _ExportPlan, bundle: Path, on_progress: OnProgress | None
) -> tuple[Manifest, dict[str, ComponentReport]]:
    """Write all files of the bundle into a folder; return its manifest and what was measured."""
    family = plan.family
    names = ["tokenizer"] if family.tokenizers else []
    names += ["schedules", *family.component_makers, MANIFEST_NAME]
    steps = ExportSteps(names, on_progress)
    tokenizers: dict[str, TokenizerRecord] = {}
    if family.tokenizers:
        tokenizers = steps.run("tokenizer", lambda: _export_tokenizers(family, bundle))
    export_calibration_prompts(plan.checkpoint.folder, tokenizers, bundle)
    schedules = steps.run(
        "schedules", lambda: write_schedule_tables(plan.schedulers, plan.step_counts, bundle)
    )
    components, reports = _export_components(plan, bundle, steps)
    manifest = steps.run(
        MANIFEST_NAME,
        lambda: save_manifest(
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
                provenance=make_provenance(
                    plan.checkpoint, family, ", ".join(plan.graphs.dtypes), plan.weights
                ),
            ),
            bundle,
        ),
    )
    return manifest, reports


def parse_dtypes(dtype: str | Iterable[str]) -> tuple[str, ...]:
    """Return the types in a text with commas, or in a sequence, each once.

    Raises:
        ParameterError: There is none.
    """
    names = dtype.split(",") if isinstance(dtype, str) else dtype
    dtypes = tuple(dict.fromkeys(name.strip() for name in names))
    if not dtypes:
        raise ParameterError("dtype is empty: use float32")
    return dtypes


def default_step_counts(preset: Preset | None) -> tuple[int, ...]:
    """Return the step counts of a bundle where the caller says nothing."""
    return DEFAULT_STEP_COUNTS if preset is None else preset.step_counts


def fit_default_steps(defaults: DefaultsRecord, step_counts: Sequence[int]) -> DefaultsRecord:
    """Return defaults whose number of steps is one that the bundle has: the nearest."""
    wanted = defaults.num_inference_steps
    nearest = min(step_counts, key=lambda count: (abs(count - wanted), count))
    return replace(defaults, num_inference_steps=nearest)


class ExportSteps:
    """Runs the steps of an export one after the other, timed and reported."""

    def __init__(self, names: list[str], on_progress: OnProgress | None) -> None:
        """Prepare to run steps of these names, in this order."""
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
    plan: _ExportPlan, bundle: Path, steps: ExportSteps
) -> tuple[dict[str, ComponentRecord], dict[str, ComponentReport]]:
    """Write all components, one in memory at a time; return their records and reports."""
    components: dict[str, ComponentRecord] = {}
    reports: dict[str, ComponentReport] = {}
    for name, make_component in plan.family.component_makers.items():
        record, nodes, rewrites = steps.run(
            name, functools.partial(export_component, make_component, bundle, plan.graphs)
        )
        components[name] = record
        reports[name] = ComponentReport(
            nodes, _measure_folder(bundle / name), steps.seconds[name], record.parity, rewrites
        )
    return components, reports


def _measure_folder(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

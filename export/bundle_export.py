"""Export a checkpoint: every component, the tokenizer, the schedule tables and the manifest."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from mutoscope.calibration.reuse_graphs import name_reuse
from mutoscope.export.calibration_prompts import export_calibration_prompts
from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.component_export import ExportedComponent, GraphPlan, export_component
from mutoscope.export.cpu_graphs.rewriting import check_rewrites
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.few_step import check_same_inputs
from mutoscope.export.opening import CheckpointOptions, open_model
from mutoscope.export.prompt_baking import (
    check_baking,
    check_takes_prompts,
    read_texts,
    write_baked_prompts,
)
from mutoscope.export.provenance import make_provenance
from mutoscope.export.reuse_export import (
    check_reuse_layers,
    export_reuse,
    is_reusable,
    make_reusable,
)
from mutoscope.export.schedule_plan import plan_schedules
from mutoscope.export.scheduler_tables import PlannedSchedule, write_schedule_tables
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

_PROMPTS = "prompts"


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
    few_step_scheduler: str | None = None,
    few_step_counts: Iterable[int] | None = None,
    dtype: str | Iterable[str] = "float32",
    weights: Literal["float32", "float16"] | None = None,
    cpu_rewrites: Iterable[str] | None = None,
    reuse_layers: int | None = None,
    bake_prompts: str | Path | None = None,
    drop_text_encoder: bool = False,
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
        few_step_scheduler: With `few_step_lora`, what its denoiser is sampled with; "lcm" if None.
        few_step_counts: With `few_step_lora`, its step counts, of which the largest becomes the
            bundle's default; 1, 2 and 4 if None.
        dtype: What the graphs compute in: "float32", "float16" or, for both, "float32,float16" or
            a sequence; the first is what the bundle runs by default. In float16 ones, norms,
            softmax and the sinusoids of the timestep stay float32, and so do the graphs' inputs
            and outputs.
        weights: How weights are stored; as `dtype` if None. float16 weights of float32 graphs are
            refused where they would change a value.
        cpu_rewrites: What is rewritten in the graphs for processors, which lie beside the plain
            ones: names of `mutoscope.export.cpu_graphs.rewriting.REWRITES`; None takes all, and an
            empty one leaves those graphs out. There are none in float16.
        reuse_layers: How many layers of the UNet's last up block run in steps that reuse the deep
            features of an earlier step, at most all of them; 0 makes no graphs for such steps, None
            takes 1.
        bake_prompts: A text file of prompts, one on each line, whose encodings go into the bundle,
            with that of the default negative prompt; None for none.
        drop_text_encoder: Leave the text encoders and tokenizers out of the bundle, which then
            takes no other prompts.
        force: Replace a bundle that exists.
        on_progress: Called at the start and at the end of each step.
        **options: What goes with the checkpoint: motion adapter, LoRAs, another decoder, preset,
            few-step LoRA; see `CheckpointOptions`.

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
    num_reused = check_reuse_layers(reuse_layers)
    check_baking(bake_prompts, drop_text_encoder=drop_text_encoder)
    dtypes = parse_dtypes(dtype)
    stored = {dtype: choose_weight_type(dtype, weights) for dtype in dtypes}
    graphs = GraphPlan(dtypes, stored.get("float32", "float32"), check_rewrites(cpu_rewrites))
    with open_model(checkpoint, output.resolve().parent, **options) as (opened, family):
        check_takes_prompts(bake_prompts, family)
        schedules, defaults = plan_schedules(
            opened,
            family,
            schedulers=schedulers,
            num_inference_steps=num_inference_steps,
            few_step_scheduler=few_step_scheduler,
            few_step_counts=few_step_counts,
            reuses_features=num_reused > 0,
        )
        plan = _ExportPlan(
            opened,
            family,
            schedules=schedules,
            defaults=defaults,
            graphs=graphs,
            reuse_layers=num_reused,
            prompts=bake_prompts,
            drop_text_encoder=drop_text_encoder,
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
    schedules: Mapping[str, PlannedSchedule]
    defaults: DefaultsRecord
    graphs: GraphPlan
    reuse_layers: int
    prompts: str | Path | None
    drop_text_encoder: bool
    weights: str
    name: str


def _export(
    plan: _ExportPlan, bundle: Path, on_progress: OnProgress | None
) -> tuple[Manifest, dict[str, ComponentReport]]:
    """Write all files of the bundle into a folder; return its manifest and what was measured."""
    family = plan.family
    names = ["tokenizer"] if family.tokenizers else []
    names += ["schedules", *_name_components(plan)]
    names += [MANIFEST_NAME] if plan.prompts is None else [_PROMPTS, MANIFEST_NAME]
    steps = ExportSteps(names, on_progress)
    tokenizers: dict[str, TokenizerRecord] = {}
    if family.tokenizers:
        tokenizers = steps.run("tokenizer", lambda: _export_tokenizers(family, bundle))
    export_calibration_prompts(plan.checkpoint.folder, tokenizers, bundle)
    texts = [] if plan.prompts is None else read_texts(plan.prompts, tokenizers, bundle)
    schedules = steps.run("schedules", lambda: write_schedule_tables(plan.schedules, bundle))
    components, reports = _export_components(plan, bundle, steps)
    manifest = Manifest(
        name=plan.name,
        family=family.family,
        components=components,
        tokenizers=tokenizers,
        latents=family.latents,
        limits=family.limits,
        defaults=plan.defaults,
        schedules=schedules,
        files=make_file_records(bundle),
        guidance=family.guidance,
        images=family.images,
        conditions=family.conditions,
        force_zeros_for_empty_prompt=family.force_zeros_for_empty_prompt,
        provenance=make_provenance(
            plan.checkpoint,
            family,
            ", ".join(plan.graphs.dtypes),
            plan.weights,
            plan.reuse_layers,
        ),
    )
    if texts:
        bake = functools.partial(write_baked_prompts, drop_text_encoder=plan.drop_text_encoder)
        manifest = steps.run(_PROMPTS, functools.partial(bake, manifest, bundle, texts))
    manifest = steps.run(MANIFEST_NAME, functools.partial(save_manifest, manifest, bundle))
    return manifest, {name: reports[name] for name in manifest.components}


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

    def keep(name: str, exported: ExportedComponent, size_bytes: int) -> None:
        components[name] = exported.record
        reports[name] = ComponentReport(
            exported.nodes,
            size_bytes,
            steps.seconds[name],
            exported.record.parity,
            exported.rewrites,
        )

    for name, make_component in plan.family.component_makers.items():
        make = functools.partial(make_reusable, make_component, plan.reuse_layers)
        exported = steps.run(name, functools.partial(export_component, make, bundle, plan.graphs))
        size_bytes = _measure_folder(bundle / name)
        keep(name, exported, size_bytes)
        if plan.reuse_layers and is_reusable(name):
            cut = functools.partial(export_reuse, name, exported, bundle)
            shallow = steps.run(name_reuse(name), cut)
            keep(name_reuse(name), shallow, _measure_folder(bundle / name) - size_bytes)
    check_same_inputs(components)
    return components, reports


def _name_components(plan: _ExportPlan) -> list[str]:
    """The names of all components, in their order."""
    names: list[str] = []
    for name in plan.family.component_makers:
        reuses = plan.reuse_layers and is_reusable(name)
        names += [name, name_reuse(name)] if reuses else [name]
    return names


def _measure_folder(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Export a checkpoint: every component, the tokenizer, the schedule tables and the manifest."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import diffusers
import onnx
import torch
import transformers

from mutoscope.export.bundle_writer import check_output, make_file_records, open_bundle_folder
from mutoscope.export.checkpoint import Checkpoint, open_checkpoint
from mutoscope.export.families import open_family
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.float16 import (
    check_float16_weights_range,
    convert_to_float16,
    refuse_float16_overflow,
)
from mutoscope.export.graph import OPSET_VERSION, make_graph, save_graph
from mutoscope.export.json_values import make_json_value
from mutoscope.export.parity import Reference, check_parity, make_references, measure_parity
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
from mutoscope.runtime import __version__
from mutoscope.runtime.manifest import (
    MANIFEST_NAME,
    ComponentRecord,
    DefaultsRecord,
    Manifest,
    ParityRecord,
)

GRAPH_NAME = "model.onnx"

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
    """What the export of one component gave."""

    nodes: int
    size_bytes: int
    seconds: float
    parity: tuple[ParityRecord, ...]


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
    motion_adapter: str | Path | None = None,
    name: str | None = None,
    schedulers: Iterable[str] = (),
    num_inference_steps: Iterable[int] = DEFAULT_STEP_COUNTS,
    dtype: Literal["float32", "float16"] = "float32",
    weights: Literal["float32", "float16"] | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportReport:
    """Export a checkpoint to a bundle at `output` and return what was written.

    The bundle is whole or absent: after an error or Ctrl-C nothing is left behind.

    Args:
        checkpoint: A folder in diffusers layout, or the id of one on the Hugging Face hub.
        output: The bundle to write.
        motion_adapter: Folder or hub id of a MotionAdapter, for an image model.
        name: The bundle's name, for people; that of the checkpoint if None.
        schedulers: More schedulers than the checkpoint's own, as diffusers class names or aliases.
        num_inference_steps: The step counts to make schedule tables for. The bundle's default is
            the one nearest to the checkpoint's own.
        dtype: What the graphs compute in. In float16 ones, norms, softmax and the sinusoids of the
            timestep stay float32, and so do the graphs' inputs and outputs.
        weights: How weights are stored; as `dtype` if None. float16 weights of float32 graphs are
            refused where they would change a value.
        force: Replace a bundle that exists.
        on_progress: Called at the start and at the end of each step.

    Raises:
        CheckpointError: The checkpoint cannot be opened, or not by any family.
        ExportError: A component cannot be exported.
        ExportParityError: An exported component differs from the checkpoint.
        OutputError: `output` exists, or cannot be written.
        ParameterError: An unknown scheduler, step count or type, or types that do not go together.
        ScheduleError: A scheduler cannot be made a table.
    """
    output = Path(output)
    started = time.perf_counter()
    check_output(output, force=force)
    stored = choose_weight_type(dtype, weights)
    step_counts = check_step_counts(num_inference_steps)
    opened = open_checkpoint(checkpoint, motion_adapter=motion_adapter)
    family = open_family(opened)
    chosen = make_schedulers(family.scheduler, schedulers)
    steps = _Steps(["tokenizer", "schedules", *family.component_makers, MANIFEST_NAME], on_progress)

    with open_bundle_folder(output, force=force) as bundle:
        tokenizer = steps.run(
            "tokenizer",
            lambda: export_tokenizer(
                family.tokenizer_folder, family.tokenizer_class, family.max_length, bundle
            ),
        )
        schedules = steps.run(
            "schedules", lambda: write_schedule_tables(chosen, step_counts, bundle)
        )
        components, reports = _export_components(family, bundle, dtype, stored, steps)
        manifest = steps.run(
            MANIFEST_NAME,
            lambda: _save_manifest(
                Manifest(
                    name=name or opened.name,
                    family=family.family,
                    components=components,
                    tokenizer=tokenizer,
                    latents=family.latents,
                    limits=family.limits,
                    defaults=fit_default_steps(family.defaults, step_counts),
                    schedules=schedules,
                    files=make_file_records(bundle),
                    guidance=family.guidance,
                    provenance=make_provenance(opened, family, dtype, stored),
                ),
                bundle,
            ),
        )
        size_bytes = _measure_folder(bundle)
    return ExportReport(output, manifest, reports, size_bytes, time.perf_counter() - started)


def fit_default_steps(defaults: DefaultsRecord, step_counts: Sequence[int]) -> DefaultsRecord:
    """Return defaults whose number of steps is one that the bundle has: the nearest."""
    wanted = defaults.num_inference_steps
    nearest = min(step_counts, key=lambda count: (abs(count - wanted), count))
    return replace(defaults, num_inference_steps=nearest)


def make_provenance(
    checkpoint: Checkpoint, family: FamilyExport, dtype: str, weights: str
) -> dict[str, Any]:
    """Return where a bundle came from; names and versions, never a path."""
    adapter = checkpoint.motion_adapter
    config = {key: value for key, value in family.scheduler.config.items() if key[0] != "_"}
    return {
        "mutoscope": __version__,
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "opset_version": OPSET_VERSION,
        "dtype": dtype,
        "weights": weights,
        "checkpoint": checkpoint.name,
        "pipeline_class": checkpoint.pipeline_class,
        "component_classes": family.classes,
        **({"motion_adapter": adapter.resolve().name} if adapter else {}),
        "scheduler_config": make_json_value(config),
    }


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


def _export_components(
    family: FamilyExport, bundle: Path, dtype: str, weights: str, steps: _Steps
) -> tuple[dict[str, ComponentRecord], dict[str, ComponentReport]]:
    """Write all components, one in memory at a time; return their records and reports."""
    components: dict[str, ComponentRecord] = {}
    reports: dict[str, ComponentReport] = {}
    for name, make_component in family.component_makers.items():
        record, nodes = steps.run(
            name, functools.partial(_export_component, make_component, bundle, dtype, weights)
        )
        components[name] = record
        reports[name] = ComponentReport(
            nodes, _measure_folder(bundle / name), steps.seconds[name], record.parity
        )
    return components, reports


def _export_component(
    make_component: Callable[[], ComponentExport], bundle: Path, dtype: str, weights: str
) -> tuple[ComponentRecord, int]:
    """Write one component, compare it with the checkpoint; return its record and node count."""
    component = make_component()
    smaller_weights = (dtype, weights) == ("float32", "float16")
    if smaller_weights:
        check_float16_weights(component)
    references = _prepare(component, dtype)
    model = make_graph(component, dtype)
    if smaller_weights:
        store_weights_as_float16(model)
    path = PurePosixPath(component.name) / GRAPH_NAME
    nodes = save_graph(model, bundle / path)
    del model
    parity = measure_parity(component, bundle / path, references)
    check_parity(component, parity, dtype)
    record = ComponentRecord(
        variants={dtype: str(path)},
        default_variant=dtype,
        inputs=component.inputs,
        outputs=component.outputs,
        parity=parity,
    )
    return record, nodes


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

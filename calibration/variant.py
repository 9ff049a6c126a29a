"""Add the int8 variant of components to a bundle, with what it was made of."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mutoscope.calibration.candidates import CandidateSearch
from mutoscope.calibration.choice import Choice
from mutoscope.calibration.errors import CalibrationError
from mutoscope.calibration.observers import ComponentStatistics
from mutoscope.calibration.reuse_graphs import cut_reuse_graph, name_reuse, name_reuse_graph
from mutoscope.calibration.samples import FLOAT
from mutoscope.calibration.table import CalibrationTable, name_table
from mutoscope.runtime.bundle import Bundle, list_graph_files
from mutoscope.runtime.bundle_writer import (
    edit_bundle,
    explain_write_errors,
    make_file_record,
    save_manifest,
)
from mutoscope.runtime.manifest import ComponentRecord, FileRecord, Manifest

INT8, FLOAT16 = "int8", "float16"
# Beside the component's float graphs.
_TENSORRT_NAME, _PROCESSORS_NAME = "model_int8.onnx", "model_int8_cpu.onnx"


@dataclass(frozen=True)
class CalibratedRanges:
    """The ranges of a component.

    Attributes:
        table: What people and tools read.
        statistics: What it was made of; more than the table where outliers are moved into weights.
        reused: Whether both were in the bundle already.
    """

    table: CalibrationTable
    statistics: ComponentStatistics
    reused: bool


def name_statistics(component: str) -> str:
    """Return the path in a bundle of what a component's table was made of."""
    return f"calibration/{component}.npz"


def add_variant(
    bundle: Bundle,
    searches: Mapping[str, CandidateSearch],
    choices: Mapping[str, Choice],
    ranges: Mapping[str, CalibratedRanges],
) -> dict[str, tuple[int, int]]:
    """Write int8 graphs and calibration tables into a bundle, whole or not at all.

    Tables are written for components that stay in float too: they say what was seen.

    Args:
        bundle: It is replaced; open it again.
        searches: What chose, by component.
        choices: What was chosen.
        ranges: What was collected, of the components of which something was.

    Returns:
        For each component, the bytes of its float graph and weights, and of those for processors
        in int8, 0 if it stays in float.

    Raises:
        BundleError: The bundle cannot be read again.
        CalibrationError: What is cut out of an int8 graph is not shallow.
        OutputError: It cannot be written, or was changed in the meantime.
    """
    output = bundle.path.resolve()
    with (
        explain_write_errors(output),
        tempfile.TemporaryDirectory(prefix="mutoscope-", dir=output.parent) as name,
    ):
        folder = Path(name)
        written = _write_files(folder, searches, choices, ranges)
        written |= _cut_reuse_graphs(bundle.manifest, folder, choices)
        old = _find_old_files(bundle, searches)
        with edit_bundle(bundle, without={*old, *written}) as target:
            for path in written:
                (target / path).parent.mkdir(exist_ok=True)
                (folder / path).rename(target / path)
            records = {path: make_file_record(target / path) for path in sorted(written)}
            kept = {p: r for p, r in bundle.manifest.files.items() if p not in old}
            save_manifest(_make_manifest(bundle.manifest, choices, {**kept, **records}), target)
    sizes = {}
    for component in choices:
        record = bundle.find_component(component)
        graph = record.find_cpu_graph(FLOAT)
        paths = list_graph_files(bundle.manifest, record, graph)
        made = [f"{component}/{_PROCESSORS_NAME}{end}" for end in ("", ".data")]
        sizes[component] = (
            sum(bundle.manifest.files[path].size_bytes for path in paths),
            sum(records[path].size_bytes for path in made if path in records),
        )
    return sizes


def _write_files(
    folder: Path,
    searches: Mapping[str, CandidateSearch],
    choices: Mapping[str, Choice],
    ranges: Mapping[str, CalibratedRanges],
) -> set[str]:
    """Write all new files into a folder; return their paths in the bundle."""
    for component, known in ranges.items():
        table = folder / name_table(component)
        table.parent.mkdir(exist_ok=True)
        known.table.save(table)
        known.statistics.save(folder / name_statistics(component))
    for component, choice in choices.items():
        if choice.kept_in_float is not None:
            continue
        search, chosen = searches[component], choice.chosen
        (folder / component).mkdir()
        for name, layers, for_tensorrt in (
            (_PROCESSORS_NAME, choice.processors_layers, False),
            (_TENSORRT_NAME, choice.tensorrt_layers, True),
        ):
            how = search.quantize(chosen.method, layers, smoothed=chosen.smoothed)
            search.write(folder / component / name, how, for_tensorrt=for_tensorrt)
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def _cut_reuse_graphs(manifest: Manifest, folder: Path, choices: Mapping[str, Choice]) -> set[str]:
    """Cut the shallow parts of denoisers out of their new graphs; return their paths."""
    cut = set()
    for component, choice in choices.items():
        record = _find_reuse(manifest, component)
        if record is None or choice.kept_in_float is not None:
            continue
        for name in (_PROCESSORS_NAME, _TENSORRT_NAME):
            path = f"{component}/{name_reuse_graph(name)}"
            found = cut_reuse_graph(folder / component / name, folder / path)
            if set(found.inputs) != set(record.inputs):
                raise CalibrationError(
                    f"{path} takes {', '.join(found.inputs)}; in float it takes "
                    f"{', '.join(record.inputs)}: export the checkpoint again"
                )
            cut.add(path)
    return cut


def _find_reuse(manifest: Manifest, component: str) -> ComponentRecord | None:
    """The record of what is cut out of a component; None if nothing is."""
    record = manifest.components.get(name_reuse(component))
    return record if record is not None and record.weights_of == component else None


def _find_old_files(bundle: Bundle, components: Mapping[str, CandidateSearch]) -> set[str]:
    """The files of the int8 variant that the components have so far."""
    graphs = (_TENSORRT_NAME, _PROCESSORS_NAME)
    names = [f"{n}{end}" for n in graphs for end in ("", ".data")]
    names += [name_reuse_graph(name) for name in graphs]
    paths = {f"{component}/{name}" for component in components for name in names}
    return paths & set(bundle.manifest.files)


def _make_manifest(
    manifest: Manifest, choices: Mapping[str, Choice], files: Mapping[str, FileRecord]
) -> Manifest:
    components = dict(manifest.components)
    for name, choice in choices.items():
        graphs = {}
        if choice.kept_in_float is None:
            graphs = {False: f"{name}/{_TENSORRT_NAME}", True: f"{name}/{_PROCESSORS_NAME}"}
        components[name] = _replace_graphs(components[name], graphs)
        reuse = _find_reuse(manifest, name)
        if reuse is not None:
            cut = {for_cpu: name_reuse_graph(path) for for_cpu, path in graphs.items()}
            components[name_reuse(name)] = _replace_graphs(reuse, cut)
    return replace(manifest, components=components, files=dict(files))


def _replace_graphs(record: ComponentRecord, graphs: Mapping[bool, str]) -> ComponentRecord:
    """The record with these int8 graphs, that for processors at True; or without any."""
    variants = {key: path for key, path in record.variants.items() if key != INT8}
    cpu_graphs = {key: path for key, path in record.cpu_graphs.items() if key != INT8}
    if graphs:
        variants[INT8], cpu_graphs[INT8] = graphs[False], graphs[True]
    return replace(record, variants=variants, cpu_graphs=cpu_graphs)

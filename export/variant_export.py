"""Add graphs that compute in float16 to a bundle that exists, from its checkpoint."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mutoscope.calibration.reuse_graphs import name_reuse, name_reuse_graph
from mutoscope.export.bundle_export import ComponentReport, ExportReport, ExportSteps, OnProgress
from mutoscope.export.component_export import (
    FLOAT16_GRAPH_NAME,
    WrittenGraph,
    make_checked_references,
    write_graph,
)
from mutoscope.export.errors import ExportParityError
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.mapped_weights import release_pages
from mutoscope.export.opening import CheckpointOptions, open_model
from mutoscope.export.parity import Reference, check_parity, measure_parity
from mutoscope.export.prompt_baking import leave_out_dropped
from mutoscope.export.reuse_export import find_reuse_layers, make_reusable, write_reuse_graph
from mutoscope.runtime.bundle import Bundle
from mutoscope.runtime.bundle_writer import edit_bundle, make_file_record, save_manifest
from mutoscope.runtime.errors import OutputError, ParameterError
from mutoscope.runtime.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ANOTHER = "the bundle is of another checkpoint, or of other options: give those of its export"


def add_float16(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
    **options: Unpack[CheckpointOptions],
) -> ExportReport:
    """Add the variant "float16" to a bundle that has float32 graphs; return what was written.

    The graphs are those that `export_checkpoint` makes with dtype "float32,float16". The bundle
    gets all of them or stays as it was; what it runs by default does not change.

    Args:
        checkpoint: What the bundle was made of; see `export_checkpoint`.
        bundle: Its folder.
        force: Replace the float16 graphs if there are some.
        on_progress: Called at the start and at the end of each step.
        **options: What its export was given with the checkpoint; see `CheckpointOptions`.

    Raises:
        BundleError: There is no bundle, or it is damaged.
        CheckpointError: The checkpoint cannot be opened, or not by any family.
        ExportError: A component cannot compute in float16.
        ExportParityError: The bundle is of another checkpoint, or a graph differs from it.
        OutputError: There are float16 graphs, or the bundle cannot be written.
        ParameterError: The bundle has no float32 graphs.
    """
    started = time.perf_counter()
    opened = Bundle.open(bundle)
    _check_variants(opened, force=force)
    paths = _name_graphs(opened.manifest)
    reuse_layers = find_reuse_layers(opened.manifest)
    replaced = [file for path in paths.values() for file in _list_files(path)]
    with open_model(checkpoint, opened.path.resolve().parent, **options) as (_, family):
        family = leave_out_dropped(family, opened.manifest)
        _check_components(opened.manifest, family)
        steps = ExportSteps([*paths, MANIFEST_NAME], on_progress)
        written: dict[str, WrittenGraph] = {}
        with edit_bundle(opened, without=replaced) as folder:
            for name, make_component in family.component_makers.items():
                make = functools.partial(make_reusable, make_component, reuse_layers)
                path = PurePosixPath(paths[name])
                work = functools.partial(_write_float16, make, opened, folder, path)
                exported = steps.run(name, work)
                if exported is None:
                    continue
                component, written[name], references = exported
                if name_reuse(name) in paths:
                    cut = functools.partial(
                        write_reuse_graph, component, folder / path, "float16", references
                    )
                    reuse, parity = steps.run(name_reuse(name), cut)
                    shallow = WrittenGraph(paths[name_reuse(name)], reuse.nodes, parity)
                    written[name_reuse(name)] = shallow
            added = _add_graphs(opened.manifest, written, folder)
            manifest = steps.run(MANIFEST_NAME, lambda: save_manifest(added, folder))
    reports = {
        name: _make_report(manifest, graph, steps.seconds[name]) for name, graph in written.items()
    }
    size_bytes = sum(record.size_bytes for record in manifest.files.values())
    return ExportReport(opened.path, manifest, reports, size_bytes, time.perf_counter() - started)


def _name_graphs(manifest: Manifest) -> dict[str, str]:
    """The path of the float16 graph of each component, whether it is there or not."""
    paths: dict[str, str] = {}
    for name, record in manifest.components.items():
        if record.weights_of is None:
            paths[name] = record.variants.get("float16", f"{name}/{FLOAT16_GRAPH_NAME}")
        else:
            paths[name] = name_reuse_graph(paths[record.weights_of])
    return paths


def _check_variants(bundle: Bundle, *, force: bool) -> None:
    """Raise unless every component has a float32 graph, and none a float16 one that may stay."""
    for name, record in bundle.manifest.components.items():
        if "float32" not in record.variants:
            raise ParameterError(
                f"{name} in {bundle.path} has no float32 graph to compare with: export both with "
                "--dtype float32,float16 --force"
            )
        if "float16" in record.variants and not force:
            raise OutputError(
                f"{bundle.path} has float16 graphs: leave them, or replace them with --force"
            )


def _check_components(manifest: Manifest, family: FamilyExport) -> None:
    whole = (name for name, record in manifest.components.items() if record.weights_of is None)
    bundle = f"{manifest.family} with {', '.join(whole)}"
    checkpoint = f"{family.family} with {', '.join(family.component_makers)}"
    if bundle != checkpoint:
        raise ExportParityError(
            f"the bundle is {bundle}; the checkpoint gives {checkpoint}: {_ANOTHER}"
        )


def _write_float16(
    make_component: Callable[[], ComponentExport],
    bundle: Bundle,
    folder: Path,
    path: PurePosixPath,
) -> tuple[ComponentExport, WrittenGraph, tuple[Reference, ...]] | None:
    """Write the float16 graph of one component; None for one that stays in float32.

    Returns:
        The component without its weights, its graph, and what that was compared with.
    """
    component = make_component()
    record = bundle.find_component(component.name)
    if (component.inputs, component.outputs) != (record.inputs, record.outputs):
        raise ExportParityError(
            f"{component.name} takes or returns other shapes than the checkpoint's: {_ANOTHER}"
        )
    if component.float32_only:
        return None
    references = make_checked_references(component, ["float16"])
    release_pages(component.module)
    float32_graph = bundle.load_graph(component.name, "float32")
    try:
        check_parity(component, measure_parity(component, float32_graph, references), "float32")
    except ExportParityError as err:
        raise ExportParityError(f"{err}: {_ANOTHER}") from err
    graph = write_graph(component, folder, path, "float16", "float16", references)
    return component, graph, references


def _add_graphs(manifest: Manifest, written: Mapping[str, WrittenGraph], folder: Path) -> Manifest:
    """Return a manifest that has these graphs, which lie in the folder."""
    components, files = dict(manifest.components), dict(manifest.files)
    for name, graph in written.items():
        record = components[name]
        variants = {**record.variants, "float16": graph.path}
        components[name] = replace(record, variants=variants)
        for file in _list_files(graph.path):
            files.pop(file, None)
            if (folder / file).exists():
                files[file] = make_file_record(folder / file)
    provenance = dict(manifest.provenance)
    for key in {"dtype", "weights"} & provenance.keys():
        known = str(provenance[key]).split(", ")
        provenance[key] = ", ".join(dict.fromkeys([*known, "float16"]))
    files = dict(sorted(files.items()))
    return replace(manifest, components=components, files=files, provenance=provenance)


def _make_report(manifest: Manifest, graph: WrittenGraph, seconds: float) -> ComponentReport:
    found = [manifest.files[file] for file in _list_files(graph.path) if file in manifest.files]
    size_bytes = sum(record.size_bytes for record in found)
    return ComponentReport(graph.nodes, size_bytes, seconds, graph.parity, {})


def _list_files(graph: str) -> tuple[str, str]:
    """A graph and the file of its weights, as `save_graph` names them."""
    return graph, f"{graph}.data"

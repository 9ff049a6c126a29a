"""Compare a bundle that exists with the checkpoint it is said to come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.calibration.reuse_graphs import name_reuse
from mutoscope.export.errors import ExportParityError
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.opening import CheckpointOptions, open_model
from mutoscope.export.parity import (
    PARITY_LIMITS,
    Reference,
    check_parity,
    make_references,
    measure_parity,
)
from mutoscope.export.prompt_baking import leave_out_dropped
from mutoscope.export.reuse_export import (
    compare_reuse,
    find_reuse_layers,
    is_reusable,
    make_reusable,
)
from mutoscope.runtime.manifest import MANIFEST_NAME, ComponentRecord, Manifest, ParityRecord

if TYPE_CHECKING:
    from typing_extensions import Unpack


def compare_with_checkpoint(
    bundle: str | Path,
    checkpoint: str | Path,
    **options: Unpack[CheckpointOptions],
) -> dict[str, list[ParityRecord]]:
    """Return how close each component of a bundle comes to the checkpoint, as at its export.

    Args:
        bundle: The bundle's folder; its variants are compared, within the limits of their type.
            Int8 has none: it was judged by clips when it was made.
        checkpoint: Folder or hub id of the checkpoint.
        **options: What the export was given with the checkpoint; see `CheckpointOptions`.

    Raises:
        BundleError: The bundle's manifest cannot be read.
        CheckpointError: The checkpoint cannot be opened.
        ExportParityError: A component is absent from one of them, or differs.
    """
    folder = Path(bundle)
    manifest = Manifest.load(folder / MANIFEST_NAME)
    with open_model(checkpoint, folder.resolve().parent, **options) as (_, family):
        return _compare(manifest, leave_out_dropped(family, manifest), folder)


def _compare(
    manifest: Manifest, family: FamilyExport, folder: Path
) -> dict[str, list[ParityRecord]]:
    whole = {name for name, record in manifest.components.items() if record.weights_of is None}
    if set(family.component_makers) != whole:
        raise ExportParityError(
            f"the bundle has {', '.join(sorted(whole))}; the checkpoint gives "
            f"{', '.join(sorted(family.component_makers))}: it is of another kind"
        )
    results: dict[str, list[ParityRecord]] = {}
    for name, make_component in family.component_makers.items():
        component = make_reusable(make_component, find_reuse_layers(manifest))
        record = manifest.components[name]
        if component.inputs != record.inputs or component.outputs != record.outputs:
            raise ExportParityError(
                f"{name} takes or returns other shapes than the checkpoint's: the bundle is of "
                "another checkpoint"
            )
        references, results[name] = make_references(component), []
        for variant in (name for name in record.variants if name in PARITY_LIMITS):
            for graph in dict.fromkeys((record.variants[variant], record.find_cpu_graph(variant))):
                figures = measure_parity(component, folder / graph, references)
                check_parity(component, figures, variant)
                results[name] += figures
        shallow = manifest.components.get(name_reuse(name))
        if shallow is not None and is_reusable(name):
            results[name_reuse(name)] = _compare_reuse(component, shallow, folder, references)
    return results


def _compare_reuse(
    component: ComponentExport,
    record: ComponentRecord,
    folder: Path,
    references: tuple[Reference, ...],
) -> list[ParityRecord]:
    """Compare the graphs that were cut out of a denoiser's."""
    results: list[ParityRecord] = []
    for variant in (name for name in record.variants if name in PARITY_LIMITS):
        for graph in dict.fromkeys((record.variants[variant], record.find_cpu_graph(variant))):
            results += compare_reuse(component, folder / graph, record.inputs, variant, references)
    return results

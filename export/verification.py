"""Compare a bundle that exists with the checkpoint it is said to come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mutoscope.export.errors import ExportParityError
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.opening import CheckpointOptions, open_model
from mutoscope.export.parity import PARITY_LIMITS, check_parity, make_references, measure_parity
from mutoscope.runtime.manifest import MANIFEST_NAME, Manifest, ParityRecord

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
        return _compare(manifest, family, folder)


def _compare(
    manifest: Manifest, family: FamilyExport, folder: Path
) -> dict[str, list[ParityRecord]]:
    if set(family.component_makers) != set(manifest.components):
        raise ExportParityError(
            f"the bundle has {', '.join(sorted(manifest.components))}; the checkpoint gives "
            f"{', '.join(sorted(family.component_makers))}: it is of another kind"
        )
    results: dict[str, list[ParityRecord]] = {}
    for name, make_component in family.component_makers.items():
        component, record = make_component(), manifest.components[name]
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
    return results

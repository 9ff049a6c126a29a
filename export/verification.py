"""Compare a bundle that exists with the checkpoint it is said to come from."""

from __future__ import annotations

from pathlib import Path

from mutoscope.export.checkpoint import open_checkpoint
from mutoscope.export.errors import ExportParityError
from mutoscope.export.families import open_family
from mutoscope.export.parity import check_parity, make_references, measure_parity
from mutoscope.runtime.manifest import MANIFEST_NAME, Manifest, ParityRecord


def compare_with_checkpoint(
    bundle: str | Path,
    checkpoint: str | Path,
    *,
    motion_adapter: str | Path | None = None,
) -> dict[str, list[ParityRecord]]:
    """Return how close each component of a bundle comes to the checkpoint, as at its export.

    Args:
        bundle: The bundle's folder; its default variants are compared, within the limits of their
            type.
        checkpoint: Folder or hub id of the checkpoint.
        motion_adapter: Folder or hub id of the motion adapter that the export was given.

    Raises:
        BundleError: The bundle's manifest cannot be read.
        CheckpointError: The checkpoint cannot be opened.
        ExportParityError: A component is absent from one of them, or differs.
    """
    folder = Path(bundle)
    manifest = Manifest.load(folder / MANIFEST_NAME)
    family = open_family(open_checkpoint(checkpoint, motion_adapter=motion_adapter))
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
        graph_path = folder / record.variants[record.default_variant]
        figures = measure_parity(component, graph_path, make_references(component))
        check_parity(component, figures, record.default_variant)
        results[name] = list(figures)
    return results

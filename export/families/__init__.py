"""The model families that can be exported; each is one file, found by its pipeline class."""

from __future__ import annotations

import importlib

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import FamilyExport

# The class that model_index.json names, and the module whose open_family() reads it.
FAMILY_MODULES = {
    "AnimateDiffPipeline": "mutoscope.export.families.animatediff",
    "StableDiffusionPipeline": "mutoscope.export.families.animatediff",
}


def open_family(checkpoint: Checkpoint) -> FamilyExport:
    """Return the checkpoint as its family reads it.

    Raises:
        CheckpointError: No family reads this pipeline class, or the checkpoint is not whole.
    """
    module_name = FAMILY_MODULES.get(checkpoint.pipeline_class)
    if module_name is None:
        known = ", ".join(FAMILY_MODULES)
        raise CheckpointError(
            f"{checkpoint.name} is a {checkpoint.pipeline_class}, which cannot be exported yet: "
            f"use one of {known}"
        )
    family: FamilyExport = importlib.import_module(module_name).open_family(checkpoint)
    return family

"""The model families that can be exported; each is one file, found by its pipeline class."""

from __future__ import annotations

import importlib
from dataclasses import replace

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.few_step import add_second, open_second
from mutoscope.export.loras.fusion import check_lora_components, check_loras
from mutoscope.export.presets import Preset, apply_preset
from mutoscope.export.scheduler_tables import name_scheduler

# The class that model_index.json names, and the module whose open_family() reads it.
FAMILY_MODULES = {
    "AnimateDiffPipeline": "mutoscope.export.families.animatediff",
    "StableDiffusionPipeline": "mutoscope.export.families.animatediff",
    "AnimateDiffSDXLPipeline": "mutoscope.export.families.animatediff_sdxl",
    "StableDiffusionXLPipeline": "mutoscope.export.families.animatediff_sdxl",
    "TextToVideoSDPipeline": "mutoscope.export.families.text_to_video",
    "StableVideoDiffusionPipeline": "mutoscope.export.families.stable_video",
    "I2VGenXLPipeline": "mutoscope.export.families.i2vgen",
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
    if checkpoint.loras:
        if not family.weight_shapes:
            raise CheckpointError(
                f"{checkpoint.name} is of the family {family.family}, which takes no LoRAs: leave "
                "them out"
            )
        check_lora_components(checkpoint.loras, family.weight_shapes)
        for component, read_shapes in family.weight_shapes.items():
            check_loras(checkpoint.loras, component, read_shapes())
    if checkpoint.few_step is not None:
        family = add_second(family, open_family(open_second(checkpoint)))
    if checkpoint.preset is None:
        return family
    if not family.takes_presets:
        raise CheckpointError(
            f"{checkpoint.name} is not an AnimateDiff model, which the preset "
            f"{checkpoint.preset.name} belongs to: leave it out"
        )
    return _apply_preset(family, checkpoint.preset)


def _apply_preset(family: FamilyExport, preset: Preset) -> FamilyExport:
    """Return the family with the scheduler, the steps and the guidance of a few-step model."""
    scheduler = apply_preset(preset, family.scheduler)
    defaults = replace(
        family.defaults,
        scheduler=name_scheduler(type(scheduler).__name__),
        num_inference_steps=preset.num_inference_steps,
        guidance_scale=preset.guidance_scale,
        min_guidance_scale=None,
    )
    return replace(family, scheduler=scheduler, defaults=defaults)

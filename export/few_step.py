"""The second denoiser of a checkpoint: distilled to few steps, with its guidance inside.

It is either a UNet of its own, in the checkpoint's folder unet_few_step, or the checkpoint's UNet
with a LoRA. The rest of the export sees it as one more component, which one more schedule names.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.defaults import DEFAULTS_NAME, FewStepSettings, read_few_step_settings
from mutoscope.export.errors import CheckpointError, ExportError
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.loras.fusion import Lora
from mutoscope.runtime.manifest import ComponentRecord

UNET = "unet"
# Both the folder in a checkpoint and the component in a bundle.
FEW_STEP_UNET = "unet_few_step"


@dataclass(frozen=True)
class FewStep:
    """What makes the second denoiser.

    Attributes:
        settings: How it is sampled.
        lora: What is added to the checkpoint's UNet; None for a UNet of its own.
    """

    settings: FewStepSettings
    lora: Lora | None = None


def find_few_step(checkpoint: Checkpoint, lora: Lora | None = None) -> FewStep | None:
    """Return the second denoiser that a checkpoint has, or that a LoRA makes of it.

    Raises:
        CheckpointError: Both are there, it does not fit the first, or it does not go with a preset.
    """
    settings = read_few_step_settings(checkpoint.folder)
    if (checkpoint.folder / FEW_STEP_UNET).is_dir() != (settings is not None):
        there, absent = f"the folder {FEW_STEP_UNET}", f"few_step in {DEFAULTS_NAME}"
        if settings is not None:
            there, absent = absent, there
        raise CheckpointError(
            f"{checkpoint.name} has {there} and lacks {absent}: add it, or leave the few-step "
            "denoiser out with --no-few-step"
        )
    if lora is None and settings is None:
        return None
    if lora is not None and settings is not None:
        raise CheckpointError(
            f"{checkpoint.name} has a few-step denoiser of its own, so {lora.label} cannot make "
            "it: leave out --few-step-lora"
        )
    if checkpoint.preset is not None:
        raise CheckpointError(
            f"{checkpoint.name} has a few-step denoiser, and the preset {checkpoint.preset.name} "
            "is for one that takes its place: add --no-few-step, or leave out --preset"
        )
    if settings is not None:
        _check_same_model(checkpoint)
        return FewStep(settings)
    assert lora is not None  # else there was nothing above
    _check_changes_unet_alone(lora)
    return FewStep(FewStepSettings(), lora)


def open_second(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint as it is with the second denoiser in place of the first."""
    few_step = checkpoint.few_step
    assert few_step is not None
    if few_step.lora is None:
        return replace(checkpoint, few_step=None, folders={UNET: FEW_STEP_UNET})
    return replace(checkpoint, few_step=None, loras=(*checkpoint.loras, few_step.lora))


def add_second(family: FamilyExport, second: FamilyExport) -> FamilyExport:
    """Return a family with the denoiser of another as one more component, after its own.

    Args:
        family: Of the checkpoint.
        second: The same family, of what `open_second` returned.
    """
    make_unet = second.component_makers[UNET]
    makers: dict[str, Any] = {}
    for name, make_component in family.component_makers.items():
        makers[name] = make_component
        if name == UNET:
            makers[FEW_STEP_UNET] = lambda: replace(make_unet(), name=FEW_STEP_UNET)
    classes = {**family.classes, FEW_STEP_UNET: second.classes[UNET]}
    return replace(family, component_makers=makers, classes=classes)


def check_same_inputs(components: Mapping[str, ComponentRecord]) -> None:
    """Raise `ExportError` unless both denoisers, where there are two, can take each other's place.

    They take the same, and return a model output of the same shape.
    """
    if FEW_STEP_UNET not in components:
        return
    first, second = components[UNET], components[FEW_STEP_UNET]
    if (second.inputs, second.outputs) != (first.inputs, first.outputs):
        raise ExportError(
            f"{FEW_STEP_UNET} takes or returns other tensors than {UNET}: {second.inputs} and "
            f"{first.inputs}; one clip uses either, so they must be the same: leave it out with "
            "--no-few-step"
        )


def _check_changes_unet_alone(lora: Lora) -> None:
    """Refuse a LoRA that changes what both denoisers share."""
    for component, parts in lora.parts.items():
        if component != UNET:
            raise CheckpointError(
                f"{lora.label} changes {len(parts)} weights of the {component}, which both "
                f"denoisers share; a few-step LoRA may change the {UNET} alone: save it without "
                "them, or give it with --lora"
            )


def _check_same_model(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` unless the second UNet has the configuration of the first."""
    first = checkpoint.load_config(UNET)
    second = replace(checkpoint, folders={UNET: FEW_STEP_UNET}).load_config(UNET)
    names = [config.get("_class_name") for config in (first, second)]
    if names[0] != names[1]:
        raise CheckpointError(
            f"{FEW_STEP_UNET} of {checkpoint.name} is a {names[1]} and {UNET} a {names[0]}; both "
            "must be of one class: save it as the other"
        )
    usual = _read_usual_settings(names[0])
    first, second = {**usual, **first}, {**usual, **second}
    for name in sorted(first.keys() | second.keys()):
        # What begins so is of the file: its version, where it came from.
        if not name.startswith("_") and first.get(name) != second.get(name):
            raise CheckpointError(
                f"{FEW_STEP_UNET} of {checkpoint.name} has {name} {second.get(name)!r} and {UNET} "
                f"{first.get(name)!r}; both must have one configuration: distil it from that {UNET}"
            )


def _read_usual_settings(class_name: Any) -> dict[str, Any]:
    """Return what a class of diffusers takes where a configuration says nothing."""
    model_class = getattr(diffusers, str(class_name), None)
    if model_class is None:  # the family refuses it, and says why
        return {}
    parameters = inspect.signature(model_class.__init__).parameters.values()
    usual = {it.name: it.default for it in parameters if it.default is not it.empty}
    # As JSON has them.
    return {name: list(it) if isinstance(it, tuple) else it for name, it in usual.items()}

"""Load a model of a checkpoint, with the LoRAs that the user gave in its weights."""

from __future__ import annotations

from typing import Any

import diffusers

from mutoscope.export.checkpoint import Checkpoint, load_model
from mutoscope.export.errors import CheckpointError
from mutoscope.export.loras.fusion import fuse_loras


def load_component(checkpoint: Checkpoint, component: str, model_class: Any) -> Any:
    """Return a model with its LoRAs fused: float32, in eval mode; raises `CheckpointError`."""
    model = load_model(model_class, checkpoint.component_folder(component))
    fuse_loras(model, checkpoint.loras, component)
    return model


def load_scheduler(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's own scheduler; raises `CheckpointError`."""
    config = checkpoint.load_config("scheduler", "scheduler_config.json")
    class_name = config.get("_class_name") or checkpoint.component_classes["scheduler"]
    scheduler_class = getattr(diffusers, class_name, None)
    if scheduler_class is None:
        raise CheckpointError(
            f"{checkpoint.name} has the scheduler {class_name}, which this diffusers "
            f"({diffusers.__version__}) does not have: pip install --upgrade diffusers"
        )
    return scheduler_class.from_config(config)


def check_classes(
    checkpoint: Checkpoint, kind: str, component_classes: dict[str, tuple[str, ...]]
) -> None:
    """Raise `CheckpointError` unless every component is there and of one of its classes.

    Args:
        checkpoint: The checkpoint.
        kind: What messages call it: "an AnimateDiff checkpoint".
        component_classes: For each component, the classes that it may have.
    """
    for component, classes in component_classes.items():
        checkpoint.component_folder(component)
        found = checkpoint.component_classes[component]
        if found not in classes:
            raise CheckpointError(
                f"{checkpoint.name} has a {component} of class {found}; {kind} has "
                f"{' or '.join(classes)}"
            )


def check_no_motion_adapter(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` if a motion adapter was given to a model that needs none."""
    if checkpoint.motion_adapter is not None:
        raise CheckpointError(
            f"{checkpoint.name} has motion of its own: leave out the motion adapter "
            f"{checkpoint.motion_adapter.name}"
        )

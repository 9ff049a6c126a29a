"""Where a bundle came from, for its manifest."""

from __future__ import annotations

from typing import Any

import diffusers
import onnx
import torch
import transformers

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.graph import OPSET_VERSION
from mutoscope.export.hub import name_path
from mutoscope.export.json_values import make_json_value
from mutoscope.export.loras.fusion import describe_loras
from mutoscope.runtime import __version__


def make_provenance(
    checkpoint: Checkpoint, family: FamilyExport, dtype: str, weights: str, reuse_layers: int
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
        "reuse_layers": reuse_layers,
        "checkpoint": checkpoint.name,
        "pipeline_class": checkpoint.pipeline_class,
        "component_classes": family.classes,
        **({"motion_adapter": name_path(adapter)} if adapter else {}),
        **({"preset": checkpoint.preset.name} if checkpoint.preset else {}),
        **({"loras": describe_loras(checkpoint.loras)} if checkpoint.loras else {}),
        **_describe_few_step(checkpoint),
        **({"vae": name_path(checkpoint.vae)} if checkpoint.vae else {}),
        **({"preview_vae": name_path(checkpoint.preview_vae)} if checkpoint.preview_vae else {}),
        "scheduler_config": make_json_value(config),
    }


def _describe_few_step(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the LoRA of the second denoiser; one with weights of its own has a class instead."""
    few_step = checkpoint.few_step
    if few_step is None or few_step.lora is None:
        return {}
    return {"few_step_lora": describe_loras([few_step.lora])[0]}

"""Makers of a tiny checkpoint with a second denoiser of few steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetMotionModel

from mutoscope.export.library_noise import quiet_libraries
from tests.checkpoints import randomise

STEPS = (1, 2, 4)
FEW_STEP = {
    "scheduler": "lcm",
    "num_inference_steps": list(STEPS),
    "default_num_inference_steps": 4,
    "reused_rows": [2, 3],
}


def save_few_step(checkpoint: Path, folder: Path) -> Path:
    """Copy an AnimateDiffPipeline folder and add a second denoiser to it; return the copy."""
    shutil.copytree(checkpoint, folder)
    unet = UNetMotionModel.from_pretrained(folder / "unet")
    torch.manual_seed(7)
    randomise(unet)
    unet.half().save_pretrained(folder / "unet_few_step")
    (folder / "mutoscope_defaults.json").write_text(json.dumps({"few_step": FEW_STEP}))
    return folder


def load_unet(folder: Path) -> Any:
    """Return a denoiser in float32."""
    with quiet_libraries():
        return UNetMotionModel.from_pretrained(folder)

"""Saves the trained parts together in the diffusers layout, and takes such a checkpoint apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AnimateDiffPipeline, AutoencoderKL, UNetMotionModel
from torch import nn
from transformers import CLIPTextModel

from training.clips import FRAME_RATE, NUM_FRAMES, SIZE
from training.latents import SCALE_NAME, read_scaling_factor
from training.loop import TrainingPlan, load_average, make_state, save_state
from training.text_encoder import STATE_NAME as TEXT_STATE_NAME
from training.text_encoder import AttributeReader, load_text_encoder
from training.tokenizer import save_tokenizer
from training.unet import (
    CLIP_STATE_NAME,
    FEW_STEP_STATE_NAME,
    TrackedUNet,
    make_scheduler,
    make_unet,
)
from training.vae import NARROW_STATE_NAME, load_vae

SIZE_LIMIT_BYTES: Final = 28_000_000
GUIDANCE_SCALE: Final = 2.0
"""Chosen on training combinations; see README.md beside this file."""
DEFAULTS: Final = {
    "num_inference_steps": 25,
    "guidance_scale": GUIDANCE_SCALE,
    "height": SIZE,
    "width": SIZE,
    "num_frames": NUM_FRAMES,
    "frame_rate": FRAME_RATE,
}
"""What the export should use where the caller says nothing; diffusers has no place for these."""
FEW_STEP_DEFAULTS: Final = {
    "scheduler": "ddim",
    "num_inference_steps": [1, 2, 4],
    "default_num_inference_steps": 4,
    "reused_rows": [2],
}
"""How the few-step denoiser is sampled: as `few_step.py` distils it, but with the last step whole.

That costs a fifth more time, and keeps shapes and colours as well as four whole steps do."""
DEFAULTS_NAME: Final = "mutoscope_defaults.json"
FEW_STEP_FOLDER: Final = "unet_few_step"


def make_pipeline(state_dir: Path) -> AnimateDiffPipeline:
    """Return the pipeline of the trained parts, float32, with averaged weights."""
    tokenizer, text_encoder = load_text_encoder(state_dir)
    vae = load_vae(state_dir, narrow=True)
    vae.register_to_config(scaling_factor=read_scaling_factor(state_dir))
    unet = make_unet()
    load_average(TrackedUNet(unet), state_dir / CLIP_STATE_NAME)
    return AnimateDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.eval(),
        motion_adapter=None,
        scheduler=make_scheduler(),
    )


def make_few_step_unet(state_dir: Path) -> UNetMotionModel:
    """Return the few-step denoiser, float32, with averaged weights."""
    unet = make_unet()
    load_average(unet, state_dir / FEW_STEP_STATE_NAME)
    return unet.eval()


def save_checkpoint(state_dir: Path, output: Path) -> int:
    """Write the checkpoint in float16 and return its size in bytes; replaces `output` as a whole.

    The few-step denoiser is in it if there is a trained one.

    Raises:
        ValueError: The checkpoint is over the size limit, or a weight does not fit float16.
    """
    pipeline = make_pipeline(state_dir).to(dtype=torch.float16)
    for name in ("vae", "text_encoder", "unet"):
        _check_finite(getattr(pipeline, name), name)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    save_tokenizer(pipeline.tokenizer, partial / "tokenizer")
    defaults: dict[str, Any] = dict(DEFAULTS)
    if (state_dir / FEW_STEP_STATE_NAME).exists():
        _save_few_step_unet(state_dir, partial / FEW_STEP_FOLDER)
        defaults["few_step"] = FEW_STEP_DEFAULTS
    _write_defaults(defaults, partial / DEFAULTS_NAME)
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)
    size = _measure(partial)
    for name in ("README.md", "mutoscope_prompts.txt"):  # written by people
        if (output / name).exists():
            shutil.copy(output / name, partial / name)
    _replace_folder(partial, output)
    return size


def save_few_step(state_dir: Path, output: Path) -> int:
    """Add the few-step denoiser to a saved checkpoint and return its new size in bytes.

    Another few-step denoiser is replaced; of the other files only the defaults change, which tell
    of it.

    Raises:
        ValueError: The checkpoint is over the size limit, or a weight does not fit float16.
    """
    defaults = json.loads((output / DEFAULTS_NAME).read_text(encoding="utf-8"))
    folder, partial = output / FEW_STEP_FOLDER, output / f".{FEW_STEP_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _save_few_step_unet(state_dir, partial)
    try:
        _measure(output, without=folder)
    except ValueError:
        shutil.rmtree(partial)
        raise
    _replace_folder(partial, folder)
    _write_defaults({**defaults, "few_step": FEW_STEP_DEFAULTS}, output / DEFAULTS_NAME)
    return _measure(output)


def unpack_checkpoint(checkpoint: Path, state_dir: Path) -> list[str]:
    """Write the states of a saved checkpoint's parts, from which the stages go on.

    The optimizers start anew, and so do the heads that are dropped after training. There is no
    wide autoencoder in a checkpoint.

    Returns:
        The names of the states.

    Raises:
        ValueError: There is no checkpoint, or a state of one of the parts is there already.
    """
    if not (checkpoint / DEFAULTS_NAME).exists():
        raise ValueError(f"{checkpoint} has no {DEFAULTS_NAME}: name what `save` wrote")
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae")
    parts: dict[str, nn.Module] = {
        TEXT_STATE_NAME: AttributeReader(
            CLIPTextModel.from_pretrained(checkpoint / "text_encoder")
        ),
        NARROW_STATE_NAME: vae,
        CLIP_STATE_NAME: TrackedUNet(UNetMotionModel.from_pretrained(checkpoint / "unet")),
    }
    if (checkpoint / FEW_STEP_FOLDER).exists():
        parts[FEW_STEP_STATE_NAME] = UNetMotionModel.from_pretrained(checkpoint / FEW_STEP_FOLDER)
    there = [name for name in parts if (state_dir / name).exists()]
    if there:
        raise ValueError(f"{state_dir} has {', '.join(there)}: name another --state-dir")
    for name, model in parts.items():
        state = make_state(model.float(), TrainingPlan(minutes=0.0, learning_rate=0.0))
        save_state(state, state_dir / name)
    (state_dir / SCALE_NAME).write_text(json.dumps(vae.config["scaling_factor"]))
    return list(parts)


def _save_few_step_unet(state_dir: Path, folder: Path) -> None:
    unet = make_few_step_unet(state_dir).half()
    _check_finite(unet, FEW_STEP_FOLDER)
    unet.save_pretrained(folder, safe_serialization=True)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def _check_finite(model: torch.nn.Module, name: str) -> None:
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} {key} is not finite in float16: train it with less spread")


def _write_defaults(defaults: Mapping[str, Any], path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _measure(folder: Path, *, without: Path | None = None) -> int:
    """Return the bytes of all files under a folder; raises `ValueError` above the limit."""
    paths = [path for path in folder.rglob("*") if path.is_file() and without not in path.parents]
    size = sum(path.stat().st_size for path in paths)
    if size > SIZE_LIMIT_BYTES:
        raise ValueError(f"checkpoint has {size} bytes; the limit is {SIZE_LIMIT_BYTES}: narrow it")
    return size


def _replace_folder(partial: Path, folder: Path) -> None:
    """Put a folder in the place of another, which need not exist."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)

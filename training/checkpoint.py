"""Puts the trained parts together and saves them in the diffusers layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from diffusers import AnimateDiffPipeline

from training.clips import FRAME_RATE, NUM_FRAMES, SIZE
from training.latents import load_vae, read_scaling_factor
from training.loop import load_average
from training.text_encoder import load_text_encoder
from training.tokenizer import save_tokenizer
from training.unet import CLIP_STATE_NAME, TrackedUNet, make_scheduler, make_unet

SIZE_LIMIT_BYTES: Final = 16_000_000
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


def make_pipeline(state_dir: Path) -> AnimateDiffPipeline:
    """Return the pipeline of the trained parts, float32, with averaged weights."""
    tokenizer, text_encoder = load_text_encoder(state_dir)
    vae = load_vae(state_dir)
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


def save_checkpoint(state_dir: Path, output: Path) -> int:
    """Write the checkpoint in float16 and return its size in bytes; replaces `output` as a whole.

    Raises:
        ValueError: The checkpoint is over the size limit, or a weight does not fit float16.
    """
    pipeline = make_pipeline(state_dir).to(dtype=torch.float16)
    for name in ("vae", "text_encoder", "unet"):
        for key, weight in getattr(pipeline, name).named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(
                    f"{name} {key} is not finite in float16: train it with less spread"
                )
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    save_tokenizer(pipeline.tokenizer, partial / "tokenizer")
    defaults = json.dumps(DEFAULTS, indent=2) + "\n"
    (partial / "mutoscope_defaults.json").write_text(defaults, encoding="utf-8")
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    if size > SIZE_LIMIT_BYTES:
        raise ValueError(f"checkpoint has {size} bytes; the limit is {SIZE_LIMIT_BYTES}: narrow it")
    for name in ("README.md", "mutoscope_prompts.txt"):  # written by people
        if (output / name).exists():
            shutil.copy(output / name, partial / name)
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)
    return size

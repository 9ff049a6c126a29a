"""Random checkpoints of the sizes that the benchmarks speak of, in diffusers layout.

    python -m benchmarks.checkpoints animatediff-54m --folder FOLDER

Random weights take as much time and memory as trained ones.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# CLIP's tokenizer has 49408 tokens; these are its first and last, and plain letters before them.
VOCABULARY_SIZE: Final = 49408
MAX_LENGTH: Final = 77

# The channels of a UNet of some 54 million parameters.
CHANNELS: Final = (64, 128, 256, 256)
TEXT_FEATURES: Final = 384


def make_stable_diffusion(checkpoint: Path, adapter: Path) -> None:
    """Save a Stable Diffusion 1.5 pipeline and an AnimateDiff v2 adapter, both of full size."""
    torch.manual_seed(0)
    motion = MotionAdapter(use_motion_mid_block=True, motion_max_seq_length=32)
    _fill_zeros(motion)
    motion.save_pretrained(adapter)
    del motion
    StableDiffusionPipeline(
        vae=_make_vae((128, 256, 512, 512)),
        text_encoder=_make_text_encoder(768, num_layers=12),
        tokenizer=_make_tokenizer(checkpoint.parent / "tokenizer-files"),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=_make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(checkpoint)


def make_animatediff(checkpoint: Path) -> None:
    """Save an AnimateDiff pipeline whose UNet has 54 million parameters."""
    torch.manual_seed(0)
    motion = {"motion_num_attention_heads": 4, "motion_max_seq_length": 32}
    unet = UNetMotionModel(
        block_out_channels=CHANNELS,
        layers_per_block=2,
        num_attention_heads=4,
        cross_attention_dim=TEXT_FEATURES,
        use_motion_mid_block=True,
        sample_size=32,
        **motion,
    )
    _fill_zeros(unet)
    AnimateDiffPipeline(
        **_make_small_parts(checkpoint),
        unet=unet,
        # Its weights are in the UNet already; the pipeline asks for one all the same.
        motion_adapter=MotionAdapter(block_out_channels=CHANNELS, **motion),
    ).save_pretrained(checkpoint)


def make_modelscope(checkpoint: Path) -> None:
    """Save a ModelScope pipeline whose UNet has 59 million parameters."""
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        block_out_channels=CHANNELS,
        layers_per_block=2,
        attention_head_dim=32,
        cross_attention_dim=TEXT_FEATURES,
        sample_size=32,
    )
    _fill_zeros(unet)
    TextToVideoSDPipeline(**_make_small_parts(checkpoint), unet=unet).save_pretrained(checkpoint)


MAKERS: Final[dict[str, Callable[[Path], None]]] = {
    "animatediff-54m": make_animatediff,
    "modelscope-59m": make_modelscope,
}


def _fill_zeros(model: torch.nn.Module) -> None:
    """Give weights to layers that start at zero, which would hide what comes before them."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d):
            weight = module.get_parameter("weight")
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.5 / math.sqrt(weight[0].numel()))


def _make_small_parts(checkpoint: Path) -> dict[str, Any]:
    return {
        "vae": _make_vae((32, 64, 128, 128)),
        "text_encoder": _make_text_encoder(TEXT_FEATURES, num_layers=6),
        "tokenizer": _make_tokenizer(checkpoint.parent / "tokenizer-files"),
        "scheduler": _make_scheduler(),
    }


def _make_vae(channels: tuple[int, ...]) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=2,
        sample_size=512,
    )


def _make_text_encoder(hidden_size: int, num_layers: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 64,
            projection_dim=hidden_size,
        )
    )


def _make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1)


def _make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer of the usual size that knows letters only."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    unused = (f"unused-{index}" for index in range(VOCABULARY_SIZE))
    fill = VOCABULARY_SIZE - len(vocabulary) - len(special)
    vocabulary += [*(next(unused) for _ in range(fill)), *special]
    tokens = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH
    )


def main(arguments: list[str] | None = None) -> int:
    """Save one checkpoint."""
    parser = argparse.ArgumentParser(description="Save a random checkpoint for benchmarks.")
    parser.add_argument("name", choices=MAKERS)
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint to write")
    options = parser.parse_args(arguments)
    MAKERS[options.name](options.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

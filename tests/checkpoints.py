"""Makers of tiny random AnimateDiff checkpoints, in every folder layout that people have.

Every parameter is random, those that diffusers starts at zero or one too, so that a part that is
left out or swapped shows in the output.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = [
    *("a", "red", "green", "blue", "white", "circle", "square", "triangle", "star", "moves"),
    *("left", "right", "up", "down", "bounces", "grows", "shrinks", "orbits", "passes", "behind"),
    *("on", "the", "gray", "black", "background", "and", "slowly"),
]
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class TinyConfig:
    """The sizes and settings of one tiny checkpoint."""

    seed: int
    max_length: int
    text: dict[str, Any]
    unet: dict[str, Any]
    motion: dict[str, Any]
    vae: dict[str, Any]
    scheduler: type = DDIMScheduler
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    pad_token: str = EOS


TINY = TinyConfig(
    seed=1,
    max_length=16,
    text={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 2},
    unet={"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
          "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
          "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
          "cross_attention_dim": 16, "attention_head_dim": 2, "sample_size": 8},
    motion={"block_out_channels": (8, 16), "motion_layers_per_block": 1,
            "motion_num_attention_heads": 2, "motion_norm_num_groups": 4,
            "use_motion_mid_block": True, "motion_max_seq_length": 32},
    vae={"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
         "latent_channels": 4, "scaling_factor": 0.7,
         "down_block_types": ("DownEncoderBlock2D",) * 2,
         "up_block_types": ("UpDecoderBlock2D",) * 2},
    scheduler_config={"beta_schedule": "linear", "prediction_type": "v_prediction",
                      "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
                      "clip_sample": False, "set_alpha_to_one": True},
)  # fmt: skip

OTHER = TinyConfig(
    seed=2,
    max_length=20,
    text={"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
          "num_attention_heads": 3, "hidden_act": "gelu"},
    unet={"block_out_channels": (8, 12, 24), "layers_per_block": 1, "norm_num_groups": 2,
          "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
          "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
          "cross_attention_dim": 24, "attention_head_dim": (2, 3, 4), "sample_size": 8,
          "in_channels": 3, "out_channels": 3, "use_linear_projection": True,
          "flip_sin_to_cos": True},
    motion={"block_out_channels": (8, 12, 24), "motion_layers_per_block": 1,
            "motion_num_attention_heads": 4, "motion_norm_num_groups": 2,
            "use_motion_mid_block": False, "motion_max_seq_length": 12},
    vae={"block_out_channels": (4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2,
         "latent_channels": 3, "scaling_factor": 0.18215,
         "down_block_types": ("DownEncoderBlock2D",) * 3,
         "up_block_types": ("UpDecoderBlock2D",) * 3},
    scheduler=EulerDiscreteScheduler,
    scheduler_config={"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                      "timestep_spacing": "leading", "steps_offset": 1},
    pad_token="!",
)  # fmt: skip


def make_tokenizer(folder: Path, config: TinyConfig) -> CLIPTokenizer:
    """Write vocab.json and merges.txt of a small CLIP tokenizer to `folder` and open it.

    The vocabulary is the 256 byte letters, the same with the end of a word, and every prefix of
    `WORDS`, so that its words are one token each and all other text falls into pieces.
    """
    folder.mkdir(parents=True)
    letters = _byte_letters()
    vocab = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge, merged = f"{parts[0]} {parts[1]}", parts[0] + parts[1]
            if merge not in merges:
                merges.append(merge)
            if merged not in vocab:
                vocab.append(merged)
            parts[:2] = [merged]
    vocab += [BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": config.max_length,
        "bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": config.pad_token,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def make_components(config: TinyConfig, folder: Path) -> dict[str, Any]:
    """Return the random parts of a checkpoint; the tokenizer's files go to `folder`."""
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer(folder / f"tokenizer-{config.seed}", config)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=config.max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config.text,
    )
    parts = {
        "text_encoder": CLIPTextModel(text),
        "unet": UNet2DConditionModel(**config.unet),
        "motion_adapter": MotionAdapter(**config.motion),
        "vae": AutoencoderKL(**config.vae),
    }
    for part in parts.values():
        randomise(part)
    scheduler = config.scheduler(**config.scheduler_config)
    return {**parts, "tokenizer": tokenizer, "scheduler": scheduler}


def randomise(module: torch.nn.Module) -> None:
    """Move every parameter away from zero and one, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.2 if parameter.ndim == 1 else 0.3 * float(parameter.std())
            parameter.add_(torch.randn_like(parameter) * (scale or 0.1))
    module.eval()


def save_animatediff(parts: dict[str, Any], folder: Path, dtype: torch.dtype) -> Path:
    """Save the parts as an AnimateDiffPipeline folder and return it."""
    pipeline = AnimateDiffPipeline(**parts).to(dtype)
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float32)
    return folder


def save_stable_diffusion(parts: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Save the parts as people have them for SD 1.5: a pipeline, and an adapter beside it."""
    checkpoint, adapter = folder / "stable-diffusion", folder / "motion-adapter"
    image_parts = {name: part for name, part in parts.items() if name != "motion_adapter"}
    StableDiffusionPipeline(
        **image_parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(checkpoint)
    parts["motion_adapter"].save_pretrained(adapter)
    return checkpoint, adapter


def _byte_letters() -> list[str]:
    """Return the 256 letters that byte-level BPE writes bytes with."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]

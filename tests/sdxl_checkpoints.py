"""Maker of a tiny random AnimateDiff SDXL checkpoint; see `tests/checkpoints.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AnimateDiffSDXLPipeline,
    AutoencoderKL,
    EulerDiscreteScheduler,
    MotionAdapter,
    UNetMotionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.checkpoints import TINY, make_tokenizer, randomise

POOLED = 20
TIME_IDS = 6
TIME_FEATURES = 8


def save_sdxl(folder: Path) -> Path:
    """Save a random AnimateDiffSDXLPipeline and return its folder."""
    torch.manual_seed(3)
    tokenizer = make_tokenizer(folder / "tokenizer-1", TINY)
    tokenizer_2 = make_tokenizer(folder / "tokenizer-2", TINY)
    tokenizer_2.pad_token = "!"
    ids = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TINY.max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    first = CLIPTextConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                           num_attention_heads=2, **ids)  # fmt: skip
    second = CLIPTextConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2,
                            num_attention_heads=3, projection_dim=POOLED, **ids)  # fmt: skip
    unet = UNetMotionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        cross_attention_dim=40, num_attention_heads=2, transformer_layers_per_block=(1, 2),
        use_linear_projection=True, use_motion_mid_block=False, motion_max_seq_length=16,
        motion_num_attention_heads=2, addition_embed_type="text_time",
        addition_time_embed_dim=TIME_FEATURES,
        projection_class_embeddings_input_dim=POOLED + TIME_IDS * TIME_FEATURES,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        scaling_factor=0.13025, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=4, use_motion_mid_block=False, motion_max_seq_length=16,
    )  # fmt: skip
    parts = {
        "text_encoder": CLIPTextModel(first),
        "text_encoder_2": CLIPTextModelWithProjection(second),
        "unet": unet,
        "vae": vae,
        "motion_adapter": adapter,
    }
    for part in parts.values():
        randomise(part)
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    pipeline = AnimateDiffSDXLPipeline(
        **parts, tokenizer=tokenizer, tokenizer_2=tokenizer_2, scheduler=scheduler
    )
    pipeline.save_pretrained(folder / "sdxl")
    return folder / "sdxl"

"""Makers of tiny random checkpoints whose UNets are three-dimensional: ModelScope and I2VGen-XL.

Every parameter is random, so that a layer that is left out shows: diffusers starts the last
convolution of each temporal block at zero, and a fresh model would not know its own frames.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from mutoscope.export.library_noise import quiet_libraries
from tests.checkpoints import TINY, TinyConfig, make_tokenizer, randomise

# Two stages, as few as there can be: one with attention to the text, one without.
UNET = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": 16, "attention_head_dim": 4, "sample_size": 8,
}  # fmt: skip
IMAGE_SIDE = 24
# What brings text and image into a UNet. Random weights as small as the others would let them move
# a video by 2 levels of 255, and a wrong condition would pass for rounding.
CONDITION_LAYERS = (
    ".attn2.to_v.",
    ".attn2.to_out.",
    "context_embedding.",
    "image_latents_proj_in.",
)
CONDITION_FACTOR = 3.0

MODELSCOPE = replace(
    TINY,
    seed=3,
    text={**TINY.text, "hidden_act": "gelu"},
    unet=UNET,
    scheduler_config={"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                      "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    pad_token="!",
)  # fmt: skip

I2VGEN = replace(
    TINY,
    seed=4,
    text={**TINY.text, "num_hidden_layers": 3},
    unet=UNET,
    scheduler_config={"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction",
                      "rescale_betas_zero_snr": True, "timestep_spacing": "leading",
                      "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1},
)  # fmt: skip


def save_modelscope(folder: Path, config: TinyConfig = MODELSCOPE) -> Path:
    """Save a TextToVideoSDPipeline as `folder`/modelscope and return that."""
    parts = _make_common_parts(config, folder)
    parts["unet"] = _make_unet(UNet3DConditionModel(**config.unet))
    return _save(TextToVideoSDPipeline, parts, folder / "modelscope")


def save_i2vgen(folder: Path, config: TinyConfig = I2VGEN) -> Path:
    """Save an I2VGenXLPipeline as `folder`/i2vgen and return that."""
    parts = _make_common_parts(config, folder)
    vision = CLIPVisionConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        image_size=IMAGE_SIDE, patch_size=8, projection_dim=config.unet["cross_attention_dim"],
    )  # fmt: skip
    parts["image_encoder"] = _make(CLIPVisionModelWithProjection(vision))
    parts["feature_extractor"] = CLIPImageProcessor(
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, size={"shortest_edge": IMAGE_SIDE}
    )
    parts["unet"] = _make_unet(I2VGenXLUNet(**config.unet))
    return _save(I2VGenXLPipeline, parts, folder / "i2vgen")


def _make_common_parts(config: TinyConfig, folder: Path) -> dict[str, Any]:
    """The text encoder, its tokenizer, the VAE and the scheduler; seeds torch."""
    torch.manual_seed(config.seed)
    tokenizer: CLIPTokenizer = make_tokenizer(folder / f"tokenizer-{config.seed}", config)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=config.max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config.text,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": _make(CLIPTextModel(text)),
        "vae": _make(AutoencoderKL(**config.vae)),
        "scheduler": DDIMScheduler(**config.scheduler_config),
    }


def _make(module: torch.nn.Module) -> torch.nn.Module:
    """The module, with random values in every parameter."""
    randomise(module)
    return module


def _make_unet(unet: torch.nn.Module) -> torch.nn.Module:
    """The UNet, with random values in every parameter and strong conditions."""
    randomise(unet)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if any(layer in name for layer in CONDITION_LAYERS):
                parameter.mul_(CONDITION_FACTOR)
    return unet


def _save(pipeline_class: Any, parts: dict[str, Any], folder: Path) -> Path:
    with quiet_libraries():  # diffusers warns that the pipeline gets no further work
        pipeline_class(**parts).save_pretrained(folder)
    return folder

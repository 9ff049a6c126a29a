"""Makers of tiny random Stable Video Diffusion checkpoints.

diffusers fixes some sizes: norms of the UNet and of the decoder have 32 groups, and the pipeline
gives 224 pixels to the image encoder. Blocks of 32 channels have groups of one channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from numpy.typing import NDArray
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from mutoscope.export.families.contract import Arrays
from mutoscope.export.library_noise import quiet_libraries
from tests.checkpoints import randomise


@dataclass(frozen=True)
class TinyStableVideo:
    """The sizes and settings of one tiny checkpoint; the scheduler is that of the real ones."""

    seed: int
    vision: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any] = field(
        default_factory=lambda: {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "prediction_type": "v_prediction", "interpolation_type": "linear",
            "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0,
            "timestep_spacing": "leading", "timestep_type": "continuous", "steps_offset": 1,
        }
    )  # fmt: skip


STABLE_VIDEO = TinyStableVideo(
    seed=11,
    vision={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 224, "patch_size": 56, "projection_dim": 12,
            "hidden_act": "gelu"},
    unet={"block_out_channels": (32, 64), "layers_per_block": 1, "num_attention_heads": (2, 4),
          "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
          "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
          "cross_attention_dim": 12, "addition_time_embed_dim": 8, "sample_size": 8,
          "projection_class_embeddings_input_dim": 24, "num_frames": 5},
    vae={"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4,
         "scaling_factor": 0.18215, "force_upcast": True,
         "down_block_types": ("DownEncoderBlock2D",) * 2},
)  # fmt: skip


DEEPER_STABLE_VIDEO = replace(
    STABLE_VIDEO,
    seed=12,
    vision={**STABLE_VIDEO.vision, "projection_dim": 16, "hidden_act": "quick_gelu"},
    unet={"block_out_channels": (32, 64, 96), "layers_per_block": 2, "num_attention_heads": 4,
          "transformer_layers_per_block": (1, 2, 1), "in_channels": 6, "out_channels": 3,
          "down_block_types": ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal",
                               "DownBlockSpatioTemporal"),
          "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal",
                             "UpBlockSpatioTemporal"),
          "cross_attention_dim": 16, "addition_time_embed_dim": 16, "sample_size": (6, 10),
          "projection_class_embeddings_input_dim": 48, "num_frames": 14},
    vae={"block_out_channels": (32, 32, 64), "layers_per_block": 2, "latent_channels": 3,
         "scaling_factor": 0.7, "force_upcast": False,
         "down_block_types": ("DownEncoderBlock2D",) * 3},
    scheduler={**STABLE_VIDEO.scheduler, "timestep_type": "discrete"},
)  # fmt: skip


def make_stable_video(config: TinyStableVideo = STABLE_VIDEO) -> StableVideoDiffusionPipeline:
    """Return a random pipeline; every parameter counts, those that mix frames too."""
    torch.manual_seed(config.seed)
    parts = {
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**config.vision)),
        "unet": UNetSpatioTemporalConditionModel(**config.unet),
        "vae": AutoencoderKLTemporalDecoder(**config.vae),
    }
    for part in parts.values():
        randomise(part)
    pipeline = StableVideoDiffusionPipeline(
        **parts,
        scheduler=EulerDiscreteScheduler(**config.scheduler),
        feature_extractor=CLIPImageProcessorPil(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_stable_video(folder: Path, config: TinyStableVideo = STABLE_VIDEO) -> Path:
    """Save a random pipeline to a folder and return it."""
    with quiet_libraries():
        make_stable_video(config).save_pretrained(folder)
    return folder


def open_stable_video(folder: Path) -> Any:
    """Return the pipeline in a folder, in float32."""
    with quiet_libraries():
        pipeline = StableVideoDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_reference_unet(unet: Any, inputs: Arrays) -> NDArray[np.float32]:
    """Run the model as the pipeline does: frames first, image latents for each frame."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    sample = given["sample"].permute(0, 2, 1, 3, 4)
    images = given["image_latents"].unsqueeze(1).repeat(1, sample.shape[1], 1, 1, 1)
    numbers = [given["frame_rate"] - 1, given["motion_bucket_id"], given["noise_aug_strength"]]
    with torch.no_grad():
        output = unet(
            torch.cat([sample, images], dim=2),
            given["timestep"][0],  # without axes, as scheduler.timesteps gives it
            encoder_hidden_states=given["encoder_hidden_states"],
            added_time_ids=torch.stack(numbers, dim=1),
            return_dict=False,
        )[0]
    return np.asarray(output.permute(0, 2, 1, 3, 4).numpy())

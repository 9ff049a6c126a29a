"""Encoders of the image that a clip starts from: what it shows, and its latents.

Source: the image encoder and the VAE as diffusers.StableVideoDiffusionPipeline runs them
(tests/export/test_stable_video.py).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection

from mutoscope.export.checkpoint import Checkpoint, load_model
from mutoscope.export.components.vae import find_vae_scale_factor
from mutoscope.export.families.contract import ComponentExport
from mutoscope.runtime.manifest import TensorRecord


class ImageEncoder(torch.nn.Module):
    """pixel_values [B, 3, S, S] -> image_embeds [B, 1, D], one token of a CLIP vision model."""

    def __init__(self, image_encoder: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.image_encoder = image_encoder

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the projected embedding."""
        embeds: torch.Tensor = self.image_encoder(pixel_values=pixel_values).image_embeds  # [B, D]
        return embeds.float().unsqueeze(1)  # [B, 1, D]


class NoisedImageEncoder(torch.nn.Module):
    """image [B, 3, H, W] with noise on it -> image_latents [B, C, h, w], not scaled."""

    def __init__(self, vae: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.vae = vae

    def forward(
        self, image: torch.Tensor, noise: torch.Tensor, noise_aug_strength: torch.Tensor
    ) -> torch.Tensor:
        """Return the mode of the latents of image + noise_aug_strength * noise."""
        noised = image + noise_aug_strength[:, None, None, None] * noise
        dtype = self.vae.encoder.conv_in.weight.dtype
        latents: torch.Tensor = self.vae.encode(noised.to(dtype)).latent_dist.mode()
        return latents.float()


def make_image_encoder(checkpoint: Checkpoint, source: str) -> ComponentExport:
    """Return the image encoder, its weights loaded; raises `CheckpointError`.

    Args:
        checkpoint: It has a CLIPVisionModelWithProjection as its image_encoder.
        source: The prepared image that it takes.
    """
    folder = checkpoint.component_folder("image_encoder")
    model = load_model(CLIPVisionModelWithProjection, folder)
    side, features = model.config.image_size, model.config.projection_dim
    return ComponentExport(
        name="image_encoder",
        module=ImageEncoder(model),
        inputs={"pixel_values": TensorRecord("float32", ("batch", 3, side, side), source)},
        outputs={"image_embeds": TensorRecord("float32", ("batch", 1, features))},
        trace_sizes={"batch": 2},
        parity_sizes=({"batch": 1}, {"batch": 3}),
    )


def make_noised_image_encoder(
    checkpoint: Checkpoint, vae_class: Any, *, source: str, strength: str
) -> ComponentExport:
    """Return the encoder of the VAE for an image with noise on it; raises `CheckpointError`.

    Args:
        checkpoint: It has a `vae_class` as its vae.
        vae_class: A class of diffusers.
        source: The prepared image that it takes, from -1 to 1.
        strength: The condition that says how much noise there is on the image.
    """
    vae = load_model(vae_class, checkpoint.component_folder("vae"))
    vae.decoder = None  # most of the memory
    image = ("batch", 3, "height", "width")
    return make_latents_encoder(
        NoisedImageEncoder(vae),
        vae.config,
        inputs={
            "image": TensorRecord("float32", image, source),
            "noise": TensorRecord("float32", image, "noise"),
            "noise_aug_strength": TensorRecord("float32", ("batch",), strength),
        },
        ranges={"image": (-1.0, 1.0), "noise_aug_strength": (0.0, 0.5)},
        # diffusers computes it so; it decodes in float16 all the same.
        float32_only=bool(vae.config.get("force_upcast", False)),
    )


def make_latents_encoder(
    module: torch.nn.Module,
    vae_config: dict[str, Any],
    *,
    inputs: dict[str, TensorRecord],
    ranges: dict[str, tuple[float, float]],
    float32_only: bool = False,
) -> ComponentExport:
    """Return an encoder of images to latents.

    Args:
        module: Takes the inputs and returns image_latents float32 [B, C, h, w].
        vae_config: Of its VAE.
        inputs: Images are ("batch", 3, "height", "width").
        ranges: What is drawn evenly of them.
        float32_only: See `ComponentExport`.
    """
    factor = find_vae_scale_factor(vae_config)
    latents = ("batch", vae_config["latent_channels"], "latent_height", "latent_width")

    def sizes(batch: int, height: int, width: int) -> dict[str, int]:
        return {
            "batch": batch,
            "latent_height": height,
            "latent_width": width,
            "height": height * factor,
            "width": width * factor,
        }

    return ComponentExport(
        name="vae_encoder",
        module=module,
        inputs=inputs,
        outputs={"image_latents": TensorRecord("float32", latents)},
        multiples={"height": factor, "width": factor},
        trace_sizes=sizes(2, 3, 5),
        parity_sizes=(sizes(1, 4, 2), sizes(3, 2, 7)),
        ranges=ranges,
        float32_only=float32_only,
    )

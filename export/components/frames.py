"""Decoders of frames as components: what all of them have in common."""

from __future__ import annotations

from typing import Any

import torch

from mutoscope.export.families.contract import ComponentExport
from mutoscope.runtime.manifest import TensorRecord


class FrameDecoder(torch.nn.Module):
    """latents [B, C, F, h, w] -> frames uint8 [B, F, H, W, 3], each frame decoded on its own.

    As decode_latents of the pipelines, then VideoProcessor.postprocess_video, then the rounding
    with which diffusers makes images.
    """

    def __init__(self, vae: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.vae = vae
        self.scale = 1 / vae.config.scaling_factor

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the frames."""
        batch, channels, num_frames, height, width = latents.shape
        images = self.scale * latents
        images = images.permute(0, 2, 1, 3, 4).reshape(batch * num_frames, channels, height, width)
        # The first is of a convolution; norms may be of another type.
        dtype = next(self.vae.decoder.parameters()).dtype
        images = self.vae.decode(images.to(dtype), return_dict=False)[0].float()  # [B * F, 3, H, W]
        images = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # [B * F, H, W, 3]
        frames = images.reshape(batch, num_frames, images.shape[1], images.shape[2], 3)
        return (frames * 255).round().to(torch.uint8)


def make_frame_decoder(
    module: torch.nn.Module, *, channels: int, factor: int, name: str = "vae_decoder"
) -> ComponentExport:
    """Return a decoder of frames.

    Args:
        module: latents float32 [B, C, F, h, w] -> frames uint8 [B, F, H, W, 3].
        channels: C.
        factor: Pixels to a latent, along each side.
        name: "vae_decoder" or "preview_decoder".
    """

    def sizes(batch: int, num_frames: int, height: int, width: int) -> dict[str, int]:
        return {
            "batch": batch,
            "num_frames": num_frames,
            "latent_height": height,
            "latent_width": width,
            "height": height * factor,
            "width": width * factor,
        }

    latents = ("batch", channels, "num_frames", "latent_height", "latent_width")
    frames = ("batch", "num_frames", "height", "width", 3)
    return ComponentExport(
        name=name,
        module=module,
        inputs={"latents": TensorRecord("float32", latents, "latents")},
        outputs={"frames": TensorRecord("uint8", frames)},
        trace_sizes=sizes(2, 3, 4, 6),
        parity_sizes=(sizes(1, 1, 5, 3), sizes(2, 4, 3, 7)),
    )

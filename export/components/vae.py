"""Decoders of images as components: latents become the frames of a video."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from mutoscope.export.checkpoint import Checkpoint, load_json_object, load_model
from mutoscope.export.components.tiny_vae import check_tiny_vae, make_tiny_vae_decoder
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.runtime.manifest import LatentsRecord, TensorRecord

TINY_CLASS = "AutoencoderTiny"


class FrameDecoder(torch.nn.Module):
    """latents [B, C, F, h, w] -> frames uint8 [B, F, H, W, 3].

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
        dtype = self.vae.decoder.conv_in.weight.dtype
        images = self.vae.decode(images.to(dtype), return_dict=False)[0].float()  # [B * F, 3, H, W]
        images = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # [B * F, H, W, 3]
        frames = images.reshape(batch, num_frames, images.shape[1], images.shape[2], 3)
        return (frames * 255).round().to(torch.uint8)


def make_decoders(
    checkpoint: Checkpoint,
    latents: LatentsRecord,
    make_own: Callable[[], ComponentExport] | None = None,
) -> dict[str, Callable[[], ComponentExport]]:
    """Return the makers of the decoders: the checkpoint's or the one in its place, and previews.

    Args:
        checkpoint: Says whether other decoders were given.
        latents: What they decode.
        make_own: Makes the checkpoint's own decoder; None for an AutoencoderKL.

    Raises:
        CheckpointError: A decoder that was given is of other latents.
    """
    makers = {
        "vae_decoder": make_own or (lambda: make_vae_decoder(checkpoint.component_folder("vae")))
    }
    given = {"vae_decoder": checkpoint.vae, "preview_decoder": checkpoint.preview_vae}
    for name, folder in given.items():
        if folder is not None:
            makers[name] = _open_given_decoder(folder, name, latents)
    return makers


def find_vae_scale_factor(config: dict[str, Any]) -> int:
    """Return how many pixels there are to a latent, along each side."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _open_given_decoder(
    folder: Path, name: str, latents: LatentsRecord
) -> Callable[[], ComponentExport]:
    """Return the maker of the decoder in a folder, an AutoencoderTiny or an AutoencoderKL."""
    config = load_json_object(folder / "config.json")
    if config.get("_class_name") == TINY_CLASS:
        check_tiny_vae(folder, latents)
        return functools.partial(make_tiny_vae_decoder, folder, name=name, latents=latents)
    for what, found, wanted in (
        ("channels", config["latent_channels"], latents.channels),
        ("pixels to a latent", find_vae_scale_factor(config), latents.vae_scale_factor_spatial),
    ):
        if found != wanted:
            raise CheckpointError(
                f"the VAE {folder.name} has {found} {what}; this checkpoint's latents have "
                f"{wanted}: use a VAE made for this model"
            )
    return functools.partial(make_vae_decoder, folder, name=name)


def make_vae_decoder(folder: Path, *, name: str = "vae_decoder") -> ComponentExport:
    """Return the decoder of the AutoencoderKL in a folder; raises `CheckpointError`."""
    vae = load_model(AutoencoderKL, folder)
    vae.encoder = vae.quant_conv = None  # half of the memory; the decoder needs neither
    axes = ("latent_height", "latent_width")
    latents = ("batch", vae.config.latent_channels, "num_frames", *axes)

    def sizes(batch: int, num_frames: int, height: int, width: int) -> dict[str, int]:
        size = {"batch": batch, "num_frames": num_frames, axes[0]: height, axes[1]: width}
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        return {**size, "height": height * factor, "width": width * factor}

    return ComponentExport(
        name=name,
        module=FrameDecoder(vae),
        inputs={"latents": TensorRecord("float32", latents, "latents")},
        outputs={
            "frames": TensorRecord("uint8", ("batch", "num_frames", "height", "width", 3)),
        },
        trace_sizes=sizes(2, 3, 4, 6),
        parity_sizes=(sizes(1, 1, 5, 3), sizes(2, 4, 3, 7)),
    )

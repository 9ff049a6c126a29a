"""Tiny decoders of images: a small network trained to do what the decoder of a VAE does.

It makes frames in a fraction of the time and memory, with less detail: in place of the VAE's
decoder, or beside it for previews.

Source: TAESD (https://github.com/madebyollin/taesd); diffusers.AutoencoderTiny as the `vae` of a
pipeline (tests/export/test_tiny_vae.py).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from mutoscope.export.checkpoint import load_json_object, load_model
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.runtime.manifest import LatentsRecord, TensorRecord

CLASS_NAME = "AutoencoderTiny"


class TinyFrameDecoder(torch.nn.Module):
    """latents [B, C, F, h, w] -> frames uint8 [B, F, H, W, 3].

    As decode_latents of the pipelines, then VideoProcessor.postprocess_video, then the rounding
    with which diffusers makes images. The latents are those of the sampler: a tiny decoder is
    trained on them as they are, so its own scaling factor is 1.
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
        dtype = self.vae.decoder.layers[0].weight.dtype
        images = self.vae.decode(images.to(dtype), return_dict=False)[0].float()  # [B * F, 3, H, W]
        images = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # [B * F, H, W, 3]
        frames = images.reshape(batch, num_frames, images.shape[1], images.shape[2], 3)
        return (frames * 255).round().to(torch.uint8)


def make_tiny_vae_decoder(folder: Path, *, name: str, latents: LatentsRecord) -> ComponentExport:
    """Return a tiny decoder, its weights loaded.

    Args:
        folder: A saved AutoencoderTiny.
        name: The component that it becomes: "vae_decoder" or "preview_decoder".
        latents: The latents of the checkpoint, which it must fit.

    Raises:
        CheckpointError: The folder holds something else, or does not fit the latents.
    """
    factor = check_tiny_vae(folder, latents)
    vae = load_model(AutoencoderTiny, folder)
    vae.encoder = None
    axes = ("latent_height", "latent_width")

    def sizes(batch: int, num_frames: int, height: int, width: int) -> dict[str, int]:
        size = {"batch": batch, "num_frames": num_frames, axes[0]: height, axes[1]: width}
        return {**size, "height": height * factor, "width": width * factor}

    shape = ("batch", latents.channels, "num_frames", *axes)
    return ComponentExport(
        name=name,
        module=TinyFrameDecoder(vae),
        inputs={"latents": TensorRecord("float32", shape, "latents")},
        outputs={
            "frames": TensorRecord("uint8", ("batch", "num_frames", "height", "width", 3)),
        },
        trace_sizes=sizes(2, 3, 4, 6),
        parity_sizes=(sizes(1, 1, 5, 3), sizes(2, 4, 3, 7)),
    )


def check_tiny_vae(folder: Path, latents: LatentsRecord) -> int:
    """Return by how much a tiny decoder enlarges latents; its weights are not read.

    Raises:
        CheckpointError: The folder holds something else, or does not fit the latents.
    """
    config = load_json_object(folder / "config.json")
    found = config.get("_class_name")
    if found != CLASS_NAME:
        raise CheckpointError(
            f"{folder.name} is a {found}, not an {CLASS_NAME}: save one with "
            "AutoencoderTiny.save_pretrained(FOLDER)"
        )
    # What a configuration leaves out is as the class has it.
    parameters = inspect.signature(AutoencoderTiny).parameters
    settings = {name: parameter.default for name, parameter in parameters.items()} | config
    channels, colours = settings["latent_channels"], settings["out_channels"]
    if channels != latents.channels:
        raise CheckpointError(
            f"{folder.name} decodes latents of {channels} channels and those of the checkpoint "
            f"have {latents.channels}: use a tiny decoder made for this model"
        )
    if colours != 3:
        raise CheckpointError(f"{folder.name} decodes to {colours} channels; frames have 3 (RGB)")
    stages = len(settings["num_decoder_blocks"])
    factor: int = settings["upsampling_scaling_factor"] ** (stages - 1)
    if factor != latents.vae_scale_factor_spatial:
        raise CheckpointError(
            f"{folder.name} enlarges latents {factor} times and the checkpoint's VAE "
            f"{latents.vae_scale_factor_spatial} times: use a tiny decoder made for this model"
        )
    return factor

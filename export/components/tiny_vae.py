"""Tiny decoders of images: a small network trained to do what the decoder of a VAE does.

It makes frames in a fraction of the time and memory, with less detail: in place of the VAE's
decoder, or beside it for previews.

Source: TAESD (https://github.com/madebyollin/taesd); diffusers.AutoencoderTiny as the `vae` of a
pipeline (tests/export/test_tiny_vae.py).
"""

from __future__ import annotations

import inspect
from pathlib import Path

from diffusers import AutoencoderTiny

from mutoscope.export.checkpoint import load_json_object, load_model
from mutoscope.export.components.frames import FrameDecoder, make_frame_decoder
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.runtime.manifest import LatentsRecord

TINY_CLASS_NAME = "AutoencoderTiny"


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
    # Trained on the sampler's latents as they are, so its own scaling factor is 1.
    return make_frame_decoder(
        FrameDecoder(vae), channels=latents.channels, factor=factor, name=name
    )


def check_tiny_vae(folder: Path, latents: LatentsRecord) -> int:
    """Return by how much a tiny decoder enlarges latents; its weights are not read.

    Raises:
        CheckpointError: The folder holds something else, or does not fit the latents.
    """
    config = load_json_object(folder / "config.json")
    found = config.get("_class_name")
    if found != TINY_CLASS_NAME:
        raise CheckpointError(
            f"{folder.name} is a {found}, not an {TINY_CLASS_NAME}: save one with "
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

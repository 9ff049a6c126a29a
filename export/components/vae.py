"""Decoders of images as components: latents become the frames of a video."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from mutoscope.export.checkpoint import Checkpoint, load_json_object, load_model
from mutoscope.export.components.frames import FrameDecoder, make_frame_decoder
from mutoscope.export.components.tiny_vae import (
    TINY_CLASS_NAME,
    check_tiny_vae,
    make_tiny_vae_decoder,
)
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.runtime.manifest import LatentsRecord


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
    if config.get("_class_name") == TINY_CLASS_NAME:
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
    return make_frame_decoder(
        FrameDecoder(vae),
        channels=vae.config.latent_channels,
        factor=find_vae_scale_factor(vae.config),
        name=name,
    )

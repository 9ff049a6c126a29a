"""What the UNets of all families have in common: which sizes they take."""

from __future__ import annotations

from typing import Any

from mutoscope.runtime.manifest import LimitRecord


def make_side_limit(unet: dict[str, Any], vae_scale_factor: int) -> LimitRecord:
    """Return what a clip's height or width may be: whole numbers of the UNet's smallest block.

    Args:
        unet: Its configuration.
        vae_scale_factor: Pixels to a latent.
    """
    multiple = vae_scale_factor * 2 ** (len(unet["block_out_channels"]) - 1)
    return LimitRecord(minimum=multiple, multiple=multiple)


def make_unet_sizes(
    multiple: int, batch: int, num_frames: int, height: int, width: int, **others: int
) -> dict[str, int]:
    """Return the sizes of a UNet's axes.

    Args:
        multiple: What its latents' sides are multiples of. An odd number of halvings would make
            diffusers take another path, fixed while tracing.
        batch: Clips.
        num_frames: Frames.
        height: Multiples in the height of the latents.
        width: Multiples in their width.
        **others: Sizes of further axes, by name.
    """
    return {
        "batch": batch,
        "num_frames": num_frames,
        "latent_height": height * multiple,
        "latent_width": width * multiple,
        **others,
    }

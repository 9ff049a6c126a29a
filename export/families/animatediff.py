"""AnimateDiff: a Stable Diffusion 1.5 style image model with a motion adapter.

Reads a saved AnimateDiffPipeline, or a StableDiffusionPipeline folder plus a motion adapter.

Source: Guo et al., "AnimateDiff: Animate Your Personalized Text-to-Image Diffusion Models without
Specific Tuning", 2023; diffusers.AnimateDiffPipeline (tests/export/test_animatediff.py).
"""

from __future__ import annotations

from typing import Any

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.components.loading import check_classes, load_scheduler
from mutoscope.export.components.motion_unet import (
    IMAGE_CLASS,
    JOINED_CLASS,
    make_unet,
    open_motion_unet,
)
from mutoscope.export.components.text import (
    check_text_encoder,
    find_tokenizer,
    make_text_encoder,
    read_text_shapes,
)
from mutoscope.export.components.vae import find_vae_scale_factor, make_decoders
from mutoscope.export.defaults import apply_checkpoint_defaults
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import FamilyExport
from mutoscope.export.scheduler_tables import name_scheduler
from mutoscope.runtime.manifest import DefaultsRecord, LatentsRecord

FAMILY = "animatediff"
# What diffusers.AnimateDiffPipeline does where the caller says nothing; the number of steps and the
# frame rate are those of the AnimateDiff examples.
DEFAULT_NUM_FRAMES = 16
DEFAULT_NUM_INFERENCE_STEPS = 25
DEFAULT_GUIDANCE_SCALE = 7.5
DEFAULT_FRAME_RATE = 8.0
DEFAULT_LATENT_SIZE = 64

COMPONENT_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": (JOINED_CLASS, IMAGE_CLASS),
    "vae": ("AutoencoderKL",),
}


def open_family(checkpoint: Checkpoint) -> FamilyExport:
    """Return an AnimateDiff checkpoint as a family; weights are read later, one part at a time.

    Raises:
        CheckpointError: A part is absent or of another class, or no motion adapter was given.
    """
    check_classes(checkpoint, "an AnimateDiff checkpoint", COMPONENT_CLASSES)
    vae = checkpoint.load_config("vae")
    _check_supported(checkpoint, checkpoint.load_config("unet"), vae)
    check_text_encoder(checkpoint)
    unet = open_motion_unet(checkpoint)
    vae_scale_factor = find_vae_scale_factor(vae)
    latents = LatentsRecord(unet.config["in_channels"], vae_scale_factor)
    scheduler = load_scheduler(checkpoint)
    size = (unet.config.get("sample_size") or DEFAULT_LATENT_SIZE) * vae_scale_factor
    defaults = DefaultsRecord(
        scheduler=name_scheduler(type(scheduler).__name__),
        num_inference_steps=DEFAULT_NUM_INFERENCE_STEPS,
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        height=size,
        width=size,
        num_frames=min(DEFAULT_NUM_FRAMES, unet.maximum_frames),
        frame_rate=DEFAULT_FRAME_RATE,
    )
    return FamilyExport(
        family=FAMILY,
        component_makers={
            "text_encoder": lambda: make_text_encoder(checkpoint),
            "unet": lambda: make_unet(unet),
            **make_decoders(checkpoint, latents),
        },
        scheduler=scheduler,
        tokenizers={"input_ids": find_tokenizer(checkpoint)},
        latents=latents,
        limits=unet.make_limits(vae_scale_factor),
        defaults=apply_checkpoint_defaults(checkpoint.folder, defaults),
        classes={
            "text_encoder": checkpoint.component_classes["text_encoder"],
            "unet": unet.class_name,
            "vae": checkpoint.component_classes["vae"],
        },
        takes_presets=True,
        weight_shapes={
            "unet": unet.read_shapes,
            "text_encoder": lambda: read_text_shapes(checkpoint),
        },
    )


def _check_supported(checkpoint: Checkpoint, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """Refuse what the graphs would leave out."""
    reason = None
    if unet.get("addition_embed_type") or unet.get("class_embed_type"):
        reason = "its unet takes more than text (an SDXL model in an SD 1.5 pipeline?)"
    elif unet.get("encoder_hid_dim_type"):
        reason = "its unet takes an image prompt (an IP-Adapter?)"
    elif unet["in_channels"] != vae["latent_channels"]:
        reason = (
            f"its unet takes {unet['in_channels']} channels and its latents have "
            f"{vae['latent_channels']} (an inpainting or PIA model?)"
        )
    if reason:
        raise CheckpointError(f"{checkpoint.name} cannot be exported: {reason}")

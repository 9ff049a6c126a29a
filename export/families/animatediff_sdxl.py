"""AnimateDiff on Stable Diffusion XL: two text encoders, and a UNet that is told the size.

Reads a saved AnimateDiffSDXLPipeline, or a StableDiffusionXLPipeline folder plus a motion adapter.

Source: diffusers.AnimateDiffSDXLPipeline (tests/export/test_animatediff_sdxl.py); Podell et al.,
"SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", 2023.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from mutoscope.export.checkpoint import Checkpoint, load_json_object
from mutoscope.export.components.loading import check_classes, load_component, load_scheduler
from mutoscope.export.components.motion_unet import (
    IMAGE_CLASS,
    JOINED_CLASS,
    Denoiser,
    MotionUnet,
    make_unet_component,
    open_motion_unet,
)
from mutoscope.export.components.text import check_text_encoder, find_tokenizer, read_text_shapes
from mutoscope.export.components.vae import find_vae_scale_factor, make_decoders
from mutoscope.export.defaults import apply_checkpoint_defaults
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.scheduler_tables import name_scheduler
from mutoscope.runtime.manifest import DefaultsRecord, LatentsRecord, TensorRecord

FAMILY = "animatediff-sdxl"
# What diffusers.AnimateDiffSDXLPipeline does where the caller says nothing.
DEFAULT_NUM_FRAMES = 16
DEFAULT_NUM_INFERENCE_STEPS = 50
DEFAULT_GUIDANCE_SCALE = 5.0
DEFAULT_FRAME_RATE = 8.0
DEFAULT_LATENT_SIZE = 128

TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
COMPONENT_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": TOKENIZER_CLASSES,
    "tokenizer_2": TOKENIZER_CLASSES,
    "unet": (JOINED_CLASS, IMAGE_CLASS),
    "vae": ("AutoencoderKL",),
}
# Pixels; the sizes that the UNet is told while it is traced and compared.
SIZE_RANGE = (64.0, 1536.0)


def open_family(checkpoint: Checkpoint) -> FamilyExport:
    """Return an SDXL checkpoint as a family; weights are read later, one part at a time.

    Raises:
        CheckpointError: A part is absent or of another class, or no motion adapter was given.
    """
    check_classes(checkpoint, "an AnimateDiff SDXL checkpoint", COMPONENT_CLASSES)
    _check_supported(checkpoint, checkpoint.load_config("unet"))
    for component in ("text_encoder", "text_encoder_2"):
        check_text_encoder(checkpoint, component)
    unet = open_motion_unet(checkpoint)
    vae_scale_factor = find_vae_scale_factor(checkpoint.load_config("vae"))
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
    index = load_json_object(checkpoint.folder / "model_index.json")
    return FamilyExport(
        family=FAMILY,
        component_makers={
            "text_encoder": lambda: make_text_encoders(checkpoint),
            "unet": lambda: make_unet(unet),
            **make_decoders(checkpoint, latents),
        },
        scheduler=scheduler,
        tokenizers={
            "input_ids": find_tokenizer(checkpoint),
            "input_ids_2": find_tokenizer(checkpoint, "tokenizer_2", "text_encoder_2"),
        },
        latents=latents,
        limits=unet.make_limits(vae_scale_factor),
        defaults=apply_checkpoint_defaults(checkpoint.folder, defaults),
        classes={
            **{name: checkpoint.component_classes[name] for name in COMPONENT_CLASSES},
            "unet": unet.class_name,
        },
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        takes_presets=True,
        weight_shapes={
            "unet": unet.read_shapes,
            "text_encoder": lambda: read_text_shapes(checkpoint),
            "text_encoder_2": lambda: read_text_shapes(checkpoint, "text_encoder_2"),
        },
    )


class TextEncoders(torch.nn.Module):
    """Both ids -> prompt_embeds [B, S, D1 + D2] and pooled_prompt_embeds [B, D].

    As AnimateDiffSDXLPipeline.encode_prompt: the last state but one of each, side by side, and the
    projection of the second.
    """

    def __init__(self, first: Any, second: Any) -> None:
        """Wrap the loaded models."""
        super().__init__()
        self.first = first
        self.second = second

    def forward(
        self, input_ids: torch.Tensor, input_ids_2: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states and the pooled state."""
        states = self.first(input_ids, output_hidden_states=True).hidden_states[-2]
        second = self.second(input_ids_2, output_hidden_states=True)
        embeds = torch.cat([states, second.hidden_states[-2]], dim=-1)
        return embeds.float(), second.text_embeds.float()


class SizedDenoiser(Denoiser):
    """UNetMotionModel that is told the pooled text and the size of the clip."""

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        height: torch.Tensor,
        width: torch.Tensor,
    ) -> torch.Tensor:
        """Return the model output [B, C, F, h, w]."""
        dtype = self.unet.conv_in.weight.dtype
        zero = torch.zeros_like(height)
        # Original size, where it was cropped, and the size wanted: [B, 6].
        time_ids = torch.stack([height, width, zero, zero, height, width], dim=1)
        conditions = {"text_embeds": pooled_prompt_embeds.to(dtype), "time_ids": time_ids}
        return self.run(sample, timestep, encoder_hidden_states, added_cond_kwargs=conditions)


def make_text_encoders(checkpoint: Checkpoint) -> ComponentExport:
    """Return both text encoders as one component; raises `CheckpointError`."""
    first = load_component(checkpoint, "text_encoder", CLIPTextModel)
    second = load_component(checkpoint, "text_encoder_2", CLIPTextModelWithProjection)
    lengths = {
        "input_ids": find_tokenizer(checkpoint).max_length,
        "input_ids_2": find_tokenizer(checkpoint, "tokenizer_2", "text_encoder_2").max_length,
    }
    if len(set(lengths.values())) > 1:
        raise CheckpointError(
            f"{checkpoint.name} has tokenizers of lengths {sorted(lengths.values())}; the states "
            "of its text encoders lie side by side: set model_max_length to the same"
        )
    features = first.config.hidden_size + second.config.hidden_size
    length = lengths["input_ids"]
    return ComponentExport(
        name="text_encoder",
        module=TextEncoders(first, second),
        inputs={
            name: TensorRecord("int64", ("batch", length), name) for name, length in lengths.items()
        },
        outputs={
            "prompt_embeds": TensorRecord("float32", ("batch", length, features)),
            "pooled_prompt_embeds": TensorRecord(
                "float32", ("batch", second.config.projection_dim)
            ),
        },
        trace_sizes={"batch": 2},
        parity_sizes=({"batch": 1}, {"batch": 3}),
        vocabulary_size=min(first.config.vocab_size, second.config.vocab_size),
    )


def make_unet(motion_unet: MotionUnet) -> ComponentExport:
    """Return the UNet with its motion modules, its weights loaded; raises `CheckpointError`."""
    unet = motion_unet.load()
    time_ids = 6 * unet.config.addition_time_embed_dim
    pooled = unet.config.projection_class_embeddings_input_dim - time_ids
    conditions = {
        "pooled_prompt_embeds": TensorRecord("float32", ("batch", pooled), "pooled_prompt_embeds"),
        "height": TensorRecord("float32", ("batch",), "height"),
        "width": TensorRecord("float32", ("batch",), "width"),
    }
    ranges = dict.fromkeys(("height", "width"), SIZE_RANGE)
    return make_unet_component(unet, SizedDenoiser(unet), conditions, ranges)


def _check_supported(checkpoint: Checkpoint, unet: dict[str, Any]) -> None:
    """Refuse what the graphs would leave out."""
    reason = None
    if unet.get("addition_embed_type") != "text_time":
        reason = "its unet is not told the size (not an SDXL model?)"
    elif unet.get("encoder_hid_dim_type"):
        reason = "its unet takes an image prompt (an IP-Adapter?)"
    if reason:
        raise CheckpointError(f"{checkpoint.name} cannot be exported: {reason}")

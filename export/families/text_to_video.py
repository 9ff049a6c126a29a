"""ModelScope text-to-video and its descendants, such as Zeroscope: a UNet of three dimensions.

Reads a saved TextToVideoSDPipeline.

Source: Wang et al., "ModelScope Text-to-Video Technical Report", 2023;
diffusers.TextToVideoSDPipeline (tests/export/test_text_to_video.py).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import UNet3DConditionModel

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.components.denoiser import make_side_limit, make_unet_sizes
from mutoscope.export.components.loading import (
    check_classes,
    check_no_motion_adapter,
    load_component,
    load_scheduler,
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
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.loras.files import read_weight_shapes
from mutoscope.export.scheduler_tables import name_scheduler
from mutoscope.runtime.manifest import (
    DefaultsRecord,
    LatentsRecord,
    LimitRecord,
    LimitsRecord,
    TensorRecord,
)

FAMILY = "text-to-video"
# What diffusers.TextToVideoSDPipeline does where the caller says nothing; it says of its 16 frames
# that they are two seconds.
DEFAULT_NUM_FRAMES = 16
DEFAULT_NUM_INFERENCE_STEPS = 50
DEFAULT_GUIDANCE_SCALE = 9.0
DEFAULT_FRAME_RATE = 8.0
# Of the published models, in latent pixels.
DEFAULT_SAMPLE_SIZE = 32

COMPONENT_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet3DConditionModel",),
    "vae": ("AutoencoderKL",),
}


def open_family(checkpoint: Checkpoint) -> FamilyExport:
    """Return a ModelScope checkpoint as a family; weights are read later, one part at a time.

    Raises:
        CheckpointError: A part is absent, of another class, or does not fit the others.
    """
    check_classes(checkpoint, "a ModelScope text-to-video checkpoint", COMPONENT_CLASSES)
    check_text_encoder(checkpoint)
    unet, vae = checkpoint.load_config("unet"), checkpoint.load_config("vae")
    _check_fit(checkpoint, unet, vae)
    vae_scale_factor = find_vae_scale_factor(vae)
    # The pipeline makes images of its frames before each step of the scheduler.
    latents = LatentsRecord(unet["in_channels"], vae_scale_factor, step_noise_frames_first=True)
    side = make_side_limit(unet, vae_scale_factor)
    scheduler = load_scheduler(checkpoint)
    size = (unet.get("sample_size") or DEFAULT_SAMPLE_SIZE) * vae_scale_factor
    defaults = DefaultsRecord(
        scheduler=name_scheduler(type(scheduler).__name__),
        num_inference_steps=DEFAULT_NUM_INFERENCE_STEPS,
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        height=size,
        width=size,
        num_frames=DEFAULT_NUM_FRAMES,
        frame_rate=DEFAULT_FRAME_RATE,
    )
    return FamilyExport(
        family=FAMILY,
        component_makers={
            "text_encoder": lambda: make_text_encoder(checkpoint),
            "unet": lambda: make_unet(checkpoint),
            **make_decoders(checkpoint, latents),
        },
        scheduler=scheduler,
        tokenizers={"input_ids": find_tokenizer(checkpoint)},
        latents=latents,
        # Nothing in the model counts frames: it has no position embeddings.
        limits=LimitsRecord(height=side, width=side, num_frames=LimitRecord(1)),
        defaults=apply_checkpoint_defaults(checkpoint.folder, defaults),
        classes={
            name: checkpoint.component_classes[name] for name in ("text_encoder", "unet", "vae")
        },
        weight_shapes={
            "unet": lambda: read_weight_shapes(checkpoint.component_folder("unet")),
            "text_encoder": lambda: read_text_shapes(checkpoint),
        },
    )


class Denoiser(torch.nn.Module):
    """UNet3DConditionModel, with float32 inputs and output."""

    def __init__(self, unet: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """Return the model output [B, C, F, h, w]."""
        dtype = self.unet.conv_in.weight.dtype
        # The timestep stays float32, and its sinusoids are.
        output: torch.Tensor = self.unet(
            sample.to(dtype), timestep, encoder_hidden_states.to(dtype), return_dict=False
        )[0]
        return output.float()


def make_unet(checkpoint: Checkpoint) -> ComponentExport:
    """Return the UNet, its weights loaded; raises `CheckpointError`."""
    unet = load_component(checkpoint, "unet", UNet3DConditionModel)
    latents = ("batch", unet.config.in_channels, "num_frames", "latent_height", "latent_width")
    text = ("batch", "sequence", unet.config.cross_attention_dim)
    multiple = 2**unet.num_upsamplers
    sizes = functools.partial(make_unet_sizes, multiple)

    return ComponentExport(
        name="unet",
        module=Denoiser(unet),
        inputs={
            "sample": TensorRecord("float32", latents, "latents"),
            "timestep": TensorRecord("float32", (1,), "timestep"),
            "encoder_hidden_states": TensorRecord("float32", text, "prompt_embeds"),
        },
        outputs={"out_sample": TensorRecord("float32", latents)},
        multiples={"latent_height": multiple, "latent_width": multiple},
        trace_sizes=sizes(2, 3, 4, 5, sequence=7),
        parity_sizes=(sizes(1, 1, 1, 2, sequence=5), sizes(2, 6, 3, 2, sequence=9)),
    )


def _check_fit(checkpoint: Checkpoint, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """Refuse parts that do not go together."""
    check_no_motion_adapter(checkpoint)
    if unet["in_channels"] != vae["latent_channels"]:
        raise CheckpointError(
            f"{checkpoint.name} cannot be exported: its unet takes {unet['in_channels']} channels "
            f"and its latents have {vae['latent_channels']}"
        )

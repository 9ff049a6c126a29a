"""Stable Video Diffusion: an image becomes a clip, without a text.

Reads a saved StableVideoDiffusionPipeline.

Source: Blattmann et al., "Stable Video Diffusion: Scaling Latent Video Diffusion Models to Large
Datasets", 2023; diffusers.StableVideoDiffusionPipeline (tests/export/test_stable_video.py).
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig

from mutoscope.export.checkpoint import Checkpoint, load_model
from mutoscope.export.components.denoiser import make_side_limit, make_unet_sizes
from mutoscope.export.components.frames import make_frame_decoder
from mutoscope.export.components.image import make_image_encoder, make_noised_image_encoder
from mutoscope.export.components.loading import (
    check_classes,
    check_no_motion_adapter,
    load_scheduler,
)
from mutoscope.export.components.vae import find_vae_scale_factor, make_decoders
from mutoscope.export.defaults import apply_checkpoint_defaults
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.scheduler_tables import name_scheduler
from mutoscope.runtime.image_records import ImageOperation, ImageRecord
from mutoscope.runtime.manifest import (
    ConditionRecord,
    DefaultsRecord,
    LatentsRecord,
    LimitRecord,
    LimitsRecord,
    TensorRecord,
)

FAMILY = "stable-video-diffusion"
# What diffusers.StableVideoDiffusionPipeline does where the caller says nothing.
DEFAULT_NUM_INFERENCE_STEPS = 25
DEFAULT_MIN_GUIDANCE_SCALE = 1.0
DEFAULT_GUIDANCE_SCALE = 3.0
DEFAULT_FRAME_RATE = 7.0
# Its own size is that of the published models, whose configuration says another: a square of 96.
PUBLISHED_SAMPLE_SIZE = 96
PUBLISHED_HEIGHT, PUBLISHED_WIDTH = 576, 1024
# The size that the pipeline gives to the image encoder, whatever the encoder's own is.
IMAGE_PROMPT_SIZE = 224
# The published models were trained with buckets from 0 to 255, and a strength around 0.05.
# Both go into sinusoids, which know no end; larger values are used for more motion than that.
CONDITIONS = {
    "motion_bucket_id": ConditionRecord(
        127.0, 0.0, 1023.0, "how much moves; the published models were trained with 0 to 255"
    ),
    "noise_aug_strength": ConditionRecord(
        0.02, 0.0, 10.0, "noise on the image: more of it gives more motion, and less of the image"
    ),
}
# A continuous timestep is a quarter of the logarithm of sigma, which is 0.002 to 700.
CONTINUOUS_TIMESTEPS = (-1.6, 1.7)
CLIP_IMAGE, IMAGE = "clip_image", "image"
# What the UNet takes beside the timestep, in this order.
NUMBERS = ("frame_rate", *CONDITIONS)

COMPONENT_CLASSES = {
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor"),
    "unet": ("UNetSpatioTemporalConditionModel",),
    "vae": ("AutoencoderKLTemporalDecoder",),
}


def open_family(checkpoint: Checkpoint) -> FamilyExport:
    """Return a Stable Video Diffusion checkpoint as a family; weights are read later.

    Raises:
        CheckpointError: A part is absent, of another class, or does not fit the others.
    """
    check_classes(checkpoint, "a Stable Video Diffusion checkpoint", COMPONENT_CLASSES)
    unet = _load_config(checkpoint, "unet", UNetSpatioTemporalConditionModel)
    vae = _load_config(checkpoint, "vae", AutoencoderKLTemporalDecoder)
    _check_fit(checkpoint, unet, vae)
    vae_scale_factor = find_vae_scale_factor(vae)
    latents = LatentsRecord(
        vae["latent_channels"],
        vae_scale_factor,
        start_noise_frames_first=True,
        step_noise_frames_first=True,
    )
    side = make_side_limit(unet, vae_scale_factor)
    scheduler = load_scheduler(checkpoint)
    height, width = _find_size(unet["sample_size"], vae_scale_factor)
    defaults = DefaultsRecord(
        scheduler=name_scheduler(type(scheduler).__name__),
        num_inference_steps=DEFAULT_NUM_INFERENCE_STEPS,
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        min_guidance_scale=DEFAULT_MIN_GUIDANCE_SCALE,
        height=height,
        width=width,
        num_frames=unet["num_frames"],
        frame_rate=DEFAULT_FRAME_RATE,
    )
    continuous = scheduler.config.get("timestep_type") == "continuous"
    return FamilyExport(
        family=FAMILY,
        component_makers={
            "image_encoder": lambda: make_image_encoder(checkpoint, CLIP_IMAGE),
            "vae_encoder": lambda: make_noised_image_encoder(
                checkpoint,
                AutoencoderKLTemporalDecoder,
                source=IMAGE,
                strength="noise_aug_strength",
            ),
            "unet": lambda: make_unet(checkpoint, continuous_timesteps=continuous),
            **make_decoders(checkpoint, latents, lambda: make_vae_decoder(checkpoint)),
        },
        scheduler=scheduler,
        tokenizers={},
        latents=latents,
        # It tells frames apart by sinusoids of their numbers, which know no end.
        limits=LimitsRecord(height=side, width=side, num_frames=LimitRecord(1)),
        defaults=apply_checkpoint_defaults(checkpoint.folder, defaults),
        classes={
            name: checkpoint.component_classes[name] for name in ("image_encoder", "unet", "vae")
        },
        images=_make_images(checkpoint),
        conditions=CONDITIONS,
    )


class Denoiser(torch.nn.Module):
    """UNetSpatioTemporalConditionModel with frames in the third axis and its conditions apart."""

    def __init__(self, unet: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        image_latents: torch.Tensor,
        frame_rate: torch.Tensor,
        motion_bucket_id: torch.Tensor,
        noise_aug_strength: torch.Tensor,
    ) -> torch.Tensor:
        """Return the model output [B, C, F, h, w]."""
        dtype = self.unet.conv_in.weight.dtype
        frames = sample.permute(0, 2, 1, 3, 4)  # [B, F, C, h, w]
        images = image_latents.unsqueeze(1).expand(-1, frames.shape[1], -1, -1, -1)
        # It was trained with the frame rate less one.
        numbers = torch.stack((frame_rate - 1, motion_bucket_id, noise_aug_strength), dim=1)
        output: torch.Tensor = self.unet(
            torch.cat((frames, images), dim=2).to(dtype),
            timestep,
            encoder_hidden_states.to(dtype),
            added_time_ids=numbers,  # [B, 3], float32, as their sinusoids are
            return_dict=False,
        )[0]
        return output.permute(0, 2, 1, 3, 4).float()


class FrameDecoder(torch.nn.Module):
    """latents [B, C, F, h, w] -> frames uint8 [B, F, H, W, 3], each decoded with its neighbours.

    As StableVideoDiffusionPipeline.decode_latents with all frames in one chunk, then
    VideoProcessor.postprocess_video, then the rounding with which diffusers makes images.
    """

    def __init__(self, vae: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.vae = vae
        self.scale = 1 / vae.config.scaling_factor
        # TemporalDecoder casts to the type of the first parameter of its up blocks. That is the
        # weight of a norm, which is in float32 among convolutions in float16.
        vae.decoder.up_blocks[0].register_forward_pre_hook(self._cast_to_computing_type)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the frames."""
        num_frames = latents.shape[2]
        images = (self.scale * latents).permute(0, 2, 1, 3, 4).flatten(0, 1)  # [B * F, C, h, w]
        images = images.to(self.vae.decoder.conv_in.weight.dtype)
        images = self.vae.decode(images, num_frames=num_frames, return_dict=False)[0].float()
        images = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)  # [B * F, H, W, 3]
        frames = images.unflatten(0, (latents.shape[0], num_frames))
        return (frames * 255).round().to(torch.uint8)

    def _cast_to_computing_type(
        self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        dtype = self.vae.decoder.conv_in.weight.dtype
        return tuple(value.to(dtype) for value in inputs)


def make_unet(checkpoint: Checkpoint, *, continuous_timesteps: bool) -> ComponentExport:
    """Return the UNet, its weights loaded; raises `CheckpointError`."""
    unet = load_model(UNetSpatioTemporalConditionModel, checkpoint.component_folder("unet"))
    channels, axes = unet.config.out_channels, ("latent_height", "latent_width")
    latents = ("batch", channels, "num_frames", *axes)
    images = ("batch", unet.config.in_channels - channels, *axes)
    features = _find_features(unet.config.cross_attention_dim)
    multiple = 2**unet.num_upsamplers

    sizes = functools.partial(make_unet_sizes, multiple)

    def number(source: str) -> TensorRecord:
        return TensorRecord("float32", ("batch",), source)

    ranges = {"frame_rate": (1.0, 30.0), "motion_bucket_id": (0.0, 255.0)}
    ranges["noise_aug_strength"] = (0.0, 1.0)
    if continuous_timesteps:
        ranges["timestep"] = CONTINUOUS_TIMESTEPS
    return ComponentExport(
        name="unet",
        module=Denoiser(unet),
        inputs={
            "sample": TensorRecord("float32", latents, "latents"),
            "timestep": TensorRecord("float32", (1,), "timestep"),
            "encoder_hidden_states": TensorRecord(
                "float32", ("batch", 1, features), "image_embeds", unconditional="zeros"
            ),
            "image_latents": TensorRecord(
                "float32", images, "image_latents", unconditional="zeros"
            ),
            **{name: number(name) for name in NUMBERS},
        },
        outputs={"out_sample": TensorRecord("float32", latents)},
        multiples={axis: multiple for axis in axes},
        trace_sizes=sizes(2, 3, 2, 3),
        parity_sizes=(sizes(1, 1, 1, 2), sizes(2, 5, 3, 2)),
        ranges=ranges,
    )


def make_vae_decoder(checkpoint: Checkpoint) -> ComponentExport:
    """Return the decoder of the VAE, its weights loaded; raises `CheckpointError`."""
    vae = load_model(AutoencoderKLTemporalDecoder, checkpoint.component_folder("vae"))
    vae.encoder = vae.quant_conv = None  # the decoder needs neither
    return make_frame_decoder(
        FrameDecoder(vae),
        channels=vae.config.latent_channels,
        factor=find_vae_scale_factor(vae.config),
    )


def _make_images(checkpoint: Checkpoint) -> dict[str, ImageRecord]:
    """Return how the image becomes what the image encoder and the VAE take."""
    extractor = checkpoint.load_config("feature_extractor", "preprocessor_config.json")
    clip = ImageOperation(
        "normalize", mean=tuple(extractor["image_mean"]), std=tuple(extractor["image_std"])
    )
    half = (0.5, 0.5, 0.5)
    return {
        CLIP_IMAGE: ImageRecord(
            (ImageOperation("blur_and_resize", IMAGE_PROMPT_SIZE, IMAGE_PROMPT_SIZE), clip)
        ),
        IMAGE: ImageRecord(
            (
                ImageOperation("resize", "height", "width", filter="lanczos"),
                ImageOperation("normalize", mean=half, std=half),
            )
        ),
    }


def _load_config(checkpoint: Checkpoint, component: str, model_class: Any) -> dict[str, Any]:
    """Return a component's configuration, with what diffusers takes where it says nothing."""
    parameters = inspect.signature(model_class.__init__).parameters.values()
    usual = {it.name: it.default for it in parameters if it.default is not it.empty}
    return {**usual, **checkpoint.load_config(component)}


def _find_size(sample_size: Any, vae_scale_factor: int) -> tuple[int, int]:
    """Return the default height and width in pixels."""
    if sample_size in (None, PUBLISHED_SAMPLE_SIZE):
        return PUBLISHED_HEIGHT, PUBLISHED_WIDTH
    sides = sample_size if isinstance(sample_size, list | tuple) else (sample_size, sample_size)
    return sides[0] * vae_scale_factor, sides[1] * vae_scale_factor


def _check_fit(checkpoint: Checkpoint, unet: dict[str, Any], vae: dict[str, Any]) -> None:
    """Refuse parts that do not go together, and what has no place."""
    check_no_motion_adapter(checkpoint)
    encoder = CLIPVisionConfig.from_dict(checkpoint.load_config("image_encoder"))
    channels = vae["latent_channels"]
    width, embedding = (
        unet["projection_class_embeddings_input_dim"],
        unet["addition_time_embed_dim"],
    )
    reason = None
    if (unet["in_channels"], unet["out_channels"]) != (2 * channels, channels):
        reason = (
            f"its unet takes {unet['in_channels']} channels and returns {unet['out_channels']}; "
            f"with latents of {channels} it must be {2 * channels} and {channels}"
        )
    elif encoder.image_size != IMAGE_PROMPT_SIZE:
        reason = (
            f"its image encoder takes {encoder.image_size} pixels; the pipeline of diffusers "
            f"gives it {IMAGE_PROMPT_SIZE}"
        )
    elif encoder.projection_dim != _find_features(unet["cross_attention_dim"]):
        reason = (
            f"its image encoder returns {encoder.projection_dim} features and its unet takes "
            f"{_find_features(unet['cross_attention_dim'])}"
        )
    elif width != len(NUMBERS) * embedding:
        reason = (
            f"its unet embeds {width / embedding:g} numbers beside the timestep; there are "
            f"{len(NUMBERS)}: {', '.join(NUMBERS)}"
        )
    if reason:
        raise CheckpointError(f"{checkpoint.name} cannot be exported: {reason}")


def _find_features(cross_attention_dim: Any) -> int:
    """Return the features that the UNet attends to; some have a number for each block."""
    if isinstance(cross_attention_dim, list | tuple):
        return int(max(cross_attention_dim))
    return int(cross_attention_dim)

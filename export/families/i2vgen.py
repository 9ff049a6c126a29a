"""I2VGen-XL: an image and a text become a clip.

Reads a saved I2VGenXLPipeline.

Source: Zhang et al., "I2VGen-XL: High-Quality Image-to-Video Synthesis via Cascaded Diffusion
Models", 2023; diffusers.I2VGenXLPipeline (tests/export/test_i2vgen.py). One thing differs: that
pipeline draws the image's latents from the VAE's distribution with a generator that no seed sets;
here they are its mode.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, I2VGenXLUNet

from mutoscope.export.checkpoint import Checkpoint, load_model
from mutoscope.export.components.denoiser import make_side_limit, make_unet_sizes
from mutoscope.export.components.image import make_image_encoder, make_latents_encoder
from mutoscope.export.components.loading import (
    check_classes,
    check_no_motion_adapter,
    load_scheduler,
)
from mutoscope.export.components.text import (
    check_text_encoder,
    find_tokenizer,
    make_text_encoder,
)
from mutoscope.export.components.vae import find_vae_scale_factor, make_decoders
from mutoscope.export.defaults import apply_checkpoint_defaults
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.scheduler_tables import name_scheduler
from mutoscope.runtime.image_records import ImageOperation, ImageRecord
from mutoscope.runtime.manifest import (
    DefaultsRecord,
    LatentsRecord,
    LimitRecord,
    LimitsRecord,
    TensorRecord,
)

FAMILY = "i2vgen-xl"
# What diffusers.I2VGenXLPipeline does where the caller says nothing.
DEFAULT_HEIGHT, DEFAULT_WIDTH = 704, 1280
DEFAULT_NUM_FRAMES = 16
DEFAULT_NUM_INFERENCE_STEPS = 50
DEFAULT_GUIDANCE_SCALE = 9.0
DEFAULT_FRAME_RATE = 16.0
CLIP_SKIP = 1
CLIP_IMAGE, IMAGE = "clip_image", "image"
# What the graph is compared at; the rate goes into sinusoids, which know no end.
FRAME_RATES = (1.0, 32.0)

COMPONENT_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPFeatureExtractor"),
    "unet": ("I2VGenXLUNet",),
    "vae": ("AutoencoderKL",),
}


def open_family(checkpoint: Checkpoint) -> FamilyExport:
    """Return an I2VGen-XL checkpoint as a family; weights are read later, one part at a time.

    Raises:
        CheckpointError: A part is absent, of another class, or does not fit the others.
    """
    check_classes(checkpoint, "an I2VGen-XL checkpoint", COMPONENT_CLASSES)
    check_text_encoder(checkpoint)
    unet, vae = checkpoint.load_config("unet"), checkpoint.load_config("vae")
    extractor = checkpoint.load_config("feature_extractor", "preprocessor_config.json")
    _check_fit(checkpoint, unet, vae, extractor)
    vae_scale_factor = find_vae_scale_factor(vae)
    # The pipeline makes images of its frames before each step of the scheduler.
    latents = LatentsRecord(unet["in_channels"], vae_scale_factor, step_noise_frames_first=True)
    side = make_side_limit(unet, vae_scale_factor)
    scheduler = load_scheduler(checkpoint)
    defaults = DefaultsRecord(
        scheduler=name_scheduler(type(scheduler).__name__),
        num_inference_steps=DEFAULT_NUM_INFERENCE_STEPS,
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        height=DEFAULT_HEIGHT,
        width=DEFAULT_WIDTH,
        num_frames=DEFAULT_NUM_FRAMES,
        frame_rate=DEFAULT_FRAME_RATE,
    )
    return FamilyExport(
        family=FAMILY,
        component_makers={
            "text_encoder": lambda: make_text_encoder(checkpoint, clip_skip=CLIP_SKIP),
            "image_encoder": lambda: make_image_encoder(checkpoint, CLIP_IMAGE),
            "vae_encoder": lambda: make_vae_encoder(checkpoint),
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
            name: checkpoint.component_classes[name]
            for name in ("text_encoder", "image_encoder", "unet", "vae")
        },
        images=_make_images(extractor),
    )


class AdaptiveAveragePool2d(torch.nn.Module):
    """torch.nn.AdaptiveAvgPool2d as two products of matrices, for inputs of any size.

    The exporter would write the indices of torch's own into the graph, for the one size it traces.
    """

    def __init__(self, height: int, width: int) -> None:
        """Set the size of the output."""
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the averages [B, C, height, width] of images [B, C, H, W]."""
        rows = _make_averages(images.shape[-2], self.height).to(images.dtype)
        columns = _make_averages(images.shape[-1], self.width).to(images.dtype)
        return rows @ images @ columns.transpose(0, 1)


def _make_averages(length: int, count: int) -> torch.Tensor:
    """Return [count, length]: each row averages the positions from its start up to its stop."""
    index, positions = torch.arange(count)[:, None], torch.arange(length)[None]
    start = index * length // count
    stop = ((index + 1) * length + count - 1) // count  # rounded up
    inside = ((positions >= start) & (positions < stop)).float()
    return inside / inside.sum(dim=1, keepdim=True)


class Denoiser(torch.nn.Module):
    """I2VGenXLUNet with the latents of the first frame alone, and float32 inputs and output."""

    def __init__(self, unet: Any) -> None:
        """Wrap the loaded model, and make its pooling fit for any size, in place."""
        super().__init__()
        self.unet = unet
        embedding = unet.image_latents_context_embedding
        for name, layer in embedding.named_children():
            if isinstance(layer, torch.nn.AdaptiveAvgPool2d):
                height, width = cast(tuple[int, int], layer.output_size)
                setattr(embedding, name, AdaptiveAveragePool2d(height, width))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        image_embeds: torch.Tensor,
        image_latents: torch.Tensor,
        frame_rate: torch.Tensor,
    ) -> torch.Tensor:
        """Return the model output [B, C, F, h, w]."""
        dtype = self.unet.conv_in.weight.dtype
        # All frames but the first have in place of latents how far they are into the clip, 0 to 1.
        index = torch.arange(sample.shape[2], dtype=torch.float32)[:, None, None]  # [F, 1, 1]
        last = index.amax(dim=0, keepdim=True).clamp(min=1.0)  # a clip of one frame has none
        frames = torch.where(index == 0, image_latents.unsqueeze(2), index / last)
        output: torch.Tensor = self.unet(
            sample.to(dtype),
            timestep,  # float32 like the frame rate, and their sinusoids are
            frame_rate,
            frames.to(dtype),  # [B, C, F, h, w]
            image_embeds.to(dtype),
            encoder_hidden_states.to(dtype),
            return_dict=False,
        )[0]
        return output.float()


class ImageLatentsEncoder(torch.nn.Module):
    """image [B, 3, H, W] from -1 to 1 -> image_latents [B, C, h, w], scaled."""

    def __init__(self, vae: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.vae = vae
        self.scale = vae.config.scaling_factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the mode of the latents."""
        dtype = self.vae.encoder.conv_in.weight.dtype
        latents: torch.Tensor = self.vae.encode(image.to(dtype)).latent_dist.mode()
        return self.scale * latents.float()


def make_vae_encoder(checkpoint: Checkpoint) -> ComponentExport:
    """Return the encoder of the VAE, its weights loaded; raises `CheckpointError`."""
    vae = load_model(AutoencoderKL, checkpoint.component_folder("vae"))
    vae.decoder = vae.post_quant_conv = None  # half of the memory; the encoder needs neither
    return make_latents_encoder(
        ImageLatentsEncoder(vae),
        vae.config,
        inputs={"image": TensorRecord("float32", ("batch", 3, "height", "width"), IMAGE)},
        ranges={"image": (-1.0, 1.0)},
    )


def make_unet(checkpoint: Checkpoint) -> ComponentExport:
    """Return the UNet, its weights loaded; raises `CheckpointError`."""
    unet = load_model(I2VGenXLUNet, checkpoint.component_folder("unet"))
    channels, features = unet.config.in_channels, unet.config.cross_attention_dim
    latents = ("batch", channels, "num_frames", "latent_height", "latent_width")
    multiple = 2**unet.num_upsamplers
    sizes = functools.partial(make_unet_sizes, multiple)

    inputs = {
        "sample": TensorRecord("float32", latents, "latents"),
        "timestep": TensorRecord("float32", (1,), "timestep"),
        "encoder_hidden_states": TensorRecord(
            "float32", ("batch", "sequence", features), "prompt_embeds"
        ),
        "image_embeds": TensorRecord(
            "float32", ("batch", 1, features), "image_embeds", unconditional="zeros"
        ),
        "image_latents": TensorRecord(
            "float32", ("batch", channels, "latent_height", "latent_width"), "image_latents"
        ),
        "frame_rate": TensorRecord("float32", ("batch",), "frame_rate"),
    }
    return ComponentExport(
        name="unet",
        module=Denoiser(unet),
        inputs=inputs,
        outputs={"out_sample": TensorRecord("float32", latents)},
        multiples={"latent_height": multiple, "latent_width": multiple},
        trace_sizes=sizes(2, 3, 4, 5, sequence=7),
        # With three halvings, one below the 32 x 32 that the image's latents are pooled to, and one
        # above it in one axis.
        parity_sizes=(sizes(1, 1, 1, 2, sequence=5), sizes(2, 4, 5, 3, sequence=9)),
        ranges={"frame_rate": FRAME_RATES},
    )


def _make_images(extractor: dict[str, Any]) -> dict[str, ImageRecord]:
    """Return how the image becomes what the image encoder and the VAE take."""
    side = _find_side(extractor)
    half = (0.5, 0.5, 0.5)
    mean, std = tuple(extractor["image_mean"]), tuple(extractor["image_std"])
    return {
        # The square has the clip's width on both sides, whatever its height.
        CLIP_IMAGE: ImageRecord(
            (
                ImageOperation("resize_and_crop", "width", "width", filter="box"),
                ImageOperation("resize", side, side, filter="bilinear"),
                ImageOperation("normalize", mean=mean, std=std),
            )
        ),
        IMAGE: ImageRecord(
            (
                ImageOperation("resize_and_crop", "height", "width", filter="box"),
                ImageOperation("normalize", mean=half, std=half),
            )
        ),
    }


def _find_side(extractor: dict[str, Any]) -> int:
    """Return the pixels that the image encoder is given; old files have one number for both."""
    size = extractor["crop_size"]
    return int(size["height"] if isinstance(size, dict) else size)


def _check_fit(
    checkpoint: Checkpoint,
    unet: dict[str, Any],
    vae: dict[str, Any],
    extractor: dict[str, Any],
) -> None:
    """Refuse parts that do not go together."""
    check_no_motion_adapter(checkpoint)
    encoder = checkpoint.load_config("image_encoder")
    reason = None
    if unet["in_channels"] != vae["latent_channels"]:
        reason = (
            f"its unet takes {unet['in_channels']} channels and its latents have "
            f"{vae['latent_channels']}"
        )
    elif encoder["projection_dim"] != unet["cross_attention_dim"]:
        reason = (
            f"its image encoder returns {encoder['projection_dim']} features and its unet takes "
            f"{unet['cross_attention_dim']}"
        )
    elif encoder["image_size"] != _find_side(extractor):
        reason = (
            f"its image encoder takes {encoder['image_size']} pixels and its feature extractor "
            f"makes {_find_side(extractor)}"
        )
    if reason:
        raise CheckpointError(f"{checkpoint.name} cannot be exported: {reason}")

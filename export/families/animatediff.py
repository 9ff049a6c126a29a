"""AnimateDiff: a Stable Diffusion 1.5 style image model with a motion adapter.

Reads a saved AnimateDiffPipeline, or a StableDiffusionPipeline folder plus a MotionAdapter folder.

Source: Guo et al., "AnimateDiff: Animate Your Personalized Text-to-Image Diffusion Models without
Specific Tuning", 2023; diffusers.AnimateDiffPipeline (tests/export/test_animatediff.py).
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from transformers import CLIPTextModel

from mutoscope.export.checkpoint import Checkpoint, load_json_object, load_model
from mutoscope.export.defaults import apply_checkpoint_defaults
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport, FamilyExport
from mutoscope.export.scheduler_tables import name_scheduler
from mutoscope.runtime.manifest import (
    DefaultsRecord,
    LatentsRecord,
    LimitRecord,
    LimitsRecord,
    TensorRecord,
)

FAMILY = "animatediff"
# What diffusers.AnimateDiffPipeline does where the caller says nothing; the number of steps and the
# frame rate are those of the AnimateDiff examples.
DEFAULT_NUM_FRAMES = 16
DEFAULT_NUM_INFERENCE_STEPS = 25
DEFAULT_GUIDANCE_SCALE = 7.5
DEFAULT_FRAME_RATE = 8.0

COMPONENT_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNetMotionModel", "UNet2DConditionModel"),
    "vae": ("AutoencoderKL",),
}


def open_family(checkpoint: Checkpoint) -> FamilyExport:
    """Return an AnimateDiff checkpoint as a family; weights are read later, one part at a time.

    Raises:
        CheckpointError: A part is absent or of another class, or no motion adapter was given.
    """
    for component, classes in COMPONENT_CLASSES.items():
        _check_class(checkpoint, component, classes)
    unet_class = _check_motion(checkpoint)
    unet, vae = checkpoint.load_config("unet"), checkpoint.load_config("vae")
    text_encoder = checkpoint.load_config("text_encoder")
    _check_supported(checkpoint, unet, vae, text_encoder)

    vae_scale_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    unet_multiple = 2 ** (len(unet["block_out_channels"]) - 1)
    maximum = _motion_config(checkpoint, unet)["motion_max_seq_length"]
    scheduler = _load_scheduler(checkpoint)
    size = (unet.get("sample_size") or 64) * vae_scale_factor
    side = LimitRecord(
        minimum=vae_scale_factor * unet_multiple, multiple=vae_scale_factor * unet_multiple
    )
    limits = LimitsRecord(height=side, width=side, num_frames=LimitRecord(1, maximum))
    defaults = DefaultsRecord(
        scheduler=name_scheduler(type(scheduler).__name__),
        num_inference_steps=DEFAULT_NUM_INFERENCE_STEPS,
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        height=size,
        width=size,
        num_frames=min(DEFAULT_NUM_FRAMES, maximum),
        frame_rate=DEFAULT_FRAME_RATE,
    )
    return FamilyExport(
        family=FAMILY,
        component_makers={
            "text_encoder": lambda: make_text_encoder(checkpoint),
            "unet": lambda: make_unet(checkpoint),
            "vae_decoder": lambda: make_vae_decoder(checkpoint),
        },
        scheduler=scheduler,
        tokenizer_folder=checkpoint.component_folder("tokenizer"),
        tokenizer_class=checkpoint.component_classes["tokenizer"],
        max_length=_find_max_length(checkpoint),
        latents=LatentsRecord(unet["in_channels"], vae_scale_factor),
        limits=limits,
        defaults=apply_checkpoint_defaults(checkpoint.folder, defaults),
        classes={
            "text_encoder": checkpoint.component_classes["text_encoder"],
            "unet": unet_class,
            "vae": checkpoint.component_classes["vae"],
        },
    )


class TextEncoder(torch.nn.Module):
    """input_ids int64 [B, S] -> prompt_embeds [B, S, D], as AnimateDiffPipeline.encode_prompt."""

    def __init__(self, text_encoder: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states after the final norm."""
        embeds: torch.Tensor = self.text_encoder(input_ids, attention_mask=None)[0]
        return embeds.float()


class Denoiser(torch.nn.Module):
    """UNetMotionModel with one text condition for each clip instead of one for each frame."""

    def __init__(self, unet: Any) -> None:
        """Wrap the loaded model."""
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
    ) -> torch.Tensor:
        """Return the model output [B, C, F, h, w]."""
        dtype = self.unet.conv_in.weight.dtype
        per_frame = encoder_hidden_states.to(dtype).repeat_interleave(sample.shape[2], dim=0)
        # per_frame is [B * F, S, D]; the timestep stays float32, and its sinusoids are.
        output: torch.Tensor = self.unet(sample.to(dtype), timestep, per_frame, return_dict=False)[
            0
        ]
        return output.float()


class FrameDecoder(torch.nn.Module):
    """latents [B, C, F, h, w] -> frames uint8 [B, F, H, W, 3].

    As AnimateDiffPipeline.decode_latents, then VideoProcessor.postprocess_video, then the rounding
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


def make_text_encoder(checkpoint: Checkpoint) -> ComponentExport:
    """Return the text encoder, its weights loaded; raises `CheckpointError`."""
    model = load_model(CLIPTextModel, checkpoint.component_folder("text_encoder"))
    max_length, features = _find_max_length(checkpoint), model.config.hidden_size
    return ComponentExport(
        name="text_encoder",
        module=TextEncoder(model),
        inputs={"input_ids": TensorRecord("int64", ("batch", max_length), "input_ids")},
        outputs={"prompt_embeds": TensorRecord("float32", ("batch", max_length, features))},
        trace_sizes={"batch": 2},
        parity_sizes=({"batch": 1}, {"batch": 3}),
        vocabulary_size=model.config.vocab_size,
    )


def make_unet(checkpoint: Checkpoint) -> ComponentExport:
    """Return the UNet with its motion modules, its weights loaded; raises `CheckpointError`."""
    unet = _load_unet(checkpoint)
    latents = ("batch", unet.config.in_channels, "num_frames", "latent_height", "latent_width")
    features = unet.config.cross_attention_dim
    features = max(features) if isinstance(features, list | tuple) else features
    # An odd number of halvings would make diffusers take another path, fixed while tracing.
    multiple = 2**unet.num_upsamplers

    def sizes(
        batch: int, num_frames: int, height: int, width: int, sequence: int
    ) -> dict[str, int]:
        return {
            "batch": batch,
            "num_frames": num_frames,
            "latent_height": height * multiple,
            "latent_width": width * multiple,
            "sequence": sequence,
        }

    maximum = min(6, unet.config.motion_max_seq_length)
    return ComponentExport(
        name="unet",
        module=Denoiser(unet),
        inputs={
            "sample": TensorRecord("float32", latents, "latents"),
            "timestep": TensorRecord("float32", (1,), "timestep"),
            "encoder_hidden_states": TensorRecord(
                "float32", ("batch", "sequence", features), "prompt_embeds"
            ),
        },
        outputs={"out_sample": TensorRecord("float32", latents)},
        multiples={"latent_height": multiple, "latent_width": multiple},
        trace_sizes=sizes(2, 3, 2, 3, 7),
        parity_sizes=(sizes(1, 1, 1, 2, 5), sizes(2, maximum, 3, 2, 9)),
    )


def make_vae_decoder(checkpoint: Checkpoint) -> ComponentExport:
    """Return the decoder of the VAE, its weights loaded; raises `CheckpointError`."""
    vae = load_model(AutoencoderKL, checkpoint.component_folder("vae"))
    vae.encoder = vae.quant_conv = None  # half of the memory; the decoder needs neither
    axes = ("latent_height", "latent_width")
    latents = ("batch", vae.config.latent_channels, "num_frames", *axes)

    def sizes(batch: int, num_frames: int, height: int, width: int) -> dict[str, int]:
        size = {"batch": batch, "num_frames": num_frames, axes[0]: height, axes[1]: width}
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        return {**size, "height": height * factor, "width": width * factor}

    return ComponentExport(
        name="vae_decoder",
        module=FrameDecoder(vae),
        inputs={"latents": TensorRecord("float32", latents, "latents")},
        outputs={
            "frames": TensorRecord("uint8", ("batch", "num_frames", "height", "width", 3)),
        },
        trace_sizes=sizes(2, 3, 4, 6),
        parity_sizes=(sizes(1, 1, 5, 3), sizes(2, 4, 3, 7)),
    )


def _find_max_length(checkpoint: Checkpoint) -> int:
    """Return how many ids a prompt has.

    The pipeline pads to the tokenizer's length, which may be less than the model could take.
    """
    positions: int = checkpoint.load_config("text_encoder")["max_position_embeddings"]
    tokenizer = checkpoint.load_config("tokenizer", "tokenizer_config.json")
    return min(positions, int(tokenizer.get("model_max_length") or positions))


def _load_unet(checkpoint: Checkpoint) -> Any:
    """Return the UNetMotionModel, joined from image model and adapter where they are apart."""
    folder = checkpoint.component_folder("unet")
    if _unet_class(checkpoint) == "UNetMotionModel":
        return load_model(UNetMotionModel, folder)
    image_unet = load_model(UNet2DConditionModel, folder)
    adapter_folder = _adapter_folder(checkpoint)
    adapter = load_model(MotionAdapter, adapter_folder)
    try:
        unet = UNetMotionModel.from_unet2d(image_unet, adapter)
    except (RuntimeError, IndexError, ValueError) as err:
        raise CheckpointError(
            f"the motion adapter {adapter_folder.name} does not fit the unet of {checkpoint.name} "
            f"(its blocks are {tuple(adapter.config.block_out_channels)}, the unet's are "
            f"{tuple(image_unet.config.block_out_channels)}): use one made for this model"
        ) from err
    return unet.float().eval().requires_grad_(False)


def _unet_class(checkpoint: Checkpoint) -> str:
    name: str = checkpoint.load_config("unet").get("_class_name", "")
    return name


def _adapter_folder(checkpoint: Checkpoint) -> Any:
    """Return the folder of the adapter that was given, else of the one in the checkpoint."""
    if checkpoint.motion_adapter is not None:
        return checkpoint.motion_adapter
    return checkpoint.component_folder("motion_adapter")


def _motion_config(checkpoint: Checkpoint, unet: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that holds motion_max_seq_length."""
    if _unet_class(checkpoint) == "UNetMotionModel":
        config = unet
    else:
        config = load_json_object(_adapter_folder(checkpoint) / "config.json")
    return {"motion_max_seq_length": 32, **config}


def _load_scheduler(checkpoint: Checkpoint) -> Any:
    """Return the checkpoint's own scheduler."""
    config = checkpoint.load_config("scheduler", "scheduler_config.json")
    class_name = config.get("_class_name") or checkpoint.component_classes["scheduler"]
    scheduler_class = getattr(diffusers, class_name, None)
    if scheduler_class is None:
        raise CheckpointError(
            f"{checkpoint.name} has the scheduler {class_name}, which this diffusers "
            f"({diffusers.__version__}) does not have: pip install --upgrade diffusers"
        )
    return scheduler_class.from_config(config)


def _check_class(checkpoint: Checkpoint, component: str, classes: tuple[str, ...]) -> None:
    checkpoint.component_folder(component)
    found = checkpoint.component_classes[component]
    if found not in classes:
        raise CheckpointError(
            f"{checkpoint.name} has a {component} of class {found}; an AnimateDiff checkpoint has "
            f"{' or '.join(classes)}"
        )


def _check_motion(checkpoint: Checkpoint) -> str:
    """Check that there is exactly one source of motion modules; return the UNet's class."""
    unet_class = _unet_class(checkpoint)
    has_adapter = "motion_adapter" in checkpoint.component_classes
    if unet_class == "UNetMotionModel" and checkpoint.motion_adapter is not None:
        raise CheckpointError(
            f"{checkpoint.name} has motion modules already: leave out the motion adapter "
            f"{checkpoint.motion_adapter.name}"
        )
    if unet_class == "UNetMotionModel":
        return unet_class
    if checkpoint.motion_adapter is None and not has_adapter:
        raise CheckpointError(
            f"{checkpoint.name} is an image model ({checkpoint.pipeline_class}) without motion "
            "modules: give the folder of a motion adapter with --motion-adapter"
        )
    adapter = load_json_object(_adapter_folder(checkpoint) / "config.json")
    if adapter.get("_class_name") != "MotionAdapter":
        raise CheckpointError(
            f"{_adapter_folder(checkpoint).name} is a {adapter.get('_class_name')}, not a "
            "MotionAdapter: save one with adapter.save_pretrained(FOLDER)"
        )
    return unet_class


def _check_supported(
    checkpoint: Checkpoint,
    unet: dict[str, Any],
    vae: dict[str, Any],
    text_encoder: dict[str, Any],
) -> None:
    """Refuse what the graphs would leave out."""
    reason = None
    if unet.get("addition_embed_type") or unet.get("class_embed_type"):
        reason = "its unet takes more than text (an SDXL model?)"
    elif unet.get("encoder_hid_dim_type"):
        reason = "its unet takes an image prompt (an IP-Adapter?)"
    elif unet["in_channels"] != vae["latent_channels"]:
        reason = (
            f"its unet takes {unet['in_channels']} channels and its latents have "
            f"{vae['latent_channels']} (an inpainting or PIA model?)"
        )
    elif text_encoder.get("use_attention_mask"):
        reason = "its text encoder needs an attention mask"
    if reason:
        raise CheckpointError(f"{checkpoint.name} cannot be exported: {reason}")

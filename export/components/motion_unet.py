"""The UNet of AnimateDiff: an image UNet with the motion modules of an adapter between its layers.

Source: Guo et al., "AnimateDiff: Animate Your Personalized Text-to-Image Diffusion Models without
Specific Tuning", 2023; diffusers.UNetMotionModel (tests/export/test_animatediff.py).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNetMotionModel

from mutoscope.export.checkpoint import Checkpoint
from mutoscope.export.components.denoiser import make_side_limit, make_unet_sizes
from mutoscope.export.components.loading import load_component
from mutoscope.export.errors import CheckpointError
from mutoscope.export.families.contract import ComponentExport
from mutoscope.export.loras.files import read_weight_shapes
from mutoscope.export.loras.fusion import fuse_loras
from mutoscope.export.motion_adapter import (
    MotionAdapterFiles,
    check_adapter_fits,
    join_motion_unet,
    make_joined_shapes,
    read_motion_adapter,
)
from mutoscope.runtime.manifest import LimitRecord, LimitsRecord, TensorRecord

JOINED_CLASS = "UNetMotionModel"
IMAGE_CLASS = "UNet2DConditionModel"
DEFAULT_MAX_SEQ_LENGTH = 32


@dataclass(frozen=True)
class MotionUnet:
    """The UNet of a checkpoint, whose weights are not read yet.

    Attributes:
        checkpoint: Where it lies.
        config: Of the UNet.
        adapter: The motion modules, if they are apart from it.
    """

    checkpoint: Checkpoint
    config: dict[str, Any]
    adapter: MotionAdapterFiles | None

    @property
    def class_name(self) -> str:
        """The class in the checkpoint's folder."""
        return str(self.config.get("_class_name", ""))

    @property
    def maximum_frames(self) -> int:
        """How many frames the motion modules have positions for."""
        config = self.config if self.adapter is None else self.adapter.config
        return int(config.get("motion_max_seq_length") or DEFAULT_MAX_SEQ_LENGTH)

    def make_limits(self, vae_scale_factor: int) -> LimitsRecord:
        """Return the sizes that the UNet takes: whole numbers of its smallest block."""
        side = make_side_limit(self.config, vae_scale_factor)
        return LimitsRecord(side, side, num_frames=LimitRecord(1, self.maximum_frames))

    def read_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight; none is read."""
        folder = self.checkpoint.component_folder("unet")
        if self.adapter is None:
            return read_weight_shapes(folder)
        return make_joined_shapes(folder, self.adapter)

    def load(self) -> Any:
        """Return the UNetMotionModel with its LoRAs, float32; raises `CheckpointError`."""
        if self.adapter is None:
            return load_component(self.checkpoint, "unet", UNetMotionModel)
        unet = join_motion_unet(self.checkpoint.component_folder("unet"), self.adapter)
        fuse_loras(unet, self.checkpoint.loras, "unet")
        return unet


def open_motion_unet(checkpoint: Checkpoint) -> MotionUnet:
    """Return the UNet of a checkpoint, joined or beside its adapter.

    Raises:
        CheckpointError: It has no motion modules or two sets of them, or the adapter does not fit.
    """
    config = checkpoint.load_config("unet")
    given = checkpoint.motion_adapter
    if config.get("_class_name") == JOINED_CLASS:
        if given is not None:
            raise CheckpointError(
                f"{checkpoint.name} has motion modules already: leave out the motion adapter "
                f"{given.name}"
            )
        return MotionUnet(checkpoint, config, None)
    if given is None and "motion_adapter" not in checkpoint.component_classes:
        raise CheckpointError(
            f"{checkpoint.name} is an image model ({checkpoint.pipeline_class}) without motion "
            "modules: give a motion adapter with --motion-adapter, a folder or a safetensors file"
        )
    adapter = read_motion_adapter(given or checkpoint.component_folder("motion_adapter"))
    check_adapter_fits(adapter, config, checkpoint.name)
    return MotionUnet(checkpoint, config, adapter)


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
        return self.run(sample, timestep, encoder_hidden_states)

    def run(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **conditions: Any,
    ) -> torch.Tensor:
        """Return the model output; `conditions` are further arguments of the UNet."""
        dtype = self.unet.conv_in.weight.dtype
        per_frame = encoder_hidden_states.to(dtype).repeat_interleave(sample.shape[2], dim=0)
        # per_frame is [B * F, S, D]; the timestep stays float32, and its sinusoids are.
        output: torch.Tensor = self.unet(
            sample.to(dtype), timestep, per_frame, return_dict=False, **conditions
        )[0]
        return output.float()


def make_unet(motion_unet: MotionUnet) -> ComponentExport:
    """Return the UNet with its motion modules, its weights loaded; raises `CheckpointError`."""
    unet = motion_unet.load()
    return make_unet_component(unet, Denoiser(unet), {})


def make_unet_component(
    unet: Any,
    module: torch.nn.Module,
    conditions: dict[str, TensorRecord],
    ranges: dict[str, tuple[float, float]] | None = None,
) -> ComponentExport:
    """Return a denoiser around a UNetMotionModel.

    Args:
        unet: The model.
        module: What wraps it.
        conditions: Its inputs beside latents, timestep and text.
        ranges: What is drawn evenly of them.
    """
    latents = ("batch", unet.config.in_channels, "num_frames", "latent_height", "latent_width")
    features = unet.config.cross_attention_dim
    features = max(features) if isinstance(features, list | tuple) else features
    multiple = 2**unet.num_upsamplers
    sizes = functools.partial(make_unet_sizes, multiple)

    maximum = min(6, unet.config.motion_max_seq_length)
    return ComponentExport(
        name="unet",
        module=module,
        inputs={
            "sample": TensorRecord("float32", latents, "latents"),
            "timestep": TensorRecord("float32", (1,), "timestep"),
            "encoder_hidden_states": TensorRecord(
                "float32", ("batch", "sequence", features), "prompt_embeds"
            ),
            **conditions,
        },
        outputs={"out_sample": TensorRecord("float32", latents)},
        multiples={"latent_height": multiple, "latent_width": multiple},
        trace_sizes=sizes(2, 3, 2, 3, sequence=7),
        parity_sizes=(sizes(1, 1, 1, 2, sequence=5), sizes(2, maximum, 3, 2, sequence=9)),
        ranges=ranges or {},
    )

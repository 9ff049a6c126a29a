"""Runs the denoiser so that its last layer can run alone later, on deep features of an earlier run.

Source: Ma et al., DeepCache: Accelerating Diffusion Models for Free (arXiv:2312.00858).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNetMotionModel
from torch import Tensor, nn


def run_whole(
    unet: UNetMotionModel, noisy: Tensor, timesteps: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the velocity and the features that enter the last layer of the last up block.

    Args:
        unet: The denoiser.
        noisy: Latents [B, C, F, h, w], in the denoiser's dtype.
        timesteps: int64 [B].
        text: Text states [B, S, D].

    Returns:
        The velocity [B, C, F, h, w] and the deep features [B * F, D, h, w].
    """
    joined: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> None:
        joined.append(named_inputs["input_tensor"])

    last_layer = unet.up_blocks[-1].resnets[-1]
    handle = last_layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        velocity = unet(noisy, timesteps, text, return_dict=False)[0]
    finally:
        handle.remove()
    # Behind them are those that came straight from the first convolution.
    return velocity, joined[0][:, : -unet.config["block_out_channels"][0]]


def run_shallow(
    unet: UNetMotionModel, noisy: Tensor, timesteps: Tensor, text: Tensor, deep: Tensor
) -> Tensor:
    """Return the velocity that the last layer makes of deep features; arguments as above."""
    num_frames = noisy.shape[2]
    embedding = unet.time_embedding(unet.time_proj(timesteps).to(noisy.dtype))
    skip = unet.conv_in(noisy.transpose(1, 2).flatten(0, 1))
    block = unet.up_blocks[-1]
    states = block.resnets[-1](
        torch.cat([deep, skip], dim=1), embedding.repeat_interleave(num_frames, dim=0)
    )
    states = block.attentions[-1](states, encoder_hidden_states=text, return_dict=False)[0]
    states = block.motion_modules[-1](states, num_frames=num_frames)
    velocity: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(states)))
    return velocity.unflatten(0, (-1, num_frames)).transpose(1, 2)

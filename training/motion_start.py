"""Where the clip stage starts: frame number and named motion are easy to see for the denoiser.

A direction is a product of two things, the caption's word and the frame's number, and each says
nothing alone. From a plain start the denoiser uses neither for thousands of steps: attention over
frames is even, so that each frame gets the same mixture of positions, and the text's motion words
never reach the features. These two functions put both signals there; what to do with them is
learned.
"""

from __future__ import annotations

from typing import Final

import torch
from diffusers import UNetMotionModel
from torch import Tensor, nn

OWN_FRAME_SCALE: Final = 1.7
"""Scale of queries and keys in the first temporal head: its logits differ by 2 to 6 by frame."""
MOTION_CODE_SCALE: Final = 0.7
"""Deviation of the motion code in the features of each spatial transformer."""


def list_motion_modules(unet: UNetMotionModel) -> list[nn.Module]:
    """Return the temporal transformers of the denoiser."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [module for block in blocks for module in block.motion_modules]


@torch.no_grad()
def attend_to_own_frame(unet: UNetMotionModel) -> None:
    """Make the first head of each temporal attention look at its own frame, in place.

    Query and key read the fast half of the sinusoidal positions, whose product peaks at the frame
    itself; value and output pass the positions on.
    """
    for module in list_motion_modules(unet):
        for block in module.transformer_blocks:  # type: ignore[union-attr]
            for attention in (block.attn1, block.attn2):
                size = attention.to_q.out_features // attention.heads
                own = torch.eye(size, attention.to_q.in_features)
                attention.to_q.weight[:size] = OWN_FRAME_SCALE * own
                attention.to_k.weight[:size] = OWN_FRAME_SCALE * own
                attention.to_v.weight[:size] = own
                attention.to_out[0].weight[:, :size] = own.T


@torch.no_grad()
def write_motion_code(unet: UNetMotionModel, motion_states: Tensor) -> None:
    """Make the last head of each text attention write the named motion to the features, in place.

    The head attends evenly to the text and keeps what tells the motions apart.

    Args:
        unet: The denoiser.
        motion_states: Mean text state of each motion, float32 [motions, D].
    """
    mean = motion_states.mean(dim=0)
    _, deviations, directions = torch.linalg.svd(motion_states - mean, full_matrices=False)
    kept = len(motion_states) - 1  # differences of n states span n - 1 dimensions
    read = directions[:kept] * (len(motion_states) ** 0.5 / deviations[:kept, None])
    generator = torch.Generator().manual_seed(0)
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    for transformer in (entry for block in blocks for entry in block.attentions):
        attention = transformer.transformer_blocks[0].attn2
        width = attention.to_q.out_features
        first = width - width // attention.heads
        output = attention.to_out[0]
        random = torch.randn(width, kept, generator=generator)
        write = MOTION_CODE_SCALE * torch.linalg.qr(random)[0] * (width / kept) ** 0.5
        attention.to_q.weight[first:] = 0.0
        attention.to_v.weight[first:] = 0.0
        attention.to_v.weight[first : first + kept] = read
        output.weight[:, first:] = 0.0
        output.weight[:, first : first + kept] = write
        output.bias -= write @ (read @ mean)

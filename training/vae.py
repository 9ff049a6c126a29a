"""Trains the autoencoder: AutoencoderKL, 8 times smaller per side, 4 latent channels."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from training.clips import (
    BACKGROUNDS,
    NUM_FRAMES,
    SIZE,
    draw_attributes,
    draw_clips,
)
from training.loop import TrainingPlan, load_state, make_state, train

POOL_CLIPS: Final = 1500
"""Clips drawn once; frames are taken from them."""
BATCH: Final = 48
OBJECT_WEIGHT: Final = 12.0
"""Weight of a pixel that differs from the background; at 1, colours of the shapes are lost."""
KL_WEIGHT: Final = 1e-4
STATE_NAME: Final = "vae.pt"


def make_vae() -> AutoencoderKL:
    """Return an untrained autoencoder, 1.0 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def scale_pixels(frames: NDArray[np.uint8]) -> Tensor:
    """Return frames uint8 [N, H, W, 3] as a float32 tensor [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def train_vae(state_dir: Path, minutes: float) -> None:
    """Train the autoencoder on drawn frames and leave its state in `state_dir`."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    attributes = draw_attributes(rng, POOL_CLIPS)
    frames = draw_clips(rng, attributes).reshape(-1, SIZE, SIZE, 3)
    background = np.array([BACKGROUNDS[a.background] for a in attributes], np.uint8)
    background = background.repeat(NUM_FRAMES, axis=0)

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        assert isinstance(model, AutoencoderKL)
        chosen = np.random.default_rng((1, step)).integers(len(frames), size=BATCH)
        differs = (frames[chosen] != background[chosen, None, None]).any(axis=-1)
        weight = 1.0 + (OBJECT_WEIGHT - 1.0) * torch.from_numpy(differs).float()[:, None]
        pixels = scale_pixels(frames[chosen])
        posterior = model.encode(pixels.bfloat16()).latent_dist
        decoded = model.decode(posterior.sample()).sample.float()
        error = decoded - pixels
        reconstruction = (weight * (error.abs() + error.square())).mean()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return reconstruction + KL_WEIGHT * divergence

    plan = TrainingPlan(minutes=minutes, learning_rate=1.5e-3, average_decay=0.995)
    state = make_state(make_vae(), plan)
    path = state_dir / STATE_NAME
    if path.exists():
        load_state(state, path)
    train(state, compute_loss, plan, path)

"""Trains the autoencoder: AutoencoderKL, 8 times smaller per side, 4 latent channels.

There are two. A wide one finds the latents; a narrow one then learns to make the same latents of
frames and frames of them, at half the time per frame, and is what the checkpoint gets.
"""

from __future__ import annotations

from collections.abc import Callable
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
from training.loop import TrainingPlan, load_average, load_state, make_state, train

POOL_CLIPS: Final = 1500
"""Clips drawn once; frames are taken from them."""
BATCH: Final = 48
OBJECT_WEIGHT: Final = 12.0
"""Weight of a pixel that differs from the background; at 1, colours of the shapes are lost."""
KL_WEIGHT: Final = 1e-4
LATENT_WEIGHT: Final = 0.3
"""Weight of the narrow encoder's difference from the wide one."""
WIDE_CHANNELS: Final = (32, 32, 64, 64)
NARROW_CHANNELS: Final = (16, 32, 64, 64)
"""At the size of the frames, where most of the time goes, half as many."""
WIDE_STATE_NAME: Final = "vae.pt"
NARROW_STATE_NAME: Final = "vae_narrow.pt"


def make_vae(channels: tuple[int, ...]) -> AutoencoderKL:
    """Return an untrained autoencoder, 1.0 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def load_vae(state_dir: Path, *, narrow: bool) -> AutoencoderKL:
    """Return a trained autoencoder, float32, in evaluation mode, without its scaling factor."""
    vae = make_vae(NARROW_CHANNELS if narrow else WIDE_CHANNELS)
    load_average(vae, state_dir / (NARROW_STATE_NAME if narrow else WIDE_STATE_NAME))
    return vae.eval()


def scale_pixels(frames: NDArray[np.uint8]) -> Tensor:
    """Return frames uint8 [N, H, W, 3] as a float32 tensor [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


class DrawnFrames:
    """Draws training batches of frames."""

    def __init__(self) -> None:
        """Draw the clips that all frames are taken from."""
        rng = np.random.default_rng(0)
        attributes = draw_attributes(rng, POOL_CLIPS)
        self.frames = draw_clips(rng, attributes).reshape(-1, SIZE, SIZE, 3)
        background = np.array([BACKGROUNDS[a.background] for a in attributes], np.uint8)
        self.background = background.repeat(NUM_FRAMES, axis=0)

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Return pixels float32 [B, 3, H, W] in [-1, 1] and their weights float32 [B, 1, H, W]."""
        chosen = np.random.default_rng((1, step)).integers(len(self.frames), size=BATCH)
        differs = (self.frames[chosen] != self.background[chosen, None, None]).any(axis=-1)
        weight = 1.0 + (OBJECT_WEIGHT - 1.0) * torch.from_numpy(differs).float()[:, None]
        return scale_pixels(self.frames[chosen]), weight


def measure_reconstruction(decoded: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted error of decoded pixels, a float32 number."""
    error = decoded.float() - pixels
    return (weight * (error.abs() + error.square())).mean()


def train_vae(state_dir: Path, minutes: float) -> None:
    """Train the wide autoencoder on drawn frames and leave its state in `state_dir`."""
    torch.manual_seed(0)
    data = DrawnFrames()

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        assert isinstance(model, AutoencoderKL)
        pixels, weight = data.draw(step)
        posterior = model.encode(pixels.bfloat16()).latent_dist
        reconstruction = measure_reconstruction(
            model.decode(posterior.sample()).sample, pixels, weight
        )
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return reconstruction + KL_WEIGHT * divergence

    _train(make_vae(WIDE_CHANNELS), compute_loss, minutes, state_dir / WIDE_STATE_NAME)


def train_narrow_vae(state_dir: Path, minutes: float) -> None:
    """Train the narrow autoencoder to the latents of the wide one, which `state_dir` holds."""
    torch.manual_seed(3)
    data = DrawnFrames()
    wide = load_vae(state_dir, narrow=False)
    narrow = make_vae(NARROW_CHANNELS)
    _copy_equal_shapes(wide, narrow)
    wide = wide.bfloat16().requires_grad_(False)

    def compute_loss(model: nn.Module, step: int, progress: float) -> Tensor:
        del progress
        assert isinstance(model, AutoencoderKL)
        pixels, weight = data.draw(step)
        with torch.no_grad():
            wanted = wide.encode(pixels.bfloat16()).latent_dist
        found = model.encode(pixels.bfloat16()).latent_dist
        difference = (found.parameters.float() - wanted.parameters.float()).square().mean()
        decoded = model.decode(wanted.sample()).sample
        reconstruction = measure_reconstruction(decoded, pixels, weight)
        return reconstruction + LATENT_WEIGHT * difference

    _train(narrow, compute_loss, minutes, state_dir / NARROW_STATE_NAME)


def _train(
    vae: AutoencoderKL,
    compute_loss: Callable[[nn.Module, int, float], Tensor],
    minutes: float,
    path: Path,
) -> None:
    plan = TrainingPlan(minutes=minutes, learning_rate=1.5e-3, average_decay=0.995)
    state = make_state(vae, plan)
    if path.exists():
        load_state(state, path)
    train(state, compute_loss, plan, path)


def _copy_equal_shapes(source: nn.Module, target: nn.Module) -> None:
    """Give `target`, in place, the weights of `source` that have its shapes."""
    weights = target.state_dict()
    shared = {
        name: it for name, it in source.state_dict().items() if it.shape == weights[name].shape
    }
    target.load_state_dict({**weights, **shared})
